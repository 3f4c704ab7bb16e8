package firewall

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// diffSets fills the set part of the plan and says in which families rules must
// be taken off the sets for a moment, since a set of the wrong type is in the way.
func (p *Plan) diffSets(want Ruleset, got Observed) (detach [2]bool) {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(got.Sets)) {
		if isScratch(name) { // left behind by a writer that died
			fmt.Fprintf(&b, "destroy %s\n", name)
			p.Changes = append(p.Changes, Change{Resource: "set", Family: familyOfSet(name).String(), Name: name, Problem: "left over"})
		}
	}
	for _, set := range want.Sets {
		have, exists := got.Sets[set.Name]
		switch {
		case !exists:
			p.add("set", set.Family, set.Name, "missing", diffMembers(nil, set.memberNames()))
			set.create(&b, set.Name)
		case have.Type != setType || have.Family != inet(set.Family):
			p.add("set", set.Family, set.Name, "is a "+have.Type+" of family "+have.Family+", not "+setType+" "+inet(set.Family),
				diffMembers(nil, set.memberNames()))
			detach[set.Family] = true
			fmt.Fprintf(&b, "destroy %s\n", set.Name)
			set.create(&b, set.Name)
		case len(have.Options) > 0:
			p.add("set", set.Family, set.Name, "has options: "+strings.Join(have.Options, " "), diffMembers(have.Members, set.memberNames()))
			set.replace(&b)
		case !slices.Equal(have.Members, set.memberNames()):
			p.add("set", set.Family, set.Name, "members differ", diffMembers(have.Members, set.memberNames()))
			set.replace(&b)
		}
	}
	p.setsText = b.String()
	p.staleSets(want, got)
	return detach
}

func (p *Plan) staleSets(want Ruleset, got Observed) {
	for _, name := range slices.Sorted(maps.Keys(got.Sets)) {
		wanted := slices.ContainsFunc(want.Sets, func(s Set) bool { return s.Name == name })
		if wanted || isScratch(name) {
			continue
		}
		p.add("set", familyOfSet(name), name, "not wanted", diffMembers(got.Sets[name].Members, nil))
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
func (s Set) replace(b *strings.Builder) {
	scratch := scratchName(s.Name)
	s.create(b, scratch)
	fmt.Fprintf(b, "swap %s %s\ndestroy %s\n", scratch, s.Name, scratch)
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
