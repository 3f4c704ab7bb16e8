package firewall

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ipsetIfaceWildcard is IPSET_FLAG_IFACE_WILDCARD, which the library does not have.
const ipsetIfaceWildcard = 1 << 7

// setDecoder puts together what the messages of one set's dump say, in the words
// of ipset save: the first has the header, each has some of the members.
type setDecoder struct {
	kind    string
	dims    []string // what an entry is made of: net, port …
	family  string
	options []string
	members []string
	attrs   ipsetAttrs // of the entry that is being read
	text    []byte     // of that entry
}

func (d *setDecoder) set() ObservedSet {
	slices.Sort(d.members)
	return ObservedSet{Type: d.kind, Family: d.family, Options: d.options, Members: d.members}
}

// message takes in one message's payload.
func (d *setDecoder) message(payload []byte) error {
	var top ipsetAttrs
	if err := top.read(payload); err != nil {
		return err
	}
	if top[nl.IPSET_ATTR_TYPENAME] != nil {
		if err := d.header(&top); err != nil {
			return err
		}
	}
	entries := ipsetReader{rest: top[nl.IPSET_ATTR_ADT]}
	for _, entry, ok := entries.next(); ok; _, entry, ok = entries.next() {
		if err := d.attrs.read(entry); err != nil {
			return err
		}
		d.entry()
		d.members = append(d.members, printable(string(d.text)))
	}
	return entries.err
}

func (d *setDecoder) header(top *ipsetAttrs) error {
	d.kind = top.name(nl.IPSET_ATTR_TYPENAME)
	_, dims, _ := strings.Cut(d.kind, ":")
	d.dims = strings.Split(dims, ",")
	switch family := top.number(nl.IPSET_ATTR_FAMILY); {
	case !strings.HasPrefix(d.kind, "hash:"): // its addresses are IPv4's, which goes without saying
	case family == unix.NFPROTO_IPV4:
		d.family = "inet"
	case family == unix.NFPROTO_IPV6:
		d.family = "inet6"
	}
	var a ipsetAttrs
	if err := a.read(top[nl.IPSET_ATTR_DATA]); err != nil {
		return err
	}
	d.options = d.rangeOptions(&a)
	has := func(kind int) bool { return a[kind] != nil }
	number := func(word string, kind int) {
		if has(kind) {
			d.options = append(d.options, word, strconv.FormatUint(a.number(kind), 10))
		}
	}
	if has(nl.IPSET_ATTR_MARKMASK) {
		d.options = append(d.options, "markmask", fmt.Sprintf("0x%08x", a.number(nl.IPSET_ATTR_MARKMASK)))
	}
	number("netmask", nl.IPSET_ATTR_NETMASK)
	number("size", nl.IPSET_ATTR_SIZE)
	number("timeout", nl.IPSET_ATTR_TIMEOUT)
	flags := a.number(nl.IPSET_ATTR_CADT_FLAGS) // forceadd is not among what ipset 7.17 prints
	for _, f := range []struct {
		bit  uint64
		word string
	}{
		{nl.IPSET_FLAG_WITH_COUNTERS, "counters"}, {nl.IPSET_FLAG_WITH_COMMENT, "comment"},
		{nl.IPSET_FLAG_WITH_FORCEADD, "forceadd"}, {nl.IPSET_FLAG_WITH_SKBINFO, "skbinfo"},
	} {
		if flags&f.bit != 0 {
			d.options = append(d.options, f.word)
		}
	}
	return nil
}

// rangeOptions are the bounds of a bitmap.
func (d *setDecoder) rangeOptions(a *ipsetAttrs) []string {
	if !strings.HasPrefix(d.kind, "bitmap:") {
		return nil
	}
	if a[nl.IPSET_ATTR_PORT] != nil {
		return []string{"range", fmt.Sprintf("%d-%d", a.number(nl.IPSET_ATTR_PORT), a.number(nl.IPSET_ATTR_PORT_TO))}
	}
	return []string{"range", fmt.Sprintf("%v-%v", ipsetAddr(a[nl.IPSET_ATTR_IP]), ipsetAddr(a[nl.IPSET_ATTR_IP_TO]))}
}

// entry writes the entry to d.text: what it is made of, then its options.
func (d *setDecoder) entry() {
	a := &d.attrs
	d.text = d.text[:0]
	first := true
	for _, dim := range d.dims {
		at := len(d.text)
		if at > 0 {
			d.text = append(d.text, ',')
		}
		start := len(d.text)
		switch dim {
		case "ip", "net":
			d.address(first)
			first = false
		case "port":
			d.port()
		case "mac":
			d.mac()
		case "iface":
			if a.number(nl.IPSET_ATTR_CADT_FLAGS)&nl.IPSET_FLAG_PHYSDEV != 0 {
				d.text = append(d.text, "physdev:"...)
			}
			d.text = append(d.text, ipsetText(a[nl.IPSET_ATTR_IFACE])...)
		case "mark":
			d.text = fmt.Appendf(d.text, "0x%08x", a.number(nl.IPSET_ATTR_MARK))
		case "set":
			d.text = append(d.text, ipsetText(a[nl.IPSET_ATTR_NAME])...)
		}
		if len(d.text) == start { // what an entry may lack, such as a bitmap's mac
			d.text = d.text[:at]
		}
	}
	d.entryOptions()
}

// address writes the first address always with its length, as netip does; the
// second as ipset does.
func (d *setDecoder) address(first bool) {
	ip, cidr := nl.IPSET_ATTR_IP, nl.IPSET_ATTR_CIDR
	if !first {
		ip, cidr = nl.IPSET_ATTR_IP2, nl.IPSET_ATTR_CIDR2
	}
	a := ipsetAddr(d.attrs[ip])
	if !a.IsValid() {
		return
	}
	bits := a.BitLen()
	if d.attrs[cidr] != nil {
		bits = int(d.attrs.number(cidr))
	}
	d.text = a.AppendTo(d.text)
	if first || bits != a.BitLen() {
		d.text = strconv.AppendInt(append(d.text, '/'), int64(bits), 10)
	}
}

// ipsetAddr reads an address, which is in an attribute of its own.
func ipsetAddr(b []byte) netip.Addr {
	r := ipsetReader{rest: b}
	_, data, _ := r.next()
	a, _ := netip.AddrFromSlice(data)
	return a
}

var protoNames = map[uint64]string{
	unix.IPPROTO_TCP: ProtoTCP, unix.IPPROTO_UDP: ProtoUDP, unix.IPPROTO_SCTP: "sctp", unix.IPPROTO_UDPLITE: "udplite",
	unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "icmpv6",
}

func (d *setDecoder) port() {
	port := d.attrs.number(nl.IPSET_ATTR_PORT)
	if d.attrs[nl.IPSET_ATTR_PROTO] != nil {
		n := d.attrs.number(nl.IPSET_ATTR_PROTO)
		name, known := protoNames[n]
		if !known {
			name = strconv.FormatUint(n, 10)
		}
		d.text = append(append(d.text, name...), ':')
		if n == unix.IPPROTO_ICMP || n == unix.IPPROTO_ICMPV6 {
			d.text = fmt.Appendf(d.text, "%d/%d", port>>8, port&0xff)
			return
		}
	}
	d.text = strconv.AppendUint(d.text, port, 10)
}

func (d *setDecoder) mac() {
	for i, b := range d.attrs[nl.IPSET_ATTR_ETHER] {
		if i > 0 {
			d.text = append(d.text, ':')
		}
		d.text = fmt.Appendf(d.text, "%02X", b)
	}
}

// entryOptions are in ipset's order.
func (d *setDecoder) entryOptions() {
	a := &d.attrs
	number := func(word string, kind int) {
		if a[kind] != nil {
			d.text = strconv.AppendUint(append(append(d.text, word...), ' '), a.number(kind), 10)
		}
	}
	number(" timeout", nl.IPSET_ATTR_TIMEOUT)
	flags := a.number(nl.IPSET_ATTR_CADT_FLAGS)
	if flags&nl.IPSET_FLAG_NOMATCH != 0 {
		d.text = append(d.text, " nomatch"...)
	}
	number(" packets", nl.IPSET_ATTR_PACKETS)
	number(" bytes", nl.IPSET_ATTR_BYTES)
	if a[nl.IPSET_ATTR_COMMENT] != nil {
		d.text = append(append(d.text, " comment "...), ipsetText(a[nl.IPSET_ATTR_COMMENT])...)
	}
	if mark := a[nl.IPSET_ATTR_SKBMARK]; len(mark) == 8 { // the value and its mask
		d.text = fmt.Appendf(d.text, " skbmark 0x%x", binary.BigEndian.Uint32(mark))
		if mask := binary.BigEndian.Uint32(mark[4:]); mask != math.MaxUint32 {
			d.text = fmt.Appendf(d.text, "/0x%x", mask)
		}
	}
	if prio := a.number(nl.IPSET_ATTR_SKBPRIO); a[nl.IPSET_ATTR_SKBPRIO] != nil {
		d.text = fmt.Appendf(d.text, " skbprio %x:%x", prio>>16, prio&0xffff)
	}
	number(" skbqueue", nl.IPSET_ATTR_SKBQUEUE)
	if flags&ipsetIfaceWildcard != 0 {
		d.text = append(d.text, " wildcard"...)
	}
}
