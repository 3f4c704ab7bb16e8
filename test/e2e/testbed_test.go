// Package e2e holds the tests that need root: real namespaces, a real kernel, a real PostgreSQL.
//
// The tests of this file are about the test bed itself: each probe has a positive control (it sees what is there) and a
// negative one (it sees that something was stopped, and where), so that the other files can believe it.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
)

// helperEnv makes the test program a bed's owner that a test can kill.
const helperEnv = "PGHARDEND_TESTBED_HELPER"

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "test/e2e makes namespaces: run it as root")
		os.Exit(1)
	}
	if os.Getenv(stormObserverEnv) != "" {
		os.Exit(observeStorm())
	}
	if name := os.Getenv(helperEnv); name != "" {
		os.Exit(testbed.Main(func(ctx context.Context) int { return ownBed(ctx, name) }))
	}
	os.Exit(testbed.Main(func(context.Context) int { return m.Run() }))
}

// ownBed makes a bed with a process in it that ignores SIGTERM, says so, and waits to be killed.
func ownBed(ctx context.Context, name string) int {
	if strings.HasPrefix(name, "instance") {
		return ownInstance(ctx, name)
	}
	b, err := testbed.New(ctx, name, []testbed.HostSpec{{Name: "a", Addresses: []string{"10.20.1.10/24"}}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := b.Host("a").Command(ctx, "sh", "-c", "trap '' TERM; exec sleep 1000")
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stdout, b.Host("a").Netns(), cmd.Process.Pid)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends or kills
	return 0
}

// testBed is two tenants on one subnet, and a control plane behind the router on a link with a small MTU.
func testBed(t *testing.T, name string) (b *testbed.Bed, node, sibling, control *testbed.Host) {
	t.Helper()
	b, err := testbed.New(t.Context(), name, []testbed.HostSpec{
		{Name: "node", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64", "10.20.1.11/24"}},
		{Name: "sibling", Addresses: []string{"10.20.1.66/24", "fd00:20:1::66/64"}},
		{Name: "control", Addresses: []string{"10.0.0.5/24", "fd00:10::5/64"}, MTU: 1400},
	})
	must(t, err)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, b.Host("node"), b.Host("sibling"), b.Host("control")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, h *testbed.Host, line string) string {
	t.Helper()
	out, err := h.Run(t.Context(), "sh", "-c", line)
	must(t, err)
	return out
}

// rule adds a rule on top of a chain for both families.
func rule(t *testing.T, h *testbed.Host, backend, line string) {
	t.Helper()
	run(t, h, "iptables-"+backend+" -w -I "+line+" && ip6tables-"+backend+" -w -I "+line)
}

func send(t *testing.T, h *testbed.Host, probes ...testbed.Probe) testbed.Outcome {
	t.Helper()
	o, err := h.Send(t.Context(), probes...)
	must(t, err)
	return o
}

func families(h *testbed.Host) []netip.Addr { return []netip.Addr{h.V4(), h.V6()} }

func TestTestbedHosts(t *testing.T) {
	links := func() string {
		const settings = `^net\.(ipv4\.(conf|icmp_|ip_forward)|ipv6\.(conf|icmp))`
		out, err := exec.Command("sh", "-c", "ls /sys/class/net; ip -o addr | cut -d' ' -f1-8; sysctl -a --pattern '"+settings+"'").Output()
		must(t, err)
		return string(out)
	}
	before := links()
	b, node, sibling, control := testBed(t, "hosts")
	for _, to := range append(families(node), netip.MustParseAddr("10.20.1.11")) {
		for _, from := range []*testbed.Host{sibling, control, b.Router()} {
			e, err := from.Ping(t.Context(), to, 3)
			must(t, err)
			if e.Replies != 3 {
				t.Errorf("%s to %s: %+v, want 3 replies", from.Name(), to, e)
			}
		}
	}
	for i, to := range families(sibling) {
		if gw, _, err := node.Route(to); err != nil || gw.IsValid() {
			t.Errorf("the way to the sibling %s leads by %s (%v); it must be on the same link", to, gw, err)
		}
		if gw, _, err := node.Route(families(control)[i]); err != nil || !gw.IsValid() {
			t.Errorf("the way to the control plane is direct (%v)", err)
		}
	}
	run(t, node, "echo mine > /run/marker; mkdir /dev/shm/marker")
	if got := run(t, node, "hostname; pwd; ls /run /sys/class/net /dev/shm; test -d /sys/fs/cgroup"); got !=
		"node\n/\n/dev/shm:\nmarker\n\n/run:\nmarker\n\n/sys/class/net:\neth0\nlo\n" {
		t.Errorf("inside a host: %q", got)
	}
	if got := run(t, sibling, "ls /run /dev/shm"); strings.Contains(got, "marker") {
		t.Errorf("hosts share /run or /dev/shm: %q", got)
	}
	if _, err := os.Stat(filepath.Join(node.RunDir(), "marker")); err != nil {
		t.Errorf("RunDir does not show the host's /run: %v", err)
	}
	nobody, err := user.Lookup("nobody")
	must(t, err)
	status, err := node.CommandAs(t.Context(), nobody, "cat", "/proc/self/status").Output()
	must(t, err)
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534\n", "CapEff:\t0000000000000000\n", "CapInh:\t0000000000000000\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("CommandAs nobody lacks %q", want)
		}
	}
	if after := links(); after != before {
		t.Errorf("the machine's own network changed:\n%s\nwas:\n%s", after, before)
	}
}

// Two beds with the same addresses live side by side, and their xtables locks are two.
func TestTestbedSideBySide(t *testing.T) {
	_, one, _, _ := testBed(t, "one")
	_, two, sibling, _ := testBed(t, "two")
	rule(t, one, "legacy", "INPUT -j DROP")
	e, err := sibling.Ping(t.Context(), two.V4(), 1)
	must(t, err)
	if e.Replies != 1 {
		t.Error("a rule of one bed works in another")
	}
	lock, err := os.OpenFile(filepath.Join(one.RunDir(), "xtables.lock"), os.O_RDWR, 0)
	must(t, err)
	defer lock.Close()
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	if _, err := one.Run(t.Context(), "iptables-legacy", "-w", "1", "-S"); err == nil {
		t.Error("the lock of the host's /run does not hold iptables-legacy up")
	}
	if _, err := two.Run(t.Context(), "iptables-legacy", "-w", "1", "-S"); err != nil {
		t.Errorf("hosts share a lock: %v", err)
	}
}

func TestTestbedConnect(t *testing.T) {
	_, node, sibling, _ := testBed(t, "connect")
	for i, to := range families(node) {
		at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(to, port) }
		tcp, err := node.ServeTCP(t.Context(), at(5432))
		must(t, err)
		udp, err := node.ServeUDP(t.Context(), at(53))
		must(t, err)
		check := func(what string, probe func(context.Context, netip.AddrPort) (testbed.Verdict, error), port uint16, want testbed.Verdict) {
			t.Helper()
			wait := 5 * time.Second // what is answered is answered at once
			if want == testbed.NoAnswer {
				wait = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			defer cancel()
			got, err := probe(ctx, at(port))
			if got != want || err != nil {
				t.Errorf("%s: %s is %q (%v), want %q", to, what, got, err, want)
			}
		}
		check("tcp, listening", sibling.Connect, 5432, testbed.Open)
		check("tcp, closed", sibling.Connect, 5433, testbed.Refused)
		check("udp, listening", sibling.UDPEcho, 53, testbed.Open)
		check("udp, closed", sibling.UDPEcho, 54, testbed.Refused)
		must(t, testbed.Await(t.Context(), "the accept", func(context.Context) error {
			if tcp.Received() != 1 || udp.Received() != 1 {
				return fmt.Errorf("received %d connections and %d datagrams, want one each", tcp.Received(), udp.Received())
			}
			return nil
		}))
		tool := []string{"iptables-nft", "ip6tables-nft"}[i]
		run(t, node, tool+" -I INPUT -p tcp --dport 5432 -j DROP; "+tool+" -I INPUT -p udp --dport 53 -j DROP; "+
			tool+" -I INPUT -p tcp --dport 6000 -j REJECT --reject-with "+[]string{"icmp-host-prohibited", "icmp6-addr-unreachable"}[i])
		run(t, sibling, tool+" -I OUTPUT -p udp --dport 55 -j DROP")
		check("tcp, dropped", sibling.Connect, 5432, testbed.NoAnswer)
		check("udp, dropped", sibling.UDPEcho, 53, testbed.NoAnswer)
		check("tcp, rejected", sibling.Connect, 6000, testbed.Unreachable)
		check("udp, dropped at the sender", sibling.UDPEcho, 55, testbed.Denied)
		if tcp.Received() != 1 || udp.Received() != 1 {
			t.Errorf("%s: something arrived behind a DROP: %d, %d", to, tcp.Received(), udp.Received())
		}
		must(t, errors.Join(tcp.Close(), udp.Close()))
	}
}

// Every kind of probe: an open host answers; DROP on its way in, on its answer's way out, and at the sender each look as they
// should, on both backends.
func TestTestbedProbes(t *testing.T) {
	for _, backend := range []string{"nft", "legacy"} {
		_, node, sibling, _ := testBed(t, "probes-"+backend)
		for _, to := range families(node) {
			at := netip.AddrPortFrom(to, 5432)
			probes := map[string]testbed.Probe{
				"syn": testbed.TCPProbe(at, testbed.SYN), "ack": testbed.TCPProbe(at, testbed.ACK), "fin": testbed.TCPProbe(at, testbed.FIN),
				"xmas": testbed.TCPProbe(at, testbed.XMAS), "udp": testbed.UDPProbe(at, nil), "echo": testbed.EchoProbes(to, 1)[0],
				"sctp": testbed.ProtoProbe(to, testbed.ProtoSCTP), "gre": testbed.ProtoProbe(to, testbed.ProtoGRE),
			}
			if to.Is4() {
				probes["timestamp"] = testbed.TimestampProbe(to)
			}
			all := make([]testbed.Probe, 0, len(probes))
			for name, p := range probes {
				all = append(all, p)
				if o := send(t, sibling, p); o.Sent != 1 || o.Arrived != 1 || o.Answered != 1 {
					t.Errorf("%s to the open %s: %s", name, to, o)
				} else if name == "timestamp" && o.Answers[0].ICMPType != 14 {
					t.Errorf("timestamp: %s", o.Answers[0])
				}
			}
			control := func(h *testbed.Host, chain string, sent, arrived int) {
				t.Helper()
				// ICMPv6 for neighbours must pass, or nothing arrives at all.
				nd := "; ip6tables-" + backend + " -w -I " + chain + " -p icmpv6 --icmpv6-type "
				rule(t, h, backend, chain+" -j DROP")
				run(t, h, "true"+nd+"135 -j ACCEPT"+nd+"136 -j ACCEPT")
				if o := send(t, sibling, all...); o.Sent != sent || o.Denied != len(all)-sent || o.Arrived != arrived || o.Answered != 0 {
					t.Errorf("%s: DROP in %s of %s: %s, %v", to, chain, h.Name(), o, o.Answers)
				}
				run(t, h, "iptables-"+backend+" -w -F; ip6tables-"+backend+" -w -F")
			}
			control(node, "INPUT", len(all), len(all))
			control(node, "OUTPUT", len(all), len(all))
			control(sibling, "OUTPUT", 0, 0)
			// An answer that the sender's own firewall throws away was an answer.
			rule(t, sibling, backend, "INPUT -p tcp -j DROP")
			if o := send(t, sibling, probes["syn"]); o.Answered != 1 {
				t.Errorf("%s: the sender's INPUT hid the answer: %s", to, o)
			}
		}
	}
}

// A scan of many ports finds the one that listens; a limit is seen in a flood; a spoofed source gets the answer.
func TestTestbedFloods(t *testing.T) {
	_, node, sibling, control := testBed(t, "floods")
	s, err := node.ServeTCP(t.Context(), netip.AddrPortFrom(node.V4(), 5432))
	must(t, err)
	o := send(t, sibling, testbed.SYNScan(node.V4(), 1, 16384)...)
	var open []uint16
	for _, p := range o.Answers {
		if p.Flags == testbed.SYN|testbed.ACK {
			open = append(open, p.SrcPort)
		}
	}
	if o.Arrived != 16384 || o.Answered != 16384 || len(open) != 1 || open[0] != 5432 {
		t.Errorf("scan: %s; open: %v, want 5432", o, open)
	}
	for _, to := range families(node) {
		var probes []testbed.Probe
		for range 300 {
			probes = append(probes, testbed.UDPProbe(netip.AddrPortFrom(to, 9), nil))
		}
		if o := send(t, sibling, probes...); o.Answered != 300 {
			t.Errorf("the open host %s rate-limits its errors: %s", to, o)
		}
	}
	spoofed := testbed.TCPProbe(netip.AddrPortFrom(node.V4(), 5432), testbed.SYN)
	spoofed.From = control.V4()
	victim, err := control.Capture(func(p testbed.Packet) bool { return !p.Out && p.Proto == testbed.ProtoTCP })
	must(t, err)
	o = send(t, sibling, spoofed)
	p, err := victim.Await(t.Context(), 1, func(p testbed.Packet) bool { return p.Src == node.V4() })
	if err != nil || p.Flags != testbed.SYN|testbed.ACK || o.Arrived != 1 || o.Answered != 0 {
		t.Errorf("spoofed source: sender %s; victim %s (%v)", o, p, err)
	}
	must(t, victim.Close())
	if o = send(t, sibling, testbed.EchoProbes(netip.MustParseAddr("10.20.1.99"), 1)...); o.Sent != 1 || o.Arrived != 0 || o.Answered != 0 {
		t.Errorf("an address nobody has: %s", o)
	}
	if s.Received() != 0 {
		t.Errorf("%d connections from half-open ones", s.Received())
	}
	run(t, node, "iptables-nft -A INPUT -p icmp -m limit --limit 1/s --limit-burst 20 -j ACCEPT; iptables-nft -A INPUT -j DROP")
	if o = send(t, sibling, testbed.EchoProbes(node.V4(), 1000)...); o.Arrived != 1000 || o.Answered < 20 || o.Answered > 40 {
		t.Errorf("flood against a burst of 20: %s", o)
	}
	e, err := sibling.Ping(t.Context(), node.V6(), 1000)
	if err != nil || e.Replies != 1000 {
		t.Errorf("flood of an open host: %+v, %v", e, err)
	}
	if o = send(t, sibling, testbed.SYNScan(node.V4(), 4096, 8191)...); o.Arrived != 4096 || len(o.Answers) != 0 {
		t.Errorf("scan of a silent host: %s", o)
	}
}

// An open host obeys a redirect from a neighbour who poses as the router; one that drops it does not.
func TestTestbedRedirect(t *testing.T) {
	_, node, sibling, control := testBed(t, "redirect")
	link, err := sibling.LinkLocal()
	must(t, err)
	way := func(i int) netip.Addr {
		gw, _, err := node.Route(families(control)[i])
		must(t, err)
		return gw
	}
	redirect := func(i int) testbed.Outcome {
		via := []netip.Addr{sibling.V4(), link}[i]
		return send(t, sibling, testbed.RedirectProbe(way(i), families(node)[i], families(control)[i], via))
	}
	before := []netip.Addr{way(0), way(1)}
	run(t, node, "iptables-nft -I INPUT -p icmp --icmp-type redirect -j DROP; ip6tables-nft -I INPUT -p icmpv6 --icmpv6-type redirect -j DROP")
	for i := range before {
		if o := redirect(i); o.Arrived != 1 || way(i) != before[i] {
			t.Errorf("dropped redirect: %s, and the way is now %s, was %s", o, way(i), before[i])
		}
	}
	run(t, node, "iptables-nft -F; ip6tables-nft -F")
	for i, via := range []netip.Addr{sibling.V4(), link.WithZone("")} {
		if o := redirect(i); way(i) != via {
			t.Errorf("accepted redirect: %s, and the way is %s, want %s", o, way(i), via)
		}
	}
}

// Path MTU: a crafted message about a live connection takes effect, the router's own too, and neither if dropped.
func TestTestbedPathMTU(t *testing.T) {
	_, node, sibling, control := testBed(t, "pmtu")
	const drop = "INPUT -p icmp --icmp-type fragmentation-needed -j DROP; ip6tables-nft %[1]s INPUT -p icmpv6 --icmpv6-type packet-too-big -j DROP"
	for i, at := range families(node) {
		peer, far := families(sibling)[i], families(control)[i]
		mtu := func(to netip.Addr) int {
			_, mtu, err := node.Route(to)
			must(t, err)
			return mtu
		}
		server, err := node.ServeTCP(t.Context(), netip.AddrPortFrom(at, 5432))
		must(t, err)
		run(t, node, fmt.Sprintf("iptables-nft -I "+drop, "-I"))
		craft(t, node, sibling, at)
		if got := mtu(peer); got != 1500 {
			t.Errorf("%s: a dropped message changed the path MTU to %d", at, got)
		}
		if n := transfer(t, control, at); n == transferBytes || mtu(far) != 1500 {
			t.Errorf("%s: %d bytes went over a narrow link without path MTU discovery", at, n)
		}
		run(t, node, fmt.Sprintf("iptables-nft -D "+drop, "-D"))
		craft(t, node, sibling, at)
		if got := mtu(peer); got != 1300 {
			t.Errorf("%s: path MTU %d after the message, want 1300", at, got)
		}
		if n := transfer(t, control, at); n != transferBytes || mtu(far) != 1400 {
			t.Errorf("%s: %d of %d bytes over a narrow link; path MTU %d", at, n, transferBytes, mtu(far))
		}
		must(t, server.Close())
	}
}

// craft opens a connection to the node and tells the node, in the sibling's name, that its packets are too big for 1300.
func craft(t *testing.T, node, sibling *testbed.Host, at netip.Addr) {
	t.Helper()
	c, err := node.Capture(func(p testbed.Packet) bool {
		return p.Out && p.Proto == testbed.ProtoTCP && p.SrcPort == 5432 && p.Data > 0
	})
	must(t, err)
	conn, err := sibling.Dial(t.Context(), "tcp", netip.AddrPortFrom(at, 5432))
	must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("x"))
	must(t, err)
	last, err := c.Await(t.Context(), 1, func(testbed.Packet) bool { return true })
	must(t, err)
	must(t, c.Close())
	p, err := testbed.TooBigProbe(last.Dst, last, 1300)
	must(t, err)
	if o := send(t, sibling, p); o.Arrived != 1 {
		t.Errorf("path-MTU message: %s", o)
	}
}

const transferBytes = 200_000

// transfer lets the server at the address send bytes back, and returns how many came within a second.
func transfer(t *testing.T, from *testbed.Host, at netip.Addr) int {
	t.Helper()
	conn, err := from.Dial(t.Context(), "tcp", netip.AddrPortFrom(at, 5432))
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(time.Second)))
	go func() { _, _ = conn.Write(make([]byte, transferBytes)) }() // ends with the connection
	n, _ := io.ReadFull(conn, make([]byte, transferBytes))
	return n
}
