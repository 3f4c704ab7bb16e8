package firewall

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// setEdit brings one set to what it should be. Each is an ipset restore of its
// own: ipset stops at the first line that fails, and a set that cannot be
// repaired must not keep the others from it.
type setEdit struct {
	name string
	text string // ipset restore input
}

// diffSets fills the set part of the plan and says in which families rules must
// be taken off the sets for a moment, since a set of the wrong type is in the way.
func (p *Plan) diffSets(want Ruleset, got Observed) (detach [2]bool) {
	for _, set := range want.Sets {
		have, exists := got.Sets[set.Name]
		names := set.memberNames()
		var b strings.Builder
		switch {
		case !exists:
			p.add(resourceSet, set.Family, set.Name, "missing", diffMembers(nil, names))
			set.create(&b, set.Name)
		case have.Type != setType || have.Family != inet(set.Family):
			p.add(resourceSet, set.Family, set.Name, wrongType(have, set), diffMembers(nil, names))
			detach[set.Family] = true
			fmt.Fprintf(&b, "destroy %s\n", set.Name)
			set.create(&b, set.Name)
		case len(have.Options) > 0:
			p.add(resourceSet, set.Family, set.Name, "has options: "+printable(strings.Join(have.Options, " ")), diffMembers(have.Members, names))
			set.replace(&b, freeScratch(set.Name, got))
		case !slices.Equal(have.Members, names):
			p.add(resourceSet, set.Family, set.Name, "members differ", diffMembers(have.Members, names))
			set.replace(&b, freeScratch(set.Name, got))
		default:
			continue
		}
		p.sets = append(p.sets, setEdit{name: set.Name, text: b.String()})
	}
	p.diffStaleSets(want, got)
	return detach
}

func wrongType(have ObservedSet, want Set) string {
	return printable(fmt.Sprintf("is a %s of family %s, not %s %s", have.Type, have.Family, setType, inet(want.Family)))
}

// diffStaleSets finds sets with our names that are not wanted: an older
// version's, and scratch sets that a writer left behind when it died.
func (p *Plan) diffStaleSets(want Ruleset, got Observed) {
	for _, name := range slices.Sorted(maps.Keys(got.Sets)) {
		if slices.ContainsFunc(want.Sets, func(s Set) bool { return s.Name == name }) {
			continue
		}
		problem := "not wanted"
		if isScratch(name) {
			problem = "left over"
		}
		p.add(resourceSet, familyOfSet(name), name, problem, diffMembers(got.Sets[name].Members, nil))
		p.dropSets = append(p.dropSets, name)
	}
}

func familyOfSet(name string) Family {
	if strings.HasPrefix(name, "pgh6") {
		return IPv6
	}
	return IPv4
}

func inet(fam Family) string {
	if fam == IPv6 {
		return "inet6"
	}
	return "inet"
}

// memberNames are the members as ParseSets names them, in its order.
func (s Set) memberNames() []string {
	var names []string
	for _, m := range s.Members {
		names = append(names, m.String())
	}
	slices.Sort(names)
	return names
}

func (s Set) create(b *strings.Builder, name string) {
	fmt.Fprintf(b, "create %s %s family %s maxelem %d\n", name, setType, inet(s.Family), setMaxEntries)
	for _, m := range s.Members {
		fmt.Fprintf(b, "add %s %s\n", name, m)
	}
}

// replace swaps in a freshly filled set, so that the old members count until
// the very moment when the new ones do.
func (s Set) replace(b *strings.Builder, scratch string) {
	s.create(b, scratch)
	fmt.Fprintf(b, "swap %s %s\ndestroy %s\n", scratch, s.Name, scratch)
}

// A scratch set is filled and then swapped with the real one. Its name is the
// real one's with dots for the dash, which no other set of ours has.
func scratchName(set string, dots int) string {
	return strings.Replace(set, "-", strings.Repeat(".", dots), 1)
}

func isScratch(name string) bool {
	return strings.HasPrefix(name, "pgh4.") || strings.HasPrefix(name, "pgh6.")
}

// freeScratch is a scratch name that is not taken: a set left behind may be in
// use by a foreign rule and so impossible to remove.
func freeScratch(set string, got Observed) string {
	name := scratchName(set, 1)
	if _, taken := got.Sets[name]; taken {
		return scratchName(set, 2)
	}
	return name
}

// diffMembers takes sorted lists.
func diffMembers(have, want []string) []string {
	var lines []string
	for _, m := range have {
		if _, ok := slices.BinarySearch(want, m); !ok {
			lines = append(lines, "- "+m)
		}
	}
	for _, m := range want {
		if _, ok := slices.BinarySearch(have, m); !ok {
			lines = append(lines, "+ "+m)
		}
	}
	return lines
}
