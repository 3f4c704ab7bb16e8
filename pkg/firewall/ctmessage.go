package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes that the netlink library has no names for:
// linux/netfilter/nfnetlink_conntrack.h, enum ctattr_l4proto.
const (
	ctaProtoICMPType   = 5
	ctaProtoICMPv6Type = 8
)

const (
	protoICMP   = "icmp"
	echoType    = 8   // IANA, ICMP Type Numbers
	echoTypeIP6 = 128 // IANA, ICMPv6 Parameters
)

// parseConnection reads one message of a dump: the netfilter header, then
// attributes. The netlink library's own reading is not used, since it takes
// what follows an ICMP or a portless tuple for something else.
func parseConnection(message []byte) (Connection, error) {
	if len(message) < nl.SizeofNfgenmsg {
		return Connection{}, errors.New("the kernel's message is too short")
	}
	attrs, err := attributes(message[nl.SizeofNfgenmsg:])
	if err != nil {
		return Connection{}, err
	}
	orig, err := parseTuple(attrs[nl.CTA_TUPLE_ORIG])
	if err != nil {
		return Connection{}, fmt.Errorf("the original direction: %w", err)
	}
	reply, err := parseTuple(attrs[nl.CTA_TUPLE_REPLY])
	if err != nil {
		return Connection{}, fmt.Errorf("the reply direction: %w", err)
	}
	c := Connection{Proto: orig.name(), Src: orig.src, Dst: orig.dst}
	c.id.tuple = string(attrs[nl.CTA_TUPLE_ORIG])
	c.id.number = number(attrs[nl.CTA_ID])
	c.id.zone = uint16(number(attrs[nl.CTA_ZONE]))
	if reply.src != orig.dst {
		c.seen = reply.src
	}
	c.notes.noEcho = c.Proto == protoICMP && orig.icmpType != echoType && orig.icmpType != echoTypeIP6
	return c, nil
}

// A tuple is one direction of an entry.
type tuple struct {
	proto    uint8
	src, dst netip.AddrPort
	icmpType uint8
}

func (t tuple) name() string {
	switch t.proto {
	case unix.IPPROTO_TCP:
		return ProtoTCP
	case unix.IPPROTO_UDP:
		return ProtoUDP
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return protoICMP
	}
	return strconv.Itoa(int(t.proto))
}

func parseTuple(data []byte) (tuple, error) {
	parts, err := attributes(data)
	if err != nil {
		return tuple{}, err
	}
	ip, err := attributes(parts[nl.CTA_TUPLE_IP])
	if err != nil {
		return tuple{}, err
	}
	proto, err := attributes(parts[nl.CTA_TUPLE_PROTO])
	if err != nil {
		return tuple{}, err
	}
	src, srcOK := netip.AddrFromSlice(either(ip, nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC))
	dst, dstOK := netip.AddrFromSlice(either(ip, nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST))
	if !srcOK || !dstOK || src.Is4() != dst.Is4() {
		return tuple{}, errors.New("the kernel's message has no pair of addresses")
	}
	return tuple{
		proto:    uint8(number(proto[nl.CTA_PROTO_NUM])),
		src:      netip.AddrPortFrom(src, uint16(number(proto[nl.CTA_PROTO_SRC_PORT]))),
		dst:      netip.AddrPortFrom(dst, uint16(number(proto[nl.CTA_PROTO_DST_PORT]))),
		icmpType: uint8(number(either(proto, ctaProtoICMPType, ctaProtoICMPv6Type))),
	}, nil
}

func either(attrs map[uint16][]byte, a, b uint16) []byte {
	if v, ok := attrs[a]; ok {
		return v
	}
	return attrs[b]
}

// number reads an unsigned number of one, two or four bytes in network order;
// 0 if it is missing.
func number(value []byte) uint32 {
	switch len(value) {
	case 1:
		return uint32(value[0])
	case 2:
		return uint32(binary.BigEndian.Uint16(value))
	case 4:
		return binary.BigEndian.Uint32(value)
	}
	return 0
}

// attributes splits a list of netlink attributes (netlink(7)): length and type
// in two bytes each, the value, padding to four bytes.
func attributes(data []byte) (map[uint16][]byte, error) {
	attrs := map[uint16][]byte{}
	for len(data) > 0 {
		if len(data) < unix.SizeofNlAttr {
			return nil, errors.New("the kernel's message ends within an attribute")
		}
		size := int(binary.NativeEndian.Uint16(data))
		if size < unix.SizeofNlAttr || size > len(data) {
			return nil, fmt.Errorf("the kernel's message has an attribute of %d bytes, with %d left", size, len(data))
		}
		kind := binary.NativeEndian.Uint16(data[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		attrs[kind] = data[unix.SizeofNlAttr:size]
		padded := (size + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1)
		data = data[min(padded, len(data)):]
	}
	return attrs, nil
}
