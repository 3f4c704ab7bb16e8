package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Connection is one entry of the kernel's connection tracking.
type Connection struct {
	Proto string         // tcp, udp or icmp (of either family), else the protocol's number
	Src   netip.AddrPort // of the first packet that was tracked; port 0 if the protocol has none
	Dst   netip.AddrPort

	id    entryID
	seen  netip.AddrPort // the destination that the filter table sees, if NAT has changed it
	notes entryNotes
}

// entryID tells the kernel which entry is meant: the addresses in its own form,
// the zone and the number that it gave this very entry.
type entryID struct {
	tuple  string
	zone   uint16
	number uint32
}

// entryNotes are what Unwanted must know besides the addresses. The zero value
// stands for an entry of which only these are known.
type entryNotes struct {
	noEcho   bool // icmp: a request of another kind than echo
	srcHere  bool // the source is an address of this node
	dstHere  bool // the destination is one
	toSubnet bool // the destination is the broadcast address of a network of this node
}

func (c Connection) String() string {
	if c.Src.Port() == 0 && c.Dst.Port() == 0 {
		return fmt.Sprintf("%s %s to %s", c.Proto, c.Src.Addr(), c.Dst.Addr())
	}
	return fmt.Sprintf("%s %s to %s", c.Proto, c.Src, c.Dst)
}

// Cuts is a plan: the connections that are to be cut.
type Cuts struct {
	Connections []Connection
}

// Empty says whether there is nothing to cut.
func (c Cuts) Empty() bool { return len(c.Connections) == 0 }

// maxCutLines bounds a plan's text: an intruder's flood may have left any
// number of connections.
const maxCutLines = 50

func (c Cuts) String() string {
	var b strings.Builder
	for _, conn := range c.Connections[:min(len(c.Connections), maxCutLines)] {
		fmt.Fprintf(&b, "connection %s: not allowed any more\n", conn)
	}
	if more := len(c.Connections) - maxCutLines; more > 0 {
		fmt.Fprintf(&b, "and %d more connections\n", more)
	}
	return b.String()
}

// Unwanted picks the connections that the rules of s would not let be opened
// now: those of a removed peer, of a row that was switched off, of somebody who
// got in while the rules were away, of an opening that has ended. All openings
// of s count as being in force.
//
// self are addresses of this node; those of its interfaces are known already if
// the connections come from ObserveConnections, a virtual address among them.
//
// NAT that is not ours is seen through: what counts is the destination that the
// filter table sees. What this node forwards is unwanted in scope host, and with
// a sibling at either end in scope siblings; only in conntrack zones of their
// own, which virtual switches use for what does not pass our chains, it is kept.
func Unwanted(s Spec, self []netip.Addr, all []Connection) []Connection {
	j := newJudge(s)
	here := map[netip.Addr]bool{}
	for _, a := range self {
		here[a] = true
	}
	var unwanted []Connection
	for _, c := range all {
		c.notes.srcHere = c.notes.srcHere || here[c.Src.Addr()]
		c.notes.dstHere = c.notes.dstHere || here[c.at().Addr()]
		if !j.keeps(c) {
			unwanted = append(unwanted, c)
		}
	}
	return unwanted
}

// at is the destination as the filter table sees it.
func (c Connection) at() netip.AddrPort {
	if c.seen.IsValid() {
		return c.seen
	}
	return c.Dst
}

func (j *judge) keeps(c Connection) bool {
	src, dst := c.Src, c.at()
	fromHere := c.notes.srcHere || src.Addr().IsLoopback() || src.Addr().IsUnspecified() // a DHCP client without an address
	toHere := c.notes.dstHere || dst.Addr().IsLoopback()
	toAll := c.notes.toSubnet || isGroup(dst.Addr())
	switch {
	case fromHere && toHere:
		return true
	case fromHere:
		return c.isLease(Out) || j.allows(Out, c, dst.Addr(), dst.Port()) || j.allowsAnswer(In, c, dst.Addr(), src.Port())
	case toHere || toAll:
		return c.isLease(In) || j.allows(In, c, src.Addr(), dst.Port()) || j.allowsAnswer(Out, c, src.Addr(), src.Port())
	case j.spec.Scope == ScopeSiblings:
		return !j.has(NetworkSiblings, src.Addr()) && !j.has(NetworkSiblings, dst.Addr())
	}
	return c.id.zone != 0
}

func (j *judge) allows(d Direction, c Connection, remote netip.Addr, port uint16) bool {
	return j.decide(d, c.query(remote, port)).Allowed
}

// allowsAnswer is allows for a connection that the kernel took up in mid-stream
// at an answer, so that its ends are the wrong way round: a flow or an opening
// must say so, as the rules for answers do, and like these it believes a source
// port. The metadata service gets no such favour: its rule looks at the sender's
// uid, which the kernel knows again with root's next segment.
func (j *judge) allowsAnswer(d Direction, c Connection, remote netip.Addr, port uint16) bool {
	if c.Proto != ProtoTCP {
		return false
	}
	decision := j.decide(d, c.query(remote, port))
	return decision.Allowed && decision.By != tagMetadata && decision.By != tagScope
}

// query asks with root's rights, since an entry does not say whose it is.
func (c Connection) query(remote netip.Addr, port uint16) Query {
	q := Query{Remote: remote, Proto: c.Proto, Port: port, Root: true}
	if c.Proto == protoICMP && !c.notes.noEcho {
		q.Proto = ProtoEcho
	}
	return q
}

// ObserveConnections lists what the kernel tracks in this network namespace, of
// both families.
//
// Needs CAP_NET_ADMIN and the kernel module nf_conntrack_netlink, which the
// kernel loads by itself.
func ObserveConnections(ctx context.Context) ([]Connection, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("cannot list connections: %w", err)
	}
	here, err := localAddresses()
	if err != nil {
		return nil, fmt.Errorf("cannot list connections: %w", err)
	}
	// Both families at once: for each dump the kernel goes through a table of all
	// network namespaces, of 262144 slots where there is some memory, be it empty.
	messages, err := ctRequest(unix.AF_UNSPEC, nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP).Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot list connections; this needs CAP_NET_ADMIN and the kernel module nf_conntrack_netlink: %w", err)
	}
	all := make([]Connection, 0, len(messages))
	for _, m := range messages {
		c, err := parseConnection(m)
		if err != nil {
			return nil, fmt.Errorf("cannot list connections: %w", err)
		}
		all = append(all, here.note(c))
	}
	return all, nil
}

// Cut makes the kernel forget connections, so that their next packets are those
// of new ones, which the rules drop. An entry that is gone already is no error.
// If another has taken its place, that one stays; only if the kernel gave it the
// same number, made from its place in memory, it goes too, and an allowed one
// comes back with the next packet.
func Cut(ctx context.Context, list []Connection) error {
	var errs []error
	for _, c := range list {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, fmt.Errorf("cannot cut all connections: %w", err))...)
		}
		if err := c.cut(); err != nil {
			errs = append(errs, fmt.Errorf("cannot cut %s: %w", c, err))
		}
	}
	return errors.Join(errs...)
}

func (c Connection) cut() error {
	if c.id.tuple == "" { // without one the kernel would forget all connections
		return errors.New("it was not read from the kernel")
	}
	req := ctRequest(c.domain(), nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
	req.AddData(nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, []byte(c.id.tuple)))
	req.AddData(nl.NewRtAttr(nl.CTA_ID, nl.BEUint32Attr(c.id.number)))
	if c.id.zone != 0 {
		req.AddData(nl.NewRtAttr(nl.CTA_ZONE, nl.BEUint16Attr(c.id.zone)))
	}
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func (c Connection) family() Family {
	if c.Src.Addr().Is4() {
		return IPv4
	}
	return IPv6
}

func (c Connection) domain() uint8 {
	if c.family() == IPv4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func ctRequest(domain uint8, operation, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: domain, Version: nl.NFNETLINK_V0})
	return req
}

// local are the addresses at which this node takes packets in.
type local struct {
	own, subnet map[netip.Addr]bool
}

func localAddresses() (local, error) {
	l := local{own: map[netip.Addr]bool{}, subnet: map[netip.Addr]bool{}}
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return l, fmt.Errorf("cannot list the interfaces' addresses: %w", err)
	}
	for _, a := range list {
		if a.IPNet == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if !ok {
			continue
		}
		addr = addr.Unmap()
		l.own[addr] = true
		if addr.Is4() && ones < 31 { // RFC 3021: two addresses alone have no broadcast address
			l.subnet[lastAddress(netip.PrefixFrom(addr, ones))] = true
		}
	}
	return l, nil
}

func (l local) note(c Connection) Connection {
	c.notes.srcHere = l.own[c.Src.Addr()]
	c.notes.dstHere = l.own[c.at().Addr()]
	c.notes.toSubnet = l.subnet[c.at().Addr()]
	return c
}

func lastAddress(p netip.Prefix) netip.Addr {
	last := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(last)
}
