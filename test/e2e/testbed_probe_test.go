package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
)

// A datagram to a server that keeps silent leaves no trace on the wire but its arrival: only what lies behind INPUT tells
// whether it got through. The same for every protocol that has a socket, on both backends.
func TestTestbedDeliveries(t *testing.T) {
	for _, backend := range []string{"nft", "legacy"} {
		_, node, sibling, _ := testBed(t, "deliveries-"+backend)
		for i, to := range families(node) {
			silent(t, node, netip.AddrPortFrom(to, 9694))
			probes := map[string]testbed.Probe{
				"udp": testbed.UDPProbe(netip.AddrPortFrom(to, 9694), []byte("x")), "udp, closed": testbed.UDPProbe(netip.AddrPortFrom(to, 9), nil),
				"tcp": testbed.TCPProbe(netip.AddrPortFrom(to, 5432), testbed.SYN), "echo": testbed.EchoProbes(to, 1)[0],
				"sctp": testbed.ProtoProbe(to, testbed.ProtoSCTP), "gre": testbed.ProtoProbe(to, testbed.ProtoGRE),
			}
			check := func(want int) {
				t.Helper()
				for name, p := range probes {
					d, err := node.Deliveries(func(q testbed.Packet) bool { return q.Proto == p.Proto && q.Dst == to && q.Src == families(sibling)[i] })
					must(t, err)
					o := send(t, sibling, p)
					must(t, d.Close())
					if o.Arrived != 1 || len(d.Packets()) != want {
						t.Errorf("%s, %s to %s: arrived %d, delivered %d, want 1 and %d", backend, name, to, o.Arrived, len(d.Packets()), want)
					}
					if known := p.Proto != testbed.ProtoSCTP && p.Proto != testbed.ProtoGRE; known && o.Delivered != want {
						t.Errorf("%s, %s to %s: the outcome says %s, want %d delivered", backend, name, to, o, want)
					}
				}
			}
			check(1)
			tool := []string{"iptables-", "ip6tables-"}[i] + backend + " -w "
			run(t, node, tool+"-A INPUT -s "+families(sibling)[i].String()+" -j DROP")
			check(0)
			run(t, node, tool+"-F; "+tool+"-A OUTPUT -j DROP") // an answer that is dropped does not undo the delivery
			if i == 0 {
				check(1)
			}
			run(t, node, tool+"-F")
		}
	}
}

// silent binds a UDP socket on a host that never answers.
func silent(t *testing.T, h *testbed.Host, at netip.AddrPort) {
	t.Helper()
	var conn *net.UDPConn
	must(t, h.Do(func() error {
		var err error
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	t.Cleanup(func() { must(t, conn.Close()) })
}

// Hundreds of connections, each with its own verdict, take as long as one that nobody answers.
func TestTestbedConnectAll(t *testing.T) {
	_, node, sibling, _ := testBed(t, "connect-all")
	var to []netip.AddrPort
	var want []testbed.Verdict
	for i, at := range families(node) {
		_, err := node.ServeTCP(t.Context(), netip.AddrPortFrom(at, 5432))
		must(t, err)
		tool := []string{"iptables-nft", "ip6tables-nft"}[i]
		run(t, node, tool+" -A INPUT -p tcp --dport 6000:6999 -j DROP; "+
			tool+" -A INPUT -p tcp --dport 7000 -j REJECT --reject-with "+[]string{"icmp-host-prohibited", "icmp6-addr-unreachable"}[i])
		add := func(port uint16, v testbed.Verdict) {
			to, want = append(to, netip.AddrPortFrom(at, port)), append(want, v)
		}
		for n := range uint16(300) {
			add(6000+n, testbed.NoAnswer)
			add(8000+n, testbed.Refused)
		}
		add(5432, testbed.Open)
		add(7000, testbed.Unreachable)
	}
	start := time.Now()
	got, err := sibling.ConnectAll(t.Context(), to)
	must(t, err)
	for i := range to {
		if got[i] != want[i] {
			t.Errorf("%s is %q, want %q", to[i], got[i], want[i])
		}
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("%d connections took %s: they were not made at once", len(to), took)
	}
	if got, err := sibling.ConnectAll(t.Context(), nil); len(got) != 0 || err != nil {
		t.Errorf("none: %v, %v", got, err)
	}
}

// Everybody probes everybody at once, and each probe has its own fate.
func TestTestbedSendAll(t *testing.T) {
	b, node, sibling, control := testBed(t, "send-all")
	hosts := []*testbed.Host{node, sibling, control}
	// A port that the node drops, one whose answers it drops, and one that the sibling may not send to.
	rule(t, node, "nft", "INPUT -p tcp --dport 2000 -j DROP")
	rule(t, node, "nft", "OUTPUT -p tcp --sport 3000 -j DROP")
	rule(t, sibling, "nft", "OUTPUT -p tcp --dport 4000 -j DROP")
	rule(t, control, "nft", "INPUT -p tcp --sport 5000 -j DROP")
	var shots []testbed.Shot
	for _, from := range hosts {
		for _, target := range hosts {
			if from == target {
				continue
			}
			for _, to := range families(target) {
				for _, port := range []uint16{1000, 2000, 3000, 4000, 5000} {
					shots = append(shots, testbed.Shot{From: from, Probe: testbed.TCPProbe(netip.AddrPortFrom(to, port), testbed.SYN)})
				}
				shots = append(shots, testbed.Shot{From: from, Probe: testbed.EchoProbes(to, 1)[0]},
					testbed.Shot{From: from, Probe: testbed.UDPProbe(netip.AddrPortFrom(to, 53), nil)})
			}
		}
	}
	fates, err := b.SendAll(t.Context(), shots)
	must(t, err)
	for i, s := range shots {
		toNode, port := slices.Contains(families(node), s.Probe.To), uint16(0)
		if s.Probe.Proto == testbed.ProtoTCP {
			port = uint16(s.Probe.Payload[2])<<8 | uint16(s.Probe.Payload[3])
		}
		want := "delivered, answer returned"
		switch {
		case port == 2000 && toNode:
			want = "dropped by the target, no answer"
		case port == 3000 && toNode:
			want = "delivered, no answer"
		case port == 4000 && s.From == sibling:
			want = "denied by the sender, no answer"
		case port == 5000 && s.From == control:
			want = "delivered, answer dropped by the sender"
		}
		if got := fates[i].String(); got != want {
			t.Errorf("%s to %s protocol %d port %d: %s, want %s", s.From.Name(), s.Probe.To, s.Probe.Proto, port, got, want)
		}
	}
}

// A flood keeps its rate, and its counts agree with what the target's rules let through.
func TestTestbedFlood(t *testing.T) {
	_, node, sibling, _ := testBed(t, "flood")
	for i, to := range families(node) {
		for name, spec := range map[string]testbed.FloodSpec{
			"syn": testbed.SYNFlood(netip.AddrPortFrom(to, 5432), 4000, 2000), "udp": testbed.UDPFlood(netip.AddrPortFrom(to, 9694), 4000, 2000),
			"echo": testbed.EchoFlood(to, 4000, 2000),
		} {
			start := time.Now()
			r := flood(t, sibling, spec)
			if r.Sent != 2000 || r.Arrived != 2000 || r.Delivered != 2000 {
				t.Errorf("%s flood of the open %s: %s, want 2000 of all", name, to, r)
			}
			if took := time.Since(start); took < 450*time.Millisecond {
				t.Errorf("%s flood: 2000 packets at 4000 a second took %s", name, took)
			}
		}
		tool := []string{"iptables-nft", "ip6tables-nft"}[i]
		run(t, node, tool+" -A INPUT -p tcp --dport 5432 -m limit --limit 1/s --limit-burst 50 -j ACCEPT; "+tool+" -A INPUT -p tcp --dport 5432 -j DROP")
		r := flood(t, sibling, testbed.SYNFlood(netip.AddrPortFrom(to, 5432), 4000, 2000))
		if r.Arrived != 2000 || r.Delivered < 50 || r.Delivered > 70 {
			t.Errorf("flood against a burst of 50: %s", r)
		}
		run(t, sibling, tool+" -A OUTPUT -p udp -j DROP")
		if r := flood(t, sibling, testbed.UDPFlood(netip.AddrPortFrom(to, 9694), 4000, 100)); r.Denied != 100 || r.Arrived != 0 {
			t.Errorf("flood that the sender's own rules stop: %s", r)
		}
	}
	f, err := sibling.Flood(t.Context(), testbed.EchoFlood(node.V4(), 1000, 1_000_000))
	must(t, err)
	must(t, testbed.Await(t.Context(), "a hundred packets", func(context.Context) error {
		if n := f.Now().Delivered; n < 100 {
			return fmt.Errorf("%d delivered", n)
		}
		return nil
	}))
	if r, err := f.Stop(); err != nil || r.Sent > 100_000 || r.Delivered != r.Sent {
		t.Errorf("a flood that was stopped: %s, %v", r, err)
	}
	if _, err := sibling.Flood(t.Context(), testbed.EchoFlood(node.V4(), 1_000_000, 1)); err == nil {
		t.Error("a flood without bounds")
	}
}

func flood(t *testing.T, from *testbed.Host, spec testbed.FloodSpec) testbed.FloodResult {
	t.Helper()
	f, err := from.Flood(t.Context(), spec)
	must(t, err)
	<-f.Done()
	r, err := f.Stop()
	must(t, err)
	return r
}

// A stream arrives whole; one whose packets are dropped for a moment says how many were lost.
func TestTestbedStream(t *testing.T) {
	_, node, sibling, _ := testBed(t, "stream")
	for i, to := range families(node) {
		for _, disturb := range []bool{false, true} {
			s, err := sibling.Stream(t.Context(), node, netip.AddrPortFrom(to, 9694), 2000)
			must(t, err)
			received := func(n int) {
				t.Helper()
				must(t, testbed.Await(t.Context(), "datagrams", func(context.Context) error {
					if r := s.Now(); r.Received < n {
						return fmt.Errorf("%s", r)
					}
					return nil
				}))
			}
			received(300)
			if disturb {
				tool := []string{"iptables-nft", "ip6tables-nft"}[i]
				run(t, node, tool+" -I INPUT -p udp --dport 9694 -j DROP")
				at := s.Now()
				must(t, testbed.Await(t.Context(), "losses", func(context.Context) error {
					if r := s.Now(); r.Sent < at.Sent+100 {
						return fmt.Errorf("%s", r)
					}
					return nil
				}))
				run(t, node, tool+" -D INPUT -p udp --dport 9694 -j DROP")
				received(s.Now().Received + 300)
			}
			r, err := s.Stop()
			if err != nil || r.Whole() == disturb || disturb && (r.Lost < 50 || r.Duplicates+r.OutOfOrder > 0) || r.Received+r.Lost != r.Sent {
				t.Errorf("to %s, disturbed %v: %s, %v", to, disturb, r, err)
			}
		}
	}
}
