package firewall

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// A setKernel has the ipsets of the calling thread's network namespace.
type setKernel interface {
	// open begins a session. A setAccessError says that there is no way.
	open(ctx context.Context) (setSession, error)
}

// A setSession reads and writes ipsets, for one goroutine.
type setSession interface {
	// list reads the sets that are ours by name.
	list(ctx context.Context) (map[string]ObservedSet, error)
	// edit carries out operations in order, up to the first that fails.
	edit(ctx context.Context, ops []setOp) error
	close()
}

// The verbs of a setOp, which are ipset's.
const (
	verbCreate  = "create"
	verbAdd     = "add"
	verbDel     = "del"
	verbSwap    = "swap"
	verbDestroy = "destroy"
)

// setOp is one operation on a set.
type setOp struct {
	verb     string
	set      string
	other    string      // swap
	like     Set         // create: of which type and family
	hashSize int         // create: buckets to begin with
	members  []setMember // add and del
	exist    bool        // add changes what is there, del is content if it is not
}

// setMember is an entry of a set of one of our types.
type setMember struct {
	from    netip.Prefix
	proto   string // "" in a set without ports
	port    uint16
	seconds int // 0: for as long as the set says
}

// name is the entry without its time, as ParseSets writes it.
func (m setMember) name() string {
	if m.proto == "" {
		return m.from.String()
	}
	return m.from.String() + "," + m.proto + ":" + strconv.Itoa(int(m.port))
}

// sameEntry says whether the kernel takes both for one entry.
func (m setMember) sameEntry(other setMember) bool {
	m.seconds, other.seconds = 0, 0
	return m == other
}

func (m setMember) String() string {
	if m.seconds == 0 {
		return m.name()
	}
	return m.name() + " timeout " + strconv.Itoa(m.seconds)
}

// parseMember reads a member as ParseSets writes it. False: it is of a kind, or
// has options, that no set of ours has.
func parseMember(text string, like Set) (setMember, bool) {
	name, seconds, _ := splitTimeout(text)
	name = strings.TrimSuffix(name, " nomatch") // no part of what tells entries apart
	entry, service, hasPort := strings.Cut(name, ",")
	from, err := netip.ParsePrefix(entry)
	if err != nil || hasPort != like.Timed || from.Addr().Is4() != (like.Family == IPv4) || from != from.Masked() {
		return setMember{}, false
	}
	m := setMember{from: from, seconds: seconds}
	if !hasPort {
		return m, true
	}
	proto, port, _ := strings.Cut(service, ":")
	n, err := strconv.ParseUint(port, 10, 16)
	m.proto, m.port = proto, uint16(n)
	return m, err == nil && (proto == ProtoTCP || proto == ProtoUDP)
}

// lines are the operation as ipset restore reads it.
func (op setOp) lines() []string {
	switch op.verb {
	case verbCreate:
		line := fmt.Sprintf("create %s %s family %s hashsize %d maxelem %d", op.set, op.like.setType(), inet(op.like.Family), op.hashSize, setMaxEntries)
		return []string{strings.Join(append([]string{line}, op.like.options()...), " ")}
	case verbAdd, verbDel:
		lines := make([]string, len(op.members))
		for i, m := range op.members {
			lines[i] = op.verb + " " + op.set + " " + m.String()
			if op.exist {
				lines[i] += " -exist"
			}
		}
		return lines
	case verbSwap:
		return []string{"swap " + op.set + " " + op.other}
	}
	return []string{op.verb + " " + op.set}
}

// restoreText is the ipset restore input for operations.
func restoreText(ops []setOp) string {
	var b strings.Builder
	for _, op := range ops {
		for _, line := range op.lines() {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// members are what the set should have; openings that are over have no member.
func (s Set) members(now time.Time) []setMember {
	members := make([]setMember, 0, len(s.Members)+len(s.Openings))
	for _, p := range s.Members {
		members = append(members, setMember{from: p})
	}
	for _, o := range s.Openings {
		if n := o.seconds(now); n > 0 {
			members = append(members, setMember{from: o.From, proto: o.Proto, port: o.Port, seconds: n})
		}
	}
	return members
}

// create makes and fills a set.
func (s Set) create(name string, now time.Time) []setOp {
	members := s.members(now)
	ops := []setOp{{verb: verbCreate, set: name, like: s, hashSize: hashSize(len(members))}}
	if len(members) > 0 {
		ops = append(ops, setOp{verb: verbAdd, set: name, like: s, members: members})
	}
	return ops
}

// replace swaps in a freshly filled set, so that the old members count until
// the very moment when the new ones do. Members with a time get what is left of it.
func (s Set) replace(scratch string, now time.Time) []setOp {
	return append(s.create(scratch, now),
		setOp{verb: verbSwap, set: scratch, other: s.Name}, setOp{verb: verbDestroy, set: scratch})
}

// hashSize is how many buckets a set of n members should begin with: so many that
// filling it does not make the kernel build a larger table time and again, and
// no more, since whoever lists a set walks through all. It grows by itself.
func hashSize(n int) int {
	size := 64 // the least that the kernel has
	for size < n {
		size *= 2
	}
	return size
}
