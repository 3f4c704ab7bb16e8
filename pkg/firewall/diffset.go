package firewall

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// setEdit brings one set to what it should be. Each is carried out on its own: a
// set that cannot be repaired must not keep the others from it. What is to be
// done is asked for at that time: openings get what is left of theirs.
type setEdit struct {
	name  string
	alien bool // what the kernel has by this name is of another type, and none of ours
	write func(now time.Time) []setOp
	// instead is what to do if write fails, nil if there is nothing.
	instead func(now time.Time) []setOp
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
		if set.Timed {
			names = alignTimes(have.Members, names)
		}
		lines := diffMembers(have.sameKind(set), names)
		p.add(resourceSet, set.Family, set.Name, problem, lines)
		edit := setEdit{name: set.Name}
		switch {
		case !exists:
			edit.write = func(now time.Time) []setOp { return set.create(set.Name, now) }
		case have.wrongType(set):
			detach[set.Family] = true
			edit.alien = true
			edit.write = func(now time.Time) []setOp {
				return append([]setOp{{verb: verbDestroy, set: set.Name}}, set.create(set.Name, now)...)
			}
		default:
			scratch := freeScratch(set.Name, got)
			edit.write = func(now time.Time) []setOp { return set.replace(scratch, now) }
			if adds, dels, ok := set.fewChanges(have, lines); ok {
				edit.instead = edit.write // the set may be full, or have changed since
				edit.write = func(now time.Time) []setOp { return set.inPlace(adds, dels, now) }
			}
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
	if s.names != nil && len(s.names) == len(s.Members) {
		return s.names
	}
	names := make([]string, 0, len(s.Members)+len(s.Openings))
	for _, m := range s.members(now) {
		names = append(names, m.String())
	}
	slices.Sort(names)
	return names
}

// maxInPlace is up to how many members are changed one by one. More are changed
// all at once, by a swap: from the first to the last, and after a failure, the
// set would be neither the old nor the new one.
const maxInPlace = 64

// fewChanges are the members to add and those to delete, if the set can be
// brought to what it should be that way. lines are from diffMembers.
func (s Set) fewChanges(have ObservedSet, lines []string) (adds, dels []setMember, ok bool) {
	if !slices.Equal(have.Options, s.options()) || len(lines) > maxInPlace {
		return nil, nil, false
	}
	lines = slices.Sorted(slices.Values(lines)) // what comes ('+') before what goes ('-')
	for _, line := range lines {
		m, ok := parseMember(line[2:], s)
		switch {
		case !ok:
			return nil, nil, false
		case line[0] == '+':
			adds = append(adds, m)
		case !slices.ContainsFunc(adds, m.sameEntry): // else it is changed: another time, or no longer an exception
			dels = append(dels, m)
		}
	}
	return adds, dels, true
}

// inPlace adds first: for a moment somebody may be in who is about to go, but
// nobody is out who belongs in.
func (s Set) inPlace(adds, dels []setMember, now time.Time) []setOp {
	if s.Timed {
		adds = slices.DeleteFunc(s.members(now), func(m setMember) bool { return !slices.ContainsFunc(adds, m.sameEntry) })
	}
	var ops []setOp
	if len(adds) > 0 {
		ops = append(ops, setOp{verb: verbAdd, set: s.Name, like: s, members: adds, exist: true})
	}
	if len(dels) > 0 {
		ops = append(ops, setOp{verb: verbDel, set: s.Name, like: s, members: dels, exist: true})
	}
	return ops
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

// diffMembers takes sorted lists. What goes comes first.
func diffMembers(have, want []string) []string {
	var gone, added []string
	for len(have) > 0 || len(want) > 0 {
		switch {
		case len(want) == 0 || len(have) > 0 && have[0] < want[0]:
			gone = append(gone, "- "+have[0])
			have = have[1:]
		case len(have) == 0 || want[0] < have[0]:
			added = append(added, "+ "+want[0])
			want = want[1:]
		default:
			have, want = have[1:], want[1:]
		}
	}
	return append(gone, added...)
}
