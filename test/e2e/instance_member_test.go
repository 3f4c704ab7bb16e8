package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

const (
	memberSwaps = 4    // by each way to replace the file
	memberRate  = 3000 // datagrams a second of each family
	memberMost  = 60_000
)

// member is an instance whose pool-0 is watched while its peer list is replaced again and again: the application is in the
// network applications, or the control plane's host is instead, and then there is one more pgpool, which makes the set
// anew that the kept peer is in.
type member struct {
	*instance
	agent   *testbed.Agent
	node    *testbed.Host
	backend string
}

// However peers.yaml is replaced, those who are new get in, those who are gone do not, no packet of a kept peer is lost, and
// nothing of a stranger gets through.
func TestInstanceMembership(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		in := startInstance(t, testbed.InstanceSpec{Name: "member", Backend: backend, Interval: "200ms"})
		for _, at := range families(in.Host("pool-0")) {
			_, err := in.Host("pool-0").ServeTCP(in.ctx, netip.AddrPortFrom(at, 9999))
			must(t, err)
		}
		for _, way := range []struct {
			name string
			test func(*member)
		}{{"rename", memberRename}, {"in place", memberInPlace}, {"half-written", memberHalfWritten}, {"symlink", memberSymlink}} {
			t.Run(way.name, func(t *testing.T) {
				m := &member{&instance{in.Instance, t, in.ctx}, in.Agent("pool-0"), in.Host("pool-0"), backend}
				m.undisturbed(func() { way.test(m) })
			})
		}
	})
}

// undisturbed runs f while a kept peer streams and a stranger floods.
func (m *member) undisturbed(f func()) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel() // also after a failure in f
	var streams []*testbed.Stream
	var floods []*testbed.Flood
	for _, at := range families(m.node) {
		s, err := m.Host("pool-1").Stream(ctx, m.node, netip.AddrPortFrom(at, 9694), memberRate)
		must(m.t, err)
		defer func() { _, _ = s.Stop() }() // the one below counts
		streams = append(streams, s)
		for _, spec := range []testbed.FloodSpec{
			testbed.SYNFlood(netip.AddrPortFrom(at, 9999), 300, memberMost),
			testbed.UDPFlood(netip.AddrPortFrom(at, 9694), 300, memberMost),
			testbed.EchoFlood(at, 100, memberMost),
		} {
			flood, err := m.Sibling().Flood(ctx, spec)
			must(m.t, err)
			defer func() { _, _ = flood.Stop() }() // the one below counts
			floods = append(floods, flood)
		}
	}
	f()
	for _, flood := range floods {
		if r, err := flood.Stop(); err != nil || r.Sent < 100 || r.Arrived != r.Sent || r.Delivered != 0 {
			m.t.Errorf("the stranger's flood: %s, %v; want all to arrive and none to be delivered", r, err)
		}
	}
	for _, s := range streams {
		r, err := s.Stop()
		if err != nil || !r.Whole() {
			m.t.Errorf("the kept peer's stream: %s, %v", r, err)
		}
		m.t.Logf("stream: %s", r)
	}
}

// list is the peer list with one of two hosts in applications, and that host and the other one.
func (m *member) list(i int) (text string, in, out *testbed.Host) {
	m.t.Helper()
	in, out = m.App(), m.Control()
	peers := m.Peers()
	if i%2 == 0 {
		in, out = out, in
		peers = peers.With(testbed.Peer{Name: "pool-9", Role: "pgpool", Addresses: []string{"10.20.1.29", "fd00:20:1::29"}})
	}
	text, err := peers.WithNetwork("applications", in.V4().String()+"/32", in.V6().String()+"/128").YAML()
	must(m.t, err)
	return text, in, out
}

// swap replaces the list by the way of write, several times over.
func (m *member) swap(write func(text string)) {
	m.t.Helper()
	for i := range memberSwaps {
		text, in, out := m.list(i)
		before := time.Now()
		write(text)
		m.awaitMembers(in, out)
		m.t.Logf("%s is in and %s is out after %s", in.Name(), out.Name(), time.Since(before).Round(10*time.Millisecond))
		for _, at := range families(m.node) {
			if v, err := in.Connect(m.ctx, netip.AddrPortFrom(at, 9999)); err != nil || v != testbed.Open {
				m.t.Errorf("%s to %s: %s, %v", in.Name(), at, v, err)
			}
		}
	}
}

// awaitMembers waits until packets of one host get in and those of the other do not, by both families.
func (m *member) awaitMembers(in, out *testbed.Host) {
	m.t.Helper()
	must(m.t, m.agent.Await(m.soon(), "the new list in force", func(ctx context.Context) error {
		var shots []testbed.Shot
		for _, at := range families(m.node) {
			to := netip.AddrPortFrom(at, 9999)
			shots = append(shots, testbed.Shot{From: in, Probe: testbed.TCPProbe(to, testbed.SYN)}, testbed.Shot{From: out, Probe: testbed.TCPProbe(to, testbed.SYN)})
		}
		fates, err := m.Bed.SendAll(ctx, shots)
		if err != nil {
			return err
		}
		for i, f := range fates {
			if want := shots[i].From == in; !f.Arrived || f.Delivered != want || f.Answer != nil != want {
				return fmt.Errorf("%s to %s: %s", shots[i].From.Name(), shots[i].Probe.To, f)
			}
		}
		return nil
	}))
}

// soon ends before the test does, so that what was seen last is told.
func (in *instance) soon() context.Context {
	ctx, cancel := context.WithTimeout(in.ctx, time.Minute)
	in.t.Cleanup(cancel)
	return ctx
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	return info.Sys().(*syscall.Stat_t).Ino
}

func memberRename(m *member) {
	m.swap(func(text string) {
		before := inode(m.t, m.agent.PeersPath)
		must(m.t, testbed.WriteFile(m.agent.PeersPath, text))
		if inode(m.t, m.agent.PeersPath) == before {
			m.t.Error("the file was not replaced")
		}
	})
}

func memberInPlace(m *member) {
	before := inode(m.t, m.agent.PeersPath)
	m.swap(func(text string) { must(m.t, os.WriteFile(m.agent.PeersPath, []byte(text), 0o600)) })
	if inode(m.t, m.agent.PeersPath) != before {
		m.t.Error("the file was replaced, not written")
	}
}

// memberSymlink replaces a directory's link as Kubernetes does with its volumes, and the file's own link.
func memberSymlink(m *member) {
	number := 0
	link := func(target, path string) {
		m.t.Helper()
		must(m.t, errors.Join(os.Symlink(target, path+".new"), os.Rename(path+".new", path)))
	}
	version := func(text string) string {
		m.t.Helper()
		number++
		dir := fmt.Sprintf("version-%d", number)
		must(m.t, os.Mkdir(filepath.Join(m.agent.Dir, dir), 0o700))
		must(m.t, os.WriteFile(filepath.Join(m.agent.Dir, dir, "peers.yaml"), []byte(text), 0o600))
		return dir
	}
	current := filepath.Join(m.agent.Dir, "current")
	text, _, _ := m.list(1)
	link(version(text), current)
	link("current/peers.yaml", m.agent.PeersPath)
	m.awaitStatus(m.agent, "status ok", control.StateOK)
	m.swap(func(text string) { link(version(text), current) })
	m.swap(func(text string) { link(filepath.Join(version(text), "peers.yaml"), m.agent.PeersPath) })
}

// memberHalfWritten writes in place with pauses, in each of which the daemon has looked and settled.
func memberHalfWritten(m *member) {
	text, in, out := m.list(0)
	other, _, _ := m.list(1)
	must(m.t, os.WriteFile(m.agent.PeersPath, []byte(other), 0o600))
	m.awaitMembers(out, in)
	before := snapshot(m.t, m.node, m.backend)
	file, err := os.OpenFile(m.agent.PeersPath, os.O_WRONLY|os.O_TRUNC, 0)
	must(m.t, err)
	defer file.Close()
	written := 0
	for _, piece := range []struct{ upTo, says string }{
		{"", "peers.yaml:1: the file is empty"},
		{"instance: mem", "peers.yaml:2: the last line has no end"},
		{"role: pgpool\n", "peers.yaml:"},
		{"name: pool-1", "the last line has no end"},
		{"fd00:20:1::22']\n", "networks.applications: the network had 2 entries and is gone, the list looks cut off"},
		{"networks:\n", "networks: has no value"},
		{"control_plane:\n", "networks.control_plane: has no value"},
		{"- fd00:10::/64\n", "networks.dns: the network had 2 entries and is gone, the list looks cut off"},
	} {
		end := written + strings.Index(text[written:], piece.upTo) + len(piece.upTo)
		if !strings.HasSuffix(text[:end], piece.upTo) {
			m.t.Fatalf("%q is not in\n%s", piece.upTo, text)
		}
		_, err := file.WriteString(text[written:end])
		must(m.t, err)
		written = end
		m.awaitStatus(m.agent, fmt.Sprintf("degraded, with the file up to %q", piece.upTo), control.StateDegraded, piece.says, "the last good configuration stays in force")
		sameRules(m.t, "with the file up to "+piece.upTo, before, snapshot(m.t, m.node, m.backend))
	}
	_, err = file.WriteString(text[written:])
	must(m.t, err)
	m.awaitMembers(in, out)
	m.awaitStatus(m.agent, "status ok", control.StateOK)
}

// awaitStatus waits for a state whose reasons have all the words.
func (in *instance) awaitStatus(a *testbed.Agent, what, state string, words ...string) control.Status {
	in.t.Helper()
	var st control.Status
	must(in.t, a.Await(in.soon(), what, func(ctx context.Context) (err error) {
		if st, err = a.Status(ctx); err != nil {
			return err
		}
		if reasons := strings.Join(st.Reasons, "\n"); st.State != state || !containsAll(reasons, words) {
			return fmt.Errorf("state %s: %s", st.State, reasons)
		}
		return nil
	}))
	return st
}

// The daemon ends what a removed peer still has open, be it to the node or from it, by the list of this node alone: the
// peers themselves do not know of it yet. Others' connections lose nothing.
func TestF12_RemovedPeerIsCutByTheDaemon(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		in := startInstance(t, testbed.InstanceSpec{Name: "removed", Backend: backend})
		node, kept, gone := in.Host("pg-0"), []*ctTraffic{}, []*ctTraffic{}
		for _, fam := range firewall.Families {
			kept = append(kept, ctStart(t, "tcp", in.Host("pool-0"), node, fam, 0, 5432))
			for _, removed := range []string{"pool-2", "pg-1"} {
				gone = append(gone, ctStart(t, "tcp", in.Host(removed), node, fam, 0, 5432))
			}
			gone = append(gone, ctStart(t, "tcp", node, in.Host("pg-1"), fam, 0, 5432))
		}
		ctPass(t, 20, slices.Concat(kept, gone))
		a := in.Agent("pg-0")
		before := time.Now()
		must(t, a.WritePeers(in.Peers().Without("pool-2", "pg-1")))
		must(t, a.Await(in.soon(), "the removed peers' connections to be untracked", func(ctx context.Context) error {
			var all []firewall.Connection
			err := node.Do(func() (err error) {
				all, err = firewall.ObserveConnections(ctx)
				return err
			})
			for _, c := range all {
				if ctOf(c, gone) {
					err = errors.Join(err, errors.New(c.String()))
				}
			}
			return err
		}))
		t.Logf("%s: %d connections are cut after %s", backend, len(gone), time.Since(before).Round(10*time.Millisecond))
		ctDead(t, gone, kept)
		st := in.awaitStatus(a, "status ok", control.StateOK)
		for _, c := range gone {
			in.wantCut(st, c)
		}
		for _, c := range slices.Concat(kept, gone) {
			c.stop()
		}
	})
}

// wantCut looks for the event that names a connection.
func (in *instance) wantCut(st control.Status, c *ctTraffic) {
	in.t.Helper()
	words := []string{"connection tcp", c.client.LocalAddr().String(), c.client.RemoteAddr().String(), "not allowed any more"}
	for _, d := range st.Drift {
		if d.Resource == "connections" && !d.Repaired.IsZero() && containsAll(d.What, words) {
			return
		}
	}
	in.t.Errorf("no event names the cut of %s (%s): %+v", c.name, c.client.LocalAddr(), st.Drift)
}

// A suspicious list changes no rule and no set, is named with file and line, and is gone without a trace when the good one
// is back. --force accepts what could be meant, and nothing that cannot be.
func TestInstanceSuspiciousLists(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		in := startInstance(t, testbed.InstanceSpec{Name: "suspicious", Backend: backend, Interval: "200ms", Networks: map[string][]string{
			"applications": {"10.50.0.0/24", "10.51.0.0/24", "10.52.0.0/24", "10.53.0.0/24", "fd00:50::/64"},
		}})
		good := in.Peers()
		text := func(p testbed.Peers) string {
			out, err := p.YAML()
			must(t, err)
			return out
		}
		other := good.Clone()
		other.Instance = "somebody-elses"
		wide := text(good.WithNetwork("applications", append(slices.Clone(good.Networks["applications"]), "10.0.0.0/8")...))
		few := text(good.Without("pg-0", "pg-1", "pool-1"))
		suspect := func(t *testing.T) *suspicious {
			return &suspicious{&instance{in.Instance, t, in.ctx}, in.Agent("pool-0"), backend, text(good)}
		}
		for _, row := range []struct {
			name, text, says string
			forced           string // what a set has once it is accepted; empty: it never is
		}{
			{"empty", "", `peers.yaml(:1)?: `, ""},
			{"cut off in the middle", text(good)[:len(text(good))/3], `peers.yaml:\d+: `, ""},
			{"self missing", text(good.Without("pool-0")), `pghardend.yaml:\d+: node: this node, "pool-0", is not in .*peers.yaml`, ""},
			{"another instance", text(other), `peers.yaml:2: instance: this is the list of instance somebody-elses`, "pgh4-pgpool 10.20.1.21"},
			{"two of five nodes", few, `peers.yaml:\d+: nodes: only 2 of the 5 nodes`, "pgh4-pgpool 10.20.1.22"},
			{"network shrunk", text(good.WithNetwork("applications", "10.50.0.0/24", "fd00:50::/64")),
				`peers.yaml:\d+: networks.applications: the network had 5 entries and has 2 now`, "pgh4-applications 10.50.0.0/24"},
			{"network gone", text(good.WithoutNetwork("applications")),
				`peers.yaml:\d+: networks.applications: the network had 5 entries and is gone`, "pgh4-control_plane 10.0.0.0/24"},
			{"network that takes in the siblings", wide,
				`peers.yaml:\d+: networks.applications\[\d\]: 10.0.0.0/8 contains 10.20.1.0/24 of the network siblings`, "pgh4-applications 10.0.0.0/8"},
			{"control plane emptied", text(good.WithNetwork("control_plane")),
				`peers.yaml:\d+: networks.control_plane: the network had 2 entries and is empty`, "pgh4-applications 10.50.0.0/24"},
		} {
			t.Run(row.name, func(t *testing.T) {
				s := suspect(t)
				s.refused(row.text, row.says)
				s.force(row.text, row.forced)
			})
		}
		t.Run("while the daemon is away", func(t *testing.T) { suspect(t).restarted(few, "nodes: only 2 of the 5 nodes") })
		t.Run("accept_wide", func(t *testing.T) { suspect(t).acceptWide(wide) })
	})
}

// suspicious is an experiment with the list of one node.
type suspicious struct {
	*instance
	agent         *testbed.Agent
	backend, good string
}

func (s *suspicious) snapshot() string { return snapshot(s.t, s.agent.Host(), s.backend) }

// same is for sets that were made anew meanwhile.
func (s *suspicious) same(when, before string) {
	s.t.Helper()
	sameRules(s.t, when, initval.ReplaceAllString(before, ""), initval.ReplaceAllString(s.snapshot(), ""))
}

// refused writes the list, and the good one again.
func (s *suspicious) refused(text, says string) {
	s.t.Helper()
	before := s.snapshot()
	must(s.t, testbed.WriteFile(s.agent.PeersPath, text))
	st := s.awaitStatus(s.agent, "degraded", control.StateDegraded, "the last good configuration stays in force")
	if reasons := strings.Join(st.Reasons, "\n"); !regexp.MustCompile(says).MatchString(reasons) {
		s.t.Errorf("it does not say %s:\n%s", says, reasons)
	}
	if len(st.Layers) == 0 || !st.Layers[0].Enforced {
		s.t.Errorf("the rules are not said to be enforced: %+v", st.Layers)
	}
	sameRules(s.t, "with the suspicious list", before, s.snapshot())
	must(s.t, testbed.WriteFile(s.agent.PeersPath, s.good))
	s.awaitStatus(s.agent, "status ok", control.StateOK)
	sameRules(s.t, "with the good list again", before, s.snapshot())
}

// force applies the list with --force, and then the good one.
func (s *suspicious) force(text, forced string) {
	s.t.Helper()
	before := s.snapshot()
	must(s.t, testbed.WriteFile(s.agent.PeersPath, text))
	r, err := s.agent.CLI(s.ctx, "apply", "--force")
	must(s.t, err)
	now := s.snapshot()
	if forced == "" {
		if r.Code != 1 || !strings.Contains(r.Stderr, "peers.yaml") {
			s.t.Errorf("apply --force: %+v; want it to be refused", r)
		}
		sameRules(s.t, "after apply --force of what cannot be", before, now)
	} else {
		if r.Code != 0 || !strings.Contains(now, "add "+forced) || initval.ReplaceAllString(now, "") == initval.ReplaceAllString(before, "") && !strings.Contains(text, "somebody") {
			s.t.Errorf("apply --force: %+v; want %q in\n%s", r, forced, now)
		}
		s.awaitStatus(s.agent, "status ok", control.StateOK)
	}
	must(s.t, testbed.WriteFile(s.agent.PeersPath, s.good))
	if r, err := s.agent.CLI(s.ctx, "apply", "--force"); err != nil || r.Code != 0 {
		s.t.Errorf("apply --force of the good list: %+v, %v", r, err)
	}
	s.awaitStatus(s.agent, "status ok", control.StateOK)
	s.same("with the good list again", before)
}

// restarted has the daemon find the list when it starts.
func (s *suspicious) restarted(text, says string) {
	s.t.Helper()
	before := s.snapshot()
	if code, err := s.agent.Stop(s.ctx); err != nil || code != 0 {
		s.t.Fatalf("stopping the daemon: %d, %v", code, err)
	}
	must(s.t, testbed.WriteFile(s.agent.PeersPath, text))
	must(s.t, s.agent.Start())
	s.awaitStatus(s.agent, "degraded", control.StateDegraded, "the last good configuration stays in force", says)
	sameRules(s.t, "with the suspicious list", before, s.snapshot())
	must(s.t, testbed.WriteFile(s.agent.PeersPath, s.good))
	s.awaitStatus(s.agent, "status ok", control.StateOK)
	sameRules(s.t, "with the good list again", before, s.snapshot())
}

// acceptWide names the network in the configuration, which is the other way to accept it.
func (s *suspicious) acceptWide(text string) {
	s.t.Helper()
	before := s.snapshot()
	cfg := s.Config(s.agent.Host().Name())
	cfg.AcceptWide = []string{"applications"}
	must(s.t, s.agent.WriteConfig(cfg))
	must(s.t, testbed.WriteFile(s.agent.PeersPath, text))
	s.awaitWide(true)
	cfg.AcceptWide = nil
	must(s.t, s.agent.WriteConfig(cfg))
	must(s.t, testbed.WriteFile(s.agent.PeersPath, s.good))
	s.awaitWide(false)
	s.same("with the good list again", before)
}

func (s *suspicious) awaitWide(want bool) {
	s.t.Helper()
	must(s.t, s.agent.Await(s.soon(), "the wide network in its set, or out of it", func(ctx context.Context) error {
		sets, err := s.agent.Host().Run(ctx, "ipset", "save", "pgh4-applications")
		if got := strings.Contains(sets, "add pgh4-applications 10.0.0.0/8"); err == nil && got != want {
			err = fmt.Errorf("it is there: %v, want %v", got, want)
		}
		return err
	}))
	s.awaitStatus(s.agent, "status ok", control.StateOK)
}
