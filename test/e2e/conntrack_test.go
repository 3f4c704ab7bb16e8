package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// ctTraffic is a connection with traffic in both directions from start to end.
type ctTraffic struct {
	name           string
	client, server net.Conn
	toServer       ctCount
	toClient       ctCount
	stop           func()
}

type ctCount struct{ sent, got atomic.Int64 }

const (
	ctMessage = 8 // bytes
	ctBeat    = 5 * time.Millisecond
)

// ctStart connects, from a source port of its own or any (0), and starts the
// traffic. network is tcp or udp.
func ctStart(t *testing.T, network string, client, server *testbed.Host, fam firewall.Family, from, port uint16) *ctTraffic {
	t.Helper()
	c := ctConnect(t, network, client, netip.AddrPortFrom(fwAddr(client, fam), from), server, netip.AddrPortFrom(fwAddr(server, fam), port))
	c.pump(t)
	return c
}

func ctConnect(t *testing.T, network string, client *testbed.Host, from netip.AddrPort, server *testbed.Host, to netip.AddrPort) *ctTraffic {
	t.Helper()
	c := &ctTraffic{name: fmt.Sprintf("%s %s to %s at %s", network, client.Name(), server.Name(), to)}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var err error
	if network == "udp" {
		fwMust(t, client.Do(func() error {
			c.client, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
			return err
		}))
		back := net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.Addr(), uint16(c.client.LocalAddr().(*net.UDPAddr).Port)))
		fwMust(t, server.Do(func() error {
			c.server, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(to), back)
			return err
		}))
	} else {
		l, err := server.Listen(ctx, to)
		fwMust(t, err)
		defer l.Close()
		fwMust(t, client.Do(func() error {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from)}
			c.client, err = d.DialContext(ctx, "tcp", to.String())
			return err
		}))
		c.server, err = l.Accept()
		fwMust(t, err)
	}
	t.Cleanup(func() { errors.Join(c.client.Close(), c.server.Close()) })
	return c
}

// pump has the client speak first: only then may a server answer by udp.
func (c *ctTraffic) pump(t *testing.T) {
	t.Helper()
	fwMust(t, fwSay(c.client, c.server))
	fwMust(t, c.server.SetReadDeadline(time.Time{}))
	done := make(chan struct{})
	var writers sync.WaitGroup
	writers.Go(func() { ctWrite(c.client, &c.toServer, done) })
	writers.Go(func() { ctWrite(c.server, &c.toClient, done) })
	go ctRead(c.server, &c.toServer)
	go ctRead(c.client, &c.toClient)
	c.stop = sync.OnceFunc(func() {
		close(done)
		errors.Join(c.client.SetWriteDeadline(time.Now()), c.server.SetWriteDeadline(time.Now())) // a cut connection's buffer may be full
		writers.Wait()
	})
	t.Cleanup(c.stop)
}

// ctWrite goes on after an error: a datagram that netfilter refuses is one.
func ctWrite(conn net.Conn, n *ctCount, done chan struct{}) {
	tick := time.NewTicker(ctBeat)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			if _, err := conn.Write(make([]byte, ctMessage)); err == nil {
				n.sent.Add(1)
			}
		}
	}
}

func ctRead(conn net.Conn, n *ctCount) {
	buf := make([]byte, 4096)
	for {
		size, err := conn.Read(buf)
		n.got.Add(int64(size / ctMessage))
		if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
			return
		}
	}
}

// ctPass fails unless all connections pass n more messages in both directions.
func ctPass(t *testing.T, n int64, list []*ctTraffic) {
	t.Helper()
	var before []int64
	for _, c := range list {
		before = append(before, c.toServer.got.Load(), c.toClient.got.Load())
	}
	fwMust(t, testbed.Await(t.Context(), "traffic", func(context.Context) error {
		for i, c := range list {
			if up, down := c.toServer.got.Load()-before[2*i], c.toClient.got.Load()-before[2*i+1]; up < n || down < n {
				return fmt.Errorf("%s: %d messages to the server and %d back, want %d", c.name, up, down, n)
			}
		}
		return nil
	}))
}

// ctDead fails if anything passes on a connection. The clock is the kept
// connections': a retransmission comes well within 100 of their messages (0.5 s).
func ctDead(t *testing.T, gone, kept []*ctTraffic) {
	t.Helper()
	ctPass(t, 10, kept) // what was received before the cut has been read by then
	var before []int64
	for _, c := range gone {
		before = append(before, c.toServer.got.Load(), c.toClient.got.Load())
	}
	ctPass(t, 100, kept)
	for i, c := range gone {
		if up, down := c.toServer.got.Load()-before[2*i], c.toClient.got.Load()-before[2*i+1]; up != 0 || down != 0 {
			t.Errorf("%s goes on: %d messages to the server, %d back", c.name, up, down)
		}
	}
}

// ctComplete ends the traffic and fails if a datagram was lost.
func ctComplete(t *testing.T, list []*ctTraffic) {
	t.Helper()
	for _, c := range list {
		c.stop()
		for _, n := range []*ctCount{&c.toServer, &c.toClient} {
			fwMust(t, testbed.Await(t.Context(), c.name+" complete", func(context.Context) error {
				if got, sent := n.got.Load(), n.sent.Load(); got != sent {
					return fmt.Errorf("%d of %d messages", got, sent)
				}
				return nil
			}))
		}
	}
}

// connections is what the node tracks, unwanted what of it is to be cut.
func (b *fwBed) connections() (all, unwanted []firewall.Connection) {
	b.t.Helper()
	fwMust(b.t, b.node.Do(func() (err error) {
		all, err = firewall.ObserveConnections(b.t.Context())
		return err
	}))
	return all, firewall.Unwanted(b.spec, nil, all)
}

func (b *fwBed) cut(list []firewall.Connection) {
	b.t.Helper()
	fwMust(b.t, b.node.Do(func() error { return firewall.Cut(b.t.Context(), list) }))
}

// render takes a changed spec over.
func (b *fwBed) render() {
	b.t.Helper()
	b.want = fwRender(b.t, b.spec)
}

// ctOf says whether a connection is the one of this traffic, either way round.
func ctOf(c firewall.Connection, list []*ctTraffic) bool {
	return slices.ContainsFunc(list, func(tr *ctTraffic) bool {
		at, from := tr.client.RemoteAddr().String(), tr.client.LocalAddr().String()
		return c.Proto == tr.client.LocalAddr().Network() &&
			(c.Src.String() == from && c.Dst.String() == at || c.Src.String() == at && c.Dst.String() == from)
	})
}

// cutExactly cuts what is unwanted and fails unless that is the list.
func (b *fwBed) cutExactly(gone []*ctTraffic) {
	b.t.Helper()
	before, unwanted := b.connections()
	for _, c := range unwanted {
		if !ctOf(c, gone) {
			b.t.Errorf("to be cut without a reason: %s", c)
		}
	}
	if len(unwanted) != len(gone) {
		b.t.Errorf("%d connections to be cut, want %d:\n%s", len(unwanted), len(gone), firewall.Cuts{Connections: unwanted})
	}
	b.cut(unwanted)
	after, left := b.connections()
	if len(left) != 0 {
		b.t.Errorf("after the cut there is still to cut:\n%s", firewall.Cuts{Connections: left})
	}
	for _, c := range before {
		if !slices.Contains(unwanted, c) && !slices.Contains(after, c) {
			b.t.Errorf("%s is gone as well", c)
		}
	}
}

// ctRow lets udp pass between the nodes, which the default matrix has for pgpool only.
var ctRow = firewall.Flow{Name: "beat", Proto: "udp", Ports: []uint16{9694, 9695}, From: []string{"postgres", "pgpool"}, To: []string{"postgres", "pgpool"}}

// A peer that is taken off the list loses its live connections in both
// directions, whoever opened them; without the cut they would go on. Nobody
// else's connection loses anything.
func TestF12_RemovedPeerIsCut(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.spec.Flows = append(b.spec.Flows, ctRow)
		b.render()
		b.reconcile()
		var gone, kept []*ctTraffic
		for _, fam := range firewall.Families {
			gone = append(gone,
				ctStart(t, "tcp", b.standby, b.node, fam, 0, 5432),
				ctStart(t, "tcp", b.node, b.standby, fam, 0, 5432),
				ctStart(t, "udp", b.standby, b.node, fam, 0, 9694),
				ctStart(t, "udp", b.node, b.standby, fam, 0, 9695))
			kept = append(kept,
				ctStart(t, "tcp", b.peer, b.node, fam, 0, 5432),
				ctStart(t, "tcp", b.control, b.node, fam, 0, 22),
				ctStart(t, "udp", b.peer, b.node, fam, 0, 9695),
				ctStart(t, "udp", b.node, b.peer, fam, 0, 9694))
		}
		ctPass(t, 20, slices.Concat(gone, kept))
		b.cutExactly(nil)

		delete(b.spec.Members, "postgres")
		b.render()
		b.reconcile()
		ctPass(t, 20, slices.Concat(gone, kept)) // the rules alone end nothing

		b.cutExactly(gone)
		wire, err := b.standby.Capture(func(p testbed.Packet) bool {
			return !p.Out && (p.Src == b.node.V4() || p.Src == b.node.V6()) && (p.Proto == testbed.ProtoTCP || p.Proto == testbed.ProtoUDP)
		})
		fwMust(t, err)
		ctDead(t, gone, kept)
		fwMust(t, wire.Close())
		if n := len(wire.Packets()); n != 0 {
			t.Errorf("%d packets of the node still reach the removed peer: %v", n, wire.Packets()[0])
		}
		ctComplete(t, kept)
	})
}

// ctTrack makes the kernel track connections without any of our rules, as a
// foreign firewall's would.
const ctTrack = `for I in $I4 $I6; do for C in INPUT OUTPUT; do $I -t mangle -A $C -m conntrack --ctstate NEW; done; done`

// Who got in, or was called, while the rules were away keeps a tracked
// connection, which "established" lets pass. It is cut; what a row allows stays,
// also if the kernel took it up in mid-stream with the server as its source.
func TestF12_IntruderIsCut(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		var gone, kept, old []*ctTraffic
		for _, fam := range firewall.Families {
			c := ctConnect(t, "tcp", b.control, netip.AddrPortFrom(fwAddr(b.control, fam), 0), b.node, netip.AddrPortFrom(fwAddr(b.node, fam), 22))
			old = append(old, c)
		}
		b.sh(ctTrack)
		for _, fam := range firewall.Families {
			gone = append(gone,
				ctStart(t, "tcp", b.stranger, b.node, fam, 0, 5432),
				ctStart(t, "tcp", b.node, b.stranger, fam, 0, 4444),
				ctStart(t, "udp", b.stranger, b.node, fam, 0, 53),
				ctStart(t, "tcp", b.stranger, b.node, fam, 5432, 7777), // as if it were a server's answer
				ctStart(t, "tcp", b.peer, b.node, fam, 0, 7778))        // a peer, where no row lets it
			kept = append(kept, ctStart(t, "tcp", b.peer, b.node, fam, 0, 5432))
		}
		for _, c := range old {
			fwMust(t, fwSay(c.server, c.client)) // the first segment that is tracked
			fwMust(t, c.client.SetReadDeadline(time.Time{}))
			c.pump(t)
		}
		all, _ := b.connections()
		for _, c := range all {
			if ctOf(c, old) && c.Src.Port() != 22 {
				t.Fatalf("%s was not taken up at the server's segment", c)
			}
		}
		kept = append(kept, old...)
		b.reconcile()
		ctPass(t, 20, slices.Concat(gone, kept)) // the rules alone end nothing
		b.cutExactly(gone)
		ctDead(t, gone, kept)
		ctPass(t, 20, kept)
	})
}

// A virtual address that moved here and a foreign redirect are no reason to cut:
// what counts is what the filter table sees.
func TestF12_TranslatedIsKept(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.sh(`for I in $I4 $I6; do $I -t nat -A PREROUTING -p tcp --dport 6432 -j REDIRECT --to-ports 5432; done
dev=$(ip -o -4 addr show to 10.20.1.10 | awk '{print $2}')
ip addr add 10.20.1.99/24 dev $dev; ip addr add fd00:20:1::99/64 dev $dev nodad`)
		b.reconcile()
		var kept []*ctTraffic
		for _, vip := range []string{"10.20.1.99", "fd00:20:1::99"} {
			at := netip.MustParseAddr(vip)
			c := ctConnect(t, "tcp", b.peer, netip.AddrPort{}, b.node, netip.AddrPortFrom(at, 5432))
			c.pump(t)
			kept = append(kept, c)
		}
		l, err := b.node.Listen(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), 5432)) // a redirect goes to any of the addresses
		fwMust(t, err)
		t.Cleanup(func() { l.Close() })
		for _, fam := range firewall.Families {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			c, err := b.peer.Dial(ctx, "tcp", netip.AddrPortFrom(fwAddr(b.node, fam), 6432))
			fwMust(t, err)
			t.Cleanup(func() { c.Close() })
		}
		ctPass(t, 5, kept)
		all, unwanted := b.connections()
		if len(unwanted) != 0 || len(all) < 4 {
			t.Errorf("of %d connections are to be cut:\n%s", len(all), firewall.Cuts{Connections: unwanted})
		}
		b.spec.Members["pgpool"] = nil
		b.render()
		b.reconcile()
		if _, unwanted = b.connections(); len(unwanted) != 4 {
			t.Errorf("the peer is removed, but of its four connections are to be cut:\n%s", firewall.Cuts{Connections: unwanted})
		}
	})
}

// Whatever kind of entry it is, the kernel understands which one is meant:
// protocols with and without ports, ICMP, a zone.
func TestF12_CutNamesEveryKind(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.sh(ctTrack)
	b.sh("for I in $I4 $I6; do for C in PREROUTING OUTPUT; do $I -t raw -A $C -p tcp --dport 7100 -j CT --zone 7; done; done")
	for _, fam := range firewall.Families {
		at := fwAddr(b.peer, fam)
		gre := testbed.Probe{To: at, Proto: testbed.ProtoGRE, Payload: []byte{0, 0, 8, 0}} // no options, an IPv4 packet inside
		_, err := b.node.Ping(t.Context(), at, 1)
		fwMust(t, err)
		_, err = b.node.Send(t.Context(), testbed.TimestampProbe(b.peer.V4()))
		fwMust(t, err)
		_, err = b.node.Send(t.Context(), gre, testbed.ProtoProbe(at, 89), testbed.UDPProbe(netip.AddrPortFrom(at, 53), []byte("x")))
		fwMust(t, err)
		_, err = b.node.Send(t.Context(), testbed.TCPProbe(netip.AddrPortFrom(at, 7100), testbed.SYN))
		fwMust(t, err)
	}
	all, unwanted := b.connections()
	protos := map[string]int{}
	for _, c := range all {
		protos[c.Proto]++
	}
	if protos["icmp"] < 3 || protos["47"] < 2 || protos["89"] < 2 || protos["udp"] < 2 || protos["tcp"] < 2 {
		t.Fatalf("not every kind is there: %v", all)
	}
	if zones := strings.Count(b.sh("conntrack -L 2>/dev/null; conntrack -L -f ipv6 2>/dev/null"), "zone=7"); zones < 2 {
		t.Fatalf("%d entries in the zone, want one of each family", zones)
	}
	b.cut(all[:1])
	if left, _ := b.connections(); len(left) != len(all)-1 {
		t.Errorf("of %d entries %d are left after one was cut", len(all), len(left))
	}
	b.cut(all) // one is gone already
	if left, _ := b.connections(); len(left) != 0 {
		t.Errorf("left: %v (of which %v was unwanted)", left, unwanted)
	}
}

// An entry that took the place of the one to be cut stays, which the kernel
// knows by the entry's number.
func TestF12_CutSparesSuccessor(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.spec.Flows = append(b.spec.Flows, ctRow)
	b.render()
	b.reconcile()
	for _, fam := range firewall.Families {
		c := ctStart(t, "udp", b.peer, b.node, fam, 0, 9694)
		first := b.entryOf(c)
		next := first
		// The number is made from the entry's place in memory, which may be the same.
		for try := 0; next == first && try < 50; try++ {
			b.cut([]firewall.Connection{next})
			ctPass(t, 5, []*ctTraffic{c}) // by a new entry
			next = b.entryOf(c)
		}
		if next == first {
			t.Fatalf("%s: the new entry has the number of the old one, fifty times", c.name)
		}
		b.cut([]firewall.Connection{first})
		if now := b.entryOf(c); now != next {
			t.Errorf("%s: there is another entry again", c.name)
		}
		c.stop()
	}
}

// entryOf is the entry of a connection; it fails if there is none.
func (b *fwBed) entryOf(c *ctTraffic) firewall.Connection {
	b.t.Helper()
	all, _ := b.connections()
	i := slices.IndexFunc(all, func(e firewall.Connection) bool { return ctOf(e, []*ctTraffic{c}) })
	if i < 0 {
		b.t.Fatalf("%s is not tracked: %v", c.name, all)
	}
	return all[i]
}
