package e2e

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// fwICMP are the family's words for ICMP in iptables and in the counters.
type fwICMP struct {
	ipt, proto, typeOpt string
	echo, redirect      uint8
	group               string // in /proc/net/snmp and snmp6
	tooBig              string // the counter that a path-MTU message adds to
}

func fwICMPOf(fam firewall.Family) fwICMP {
	if fam == firewall.IPv6 {
		return fwICMP{"$I6", "ipv6-icmp", "--icmpv6-type", 128, 137, "Icmp6", "InPktTooBigs"}
	}
	return fwICMP{"$I4", "icmp", "--icmp-type", 8, 5, "Icmp", "InDestUnreachs"}
}

// fwCount puts a rule without a target on top of INPUT and returns a function
// that reads how many packets it has seen. Such a rule changes no verdict.
func (b *fwBed) fwCount(ipt, match string) func() int {
	b.t.Helper()
	b.sh(ipt + " -I INPUT 1 " + match)
	return func() int {
		b.t.Helper()
		n, err := strconv.Atoi(strings.TrimSpace(b.sh(ipt + " -nvxL INPUT 1 | awk '{print $1; exit}'")))
		fwMust(b.t, err)
		return n
	}
}

// An echo stream with one id becomes ESTABLISHED with its first reply. It is
// limited all the same, per source.
func TestF14_EchoStreamIsLimited(t *testing.T) {
	const stream = 300
	fwBackends(t, func(t *testing.T, b *fwBed) {
		for _, fam := range firewall.Families {
			before, err := b.peer.Ping(t.Context(), fwAddr(b.node, fam), stream)
			fwMust(t, err)
			if before.Replies != stream {
				t.Fatalf("%s: without rules %d of %d were answered", fam, before.Replies, stream)
			}
		}
		b.reconcile()
		for _, fam := range firewall.Families {
			words := fwICMPOf(fam)
			seen := b.fwCount(words.ipt, fmt.Sprintf("-p %s -m conntrack --ctstate ESTABLISHED", words.proto))
			start := time.Now()
			echo, err := b.peer.Ping(t.Context(), fwAddr(b.node, fam), stream)
			fwMust(t, err)
			allowed := 20 + 20*int(time.Since(start)/time.Second+1)
			if echo.Sent != stream || echo.Replies < 15 || echo.Replies > allowed {
				t.Errorf("%s: %d of %d were answered, want 15 to %d", fam, echo.Replies, echo.Sent, allowed)
			}
			if n := seen(); n < stream/2 {
				t.Errorf("%s: conntrack called %d of %d requests established; the test proves nothing", fam, n, stream)
			}
			other, err := b.control.Ping(t.Context(), fwAddr(b.node, fam), 10)
			fwMust(t, err)
			if other.Replies != 10 {
				t.Errorf("%s: after the peer's flood the control plane got %d of 10 replies", fam, other.Replies)
			}
			own, err := b.node.Ping(t.Context(), fwAddr(b.standby, fam), 10)
			fwMust(t, err)
			if own.Replies != 10 {
				t.Errorf("%s: the node's own pings: %+v", fam, own)
			}
		}
	})
}

// fwLive opens a session to the node's port 5432 and returns a segment of the
// node in it, which an ICMP error can quote.
func fwLive(t *testing.T, b *fwBed, fam firewall.Family) testbed.Packet {
	t.Helper()
	server, err := b.node.ServeTCP(t.Context(), netip.AddrPortFrom(fwAddr(b.node, fam), 5432))
	fwMust(t, err)
	defer server.Close() // its connections go on
	capture, err := b.node.Capture(func(p testbed.Packet) bool {
		return p.Out && p.Proto == testbed.ProtoTCP && p.Src == fwAddr(b.node, fam) && p.Data > 0
	})
	fwMust(t, err)
	conn, err := b.peer.Dial(t.Context(), "tcp", netip.AddrPortFrom(fwAddr(b.node, fam), 5432))
	fwMust(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = conn.Write([]byte("live\n"))
	fwMust(t, err)
	p, err := capture.Await(t.Context(), 1, func(testbed.Packet) bool { return true })
	fwMust(t, err)
	fwMust(t, capture.Close())
	return p
}

// fwArrives sends a probe from the peer and says whether the node's ICMP code
// saw it, that is: whether a counter behind netfilter's INPUT moved.
func fwArrives(t *testing.T, b *fwBed, from *testbed.Host, p testbed.Probe, group, counter string) bool {
	t.Helper()
	before := b.counter(group, counter)
	out, err := from.Send(t.Context(), p)
	fwMust(t, err)
	if out.Arrived != 1 {
		t.Fatalf("the probe did not reach the node's interface: %s", out)
	}
	return b.counter(group, counter) == before+1
}

// A redirect that quotes a live connection is RELATED and dropped all the same.
func TestF14_RedirectIsDropped(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		redirect := map[firewall.Family]testbed.Probe{}
		for _, fam := range firewall.Families {
			live := fwLive(t, b, fam)
			redirect[fam] = testbed.ICMPProbe(b.node.V4(), 5, 1, 0x0a140114, live.Head[:min(len(live.Head), 28)])
			if fam == firewall.IPv6 {
				via, err := b.peer.LinkLocal()
				fwMust(t, err)
				gateway := netip.MustParseAddr("fe80::1") // the bed's router
				redirect[fam] = testbed.RedirectProbe(gateway, b.node.V6(), b.peer.V6(), via)
			}
			if !fwArrives(t, b, b.peer, redirect[fam], fwICMPOf(fam).group, "InRedirects") {
				t.Fatalf("%s: without rules the redirect does not arrive; the test proves nothing", fam)
			}
		}
		b.reconcile()
		for _, fam := range firewall.Families {
			live := fwLive(t, b, fam)
			match := "-p icmp -m icmp --icmp-type 5 -m conntrack --ctstate RELATED"
			if fam == firewall.IPv4 {
				redirect[fam] = testbed.ICMPProbe(b.node.V4(), 5, 1, 0x0a140114, live.Head[:28])
			} else {
				match = "-p ipv6-icmp -m icmp6 --icmpv6-type 137" // conntrack leaves discovery messages out
			}
			seen := b.fwCount(fwICMPOf(fam).ipt, match)
			if fwArrives(t, b, b.peer, redirect[fam], fwICMPOf(fam).group, "InRedirects") {
				t.Errorf("%s: the redirect got in", fam)
			}
			if seen() != 1 {
				t.Errorf("%s: %d packets match %q; the test proves nothing", fam, seen(), match)
			}
		}
	})
}

func TestF14_TimestampIsDropped(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		send := func(h *testbed.Host) (answers, received int) {
			t.Helper()
			before := b.counter("Icmp", "InTimestamps")
			out, err := h.Send(t.Context(), testbed.TimestampProbe(b.node.V4()))
			fwMust(t, err)
			if out.Arrived != 1 {
				t.Fatal(out)
			}
			return len(out.Answers), b.counter("Icmp", "InTimestamps") - before
		}
		if answers, received := send(b.peer); answers != 1 || received != 1 {
			t.Fatalf("without rules: received %d, answers %d; the test proves nothing", received, answers)
		}
		b.reconcile()
		for _, h := range []*testbed.Host{b.peer, b.control, b.stranger} {
			if answers, received := send(h); answers != 0 || received != 0 {
				t.Errorf("%s: received %d, answers %d", h.Name(), received, answers)
			}
		}
	})
}

// Path-MTU messages work, from whichever router they come; other errors only
// if they belong to a connection.
func TestF14_PathMTUAndErrors(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.reconcile()
		for _, fam := range firewall.Families {
			words := fwICMPOf(fam)
			live := fwLive(t, b, fam)
			tooBig, err := testbed.TooBigProbe(fwAddr(b.stranger, fam), live, 1300)
			fwMust(t, err)
			b.sh("conntrack -F 2>/dev/null; conntrack -F -f ipv6 2>/dev/null") // it must pass even if conntrack knows nothing
			if !fwArrives(t, b, b.stranger, tooBig, words.group, words.tooBig) {
				t.Errorf("%s: the path-MTU message was dropped", fam)
			}
			if _, mtu, err := b.node.Route(fwAddr(b.peer, fam)); err != nil || mtu != 1300 {
				t.Errorf("%s: the path MTU is %d, want 1300 (%v)", fam, mtu, err)
			}
			live = fwLive(t, b, fam)
			kind, code, quote := uint8(3), uint8(1), 28
			if fam == firewall.IPv6 {
				kind, code, quote = 1, 0, 48
			}
			related := testbed.ICMPProbe(fwAddr(b.node, fam), kind, code, 0, live.Head[:quote])
			if !fwArrives(t, b, b.peer, related, words.group, "InDestUnreachs") {
				t.Errorf("%s: an error about a live connection was dropped", fam)
			}
			alien := append([]byte(nil), live.Head[:quote]...)
			alien[quote-8] ^= 0x40 // another source port: no such connection
			unrelated := testbed.ICMPProbe(fwAddr(b.node, fam), kind, code, 0, alien)
			if fwArrives(t, b, b.peer, unrelated, words.group, "InDestUnreachs") {
				t.Errorf("%s: an error about no connection got in", fam)
			}
		}
	})
}

// Neighbour discovery works under the rules, and the test would notice if not.
func TestF14_NeighbourDiscovery(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		_, err := b.node.ServeTCP(t.Context(), netip.AddrPortFrom(b.node.V6(), 5432))
		fwMust(t, err)
		_, err = b.standby.ServeTCP(t.Context(), netip.AddrPortFrom(b.standby.V6(), 5432))
		fwMust(t, err)
		b.reconcile()
		forget := func() {
			t.Helper()
			for _, h := range []*testbed.Host{b.node, b.peer, b.standby} {
				_, err := h.Run(t.Context(), "ip", "-6", "neigh", "flush", "all")
				fwMust(t, err)
			}
		}
		connect := func(from, to *testbed.Host) testbed.Verdict {
			t.Helper()
			v, err := from.Connect(t.Context(), netip.AddrPortFrom(to.V6(), 5432))
			fwMust(t, err)
			return v
		}
		forget()
		if v := connect(b.peer, b.node); v != testbed.Open {
			t.Errorf("peer to node with empty neighbour caches: %s", v)
		}
		forget()
		if v := connect(b.node, b.standby); v != testbed.Open {
			t.Errorf("node to standby with empty neighbour caches: %s", v)
		}
		b.sh("for T in 135 136; do $I6 -I INPUT -p ipv6-icmp --icmpv6-type $T -j DROP; done")
		forget()
		if v := connect(b.peer, b.node); v == testbed.Open {
			t.Error("the connection does not need neighbour discovery; the test proves nothing")
		}
	})
}
