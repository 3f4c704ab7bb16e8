package e2e

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/pghardend/pghardend/internal/testbed"
)

// The claims of the first slice about packets, with the daemon running, on both
// backends and both families.
func TestSliceNetwork(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s := newSlice(t, backend, nil)
		// Positive control: without rules the sibling gets at the same server.
		must(t, s.cluster.Start(s.ctx, s.node))
		for _, at := range families(s.node) {
			if got, err := s.sql(s.sibling, at, "SELECT 41+1"); err != nil || got != "42" {
				t.Fatalf("without rules the sibling should reach %s: %q %v", at, got, err)
			}
		}
		must(t, s.cluster.Stop(s.ctx))
		s.start()

		t.Run("peer", func(t *testing.T) {
			for _, at := range families(s.node) {
				if got, err := s.sql(s.peer, at, "SELECT 41+1"); err != nil || got != "42" {
					t.Errorf("the peer's session to %s: %q %v", at, got, err)
				}
			}
		})
		t.Run("sibling in", func(t *testing.T) { siblingIn(t, s) })
		t.Run("sibling out", func(t *testing.T) { siblingOut(t, s) })
		t.Run("other ports", func(t *testing.T) { otherPorts(t, s) })
		t.Run("icmp", func(t *testing.T) { icmp(t, s) })
	})
}

// siblingIn: not one of the SYNs to any port is answered, nor anything else.
func siblingIn(t *testing.T, s *slice) {
	for _, at := range families(s.node) {
		probes := testbed.SYNScan(at, 1, 65535)
		o := send(t, s.sibling, probes...)
		if o.Sent != len(probes) || o.Arrived != len(probes) || len(o.Answers) != 0 {
			t.Errorf("SYNs to every port of %s: %v; want all to arrive and none answered", at, o)
		}
		for _, probe := range []testbed.Probe{
			testbed.TCPProbe(netip.AddrPortFrom(at, 5432), testbed.ACK),
			testbed.TCPProbe(netip.AddrPortFrom(at, 5432), testbed.FIN),
			testbed.TCPProbe(netip.AddrPortFrom(at, 5432), testbed.SYN|testbed.ACK),
			testbed.UDPProbe(netip.AddrPortFrom(at, 5432), []byte("x")),
			testbed.ProtoProbe(at, testbed.ProtoSCTP), testbed.ProtoProbe(at, testbed.ProtoGRE),
		} {
			if o := send(t, s.sibling, probe); o.Arrived != 1 || len(o.Answers) != 0 {
				t.Errorf("%+v from the sibling: %v; want it to arrive and get no answer", probe, o)
			}
		}
		if e, err := s.sibling.Ping(s.ctx, at, 3); err != nil || e.Replies != 0 {
			t.Errorf("the sibling's echo requests to %s: %+v %v; want no reply", at, e, err)
		}
	}
}

// siblingOut: nothing that the node sends to the sibling gets on the wire.
func siblingOut(t *testing.T, s *slice) {
	for _, at := range families(s.sibling) {
		server, err := s.sibling.ServeTCP(s.ctx, netip.AddrPortFrom(at, 5432))
		must(t, err)
		// Positive control: the peer, which has no rules, connects.
		if v, err := s.peer.Connect(s.ctx, netip.AddrPortFrom(at, 5432)); err != nil || v != testbed.Open {
			t.Errorf("peer to sibling %s: %s %v; want open", at, v, err)
		}
		if v, err := s.node.Connect(s.ctx, netip.AddrPortFrom(at, 5432)); err != nil || v == testbed.Open || v == testbed.Refused {
			t.Errorf("node to sibling %s: %s %v; want it to be stopped", at, v, err)
		}
		if n := server.Received(); n != 1 {
			t.Errorf("the sibling accepted %d connections on %s, want only the peer's", n, at)
		}
		must(t, server.Close())
		o := send(t, s.node, testbed.SYNScan(at, 1, 1024)...)
		if o.Arrived != 0 || o.Denied != 1024 {
			t.Errorf("the node's SYNs to %s: %v; want all refused by its own kernel", at, o)
		}
		o = send(t, s.node, testbed.UDPProbe(netip.AddrPortFrom(at, 53), []byte("x")))
		if o.Arrived != 0 {
			t.Errorf("the node's datagram to %s: %v; want it refused by its own kernel", at, o)
		}
	}
}

// otherPorts: a peer has its flow and nothing else; the control plane has ssh.
func otherPorts(t *testing.T, s *slice) {
	var wg sync.WaitGroup
	reaches := func(from *testbed.Host, to netip.AddrPort, want testbed.Verdict) {
		wg.Go(func() {
			if v, err := from.Connect(s.ctx, to); err != nil || v != want {
				t.Errorf("%s to %s: %s %v; want %s", from.Name(), to, v, err, want)
			}
		})
	}
	for _, at := range families(s.node) {
		for _, port := range []uint16{22, 8008, 9999} {
			to := netip.AddrPortFrom(at, port)
			server, err := s.node.ServeTCP(s.ctx, to)
			must(t, err)
			defer func() { must(t, server.Close()) }()
			reaches(s.peer, to, testbed.NoAnswer)
			want := testbed.NoAnswer
			if port == 22 {
				want = testbed.Open
			}
			reaches(s.control, to, want)
		}
		reaches(s.control, netip.AddrPortFrom(at, 5432), testbed.NoAnswer)
	}
	wg.Wait()
}

const floodSize = 1000

// icmp: a peer's ping works, its flood is limited, redirects and timestamps get nowhere.
func icmp(t *testing.T, s *slice) {
	for _, at := range families(s.node) {
		for _, from := range []*testbed.Host{s.peer, s.control} {
			if e, err := from.Ping(s.ctx, at, 3); err != nil || e.Replies != 3 {
				t.Errorf("ping of %s from %s: %+v %v; want 3 replies", at, from.Name(), e, err)
			}
		}
		o := send(t, s.peer, testbed.EchoProbes(at, floodSize)...)
		if o.Arrived != floodSize || o.Answered == 0 || o.Answered > floodSize/5 {
			t.Errorf("a flood of %d echo requests to %s: %v; want all to arrive and few to be answered", floodSize, at, o)
		}
	}
	if o := send(t, s.peer, testbed.TimestampProbe(s.node.V4())); o.Arrived != 1 || len(o.Answers) != 0 {
		t.Errorf("a timestamp request: %v; want it to arrive and get no answer", o)
	}
	redirected(t, s)
}

// redirected: a redirect that poses as the router's does not change the node's
// way to the control plane. (TestTestbedRedirect is the positive control.)
func redirected(t *testing.T, s *slice) {
	link, err := s.sibling.LinkLocal()
	must(t, err)
	for i, dst := range families(s.control) {
		before, _, err := s.node.Route(dst)
		must(t, err)
		via := []netip.Addr{s.sibling.V4(), link}[i]
		if o := send(t, s.sibling, testbed.RedirectProbe(before, families(s.node)[i], dst, via)); o.Arrived != 1 {
			t.Errorf("the redirect for %s: %v; want it to arrive", dst, o)
		}
		if after, _, err := s.node.Route(dst); err != nil || after != before {
			t.Errorf("after a redirect the way to %s is %s, not %s (%v)", dst, after, before, err)
		}
	}
}
