package firewall

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Set types and sizes: ipset(8).
const (
	typeNet       = "hash:net"
	typeNetPort   = "hash:net,port"
	setMaxEntries = 65536
)

// groupOpen is the end of the names of the sets of openings. It is no role or
// network: those have their sets filled from the peer list.
const groupOpen = "open"

// Openings are for people in an emergency, so a day is long.
const maxOpening = 24 * time.Hour

// Set is one ipset. A set of openings has Openings and no Members.
type Set struct {
	Name     string
	Family   Family
	Members  []netip.Prefix // sorted
	Openings []Opening      // sorted, each hole once
	Timed    bool           // a set of openings, maybe of none

	names []string // of Members, as ParseSets has them, since to make thousands takes milliseconds; nil: not made
}

// setType is the type as ipset create takes it.
func (s Set) setType() string {
	if s.Timed {
		return typeNetPort
	}
	return typeNet
}

// defaultTimeout: a member that is added without a time of its own has but a
// second, so no hole can be made for good by mistake.
const defaultTimeout = 1

// options are the create options as ipset save prints them.
func (s Set) options() []string {
	if s.Timed {
		return []string{"timeout", strconv.Itoa(defaultTimeout)}
	}
	return nil
}

// SetName is the ipset that holds a role's or network's members of a family.
func SetName(group string, fam Family) string { return setPrefix(fam) + group }

func setPrefix(fam Family) string {
	if fam == IPv6 {
		return "pgh6-"
	}
	return "pgh4-"
}

// usedGroups are the groups that the rules of a node with this role name.
func usedGroups(s Spec) []string {
	groups := []string{NetworkMetadata}
	if s.Scope == ScopeSiblings {
		groups = append(groups, NetworkSiblings)
	}
	for _, e := range []ends{asServer, asClient} {
		for _, row := range rowsOf(s, e) {
			groups = append(groups, row.group)
		}
	}
	slices.Sort(groups)
	return slices.Compact(groups)
}

func renderSets(s Spec) ([]Set, error) {
	var sets []Set
	for _, group := range usedGroups(s) {
		for _, fam := range Families {
			set := Set{Name: SetName(group, fam), Family: fam}
			for _, p := range s.members(group) {
				if !usable(p) {
					return nil, fmt.Errorf("%s: %v is not a usable network", set.Name, p)
				}
				if p.Addr().Is4() == (fam == IPv4) {
					set.Members = append(set.Members, p)
				}
			}
			slices.SortFunc(set.Members, comparePrefixes)
			set.Members = slices.Compact(set.Members)
			if len(set.Members) > setMaxEntries {
				return nil, fmt.Errorf("%s: %d members, but a set holds %d; use wider networks", set.Name, len(set.Members), setMaxEntries)
			}
			set.names = set.memberNames(time.Time{}) // these have no time
			sets = append(sets, set)
		}
	}
	for _, fam := range Families {
		set, err := renderOpenings(s.Openings, fam)
		if err != nil {
			return nil, err
		}
		sets = append(sets, set)
	}
	return sets, nil
}

func usable(p netip.Prefix) bool {
	return p.IsValid() && p.Bits() > 0 && !p.Addr().Is4In6() && p == p.Masked()
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// renderOpenings is there for no opening as well, so that rules need not change.
func renderOpenings(openings []Opening, fam Family) (Set, error) {
	set := Set{Name: SetName(groupOpen, fam), Family: fam, Timed: true}
	for _, o := range openings {
		if !usable(o.From) || o.Port == 0 || (o.Proto != ProtoTCP && o.Proto != ProtoUDP) {
			return Set{}, fmt.Errorf("%s: %s is not a usable opening", set.Name, o.member())
		}
		if o.From.Addr().Is4() == (fam == IPv4) {
			set.Openings = append(set.Openings, o)
		}
	}
	slices.SortFunc(set.Openings, func(a, b Opening) int {
		return cmp.Or(cmp.Compare(a.member(), b.member()), b.Until.Compare(a.Until)) // the longest first
	})
	set.Openings = slices.CompactFunc(set.Openings, func(a, b Opening) bool { return a.member() == b.member() })
	return set, nil
}

// member is the opening as ParseSets names it, without its time.
func (o Opening) member() string {
	return o.From.String() + "," + o.Proto + ":" + strconv.Itoa(int(o.Port))
}

// seconds is how long the kernel is to keep a member: rounded down, so that no
// hole outlives its time. 0, which would be for ever to ipset, is not to be there.
func (o Opening) seconds(now time.Time) int {
	left := min(o.Until.Sub(now), maxOpening)
	return max(0, int(left/time.Second))
}
