package testbed

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Probe is one packet to send, made by the functions below. Whatever is left zero is filled in by Host.Send.
type Probe struct {
	From    netip.Addr // zero: the sender's own address; another one is a spoofed source
	To      netip.Addr // a link-local one needs no zone
	Proto   uint8
	Hops    uint8  // TTL or hop limit; 0 means 64
	Payload []byte // transport header and data; checksums of TCP, UDP, ICMP and ICMPv6 are filled in by Send
}

const (
	// probeSeq is any number; it tells a probe from what the sender's kernel says on the same ports, such as the reset that
	// follows an unexpected SYN-ACK.
	probeSeq = 1 << 20
	// Source ports lie outside the kernel's range for ephemeral ones, so that the sender's own connections are not hit.
	firstPort, portCount = 20000, 10000
)

var ports atomic.Uint32

// sourcePort returns a port that no probe of the process has used lately.
func sourcePort() uint16 { return uint16(firstPort + ports.Add(1)%portCount) }

// TCPProbe is one TCP segment without data, from a fresh port. SYN, ACK, FIN, XMAS, 0 …
func TCPProbe(to netip.AddrPort, flags TCPFlags) Probe {
	return tcpProbe(to, flags, sourcePort())
}

func tcpProbe(to netip.AddrPort, flags TCPFlags, from uint16) Probe {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], probeSeq)
	b[12] = 5 << 4
	b[13] = byte(flags)
	binary.BigEndian.PutUint16(b[14:], 64240)
	return Probe{To: to.Addr(), Proto: ProtoTCP, Payload: b}
}

// SYNScan is one SYN for each port, all from one source port.
func SYNScan(to netip.Addr, first, last uint16) []Probe {
	from := sourcePort()
	probes := make([]Probe, 0, int(last)-int(first)+1)
	for port := int(first); port <= int(last); port++ {
		probes = append(probes, tcpProbe(netip.AddrPortFrom(to, uint16(port)), SYN, from))
	}
	return probes
}

// UDPProbe is one datagram from a fresh port.
func UDPProbe(to netip.AddrPort, data []byte) Probe {
	b := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(b, sourcePort())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(data)))
	return Probe{To: to.Addr(), Proto: ProtoUDP, Payload: append(b, data...)}
}

// ProtoProbe is a packet of another IP protocol, such as ProtoGRE or ProtoSCTP, without a sensible payload: a host that
// lets it in says that it does not know the protocol, or ignores it.
func ProtoProbe(to netip.Addr, proto uint8) Probe {
	b := make([]byte, 16)
	binary.BigEndian.PutUint16(b, sourcePort())
	return Probe{To: to, Proto: proto, Payload: b}
}

// EchoProbes is n echo requests, numbered.
func EchoProbes(to netip.Addr, n int) []Probe {
	kind := uint8(ipv4.ICMPTypeEcho)
	if to.Is6() {
		kind = uint8(ipv6.ICMPTypeEchoRequest)
	}
	id := uint32(sourcePort()) << 16
	probes := make([]Probe, 0, n)
	for i := range n {
		probes = append(probes, ICMPProbe(to, kind, 0, id|uint32(i)&0xffff, make([]byte, 32)))
	}
	return probes
}

// ICMPProbe is an ICMP message, ICMPv6 if the address is, of any type and code. rest is the second word of the header.
func ICMPProbe(to netip.Addr, kind, code uint8, rest uint32, data []byte) Probe {
	b := make([]byte, 8, 8+len(data))
	b[0], b[1] = kind, code
	binary.BigEndian.PutUint32(b[4:], rest)
	p := Probe{To: to, Proto: ProtoICMP, Payload: append(b, data...)}
	if to.Is6() {
		p.Proto = ProtoICMPv6
	}
	return p
}

// TimestampProbe is an ICMP timestamp request (type 13), which an open host answers with type 14. IPv4 has it alone.
func TimestampProbe(to netip.Addr) Probe {
	return ICMPProbe(to, uint8(ipv4.ICMPTypeTimestamp), 0, uint32(sourcePort())<<16, make([]byte, 12))
}

// RedirectProbe tells the victim, in the name of its router, that the way to dst is by via. From must be the gateway the
// victim uses at present; for IPv6 that and via are link-local addresses. See RFC 792 and RFC 4861 section 4.5.
func RedirectProbe(router, victim, dst, via netip.Addr) Probe {
	if victim.Is6() {
		target, about := via.WithZone("").As16(), dst.As16()
		p := ICMPProbe(victim, uint8(ipv6.ICMPTypeRedirect), 0, 0, append(target[:], about[:]...))
		p.From, p.Hops = router, 255 // neighbour discovery is accepted from the same link only
		return p
	}
	gw := via.As4()
	// Linux acts on a redirect about an echo reply without looking for a socket.
	echo := Probe{From: victim, To: dst, Proto: ProtoICMP, Payload: make([]byte, 8)}
	p := ICMPProbe(victim, uint8(ipv4.ICMPTypeRedirect), 1, binary.BigEndian.Uint32(gw[:]), echo.marshal())
	p.From = router
	return p
}

// TooBigProbe tells the sender of a captured TCP packet that it did not fit into mtu bytes: fragmentation needed (IPv4), or
// packet too big (IPv6). router is who says so. The quoted sequence number is the next one of the connection, because a
// host ignores the message for data that was acknowledged since.
func TooBigProbe(router netip.Addr, packet Packet, mtu uint16) (Probe, error) {
	if packet.Proto != ProtoTCP || len(packet.Head) < 40 {
		return Probe{}, fmt.Errorf("cannot make a path-MTU message about %s: it takes a TCP packet", packet)
	}
	quote := append([]byte(nil), packet.Head...)
	at := 40
	if packet.Src.Is4() {
		at = int(quote[0]&0xf) * 4
	}
	if len(quote) < at+8 {
		return Probe{}, fmt.Errorf("cannot make a path-MTU message about %s: too little of it was kept", packet)
	}
	next := packet.Seq + uint32(packet.Data)
	if packet.Flags&(SYN|FIN) != 0 {
		next++
	}
	binary.BigEndian.PutUint32(quote[at+4:], next)
	p := ICMPProbe(packet.Src, uint8(ipv4.ICMPTypeDestinationUnreachable), 4, uint32(mtu), quote)
	if packet.Src.Is6() {
		p = ICMPProbe(packet.Src, uint8(ipv6.ICMPTypePacketTooBig), 0, uint32(mtu), quote)
	}
	p.From = router
	return p, nil
}

// marshal returns the packet with its IP header and checksums. The kernel fills in the IPv4 header checksum.
func (p Probe) marshal() []byte {
	hops := p.Hops
	if hops == 0 {
		hops = 64
	}
	body := append([]byte(nil), p.Payload...)
	p.sum(body)
	if p.To.Is4() {
		h := make([]byte, 20, 20+len(body))
		h[0], h[8], h[9] = 4<<4|5, hops, p.Proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
		src, dst := p.From.As4(), p.To.As4()
		copy(h[12:], src[:])
		copy(h[16:], dst[:])
		return append(h, body...)
	}
	h := make([]byte, 40, 40+len(body))
	h[0], h[6], h[7] = 6<<4, p.Proto, hops
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	src, dst := p.From.As16(), p.To.As16()
	copy(h[8:], src[:])
	copy(h[24:], dst[:])
	return append(h, body...)
}

// sum fills in the transport checksum where the protocol has one.
func (p Probe) sum(body []byte) {
	at, ok := map[uint8]int{ProtoTCP: 16, ProtoUDP: 6, ProtoICMP: 2, ProtoICMPv6: 2}[p.Proto]
	if !ok || len(body) < at+2 {
		return
	}
	binary.BigEndian.PutUint16(body[at:], 0)
	whole := body
	if p.Proto != ProtoICMP {
		whole = append(p.pseudoHeader(len(body)), body...)
	}
	sum := checksum(whole)
	if sum == 0 && p.Proto == ProtoUDP {
		sum = 0xffff // 0 means "none" there
	}
	binary.BigEndian.PutUint16(body[at:], sum)
}

func (p Probe) pseudoHeader(length int) []byte {
	if p.To.Is6() {
		h := icmp.IPv6PseudoHeader(p.From.AsSlice(), p.To.AsSlice())
		binary.BigEndian.PutUint32(h[32:], uint32(length))
		h[39] = p.Proto
		return h
	}
	h := append(p.From.AsSlice(), p.To.AsSlice()...)
	return binary.BigEndian.AppendUint16(append(h, 0, p.Proto), uint16(length))
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
