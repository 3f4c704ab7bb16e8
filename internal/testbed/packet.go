package testbed

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// IP protocol numbers (IANA).
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoGRE    = 47
	ProtoICMPv6 = 58
	ProtoSCTP   = 132
)

// TCPFlags are the control bits of a TCP header (RFC 9293).
type TCPFlags uint8

// The TCP flags.
const (
	FIN TCPFlags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)

// XMAS is the flag set of a Christmas-tree scan.
const XMAS = FIN | PSH | URG

func (f TCPFlags) String() string {
	var on []string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG"} {
		if f&(1<<i) != 0 {
			on = append(on, name)
		}
	}
	if len(on) == 0 {
		return "none"
	}
	return strings.Join(on, "|")
}

// headBytes is how much of each packet is kept, from the IP header on: enough for what ICMP errors quote.
const headBytes = 192

// Packet is one captured packet.
type Packet struct {
	Out              bool // it left the host, rather than arrived
	Src, Dst         netip.Addr
	Proto            uint8
	SrcPort, DstPort uint16 // of TCP, UDP, SCTP
	Flags            TCPFlags
	Seq, Ack         uint32
	Data             int // bytes of TCP payload
	ICMPType         uint8
	ICMPCode         uint8
	ICMPRest         uint32  // the second word of the ICMP header: id and sequence number of an echo, MTU, redirect's gateway
	Quoted           *Packet // the packet an ICMP error is about
	Head             []byte  // the first bytes of a captured packet, from the IP header on
}

func (p Packet) String() string {
	dir := "in"
	if p.Out {
		dir = "out"
	}
	s := fmt.Sprintf("%s %s > %s", dir, p.Src, p.Dst)
	switch p.Proto {
	case ProtoTCP:
		s += fmt.Sprintf(" tcp %d > %d %s seq %d ack %d data %d", p.SrcPort, p.DstPort, p.Flags, p.Seq, p.Ack, p.Data)
	case ProtoUDP, ProtoSCTP:
		s += fmt.Sprintf(" proto %d %d > %d", p.Proto, p.SrcPort, p.DstPort)
	case ProtoICMP, ProtoICMPv6:
		s += fmt.Sprintf(" icmp type %d code %d", p.ICMPType, p.ICMPCode)
	default:
		s += fmt.Sprintf(" proto %d", p.Proto)
	}
	if p.Quoted != nil {
		s += " about {" + p.Quoted.String() + "}"
	}
	return s
}

// neighbour says whether the packet is IPv6 neighbour or router discovery or MLD, which every link has.
func (p Packet) neighbour() bool {
	return p.Proto == ProtoICMPv6 && (p.ICMPType >= 130 && p.ICMPType <= 137 || p.ICMPType == 143)
}

// parsePacket reads an IP packet, possibly cut short. False: not IP, or cut within the IP header.
func parsePacket(b []byte) (Packet, bool) { return parseDepth(b, true) }

func parseDepth(b []byte, quotes bool) (Packet, bool) {
	if len(b) == 0 {
		return Packet{}, false
	}
	var p Packet
	var body []byte
	var length int // of the body, as the IP header has it
	var ok bool
	switch b[0] >> 4 {
	case 4:
		p, body, length, ok = parse4(b)
	case 6:
		p, body, length, ok = parse6(b)
	}
	if !ok {
		return Packet{}, false
	}
	p.transport(body, length, quotes)
	return p, true
}

func parse4(b []byte) (p Packet, body []byte, length int, ok bool) {
	if len(b) < 20 {
		return p, nil, 0, false
	}
	header := int(b[0]&0xf) * 4
	if header < 20 || len(b) < header {
		return p, nil, 0, false
	}
	p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.Proto = b[9]
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return p, nil, 0, true // a later fragment has no transport header
	}
	return p, b[header:], int(binary.BigEndian.Uint16(b[2:])) - header, true
}

func parse6(b []byte) (p Packet, body []byte, length int, ok bool) {
	if len(b) < 40 {
		return p, nil, 0, false
	}
	p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	p.Proto = b[6]
	length, body = int(binary.BigEndian.Uint16(b[4:])), b[40:]
	for {
		size := 0
		switch p.Proto {
		case 0, 43, 60: // hop-by-hop options (MLD has them), routing, destination options
			if len(body) >= 2 {
				size = 8 + int(body[1])*8
			}
		case 44: // fragment
			size = 8
			if len(body) >= 4 && binary.BigEndian.Uint16(body[2:])&0xfff8 != 0 {
				p.Proto = body[0]
				return p, nil, 0, true
			}
		default:
			return p, body, length, true
		}
		if size == 0 || len(body) < size {
			return p, nil, 0, true
		}
		p.Proto, body, length = body[0], body[size:], length-size
	}
}

// transport fills in what the transport header says, as far as it is there.
func (p *Packet) transport(b []byte, length int, quotes bool) {
	switch p.Proto {
	case ProtoTCP, ProtoUDP, ProtoSCTP:
		if len(b) >= 4 {
			p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		}
		if p.Proto == ProtoTCP && len(b) >= 14 {
			p.Seq, p.Ack = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
			p.Flags = TCPFlags(b[13] & 0x3f)
			p.Data = max(0, length-int(b[12]>>4)*4)
		}
	case ProtoICMP, ProtoICMPv6:
		if len(b) >= 8 {
			p.ICMPType, p.ICMPCode, p.ICMPRest = b[0], b[1], binary.BigEndian.Uint32(b[4:])
			if quotes && isICMPError(p.Proto, p.ICMPType) {
				if q, ok := parseDepth(b[8:], false); ok {
					p.Quoted = &q
				}
			}
		}
	}
}

// isICMPError says whether messages of the type carry the packet they are about (RFC 792, RFC 4443).
func isICMPError(proto, kind uint8) bool {
	if proto == ProtoICMPv6 {
		return kind >= 1 && kind <= 4
	}
	switch kind {
	case 3, 4, 5, 11, 12: // unreachable, source quench, redirect, time exceeded, parameter problem
		return true
	}
	return false
}
