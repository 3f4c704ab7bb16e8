package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

const (
	stormEdits   = 1000
	stormBurst   = 100 // edits, after which all must be in order, and nothing get through
	stormSlow    = 4   // bursts, the first ones, with nft: so slow that no repair is held back
	stormCalm    = 100 // packets of each flood that must be kept out then
	stormPort    = 5432
	stormRate    = 500 // packets a second of each flood
	stormMost    = 200_000
	stormTimeout = 150 * time.Second
	stormSeed    = "PGHARDEND_STORM_SEED" // repeats a storm, as far as the kernel's timing lets it

	stormPace = 80 * time.Millisecond // between the edits of a slow burst

	// stormSlack is how long before a commit is heard of it may have been in force, and how long a packet may wait between
	// its time stamp and the rules.
	stormSlack = 5 * time.Millisecond
)

// storm is a node whose rules and sets others edit all the time, while a sibling floods it.
type storm struct {
	*slice
	backend string
	rand    *rand.Rand
	last    int
	model   *stormModel
	edits   []*stormEdit
	calm    []time.Time // when all was seen to be in order
	heard   []stormCommit
	told    []control.Event
}

// However others edit, with each tool there is: it ends with our rules and theirs, and the flood of a sibling gets in only
// between an edit and its repair.
func TestStorm(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		s := newStorm(t, backend)
		s.openWithoutRules(t)
		must(t, s.agent.Start())
		s.settled(t)

		events := s.follow(t)
		commits, arrivals, began := s.commits(t), s.arrivals(t), time.Now()
		floods := s.flood(t, stormMost)
		sh := s.shell(t)
		for i := range stormEdits / stormBurst {
			s.burst(t, sh, backend == "nft" && i < stormSlow)
			s.settled(t)
			s.keptOut(t, floods)
		}
		took := time.Since(began)
		sent, delivered := floodsEnd(t, floods)
		times, counts, err := arrivals.end()
		must(t, err)
		if counts != delivered {
			t.Errorf("the floods' counters say that %d got in, the time stamps %d", delivered, counts)
		}
		s.heard, err = commits.end()
		must(t, err)
		s.told = events()
		s.edited(t, took)
		s.named(t)
		s.onlyInside(t, s.windows(t), times, sent, took)
	})
}

func newStorm(t *testing.T, backend string) *storm {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv(stormSeed); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		must(t, err)
	}
	t.Logf("%s=%d", stormSeed, seed)
	ctx, cancel := context.WithTimeout(t.Context(), stormTimeout)
	t.Cleanup(cancel)
	bed, err := testbed.New(ctx, "storm", []testbed.HostSpec{
		{Name: "pg-0", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64"}},
		{Name: "pool-0", Addresses: []string{stormPeer[0] + "/24", stormPeer[1] + "/64"}},
		{Name: "sibling", Addresses: []string{stormEvil[0] + "/24", stormEvil[1] + "/64"}},
	})
	must(t, err)
	t.Cleanup(func() { must(t, bed.Close()) })
	s := &storm{slice: &slice{t: t, ctx: ctx, bed: bed, node: bed.Host("pg-0"), peer: bed.Host("pool-0"), sibling: bed.Host("sibling")},
		backend: backend, rand: rand.New(rand.NewPCG(seed, 0)), model: newStormModel()}
	s.agent, err = testbed.NewAgent(ctx, s.node, testbed.AgentConfig{Backend: backend, Peers: testbed.Peers{
		Instance: "orders-prod",
		Nodes:    []testbed.Peer{testbed.PeerOf(s.node, "postgres"), testbed.PeerOf(s.peer, "pgpool")},
		Networks: map[string][]string{"control_plane": {"10.0.0.0/24", "fd00:10::/64"}},
	}})
	must(t, err)
	for _, tool := range stormTool {
		run(t, s.node, tool+"-"+backend+" -P INPUT ACCEPT") // makes the table
	}
	if backend == "nft" {
		run(t, s.node, "nft add table inet storm")
	}
	return s
}

// flood starts UDP and SYNs, by IPv4 and IPv6, in this order.
func (s *storm) flood(t *testing.T, total int) (list []*testbed.Flood) {
	t.Helper()
	for _, at := range families(s.node) {
		to := netip.AddrPortFrom(at, stormPort)
		for _, spec := range []testbed.FloodSpec{testbed.UDPFlood(to, stormRate, total), testbed.SYNFlood(to, stormRate, total)} {
			f, err := s.sibling.Flood(s.ctx, spec)
			must(t, err)
			t.Cleanup(func() { _, _ = f.Stop() }) // stop counts
			list = append(list, f)
		}
	}
	return list
}

// floodsEnd stops them and returns what was sent in all, and what of each got in.
func floodsEnd(t *testing.T, list []*testbed.Flood) (sent int, delivered [4]int) {
	t.Helper()
	for i, f := range list {
		r, err := f.Stop()
		must(t, err)
		if r.Arrived != r.Sent {
			t.Errorf("flood %d: %s; want all to arrive", i, r)
		}
		sent += r.Sent
		delivered[i] = r.Delivered
	}
	return sent, delivered
}

// openWithoutRules is the control: the same floods get in, and the same counters see them.
func (s *storm) openWithoutRules(t *testing.T) {
	t.Helper()
	const total = 200
	arrivals := s.arrivals(t)
	list := s.flood(t, total)
	for _, f := range list {
		<-f.Done()
	}
	_, delivered := floodsEnd(t, list)
	_, counts, err := arrivals.end()
	must(t, err)
	if all := [4]int{total, total, total, total}; delivered != all || counts != all {
		t.Fatalf("without rules %d and %d of %d packets get in, so the test proves nothing", delivered, counts, all)
	}
}

func (s *storm) burst(t *testing.T, sh *stormShell, slow bool) {
	t.Helper()
	pace := time.NewTicker(stormPace)
	defer pace.Stop()
	for range stormBurst {
		s.edit(t, sh)
		s.edits[len(s.edits)-1].slow = slow
		if slow {
			<-pace.C
		}
	}
}

// edit makes one and, if its command says that it did, does the same in the model.
func (s *storm) edit(t *testing.T, sh *stormShell) {
	t.Helper()
	e := s.next()
	must(t, sh.run(e))
	s.edits = append(s.edits, e)
	if e.code == 0 && e.done != nil {
		e.done()
	}
}

// settled waits until there is nothing to put back, and looks at what is others'.
func (s *storm) settled(t *testing.T) {
	t.Helper()
	must(t, s.agent.Await(s.ctx, "an empty plan", func(ctx context.Context) error {
		r, err := s.agent.CLI(ctx, "plan")
		if err == nil && r.Code != 0 {
			err = errors.New(r.Stdout + r.Stderr)
		}
		return err
	}))
	s.calm = append(s.calm, time.Now())
	s.same(t)
}

// keptOut waits for some more packets of the floods, of which none may get in.
func (s *storm) keptOut(t *testing.T, floods []*testbed.Flood) {
	t.Helper()
	var before, after []testbed.FloodResult
	for _, f := range floods {
		before = append(before, f.Now())
	}
	must(t, testbed.Await(s.ctx, "more packets", func(context.Context) error {
		after = nil
		for i, f := range floods {
			if r := f.Now(); r.Arrived < before[i].Arrived+stormCalm {
				return fmt.Errorf("%s", r)
			}
			after = append(after, f.Now())
		}
		return nil
	}))
	for i := range floods {
		if n := after[i].Delivered - before[i].Delivered; n > 0 {
			t.Errorf("%d packets of flood %d got in though all was in order and nobody edited", n, i)
		}
	}
}

// follow collects what the daemon tells; the function that it returns ends that.
func (s *storm) follow(t *testing.T) func() []control.Event {
	t.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	cmd := s.agent.Command(ctx, "events", "--json", "--follow", "--limit", "0")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var list []control.Event
	var mu sync.Mutex
	done := make(chan struct{})
	go func() {
		defer close(done)
		in := json.NewDecoder(out)
		for {
			var e control.Event
			if in.Decode(&e) != nil {
				return
			}
			mu.Lock()
			list = append(list, e)
			mu.Unlock()
		}
	}()
	end := sync.OnceFunc(func() {
		cancel()
		<-done
		_ = cmd.Wait() // it was killed
	})
	t.Cleanup(end)
	return func() []control.Event {
		t.Helper()
		want := s.lastEvent(t)
		must(t, testbed.Await(s.ctx, fmt.Sprintf("event %d", want), func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			if n := len(list); n == 0 || list[n-1].Seq < want {
				return fmt.Errorf("%d events", n)
			}
			return nil
		}))
		end()
		return slices.DeleteFunc(list, func(e control.Event) bool { // that are no repairs of rules and sets
			return e.Kind != "drift" || e.Resource != "firewall" || e.Repaired.IsZero()
		})
	}
}

// lastEvent is the newest record of the journal.
func (s *storm) lastEvent(t *testing.T) uint64 {
	t.Helper()
	var e control.Event
	r := s.want(0, nil, "events", "--json", "--limit", "1")
	must(t, json.Unmarshal([]byte(r.Stdout), &e))
	return e.Seq
}

// edited says what the storm was made of.
func (s *storm) edited(t *testing.T, took time.Duration) {
	t.Helper()
	done, attacks := map[string]int{}, 0
	for _, e := range s.edits {
		if e.code != 0 {
			continue
		}
		words := strings.Fields(e.script)
		done[strings.TrimPrefix(cmp.Or(words[0], "?"), "exec")+words[1]]++
		if e.opens != [2]bool{} {
			attacks++
		}
	}
	t.Logf("%d edits in %s, calm included; done: %v, %d of them against what keeps the flood out", len(s.edits), took.Round(time.Second), done, attacks)
	if attacks < stormEdits/20 {
		t.Errorf("only %d edits were against what keeps the flood out", attacks)
	}
	for _, tool := range []string{"iptables-" + s.backend, "ip6tables-" + s.backend, "iptables-" + s.backend + "-restore", "ipset"} {
		if done[tool] == 0 {
			t.Errorf("%s did nothing", tool)
		}
	}
}

// named looks whether the events say who it was, where the kernel tells.
func (s *storm) named(t *testing.T) {
	t.Helper()
	drifts, announced, named := 0, 0, 0
	for _, e := range s.told {
		drifts++
		if e.Trigger == "event" {
			announced++
			if e.Who != nil && e.Who.PID > 0 && (strings.HasPrefix(e.Who.Command, "ip") || e.Who.Command == "nft") {
				named++
			} else if s.backend == "nft" {
				t.Errorf("a repair without a culprit: %+v", e)
			}
		}
	}
	t.Logf("%d repairs; %d of them because of a notification, %d with the culprit's name", drifts, announced, named)
	if drifts < 5 { // polls find many at once
		t.Errorf("only %d drifts were repaired", drifts)
	}
	if s.backend == "nft" && announced < 10 {
		t.Errorf("only %d repairs were announced", announced)
	}
}
