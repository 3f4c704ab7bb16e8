package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pghardend/pghardend/internal/testbed"
)

const (
	leakProbes = 1600 // of each family to each node, while there are no rules: all kinds, 100 times
	leakRate   = 120  // a second, likewise
	leakMost   = 200_000
)

// leakRounds are the changes on each of the five nodes: 210 in all, and 70 where only the commands differ.
var leakRounds = map[string]int{"nft": 42, "legacy": 14}

// A sibling that never stops probing gets nothing through while rules and sets are rewritten, and daemons are stopped,
// started and killed; replication and the clients of pgpool notice nothing of it.
func TestInstanceLeak(t *testing.T) {
	t.Run("without agents", func(t *testing.T) {
		l := newLeak(t, testbed.InstanceSpec{Name: "open", Unprotected: true})
		l.allArrives()
	})
	eachBackend(t, func(t *testing.T, backend string) {
		l := newLeak(t, testbed.InstanceSpec{Name: "leak", Backend: backend, Services: true})
		l.churn(backend)
		// The same counters see the same probes as soon as the rules are gone.
		must(t, l.StopAgents(l.ctx))
		for _, a := range l.Agents() {
			if r, err := a.CLI(l.ctx, "teardown"); err != nil || r.Code != 0 {
				t.Fatalf("teardown on %s: %+v, %v", a.Host().Name(), r, err)
			}
		}
		l.allArrives()
	})
}

// leak is an instance, with counters of what gets past each node's netfilter from the sibling, and of what comes back.
type leak struct {
	*instance
	stranger   map[netip.Addr]bool // the sibling's addresses
	deliveries []*testbed.Deliveries
	answers    *testbed.Capture
	floods     []*testbed.Flood
}

func newLeak(t *testing.T, spec testbed.InstanceSpec) *leak {
	t.Helper()
	l := &leak{instance: startInstance(t, spec), stranger: map[netip.Addr]bool{}}
	local, err := l.Sibling().LinkLocal()
	must(t, err)
	for _, a := range append(l.Sibling().Addresses(), local) {
		l.stranger[a.WithZone("")] = true
	}
	for _, h := range l.Nodes() {
		d, err := h.Deliveries(func(p testbed.Packet) bool { return l.stranger[p.Src] })
		must(t, err)
		t.Cleanup(func() { must(t, d.Close()) })
		l.deliveries = append(l.deliveries, d)
	}
	l.answers, err = l.Sibling().Capture(func(p testbed.Packet) bool {
		discovery := p.Proto == testbed.ProtoICMPv6 && p.ICMPType >= 133 && p.ICMPType <= 137
		return !p.Out && l.stranger[p.Dst] && !discovery
	})
	must(t, err)
	t.Cleanup(func() { must(t, l.answers.Close()) })
	return l
}

// leakProbe makes what a neighbour might try, service ports and others.
func leakProbe(to netip.Addr, i int) testbed.Probe {
	odd := uint16(1024 + i*7919%20011)
	tcp := [...]uint16{22, 5432, 9999, 9898, 9000, 8008, 2379, 9100, odd}
	udp := [...]uint16{53, 9694, 123, odd}
	switch k := i % 16; {
	case k < 9:
		return testbed.TCPProbe(netip.AddrPortFrom(to, tcp[k]), testbed.SYN)
	case k < 13:
		return testbed.UDPProbe(netip.AddrPortFrom(to, udp[k-9]), []byte("leak"))
	case k == 13:
		return testbed.TCPProbe(netip.AddrPortFrom(to, 5432), testbed.ACK)
	case k == 14:
		return testbed.TCPProbe(netip.AddrPortFrom(to, 9999), testbed.XMAS)
	default:
		return testbed.EchoProbes(to, 1)[0]
	}
}

// probe starts to send to all nodes by both families.
func (l *leak) probe(rate, total int) {
	l.t.Helper()
	for _, h := range l.Nodes() {
		for _, to := range families(h) {
			f, err := l.Sibling().Flood(l.ctx, testbed.FloodSpec{
				Probe: func(i int) testbed.Probe { return leakProbe(to, i) }, Rate: rate, Total: total,
			})
			must(l.t, err)
			l.floods = append(l.floods, f)
		}
	}
}

// probed stops that and adds up. What a flood counts as delivered is of one protocol alone.
func (l *leak) probed() (sum testbed.FloodResult) {
	l.t.Helper()
	for _, f := range l.floods {
		r, err := f.Stop()
		must(l.t, err)
		sum.Sent += r.Sent
		sum.Denied += r.Denied
		sum.Arrived += r.Arrived
	}
	l.floods = nil
	return sum
}

// probeLocal sends from the sibling's link-local address to those of the nodes.
func (l *leak) probeLocal(ctx context.Context) (sent int, err error) {
	from, err := l.Sibling().LinkLocal()
	if err != nil {
		return 0, err
	}
	for _, h := range l.Nodes() {
		to, err := h.LinkLocal()
		if err != nil {
			return sent, err
		}
		probes := make([]testbed.Probe, 64)
		for i := range probes {
			probes[i] = leakProbe(to, i)
			probes[i].From = from
		}
		o, err := l.Sibling().Send(ctx, probes...)
		if sent += o.Sent; err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// allArrives is the control of the counters: without rules they miss nothing.
func (l *leak) allArrives() {
	l.t.Helper()
	l.probe(2000, leakProbes)
	for _, f := range l.floods {
		<-f.Done()
	}
	sum := l.probed()
	local, err := l.probeLocal(l.ctx)
	must(l.t, err)
	each := (sum.Sent + local) / len(l.deliveries)
	for i, d := range l.deliveries {
		if _, err := d.Await(l.ctx, each, func(testbed.Packet) bool { return true }); err != nil {
			l.t.Errorf("%v of %d on %s: what gets through is not counted", err, each, l.Nodes()[i].Name())
		}
	}
	if n := len(l.answers.Packets()); sum.Arrived != sum.Sent || sum.Sent < 10*leakProbes || n == 0 {
		l.t.Errorf("without rules: %v, %d answers; want all to arrive and answers", sum, n)
	}
	l.t.Logf("without rules: %d probes sent, %d by link-local addresses, all delivered, %d answers", sum.Sent, local, len(l.answers.Packets()))
}

// churn is the experiment: everything at once, until each node had its changes.
func (l *leak) churn(backend string) {
	c, _ := l.Primary()
	_, err := c.Pgbench(l.ctx, l.App(), l.PgpoolConninfo("pool-0"), "-i", "-q")
	must(l.t, err)
	link, err := l.link(l.ctx)
	must(l.t, err)
	before, err := l.received(l.ctx)
	must(l.t, err)
	start := time.Now()

	l.probe(leakRate, leakMost)
	var changes leakChanges
	var local, lasting, fresh, looks int
	churning, changing := errgroup.WithContext(l.ctx)
	for _, a := range l.Agents() {
		churning.Go(func() error { return l.change(changing, a, backend, &changes) })
	}
	work, ctx := errgroup.WithContext(l.ctx)
	during := func(f func() error) { // again and again, as long as there are changes
		work.Go(func() error {
			for changing.Err() == nil {
				if err := f(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	during(func() error { return l.pgbench(ctx, "pool-0", &lasting, "-c", "4", "-R", "40", "-T", "10") })
	during(func() error { return l.pgbench(ctx, "pool-1", &fresh, "-C", "-R", "5", "-T", "5") })
	during(func() error {
		n, err := l.probeLocal(ctx)
		local += n
		return err
	})
	pace := time.NewTicker(time.Second / 2)
	defer pace.Stop()
	during(func() error {
		<-pace.C
		looks++
		return l.sameLink(ctx, link)
	})
	err = errors.Join(churning.Wait(), work.Wait())
	sum := l.probed()
	l.t.Logf("%s: %s in %s", backend, &changes, time.Since(start).Round(time.Second))
	l.t.Logf("probes: %d sent, %d of them arrived at the nodes' interfaces; %d more sent by link-local addresses", sum.Sent, sum.Arrived, local)
	l.t.Logf("pgbench: %d transactions by lasting connections, %d by new ones; replication was looked at %d times", lasting, fresh, looks)
	l.nothingGotThrough()
	must(l.t, err)

	want := leakRounds[backend] * len(l.Agents())
	if n := changes.applied.Load(); int(n) != want || sum.Arrived < 10_000 || sum.Arrived != sum.Sent || sum.Denied > 0 || local == 0 {
		l.t.Errorf("%d changes, probes %v and %d by link-local addresses: too little to show anything", n, sum, local)
	}
	if lasting == 0 || fresh == 0 || looks == 0 {
		l.t.Error("the services had nothing to do")
	}
	must(l.t, l.AwaitReplay(l.ctx))
	if after, err := l.received(l.ctx); err != nil || after == before {
		l.t.Errorf("the standby has received nothing since %s (%v)", before, err)
	}
	must(l.t, l.AwaitReady(l.ctx))
}

// nothingGotThrough tells at most a few of the packets that did.
func (l *leak) nothingGotThrough() {
	l.t.Helper()
	none := func(what string, got []testbed.Packet) {
		if len(got) == 0 {
			return
		}
		var some strings.Builder
		for _, p := range got[:min(len(got), 5)] {
			fmt.Fprintf(&some, "\n%s", p)
		}
		l.t.Errorf("%d packets of %s%s", len(got), what, &some)
	}
	for i, d := range l.deliveries {
		none("the sibling got past the rules of "+l.Nodes()[i].Name(), d.Packets())
	}
	none("the nodes came back to the sibling", l.answers.Packets())
}

// link is what replication goes by: the same process as long as the connection is the same.
func (l *leak) link(ctx context.Context) (string, error) {
	c, h := l.Primary()
	return c.PsqlSocket(ctx, h, "SELECT pid, state FROM pg_stat_replication")
}

// sameLink looks whether replication goes on as it did.
func (l *leak) sameLink(ctx context.Context, want string) error {
	got, err := l.link(ctx)
	if err == nil && (got != want || !strings.HasSuffix(got, "|streaming")) {
		err = fmt.Errorf("replication is %q and was %q", got, want)
	}
	return err
}

func (l *leak) received(ctx context.Context) (string, error) {
	c, h := l.Standby()
	return c.PsqlSocket(ctx, h, "SELECT pg_last_wal_receive_lsn()")
}

// pgbench runs once by a pool node, and counts transactions of which none may fail.
func (l *leak) pgbench(ctx context.Context, pool string, sum *int, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, _ := l.Primary()
	r, err := c.Pgbench(ctx, l.App(), l.PgpoolConninfo(pool), append([]string{"-n"}, args...)...)
	*sum += r.Processed
	if err == nil && r.Failed > 0 {
		err = fmt.Errorf("%d transactions by way of %s failed: %s", r.Failed, pool, r.Output)
	}
	return err
}

// leakChanges counts what happened to the agents.
type leakChanges struct{ applied, oneShot, restarts, kills, midway atomic.Int64 }

func (c *leakChanges) String() string {
	return fmt.Sprintf("%d changes applied (%d of them without a daemon), %d restarts, %d kills (%d of them while rules or sets were written)",
		c.applied.Load(), c.oneShot.Load(), c.restarts.Load(), c.kills.Load(), c.midway.Load())
}

// change changes a node's members and rows in turn; every seventh time while its daemon is stopped, or killed over it.
func (l *leak) change(ctx context.Context, a *testbed.Agent, backend string, count *leakChanges) error {
	for i := range leakRounds[backend] {
		member, row := i%4 < 2, i%4 == 1 || i%4 == 2 // one of them differs from the last time
		err := l.write(a, member, row)
		switch {
		case err != nil:
		case i%7 == 3:
			err = stopped(ctx, a, count)
		case i%7 == 6:
			err = killed(ctx, a, count)
		default:
			err = applied(ctx, a)
		}
		if err == nil {
			err = inForce(ctx, a, backend, member, row)
		}
		if err != nil {
			return fmt.Errorf("change %d on %s: %w", i, a.Host().Name(), err)
		}
		count.applied.Add(1)
	}
	return nil
}

// A node that is no host, and a row that the instance does not have otherwise.
const (
	leakMember = "10.20.1.29"
	leakRow    = "leak-row"
)

func (l *leak) write(a *testbed.Agent, member, row bool) error {
	cfg := l.Config(a.Host().Name())
	if row {
		cfg.Flows = map[string]any{leakRow: map[string]any{
			"proto": "tcp", "ports": []int{9100}, "from": []string{"control_plane"}, "to": []string{"postgres", "pgpool"},
		}}
	}
	if member {
		cfg.Peers = cfg.Peers.With(testbed.Peer{Name: "pool-9", Role: "pgpool", Addresses: []string{leakMember, "fd00:20:1::29"}})
	}
	return errors.Join(a.WritePeers(cfg.Peers), a.WriteConfig(cfg))
}

func applied(ctx context.Context, a *testbed.Agent) error {
	r, err := a.CLI(ctx, "apply")
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("apply: exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	return err
}

// stopped applies the change while there is no daemon.
func stopped(ctx context.Context, a *testbed.Agent, count *leakChanges) error {
	code, err := a.Stop(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("stopping the daemon: exit code %d", code)
	}
	if err = errors.Join(err, applied(ctx, a), a.Start()); err != nil {
		return err
	}
	count.oneShot.Add(1)
	count.restarts.Add(1)
	return a.Await(ctx, "status ok after a restart", a.OK)
}

// killed kills the daemon as soon as it writes, or after the change, and lets the next one find what is there.
func killed(ctx context.Context, a *testbed.Agent, count *leakChanges) error {
	done := make(chan error, 1)
	go func() {
		_, err := a.CLI(ctx, "apply") // loses its daemon
		done <- err
	}()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for over := false; !over; {
		select {
		case err := <-done:
			done <- err // for below
			over = true
		case <-look.C:
			if over = writes(a.PID()); over {
				count.midway.Add(1)
			}
		}
	}
	if err := errors.Join(a.Kill9(ctx), <-done, a.Start()); err != nil {
		return err
	}
	count.kills.Add(1)
	return a.Await(ctx, "status ok after a kill", a.OK)
}

// writes says whether a process has iptables-restore or ipset restore as a child.
func writes(pid int) bool {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is good
	for _, list := range lists {
		children, _ := os.ReadFile(list) // a thread that has ended has none
		for _, child := range strings.Fields(string(children)) {
			line, _ := os.ReadFile("/proc/" + child + "/cmdline")
			if bytes.Contains(line, []byte("restore")) {
				return true
			}
		}
	}
	return false
}

// inForce looks into the kernel for what the files say.
func inForce(ctx context.Context, a *testbed.Agent, backend string, member, row bool) error {
	return a.Await(ctx, "the change in the kernel", func(ctx context.Context) error {
		sets, err1 := a.Host().Run(ctx, "ipset", "save", "pgh4-pgpool")
		rules, err2 := a.Host().Run(ctx, "iptables-"+backend+"-save", "-t", "filter")
		err := errors.Join(err1, err2)
		if got := strings.Contains(sets, leakMember); err == nil && got != member {
			err = fmt.Errorf("the member is there: %v, want %v", got, member)
		}
		if got := strings.Contains(rules, ":"+leakRow); err == nil && got != row {
			err = fmt.Errorf("the row is there: %v, want %v", got, row)
		}
		return err
	})
}
