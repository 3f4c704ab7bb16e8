package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Direction is that of a connection as this node sees it.
type Direction int

// In is a connection that the remote opens, Out one that this node opens.
const (
	In Direction = iota
	Out
)

// Query asks about a new connection between this node and a remote.
type Query struct {
	Remote netip.Addr
	Proto  string    // ProtoTCP, ProtoUDP or ProtoEcho; no row is about anything else
	Port   uint16    // the destination port: this node's (In) or the remote's (Out); none for ProtoEcho
	Root   bool      // the sending process is root's; counts for Out only
	At     time.Time // openings that ended by then do not count; the zero time counts them all
}

// Decision is what the rules do with a new connection, and why.
type Decision struct {
	Allowed  bool
	PassedOn bool   // scope siblings: it is up to the host's own firewall; Allowed is true as well
	By       string // the flow, or drop, metadata, open, scope, loopback
	Reason   string // one sentence for people
	Limit    string // what one source may use: "at most 113 connections and 500 new a second per source"; "" for no limit
}

// Decide says what the rules that Render makes from s do with a new connection,
// as far as it can be said beforehand: a limit that is used up drops as well.
// The remote is another host: a node's packets to itself use the loopback
// interface, and from outside its own addresses are forged. The connection comes
// from an ordinary port, so that the rules for DHCP are none of its business; and
// of broadcast addresses 255.255.255.255 alone is known, not those of subnets.
func Decide(s Spec, d Direction, q Query) Decision {
	return newJudge(s).decide(d, q)
}

// A judge answers many queries about one node.
type judge struct {
	spec   Spec
	groups map[string]prefixIndex
}

func newJudge(s Spec) *judge { return &judge{spec: s, groups: map[string]prefixIndex{}} }

// has says whether an address is in a role's or network's set.
func (j *judge) has(group string, addr netip.Addr) bool {
	index, ok := j.groups[group]
	if !ok {
		index = indexPrefixes(j.spec.members(group))
		j.groups[group] = index
	}
	return index.contains(addr)
}

// decide goes through the steps in the order of the chains; the first that has
// an answer decides.
func (j *judge) decide(d Direction, q Query) Decision {
	q.Remote = q.Remote.Unmap().WithZone("")
	for _, step := range []func(Direction, Query) (Decision, bool){
		j.byMetadata, j.byGroup, j.byScope, byLoopback, j.byFlow, j.byOpening,
	} {
		if decision, ok := step(d, q); ok {
			return decision
		}
	}
	return Decision{By: tagDrop, Reason: j.whyNot(d, q)}
}

// byMetadata guards the metadata service. Its DNS and NTP are left to the rows.
func (j *judge) byMetadata(d Direction, q Query) (Decision, bool) {
	if d != Out || !j.has(NetworkMetadata, q.Remote) {
		return Decision{}, false
	}
	const http, dns, ntp = 80, 53, 123
	switch {
	case q.Proto == ProtoUDP && (q.Port == dns || q.Port == ntp), q.Proto == ProtoTCP && q.Port == dns:
		return Decision{}, false
	case q.Proto == ProtoTCP && q.Port == http && q.Root:
		return Decision{Allowed: true, By: tagMetadata, Reason: fmt.Sprintf("root may use the metadata service at %s", q.Remote)}, true
	case q.Proto == ProtoTCP && q.Port == http:
		return Decision{By: tagMetadata, Reason: fmt.Sprintf("the metadata service at %s is for root alone", q.Remote)}, true
	}
	return Decision{By: tagMetadata, Reason: fmt.Sprintf("of the metadata service at %s only tcp port 80 is open, for root", q.Remote)}, true
}

// byGroup keeps from siblings what they would take in without being addressed.
func (j *judge) byGroup(d Direction, q Query) (Decision, bool) {
	if j.spec.Scope != ScopeSiblings || d != Out || q.Proto != ProtoUDP || q.Root || !isGroup(q.Remote) {
		return Decision{}, false
	}
	return Decision{By: tagScope,
		Reason: fmt.Sprintf("siblings would take in what is sent to %s, so firewall.scope: siblings leaves it to root alone", q.Remote)}, true
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func isGroup(a netip.Addr) bool { return a.IsMulticast() || a == broadcast }

func (j *judge) byScope(_ Direction, q Query) (Decision, bool) {
	if j.spec.Scope != ScopeSiblings || j.has(NetworkSiblings, q.Remote) {
		return Decision{}, false
	}
	return Decision{Allowed: true, PassedOn: true, By: tagScope,
		Reason: fmt.Sprintf("%s is no sibling, so firewall.scope: siblings leaves it to the host's own firewall", q.Remote)}, true
}

func byLoopback(_ Direction, q Query) (Decision, bool) {
	return Decision{Allowed: true, By: tagLoopback, Reason: "a node's connections to itself are allowed"}, q.Remote.IsLoopback()
}

func (j *judge) byFlow(d Direction, q Query) (Decision, bool) {
	end := d.ends()
	for _, f := range j.spec.Flows {
		if !f.isAbout(q) || !slices.Contains(end.here(f), j.spec.Role) {
			continue
		}
		for _, group := range end.there(f) {
			if j.has(group, q.Remote) {
				from, to := group, j.spec.Role
				if d == Out {
					from, to = to, from
				}
				return Decision{Allowed: true, By: f.Name, Limit: f.limit(d),
					Reason: fmt.Sprintf("the flow %s allows %s from %s to %s", f.Name, q.service(), from, to)}, true
			}
		}
	}
	return Decision{}, false
}

func (j *judge) byOpening(d Direction, q Query) (Decision, bool) {
	if d != In {
		return Decision{}, false
	}
	for _, o := range j.spec.Openings {
		if o.Proto == q.Proto && o.Port == q.Port && o.From.Contains(q.Remote) && (q.At.IsZero() || q.At.Before(o.Until)) {
			return Decision{Allowed: true, By: tagOpen, Reason: fmt.Sprintf("an opening lets %s in on %s port %d until %s",
				o.From, o.Proto, o.Port, o.Until.UTC().Format(time.RFC3339))}, true
		}
	}
	return Decision{}, false
}

// whyNot explains a drop by the row that comes closest.
func (j *judge) whyNot(d Direction, q Query) string {
	end := d.ends()
	for _, f := range j.spec.Flows {
		if f.isAbout(q) && slices.Contains(end.here(f), j.spec.Role) {
			return fmt.Sprintf("the flow %s allows %s %s %s only, and %s is none of it",
				f.Name, q.service(), d.preposition(), strings.Join(end.there(f), ", "), q.Remote)
		}
	}
	if d == In {
		return fmt.Sprintf("no flow allows %s to %s", q.service(), j.spec.Role)
	}
	return fmt.Sprintf("no flow allows %s from %s", q.service(), j.spec.Role)
}

func (d Direction) preposition() string {
	if d == In {
		return "from"
	}
	return "to"
}

func (d Direction) ends() ends {
	if d == In {
		return asServer
	}
	return asClient
}

func (f Flow) isAbout(q Query) bool {
	return f.Proto == q.Proto && (f.Proto == ProtoEcho || slices.Contains(f.Ports, q.Port))
}

func (q Query) service() string {
	switch q.Proto {
	case ProtoTCP, ProtoUDP:
		return fmt.Sprintf("%s port %d", q.Proto, q.Port)
	case ProtoEcho:
		return "echo requests"
	}
	return "protocol " + printable(q.Proto)
}

// limit is what one source may use. That of echo requests holds in both
// directions, that of connections at the server only.
func (f Flow) limit(d Direction) string {
	switch {
	case f.Proto == ProtoEcho:
		return fmt.Sprintf("at most %d requests a second per source", f.Rate)
	case d == Out:
		return ""
	case f.Connections > 0 && f.NewPerSecond > 0:
		return fmt.Sprintf("at most %d connections and %d new a second per source", f.Connections, f.NewPerSecond)
	case f.Connections > 0:
		return fmt.Sprintf("at most %d connections per source", f.Connections)
	case f.NewPerSecond > 0:
		return fmt.Sprintf("at most %d new connections a second per source", f.NewPerSecond)
	}
	return ""
}

// prefixIndex finds an address among many prefixes as a hash:net set does: one
// look-up for each length that occurs.
type prefixIndex struct {
	lengths  []int
	prefixes map[netip.Prefix]bool
}

func indexPrefixes(list []netip.Prefix) prefixIndex {
	x := prefixIndex{prefixes: make(map[netip.Prefix]bool, len(list))}
	for _, p := range list {
		x.prefixes[p.Masked()] = true
		if !slices.Contains(x.lengths, p.Bits()) {
			x.lengths = append(x.lengths, p.Bits())
		}
	}
	return x
}

func (x prefixIndex) contains(addr netip.Addr) bool {
	return slices.ContainsFunc(x.lengths, func(bits int) bool {
		p, err := addr.Prefix(bits) // an error: longer than the family's addresses
		return err == nil && x.prefixes[p]
	})
}
