package firewall

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// setEdit brings one set to what it should be. Each is an ipset restore of its
// own: ipset stops at the first line that fails, and a set that cannot be
// repaired must not keep the others from it.
type setEdit struct {
	name  string
	alien bool // what the kernel has by this name is of another type, and none of ours
	write func(b *strings.Builder, now time.Time)
}

// text is the ipset restore input, which gives openings what is left of their
// time now, not when the sets were read.
func (e setEdit) text(now time.Time) string {
	var b strings.Builder
	e.write(&b, now)
	return b.String()
}

// diffSets fills the set part of the plan and says in which families rules must
// be taken off the sets for a moment, since a set of the wrong type is in the way.
func (p *Plan) diffSets(want Ruleset, got Observed) (detach [2]bool) {
	for _, set := range want.Sets {
		have, exists := got.Sets[set.Name]
		names := set.memberNames(got.At)
		problem := set.problem(have, exists, names)
		if problem == "" {
			continue
		}
		p.add(resourceSet, set.Family, set.Name, problem, diffMembers(have.sameKind(set), alignTimes(have.Members, names)))
		edit := setEdit{name: set.Name}
		switch {
		case !exists:
			edit.write = func(b *strings.Builder, now time.Time) { set.create(b, set.Name, now) }
		case have.wrongType(set):
			detach[set.Family] = true
			edit.alien = true
			edit.write = func(b *strings.Builder, now time.Time) {
				fmt.Fprintf(b, "destroy %s\n", set.Name)
				set.create(b, set.Name, now)
			}
		default:
			scratch := freeScratch(set.Name, got)
			edit.write = func(b *strings.Builder, now time.Time) { set.replace(b, scratch, now) }
		}
		p.sets = append(p.sets, edit)
	}
	p.diffStaleSets(want, got)
	return detach
}

// problem is how a set differs from what it should be, "" if it does not.
func (s Set) problem(have ObservedSet, exists bool, names []string) string {
	switch {
	case !exists:
		return "missing"
	case have.wrongType(s):
		return printable(fmt.Sprintf("is a %s of family %s, not %s %s", have.Type, have.Family, s.setType(), inet(s.Family)))
	case !slices.Equal(have.Options, s.options()) && len(have.Options) == 0:
		return "lacks options: " + strings.Join(s.options(), " ")
	case !slices.Equal(have.Options, s.options()):
		return "has options: " + printable(strings.Join(have.Options, " "))
	case s.Timed && !sameTimes(have.Members, names), !s.Timed && !slices.Equal(have.Members, names):
		return "members differ"
	}
	return ""
}

func (have ObservedSet) wrongType(want Set) bool {
	return have.Type != want.setType() || have.Family != inet(want.Family)
}

// sameKind are the members, if they can be compared with those of want.
func (have ObservedSet) sameKind(want Set) []string {
	if have.wrongType(want) {
		return nil
	}
	return have.Members
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
func (s Set) memberNames(now time.Time) []string {
	var names []string
	for _, m := range s.Members {
		names = append(names, m.String())
	}
	for _, o := range s.Openings {
		if n := o.seconds(now); n > 0 {
			names = append(names, fmt.Sprintf("%s timeout %d", o.member(), n))
		}
	}
	slices.Sort(names)
	return names
}

func (s Set) create(b *strings.Builder, name string, now time.Time) {
	fmt.Fprintf(b, "create %s %s family %s maxelem %d", name, s.setType(), inet(s.Family), setMaxEntries)
	for _, word := range s.options() {
		b.WriteString(" " + word)
	}
	b.WriteString("\n")
	for _, m := range s.memberNames(now) {
		fmt.Fprintf(b, "add %s %s\n", name, m)
	}
}

// replace swaps in a freshly filled set, so that the old members count until
// the very moment when the new ones do. Members with a time get what is left of it.
func (s Set) replace(b *strings.Builder, scratch string, now time.Time) {
	s.create(b, scratch, now)
	fmt.Fprintf(b, "swap %s %s\ndestroy %s\n", scratch, s.Name, scratch)
}

// timeTolerance is by how many seconds the kernel's time for an opening may
// differ: it is written a moment after it was computed and counts whole seconds.
const timeTolerance = 2

// sameTimes compares the members of a set of openings. One that has but a
// moment left may be there or not: the kernel removes it by itself.
func sameTimes(have, want []string) bool {
	left := map[string]int{}
	for _, m := range want {
		name, seconds, _ := splitTimeout(m)
		left[name] = seconds
	}
	for _, m := range have {
		name, seconds, ok := splitTimeout(m)
		if !ok {
			return false // for ever, or with an option
		}
		if d := seconds - left[name]; d < -timeTolerance || d > timeTolerance {
			return false
		}
		delete(left, name)
	}
	for _, seconds := range left {
		if seconds > timeTolerance {
			return false
		}
	}
	return true
}

// alignTimes gives wanted members the time that the kernel has for them where
// that is near enough, so that only what differs is shown.
func alignTimes(have, want []string) []string {
	text := map[string]string{}
	left := map[string]int{}
	for _, m := range have {
		name, seconds, ok := splitTimeout(m)
		if ok {
			text[name], left[name] = m, seconds
		}
	}
	aligned := slices.Clone(want)
	for i, m := range want {
		name, seconds, _ := splitTimeout(m)
		if d := seconds - left[name]; text[name] != "" && -timeTolerance <= d && d <= timeTolerance {
			aligned[i] = text[name]
		}
	}
	slices.Sort(aligned)
	return aligned
}

// splitTimeout reads "10.0.0.1/32,tcp:22 timeout 30".
func splitTimeout(member string) (name string, seconds int, ok bool) {
	name, rest, found := strings.Cut(member, " timeout ")
	seconds, err := strconv.Atoi(rest)
	return name, seconds, found && err == nil && seconds > 0
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
