package testbed

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A recorder is bounded, and what did not fit makes the whole record wrong.
func TestRecorderLimit(t *testing.T) {
	d := &Deliveries{recorder: newRecorder(&Host{name: "x"}, nil)}
	for range recordLimit {
		d.add(Packet{}, nil)
	}
	if err := (&Deliveries{recorder: newRecorder(&Host{name: "x"}, nil)}).Close(); err != nil {
		t.Errorf("a record with room: %v", err)
	}
	if d.add(Packet{}, nil) || len(d.Packets()) != recordLimit {
		t.Error("the recorder kept more than its limit")
	}
	if err := d.Close(); err == nil || !strings.Contains(err.Error(), "1 packets were lost") {
		t.Errorf("a loss is no error: %v", err)
	}
}

// The kernel says how many packets a socket had no room for.
func TestSocketDrops(t *testing.T) {
	rx, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer rx.Close()
	raw, err := rx.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	drops := func() (n uint32) {
		var dropErr error
		if err := raw.Control(func(fd uintptr) { n, dropErr = socketDrops(int(fd)) }); err != nil || dropErr != nil {
			t.Fatal(err, dropErr)
		}
		return n
	}
	if n := drops(); n != 0 {
		t.Fatalf("%d lost before anything was sent", n)
	}
	if err := rx.SetReadBuffer(1); err != nil { // the kernel makes it its least
		t.Fatal(err)
	}
	tx, err := net.Dial("udp", rx.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Close()
	const sent = 100
	for range sent {
		if _, err := tx.Write(make([]byte, 500)); err != nil {
			t.Fatal(err)
		}
	}
	if n := drops(); n < sent/2 || n >= sent {
		t.Errorf("%d of %d lost; a queue of some 2 kB has room for a few", n, sent)
	}
}

// pktinfo is the control message that carries a packet's destination, as the kernel writes it.
func pktinfo(dst netip.Addr) []byte {
	b := make([]byte, unix.CmsgSpace(20))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(20)))
	binary.NativeEndian.PutUint32(b[8:], unix.IPPROTO_IPV6)
	binary.NativeEndian.PutUint32(b[12:], unix.IPV6_PKTINFO)
	a := dst.As16()
	copy(b[16:], a[:])
	return b
}

func TestDeliveredPacket(t *testing.T) {
	s := deliverySocket{proto: ProtoUDP, v6: true}
	probe := UDPProbe(netip.AddrPortFrom(dst6, 53), []byte("x"))
	from := &unix.SockaddrInet6{Addr: src6.As16()}
	p, ok := s.packet(probe.Payload, pktinfo(dst6), from)
	if !ok || p.Src != src6 || p.Dst != dst6 || p.DstPort != 53 || p.Proto != ProtoUDP {
		t.Errorf("IPv6: %s, %v", p, ok)
	}
	if p, ok := s.packet(probe.Payload, nil, from); ok {
		t.Errorf("without a destination: %s", p)
	}
	probe = UDPProbe(netip.AddrPortFrom(dst4, 53), nil)
	probe.From = src4
	s = deliverySocket{proto: ProtoUDP}
	if p, ok := s.packet(probe.marshal(), nil, nil); !ok || p.Src != src4 || p.DstPort != 53 {
		t.Errorf("IPv4: %s, %v", p, ok)
	}
}

func FuzzDestination(f *testing.F) {
	f.Add(pktinfo(dst6))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, oob []byte) {
		if a, ok := destination(oob); ok != a.IsValid() {
			t.Errorf("%x gave %s, %v", oob, a, ok)
		}
	})
}

// Only protocols that a host answers by itself may be recorded while it is being probed.
func TestProtocolsOf(t *testing.T) {
	at := netip.AddrPortFrom(dst4, 1)
	got := protocolsOf([]Probe{TCPProbe(at, SYN), UDPProbe(at, nil), TCPProbe(at, ACK), ProtoProbe(dst4, ProtoSCTP), EchoProbes(dst6, 1)[0]})
	want := []protocol{{ProtoTCP, false}, {ProtoUDP, false}, {ProtoICMPv6, true}}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestStreamCounts(t *testing.T) {
	s := &Stream{seen: make([]uint64, maxStream/64), highest: -1}
	for _, seq := range []int{0, 1, 3, 2, 2, 6} {
		s.note(seq)
	}
	s.r.Sent = 7
	r := s.Now()
	r.LongestGap = 0
	if want := (StreamResult{Sent: 7, Received: 5, Lost: 2, Duplicates: 1, OutOfOrder: 1}); r != want || r.Whole() {
		t.Errorf("%s, want %s", r, want)
	}
	if (StreamResult{}).Whole() || !(StreamResult{Sent: 1, Received: 1}).Whole() {
		t.Error("whole is: something was sent, and all of it came")
	}
}

func TestStreamNumber(t *testing.T) {
	good := binary.BigEndian.AppendUint64(bytes.Clone(streamMagic), 7)
	if n, ok := streamNumber(good); n != 7 || !ok {
		t.Errorf("%d, %v", n, ok)
	}
	for _, b := range [][]byte{nil, good[:15], append(good, 0), []byte("xxxxxxxx12345678"), binary.BigEndian.AppendUint64(bytes.Clone(streamMagic), maxStream)} {
		if n, ok := streamNumber(b); ok {
			t.Errorf("%q is number %d", b, n)
		}
	}
}

func FuzzStreamNumber(f *testing.F) {
	f.Add([]byte("pgh-strm12345678"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, ok := streamNumber(b); ok && (n < 0 || n >= maxStream) {
			t.Errorf("%x gave %d", b, n)
		}
	})
}

func TestFloodCountsItsOwn(t *testing.T) {
	f := &Flood{kinds: map[flow]bool{}}
	p := TCPProbe(netip.AddrPortFrom(dst4, 5432), SYN)
	p.From = src4
	if err := f.learn(p.marshal()); err != nil {
		t.Fatal(err)
	}
	count := f.counts(&f.arrived)
	another := TCPProbe(netip.AddrPortFrom(dst4, 5432), SYN) // another source port
	another.From = src4
	elsewhere := TCPProbe(netip.AddrPortFrom(dst4, 22), SYN)
	elsewhere.From = src4
	for _, q := range []Probe{p, another, elsewhere} {
		parsed, ok := parsePacket(q.marshal())
		if !ok || count(parsed) {
			t.Errorf("%s was kept, or is no packet", parsed)
		}
	}
	client, _ := parsePacket(p.marshal())
	client.Seq = 1 // somebody's real connection
	count(client)
	if n := f.Now().Arrived; n != 2 {
		t.Errorf("%d counted, want the two to the port", n)
	}
}
