package firewall

import (
	"encoding/binary"
	"errors"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The protocol of ipset over netlink: include/uapi/linux/netfilter/ipset/ip_set.h.
const (
	ipsetProtocolMin = 6 // kernels since 2.6.39
	ipsetProtocolMax = 7 // kernels since 4.20 speak both

	ipsetListNames = 1 << 1 // IPSET_FLAG_LIST_SETNAME: no headers, no members

	attrNested = unix.NLA_F_NESTED
	attrBE     = unix.NLA_F_NET_BYTEORDER
	attrMask   = 0x3fff

	ipsetHeaders = unix.NLMSG_HDRLEN + 4 // a message's, and netfilter's behind it
)

// ipsetMessage builds one netlink message in a buffer that is used again.
type ipsetMessage struct{ b []byte }

// begin starts a message: a request for a command, with the version in it.
func (m *ipsetMessage) begin(cmd int, flags uint16, seq uint32, protocol byte) {
	m.b = append(m.b[:0], 0, 0, 0, 0)
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(unix.NFNL_SUBSYS_IPSET<<8|cmd))
	m.b = binary.NativeEndian.AppendUint16(m.b, unix.NLM_F_REQUEST|flags)
	m.b = binary.NativeEndian.AppendUint32(m.b, seq)
	m.b = append(m.b, 0, 0, 0, 0, unix.AF_INET, unix.NFNETLINK_V0, 0, 0)
	m.byte(nl.IPSET_ATTR_PROTOCOL, protocol)
}

// end is the message with its length filled in.
func (m *ipsetMessage) end() []byte {
	binary.NativeEndian.PutUint32(m.b, uint32(len(m.b)))
	return m.b
}

func (m *ipsetMessage) attr(kind uint16, size int) {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(unix.NLA_HDRLEN+size))
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
}

func (m *ipsetMessage) byte(kind uint16, v byte) {
	m.attr(kind, 1)
	m.b = append(m.b, v, 0, 0, 0)
}

func (m *ipsetMessage) uint16(kind, v uint16) {
	m.attr(kind|attrBE, 2)
	m.b = append(binary.BigEndian.AppendUint16(m.b, v), 0, 0)
}

func (m *ipsetMessage) uint32(kind uint16, v uint32) {
	m.attr(kind|attrBE, 4)
	m.b = binary.BigEndian.AppendUint32(m.b, v)
}

// text ends in a NUL, as names do.
func (m *ipsetMessage) text(kind uint16, v string) {
	m.attr(kind, len(v)+1)
	m.b = append(append(m.b, v...), 0)
	m.pad()
}

func (m *ipsetMessage) bytes(kind uint16, v []byte) {
	m.attr(kind|attrBE, len(v))
	m.b = append(m.b, v...)
	m.pad()
}

func (m *ipsetMessage) pad() {
	for len(m.b)%unix.NLA_ALIGNTO != 0 {
		m.b = append(m.b, 0)
	}
}

// open begins a nested attribute, which close ends.
func (m *ipsetMessage) open(kind uint16) (at int) {
	at = len(m.b)
	m.attr(kind|attrNested, 0)
	return at
}

func (m *ipsetMessage) close(at int) {
	binary.NativeEndian.PutUint16(m.b[at:], uint16(len(m.b)-at))
}

// member is one entry; line is its number, which comes back with an error.
func (m *ipsetMessage) member(e setMember, line int) {
	data := m.open(nl.IPSET_ATTR_DATA)
	ip := m.open(nl.IPSET_ATTR_IP)
	if a := e.from.Addr(); a.Is4() {
		four := a.As4()
		m.bytes(nl.IPSET_ATTR_IPADDR_IPV4, four[:])
	} else {
		sixteen := a.As16()
		m.bytes(nl.IPSET_ATTR_IPADDR_IPV6, sixteen[:])
	}
	m.close(ip)
	m.byte(nl.IPSET_ATTR_CIDR, byte(e.from.Bits()))
	if e.proto != "" {
		m.uint16(nl.IPSET_ATTR_PORT, e.port)
		m.byte(nl.IPSET_ATTR_PROTO, protoNumber(e.proto))
	}
	if e.seconds > 0 {
		m.uint32(nl.IPSET_ATTR_TIMEOUT, uint32(e.seconds))
	}
	m.uint32(nl.IPSET_ATTR_CADT_LINENO, uint32(line))
	m.close(data)
}

func protoNumber(proto string) byte {
	if proto == ProtoUDP {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

var errIpsetMessage = errors.New("the kernel's answer is malformed")

// ipsetReader walks through attributes.
type ipsetReader struct {
	rest []byte
	err  error
}

// next is the next attribute, without the flags in its kind. False: there is
// none, or what follows is none; then err is set.
func (r *ipsetReader) next() (kind int, data []byte, ok bool) {
	if len(r.rest) == 0 || r.err != nil {
		return 0, nil, false
	}
	if len(r.rest) < unix.NLA_HDRLEN {
		r.err = errIpsetMessage
		return 0, nil, false
	}
	size := int(binary.NativeEndian.Uint16(r.rest))
	if size < unix.NLA_HDRLEN || size > len(r.rest) {
		r.err = errIpsetMessage
		return 0, nil, false
	}
	kind, data = int(binary.NativeEndian.Uint16(r.rest[2:])&attrMask), r.rest[unix.NLA_HDRLEN:size]
	r.rest = r.rest[min(len(r.rest), (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
	return kind, data, true
}

// ipsetAttrs are attributes by their kind, nil where there is none; kinds above
// are of no interest.
type ipsetAttrs [32][]byte

// read fills a from b.
func (a *ipsetAttrs) read(b []byte) error {
	*a = ipsetAttrs{}
	r := ipsetReader{rest: b}
	for kind, data, ok := r.next(); ok; kind, data, ok = r.next() {
		if kind < len(a) {
			a[kind] = data
		}
	}
	return r.err
}

// number is an attribute of up to 8 bytes; the kernel sends all of them in
// network byte order. 0 if it is not there.
func (a *ipsetAttrs) number(kind int) (n uint64) {
	if len(a[kind]) > 8 {
		return 0
	}
	for _, b := range a[kind] {
		n = n<<8 | uint64(b)
	}
	return n
}

// name is a text that a NUL ends.
func (a *ipsetAttrs) name(kind int) string { return string(ipsetText(a[kind])) }

func ipsetText(b []byte) []byte {
	for i, c := range b {
		if c == 0 {
			return b[:i]
		}
	}
	return b
}
