package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// fwOldSession is a connection from before the first apply.
type fwOldSession struct {
	name           string
	client, server net.Conn
}

func fwOpenSession(t *testing.T, client, server *testbed.Host, fam firewall.Family, port uint16) fwOldSession {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	at := netip.AddrPortFrom(fwAddr(server, fam), port)
	l, err := server.Listen(ctx, at)
	fwMust(t, err)
	defer l.Close()
	s := fwOldSession{name: fmt.Sprintf("%s, %s to %s port %d", fam, client.Name(), server.Name(), port)}
	s.client, err = client.Dial(ctx, "tcp", at)
	fwMust(t, err)
	t.Cleanup(func() { s.client.Close() })
	s.server, err = l.Accept()
	fwMust(t, err)
	t.Cleanup(func() { s.server.Close() })
	fwMust(t, fwSay(s.client, s.server))
	fwMust(t, fwSay(s.server, s.client))
	return s
}

// fwSay writes at one end and reads at the other, within a second.
func fwSay(from, to net.Conn) error {
	if _, err := from.Write([]byte("hello\n")); err != nil {
		return err
	}
	if err := to.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	buf := make([]byte, 16)
	n, err := to.Read(buf)
	if err == nil && string(buf[:n]) != "hello\n" {
		err = fmt.Errorf("read %q", buf[:n])
	}
	return err
}

// Sessions from before the first apply, which conntrack has never seen, go on,
// even if it is the server that speaks first; a stranger's does not. The node is
// the server of the first two and the client of the third.
func TestFirewallFirstApplyKeepsSessions(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		var kept, cut []fwOldSession
		for _, fam := range firewall.Families {
			kept = append(kept,
				fwOpenSession(t, b.peer, b.node, fam, 5432),
				fwOpenSession(t, b.control, b.node, fam, 22),
				fwOpenSession(t, b.node, b.standby, fam, 5432))
			cut = append(cut,
				fwOpenSession(t, b.stranger, b.node, fam, 5432),
				fwOpenSession(t, b.node, b.stranger, fam, 5432),
				fwOpenSession(t, b.peer, b.node, fam, 8008))
		}
		if tracked := b.sh("conntrack -L 2>/dev/null; conntrack -L -f ipv6 2>/dev/null"); tracked != "" {
			t.Fatalf("conntrack knows the sessions already; the test proves nothing:\n%s", tracked)
		}
		b.reconcile()
		for _, s := range kept {
			for range 3 {
				if err := errors.Join(fwSay(s.server, s.client), fwSay(s.client, s.server)); err != nil {
					t.Errorf("%s: %v", s.name, err)
					break
				}
			}
		}
		for _, s := range cut {
			if err := fwSay(s.server, s.client); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s goes on: %v", s.name, err)
			}
		}
	})
}

// A session survives a moment without any rules, as after an administrator's
// flush, in which the kernel does not track connections.
func TestF01_SessionSurvivesFlush(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.reconcile()
		for _, fam := range firewall.Families {
			s := fwOpenSession(t, b.peer, b.node, fam, 5432)
			b.sh("for I in $I4 $I6; do $I -F; $I -X; done; conntrack -F 2>/dev/null")
			fwMust(t, fwSay(s.server, s.client))
			late := fwOpenSession(t, b.node, b.standby, fam, 5432)
			b.reconcile()
			if err := errors.Join(fwSay(s.server, s.client), fwSay(s.client, s.server), fwSay(late.server, late.client)); err != nil {
				t.Errorf("%s: %v", fam, err)
			}
		}
	})
}

// from gives a TCP probe its source port.
func fwFromPort(p testbed.Probe, port uint16) testbed.Probe {
	binary.BigEndian.PutUint16(p.Payload, port)
	return p
}

// The rules that keep old sessions alive open nothing: neither can a process on
// the node connect out from a service's port, nor a peer or stranger in.
func TestFirewallAnswersOpenNothing(t *testing.T) {
	const port = 7777
	fwBackends(t, func(t *testing.T, b *fwBed) {
		servers := map[*testbed.Host][]*testbed.Server{}
		for _, fam := range firewall.Families {
			for _, h := range []*testbed.Host{b.node, b.peer, b.control, b.stranger} {
				s, err := h.ServeTCP(t.Context(), netip.AddrPortFrom(fwAddr(h, fam), port))
				fwMust(t, err)
				servers[h] = append(servers[h], s)
			}
			if v := fwConnectFrom(t, b.node, fwAddr(b.peer, fam), 5432, port); v != nil {
				t.Fatalf("%s: without rules: %v", fam, v)
			}
		}
		b.reconcile()
		for _, fam := range firewall.Families {
			for _, c := range []struct {
				to   *testbed.Host
				from uint16
			}{{b.peer, 5432}, {b.control, 22}, {b.stranger, 5432}} {
				fwNoWayOut(t, b, c.to, fam, c.from, port)
			}
			fwNoWayIn(t, b, fam, port)
		}
		for h, list := range servers {
			for i, s := range list {
				want := 0
				if h == b.peer {
					want = 1 // the control above
				}
				if s.Received() != want {
					t.Errorf("%s, %s: %d connections, want %d", h.Name(), firewall.Families[i], s.Received(), want)
				}
			}
		}
	})
}

// fwNoWayOut tries to connect from the node, with its own TCP and with raw segments.
func fwNoWayOut(t *testing.T, b *fwBed, to *testbed.Host, fam firewall.Family, from, port uint16) {
	t.Helper()
	capture, err := to.Capture(func(p testbed.Packet) bool { return !p.Out && p.Proto == testbed.ProtoTCP && p.DstPort == port })
	fwMust(t, err)
	if err := fwConnectFrom(t, b.node, fwAddr(to, fam), from, port); err == nil {
		t.Errorf("%s: the node opened a connection from port %d to %s", fam, from, to.Name())
	}
	fwMust(t, capture.Close())
	if n := len(capture.Packets()); n != 0 {
		t.Errorf("%s: %d segments from port %d reached %s: %v", fam, n, from, to.Name(), capture.Packets())
	}
	at := netip.AddrPortFrom(fwAddr(to, fam), port)
	out, err := b.node.Send(t.Context(), fwFromPort(testbed.TCPProbe(at, testbed.SYN), from), fwFromPort(testbed.TCPProbe(at, testbed.SYN|testbed.URG), from))
	fwMust(t, err)
	if out.Denied != 2 {
		t.Errorf("%s: SYN from port %d to %s: %s", fam, from, to.Name(), out)
	}
	// The positive control: an answer of the same port does go out, to a peer.
	out, err = b.node.Send(t.Context(), fwFromPort(testbed.TCPProbe(at, testbed.ACK), from))
	fwMust(t, err)
	if want := to == b.stranger; (out.Denied == 1) != want {
		t.Errorf("%s: ACK from port %d to %s: %s", fam, from, to.Name(), out)
	}
}

// fwNoWayIn sends what a peer and a stranger could try: SYN and answers from a
// service's port, and a SYN on a flow that conntrack has picked up in mid-stream.
func fwNoWayIn(t *testing.T, b *fwBed, fam firewall.Family, port uint16) {
	t.Helper()
	at := netip.AddrPortFrom(fwAddr(b.node, fam), port)
	for i, flags := range [][]testbed.TCPFlags{
		{testbed.SYN}, {testbed.ACK, testbed.SYN}, {testbed.SYN | testbed.ACK, testbed.SYN}, {testbed.FIN | testbed.ACK, testbed.SYN, testbed.SYN},
	} {
		var probes []testbed.Probe
		for _, f := range flags {
			probes = append(probes, fwFromPort(testbed.TCPProbe(at, f), 5432))
		}
		out, err := b.standby.Send(t.Context(), probes...)
		fwMust(t, err)
		for _, a := range out.Answers {
			if a.Flags&testbed.SYN != 0 {
				t.Errorf("%s: try %d: the node's port %d answered: %s", fam, i, port, a)
			}
		}
		out, err = b.stranger.Send(t.Context(), probes...)
		fwMust(t, err)
		if out.Answered != 0 || out.Arrived != len(probes) {
			t.Errorf("%s: try %d: stranger: %s %v", fam, i, out, out.Answers)
		}
	}
}

// fwConnectFrom connects from a given source port, as an ordinary process does.
func fwConnectFrom(t *testing.T, h *testbed.Host, to netip.Addr, from, port uint16) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := h.Do(func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(from)}}
		d.SetMultipathTCP(false)
		conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, port).String())
		if err != nil {
			return err
		}
		conn.(*net.TCPConn).SetLinger(0) // no TIME_WAIT: the port is used again
		return conn.Close()
	})
	if err != nil && strings.Contains(err.Error(), "address already in use") {
		t.Fatal(err)
	}
	return err
}
