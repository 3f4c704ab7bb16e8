package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
)

const (
	floodRate = 800 // packets a second of each flood
	floodMost = 200_000
	floodTime = "8" // seconds of pgbench
)

// Floods of a sibling, from its own and forged addresses, and of a peer gone wild: the clients of pgpool do not fail, and
// the peer harms nobody but itself.
func TestInstanceFloods(t *testing.T) {
	t.Run("without agents", func(t *testing.T) {
		f := startInstance(t, testbed.InstanceSpec{Name: "floodable", Unprotected: true}).floods()
		f.sibling(1000)
		for i, r := range f.stop(true) {
			if r.Sent != 1000 || r.Delivered != r.Sent {
				t.Errorf("%s: %s; want all delivered, or the test proves nothing", f.names[i], r)
			}
		}
	})
	eachBackend(t, func(t *testing.T, backend string) {
		in := startInstance(t, testbed.InstanceSpec{Name: "floods", Backend: backend, Services: true})
		c, _ := in.Primary()
		_, err := c.Pgbench(in.ctx, in.App(), in.PgpoolConninfo("pool-0"), "-i", "-q")
		must(t, err)
		link := in.replication()
		for _, who := range []struct {
			name string
			test func(in *instance, backend string)
		}{{"sibling", floodBySibling}, {"forged", floodForged}, {"forged peer", floodForgedPeer}, {"peer", floodByPeer}, {"peer's connections", floodOfConnections}} {
			t.Run(who.name, func(t *testing.T) {
				who.test(&instance{in.Instance, t, in.ctx}, backend)
				if now := in.replication(); now != link {
					t.Errorf("replication is %q and was %q", now, link)
				}
			})
		}
		must(t, in.AwaitReady(in.ctx))
	})
}

// replication names the process, which is the same as long as the connection is.
func (in *instance) replication() string {
	in.t.Helper()
	c, h := in.Primary()
	out, err := c.PsqlSocket(in.ctx, h, "SELECT pid, state FROM pg_stat_replication")
	must(in.t, err)
	return out
}

// floods are several at once.
type floods struct {
	*instance
	until context.Context
	end   context.CancelFunc
	names []string
	list  []*testbed.Flood
}

func (in *instance) floods() *floods {
	f := &floods{instance: in}
	f.until, f.end = context.WithCancel(in.ctx)
	return f
}

func (f *floods) start(name string, from *testbed.Host, spec testbed.FloodSpec) {
	f.t.Helper()
	flood, err := from.Flood(f.until, spec)
	must(f.t, err)
	f.t.Cleanup(func() { _, _ = flood.Stop() }) // stop counts
	f.names, f.list = append(f.names, name), append(f.list, flood)
}

// stop ends them, at once or when they have sent all, and returns their counts.
func (f *floods) stop(wait bool) []testbed.FloodResult {
	f.t.Helper()
	if !wait {
		f.end()
	}
	results := make([]testbed.FloodResult, len(f.list))
	for i, flood := range f.list {
		if wait {
			<-flood.Done()
		}
		var err error
		results[i], err = flood.Stop()
		must(f.t, err)
		f.t.Logf("%s: %s", f.names[i], results[i])
	}
	return results
}

// targets are a server and a pgpool with the port that they serve.
func (in *instance) targets() (list []netip.AddrPort) {
	for _, at := range families(in.Host("pg-0")) {
		list = append(list, netip.AddrPortFrom(at, 5432))
	}
	for _, at := range families(in.Host("pool-0")) {
		list = append(list, netip.AddrPortFrom(at, 9999))
	}
	return list
}

// sibling floods from its own addresses, and from others of its subnet.
func (f *floods) sibling(total int) {
	f.t.Helper()
	for _, to := range f.targets() {
		f.start(fmt.Sprintf("SYN to %s", to), f.Sibling(), testbed.SYNFlood(to, floodRate, total))
		f.start(fmt.Sprintf("echo to %s", to.Addr()), f.Sibling(), testbed.EchoFlood(to.Addr(), floodRate, total))
		f.start(fmt.Sprintf("forged SYN of the subnet to %s", to), f.Sibling(), forgedFlood(to, "10.20.1.0", "fd00:20:1::", total))
	}
}

// forgedFlood has ninety sources in a subnet, of which none is a host.
func forgedFlood(to netip.AddrPort, v4, v6 string, total int) testbed.FloodSpec {
	subnet := netip.MustParseAddr(v4)
	if to.Addr().Is6() {
		subnet = netip.MustParseAddr(v6)
	}
	return testbed.FloodSpec{Rate: floodRate, Total: total, Probe: func(i int) testbed.Probe {
		from := subnet.AsSlice()
		from[len(from)-1] = byte(110 + i%90)
		p := testbed.TCPProbe(to, testbed.SYN)
		p.From, _ = netip.AddrFromSlice(from)
		return p
	}}
}

// unharmed runs clients during the floods: lasting connections and new ones by the pgpool that is flooded, of which no
// transaction may fail, and a peer that connects to the server that is.
func (in *instance) unharmed() {
	in.t.Helper()
	c, _ := in.Primary()
	work, ctx := errgroup.WithContext(in.ctx)
	for _, args := range [][]string{{"-c", "4", "-R", "40"}, {"-C", "-R", "4"}} {
		work.Go(func() error {
			r, err := c.Pgbench(ctx, in.App(), in.PgpoolConninfo("pool-0"), append([]string{"-n", "-T", floodTime}, args...)...)
			if err == nil && (r.Processed == 0 || r.Failed > 0) {
				err = fmt.Errorf("pgbench %s: %d transactions, %d failed: %s", args, r.Processed, r.Failed, r.Output)
			}
			in.t.Logf("pgbench %s: %d transactions, %d failed", args, r.Processed, r.Failed)
			return err
		})
	}
	work.Go(func() error {
		for range 10 {
			for _, at := range families(in.Host("pg-0")) {
				if v, err := in.Host("pool-1").Connect(ctx, netip.AddrPortFrom(at, 5432)); err != nil || v != testbed.Open {
					return fmt.Errorf("pool-1 to %s: %s: %w", at, v, err)
				}
			}
		}
		return nil
	})
	if err := work.Wait(); err != nil {
		in.t.Error(err)
	}
}

func floodBySibling(in *instance, _ string) {
	answers, err := in.Sibling().Capture(func(p testbed.Packet) bool {
		discovery := p.Proto == testbed.ProtoICMPv6 && p.ICMPType >= 130 && p.ICMPType <= 137
		return !p.Out && !discovery && p.Src != in.Control().V4()
	})
	must(in.t, err)
	f := in.floods()
	f.sibling(floodMost)
	in.unharmed()
	for i, r := range f.stop(false) {
		if r.Sent < 1000 || r.Arrived != r.Sent || r.Delivered != 0 {
			in.t.Errorf("%s: %s; want all to arrive and none to be delivered", f.names[i], r)
		}
	}
	must(in.t, answers.Close())
	if got := answers.Packets(); len(got) != 0 {
		in.t.Errorf("%d packets came back to the sibling, such as %s", len(got), got[0])
	}
}

// floodForged sends in the name of clients, whom the rules let in: each of them has its own share, and half-open
// connections take no place from others'.
func floodForged(in *instance, _ string) {
	f := in.floods()
	for _, to := range in.targets()[2:] {
		f.start(fmt.Sprintf("forged SYN of clients to %s", to), in.Sibling(), forgedFlood(to, "10.50.0.0", "fd00:50::", floodMost))
	}
	in.unharmed()
	for i, r := range f.stop(false) {
		if r.Sent < 1000 || r.Arrived != r.Sent || r.Delivered == 0 {
			in.t.Errorf("%s: %s; want all to arrive and some to be delivered, or the test proves nothing", f.names[i], r)
		}
	}
}

// floodByPeer has the other server send far more than a peer may, without rules of its own that would keep it from that.
func floodByPeer(in *instance, backend string) {
	peer, agent := in.Host("pg-1"), in.Agent("pg-1")
	must(in.t, agent.Signal(unix.SIGSTOP))
	defer func() { must(in.t, agent.Signal(unix.SIGCONT)) }()
	rule(in.t, peer, backend, "OUTPUT -j ACCEPT") // the agent would move its jump above
	defer run(in.t, peer, fmt.Sprintf("iptables-%s -w -D OUTPUT -j ACCEPT && ip6tables-%[1]s -w -D OUTPUT -j ACCEPT", backend))
	f := in.floods()
	start := time.Now()
	for _, to := range in.targets()[:2] {
		f.start(fmt.Sprintf("SYN to %s", to), peer, testbed.SYNFlood(to, 3000, floodMost))
		f.start(fmt.Sprintf("echo to %s", to.Addr()), peer, testbed.EchoFlood(to.Addr(), floodRate, floodMost))
	}
	in.unharmed()
	results := f.stop(false)
	seconds := int(time.Since(start).Seconds()) + 1
	syn, echo := in.limit(backend, "postgres", "hashlimit-upto"), in.limit(backend, "echo", "hashlimit-upto")
	for i, r := range results {
		most := syn*seconds + 2*syn // the rate and what may come at once
		if i%2 == 1 {
			most = echo*seconds + echo
		}
		if r.Delivered == 0 || r.Delivered > most || r.Arrived != r.Sent || r.Sent < 2*most {
			in.t.Errorf("%s: %s in %d s; want some delivered, but at most %d, and far more to arrive", f.names[i], r, seconds, most)
		}
	}
}

// floodOfConnections has the other server open connections until it may not any more, and hold them.
func floodOfConnections(in *instance, backend string) {
	most := in.limit(backend, "postgres", "connlimit-upto")
	at := netip.AddrPortFrom(in.Host("pg-0").V4(), 5432)
	before := in.connectionsFrom("pg-1")
	var held []net.Conn
	defer func() {
		for _, c := range held {
			_ = c.Close() // the server may have ended it
		}
	}()
	for len(held) <= most {
		ctx, cancel := context.WithTimeout(in.ctx, 5*time.Second)
		c, err := in.Host("pg-1").Dial(ctx, "tcp", at)
		cancel()
		if err != nil {
			in.t.Logf("after %d connections: %v", len(held), err)
			break
		}
		held = append(held, c)
	}
	// What was there before the rule was last written is not counted: the kernel counts for each rule.
	if len(held) != most && len(held)+before != most {
		in.t.Errorf("%d connections were opened beside %d, want %d, or %d together", len(held), before, most, most)
	}
	if v, err := in.Host("pg-1").Connect(in.ctx, at); err != nil || v != testbed.NoAnswer {
		in.t.Errorf("one more connection: %s, %v", v, err)
	}
	in.unharmed()
}

// connectionsFrom counts a peer's connections to pg-0 over IPv4.
func (in *instance) connectionsFrom(peer string) int {
	in.t.Helper()
	out := run(in.t, in.Host("pg-0"), fmt.Sprintf("ss -Htn state established src %s:5432 dst %s | wc -l", in.Host("pg-0").V4(), in.Host(peer).V4()))
	n, err := strconv.Atoi(out[:len(out)-1])
	must(in.t, err)
	return n
}

// limit reads a limit of a row from the rules of pg-0.
func (in *instance) limit(backend, flow, option string) int {
	in.t.Helper()
	rules := run(in.t, in.Host("pg-0"), "iptables-"+backend+"-save -t filter")
	value := regexp.MustCompile(`--` + option + ` (\d+)`)
	for line := range strings.Lines(rules) {
		m := value.FindStringSubmatch(line)
		if m == nil || !strings.HasPrefix(line, "-A PGHARDEND-IN ") || !strings.Contains(line, `"pghardend:`+flow+`"`) {
			continue
		}
		n, err := strconv.Atoi(m[1])
		must(in.t, err)
		return n
	}
	in.t.Fatalf("the row %s has no %s:\n%s", flow, option, rules)
	return 0
}

// A sibling that forges a peer's SYNs must not use up the peer's share of connections at the server: the peer resets what
// it did not open. The rate stays below that of the peer's share of new connections, which on a shared link only the
// network can protect.
func floodForgedPeer(in *instance, _ string) {
	peer := in.Host("pool-1")
	f := in.floods()
	var servers []netip.AddrPort
	for i, at := range families(in.Host("pg-0")) {
		to, from := netip.AddrPortFrom(at, 5432), families(peer)[i]
		servers = append(servers, to)
		f.start(fmt.Sprintf("SYNs to %s as if from %s", to, from), in.Sibling(), testbed.FloodSpec{Rate: 200, Total: 10_000, Probe: func(int) testbed.Probe {
			p := testbed.TCPProbe(to, testbed.SYN)
			p.From = from
			return p
		}})
	}
	must(in.t, testbed.Await(in.ctx, "more forged connections than the peer may have", func(context.Context) error {
		for _, flood := range f.list {
			if r := flood.Now(); r.Delivered < 300 {
				return fmt.Errorf("%s", r)
			}
		}
		return nil
	}))
	for range 10 {
		for _, to := range servers {
			if v, err := peer.Connect(in.ctx, to); err != nil || v != testbed.Open {
				in.t.Errorf("%s to %s while its address is forged: %s, %v", peer.Name(), to, v, err)
			}
		}
	}
	f.stop(false)
}
