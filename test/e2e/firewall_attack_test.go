package e2e

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// A48: whatever a process on the node tries, nothing of it reaches another
// tenant, nor does a DNS query reach a resolver that is none of ours.
func TestA48_NothingReachesAnotherTenant(t *testing.T) {
	probes := func(to netip.Addr) []testbed.Probe {
		return append([]testbed.Probe{
			testbed.ProtoProbe(to, testbed.ProtoSCTP), testbed.ProtoProbe(to, testbed.ProtoGRE), testbed.ProtoProbe(to, 4), testbed.ProtoProbe(to, 132),
			testbed.UDPProbe(netip.AddrPortFrom(to, 53), []byte("tunnel")), testbed.UDPProbe(netip.AddrPortFrom(to, 9694), []byte("x")), testbed.UDPProbe(netip.AddrPortFrom(to, 123), []byte("x")),
			testbed.TCPProbe(netip.AddrPortFrom(to, 53), testbed.SYN), testbed.TCPProbe(netip.AddrPortFrom(to, 5432), testbed.SYN), testbed.TCPProbe(netip.AddrPortFrom(to, 443), testbed.ACK),
			testbed.TCPProbe(netip.AddrPortFrom(to, 80), testbed.SYN|testbed.ACK), testbed.TCPProbe(netip.AddrPortFrom(to, 1), 0),
		}, testbed.EchoProbes(to, 3)...)
	}
	fwBackends(t, func(t *testing.T, b *fwBed) {
		for _, fam := range firewall.Families {
			out, err := b.node.Send(t.Context(), probes(fwAddr(b.stranger, fam))...)
			fwMust(t, err)
			if out.Denied != 0 || out.Arrived < out.Sent {
				t.Fatalf("%s: without rules: %s; the test proves nothing", fam, out)
			}
		}
		b.spec.Members["dns"] = fwPrefixes("10.20.1.30/32", "fd00:20:1::30/128") // the control plane's host
		b.want = fwRender(t, b.spec)
		b.reconcile()
		for _, fam := range firewall.Families {
			all := probes(fwAddr(b.stranger, fam))
			out, err := b.node.Send(t.Context(), all...)
			fwMust(t, err)
			if out.Denied != len(all) || out.Sent != 0 || out.Arrived != 0 {
				t.Errorf("%s: to the stranger: %s; want all %d denied", fam, out, len(all))
			}
			for _, port := range []uint16{53, 5353} {
				out, err = b.node.Send(t.Context(), testbed.UDPProbe(netip.AddrPortFrom(fwAddr(b.control, fam), port), []byte("query")))
				fwMust(t, err)
				if (out.Arrived == 1) != (port == 53) {
					t.Errorf("%s: to our resolver, port %d: %s", fam, port, out)
				}
			}
			fwStrangerGetsNothing(t, b, fam)
		}
	})
}

// Segments that no TCP sends are dropped by rules of their own, even from a peer
// and to a port that is open to it.
func TestFirewallBogusFlagsAreDropped(t *testing.T) {
	answered := []testbed.TCPFlags{0, testbed.FIN, testbed.XMAS, testbed.PSH, testbed.URG, testbed.SYN | testbed.FIN} // by a closed port
	silent := []testbed.TCPFlags{testbed.SYN | testbed.RST, testbed.FIN | testbed.RST, testbed.FIN | testbed.RST | testbed.ACK, testbed.XMAS | testbed.SYN | testbed.RST | testbed.ACK}
	fwBackends(t, func(t *testing.T, b *fwBed) {
		send := func(fam firewall.Family, list []testbed.TCPFlags) testbed.Outcome {
			t.Helper()
			var probes []testbed.Probe
			for _, flags := range list {
				probes = append(probes, testbed.TCPProbe(netip.AddrPortFrom(fwAddr(b.node, fam), 5432), flags))
			}
			out, err := b.peer.Send(t.Context(), probes...)
			fwMust(t, err)
			if out.Arrived != len(list) {
				t.Fatalf("%s: %s", fam, out)
			}
			return out
		}
		for _, fam := range firewall.Families {
			if out := send(fam, answered); out.Answered != len(answered) {
				t.Fatalf("%s: without rules: %s; the test proves nothing", fam, out)
			}
		}
		b.reconcile()
		for _, fam := range firewall.Families {
			before := b.packets(fwIpt(fam)+"-save", firewall.ChainIn, "pghardend:tcp-flags")
			out := send(fam, append(silent, answered...))
			if len(out.Answers) != 0 {
				t.Errorf("%s: %s: %v", fam, out, out.Answers)
			}
			if n := b.packets(fwIpt(fam)+"-save", firewall.ChainIn, "pghardend:tcp-flags") - before; n != len(silent)+len(answered) {
				t.Errorf("%s: %d of %d were dropped by the rules for flags", fam, n, len(silent)+len(answered))
			}
			if out, err := b.peer.Send(t.Context(), testbed.TCPProbe(netip.AddrPortFrom(fwAddr(b.node, fam), 5432), testbed.SYN)); err != nil || out.Answered != 1 {
				t.Errorf("%s: an ordinary SYN: %s, %v", fam, out, err)
			}
		}
	})
}

// An IPv6 packet with a forged source is dropped before conntrack sees it: one
// that claims to be the node itself, and one from a network on another interface.
func TestFirewallForgedIPv6Source(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.sh("ip link add v9 type veth peer name v9p; ip link set v9p up; ip link set v9 up; ip -6 addr add fd00:99::1/64 dev v9 nodad")
		_, err := b.node.ServeTCP(t.Context(), netip.AddrPortFrom(b.node.V6(), 5432))
		fwMust(t, err)
		forged := []netip.Addr{b.node.V6(), netip.MustParseAddr("fd00:99::5")}
		send := func() (seen int) {
			t.Helper()
			for _, from := range forged {
				count := b.fwCount("$I6", "-i eth0 -s "+from.String())
				p := testbed.TCPProbe(netip.AddrPortFrom(b.node.V6(), 5432), testbed.SYN)
				p.From = from
				out, err := b.stranger.Send(t.Context(), p)
				fwMust(t, err)
				if out.Arrived != 1 {
					t.Fatalf("from %s: %s", from, out)
				}
				seen += count()
			}
			return seen
		}
		if n := send(); n != len(forged) {
			t.Fatalf("without rules %d of %d get as far as INPUT; the test proves nothing", n, len(forged))
		}
		b.reconcile()
		if n := send(); n != 0 {
			t.Errorf("%d of %d got as far as INPUT", n, len(forged))
		}
		if n := b.packets("$I6-save", firewall.ChainRPF, "pghardend:rpfilter"); n != len(forged) {
			t.Errorf("%d of %d were dropped as forged", n, len(forged))
		}
		if !fwCanConnect(t, b.peer, b.node, firewall.IPv6, 5432) {
			t.Error("an honest peer cannot connect")
		}
	})
}

// One source has so many connections and no more, and each source has its own.
func TestFirewallConnectionLimit(t *testing.T) {
	const limit = 5
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.spec.Flows[0].Connections = limit
		b.want = fwRender(t, b.spec)
		b.reconcile()
		for _, fam := range firewall.Families {
			at := netip.AddrPortFrom(fwAddr(b.node, fam), 5432)
			_, err := b.node.ServeTCP(t.Context(), at)
			fwMust(t, err)
			var conns []net.Conn
			for range limit {
				conn, err := b.peer.Dial(t.Context(), "tcp", at)
				fwMust(t, err)
				t.Cleanup(func() { conn.Close() })
				conns = append(conns, conn)
			}
			if fwCanConnect(t, b.peer, b.node, fam, 5432) {
				t.Errorf("%s: connection %d was let in", fam, limit+1)
			}
			if !fwCanConnect(t, b.standby, b.node, fam, 5432) {
				t.Errorf("%s: another source was shut out", fam)
			}
			fwMust(t, conns[0].(*net.TCPConn).SetLinger(0)) // a reset: closed at once for conntrack
			fwMust(t, conns[0].Close())
			if v, err := b.peer.Connect(t.Context(), at); err != nil || v != testbed.Open {
				t.Errorf("%s: after one was closed: %s, %v", fam, v, err)
			}
			fwMust(t, fwSayEcho(conns[1])) // those that are in go on
		}
	})
}

func fwSayEcho(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("still there\n")); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 64))
	return err
}

// A peer's flood of new connections is cut to its rate. It costs neither its own
// open connections nor anybody else's new ones, and a stranger's flood costs nobody.
func TestFirewallNewConnectionRate(t *testing.T) {
	const rate, flood = 5, 200
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.spec.Flows[0].NewPerSecond = rate
		b.want = fwRender(t, b.spec)
		for _, fam := range firewall.Families {
			at := netip.AddrPortFrom(fwAddr(b.node, fam), 5432)
			_, err := b.node.ServeTCP(t.Context(), at)
			fwMust(t, err)
			syns := func(n int) []testbed.Probe {
				var list []testbed.Probe
				for range n {
					list = append(list, testbed.TCPProbe(at, testbed.SYN))
				}
				return list
			}
			out, err := b.peer.Send(t.Context(), syns(flood)...)
			fwMust(t, err)
			if out.Answered != flood {
				t.Fatalf("%s: without rules: %s; the test proves nothing", fam, out)
			}
			b.reconcile()
			if out, err = b.stranger.Send(t.Context(), syns(flood)...); err != nil || out.Answered != 0 {
				t.Errorf("%s: stranger: %s, %v", fam, out, err)
			}
			conn, err := b.peer.Dial(t.Context(), "tcp", at)
			fwMust(t, err)
			start := time.Now()
			out, err = b.peer.Send(t.Context(), syns(flood)...)
			fwMust(t, err)
			if most := 2*rate + rate*int(time.Since(start)/time.Second+1); out.Answered < rate || out.Answered > most || out.Arrived != flood {
				t.Errorf("%s: %s; want %d to %d answered", fam, out, rate, most)
			}
			if err := fwSayEcho(conn); err != nil {
				t.Errorf("%s: the flooding peer's open connection: %v", fam, err)
			}
			fwMust(t, conn.Close())
			if out, err = b.standby.Send(t.Context(), syns(rate)...); err != nil || out.Answered != rate {
				t.Errorf("%s: another source: %s, %v", fam, out, err)
			}
			b.sh("$I4 -F; $I4 -X; $I6 -F; $I6 -X; conntrack -F 2>/dev/null")
		}
	})
}

// Scope siblings: what goes to or comes from siblings is judged, link-local
// addresses included; all else is left to the host's own firewall.
func TestFirewallScopeSiblings(t *testing.T) {
	for _, backend := range []string{firewall.BackendNFT, firewall.BackendLegacy} {
		t.Run(backend, func(t *testing.T) {
			b := fwNew(t, backend, testbed.HostSpec{Name: "outsider", Addresses: []string{"10.50.0.5/24", "fd00:50::5/64"}})
			outsider := b.bed.Host("outsider")
			for _, fam := range firewall.Families {
				for _, h := range []*testbed.Host{b.node, b.peer, b.stranger, outsider} {
					for _, port := range []uint16{5432, 8008, 8009} {
						_, err := h.ServeTCP(t.Context(), netip.AddrPortFrom(fwAddr(h, fam), port))
						fwMust(t, err)
					}
				}
			}
			if in, out := fwLinkLocal(t, b.stranger, b.node), fwLinkLocal(t, b.node, b.stranger); !in || !out {
				t.Fatalf("without rules the link-local addresses answer: in %v, out %v; the test proves nothing", in, out)
			}
			b.spec.Scope = firewall.ScopeSiblings
			b.spec.Members[firewall.NetworkSiblings] = fwPrefixes("10.20.1.0/24", "fd00:20:1::/64")
			b.want = fwRender(t, b.spec)
			b.sh("for I in $I4 $I6; do $I -A INPUT -p tcp --dport 8009 -j DROP; done") // the host's own firewall
			b.reconcile()
			for _, fam := range firewall.Families {
				for _, c := range []struct {
					from, to *testbed.Host
					port     uint16
					open     bool
				}{
					{outsider, b.node, 8008, true}, {outsider, b.node, 5432, true}, {outsider, b.node, 8009, false},
					{b.node, outsider, 8008, true}, {b.node, outsider, 8009, true},
					{b.stranger, b.node, 8008, false}, {b.stranger, b.node, 5432, false},
					{b.node, b.stranger, 8008, false}, {b.node, b.stranger, 5432, false},
					{b.peer, b.node, 5432, true}, {b.peer, b.node, 8008, false}, {b.node, b.peer, 5432, false},
				} {
					if got := fwCanConnect(t, c.from, c.to, fam, c.port); got != c.open {
						t.Errorf("%s: %s to %s port %d: open %v, want %v", fam, c.from.Name(), c.to.Name(), c.port, got, c.open)
					}
				}
				fwStrangerGetsNothing(t, b, fam)
			}
			if in, out := fwLinkLocal(t, b.stranger, b.node), fwLinkLocal(t, b.node, b.stranger); in || out {
				t.Errorf("by link-local addresses: in %v, out %v", in, out)
			}
		})
	}
}

// fwLinkLocal says whether a SYN to a link-local address gets an answer.
func fwLinkLocal(t *testing.T, from, to *testbed.Host) bool {
	t.Helper()
	src, err := from.LinkLocal()
	fwMust(t, err)
	dst, err := to.LinkLocal()
	fwMust(t, err)
	p := testbed.TCPProbe(netip.AddrPortFrom(dst.WithZone(""), 8008), testbed.SYN)
	p.From = src.WithZone("")
	out, err := from.Send(t.Context(), p)
	fwMust(t, err)
	return out.Answered == 1
}
