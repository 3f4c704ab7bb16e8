package learn

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Judge says what a profile allows. Paths are in the form of Place.
type Judge struct {
	Call  func(Call) bool
	File  func(Access, string) bool
	Port  func(port uint16, listen bool) bool
	Names []string // the system calls that it allows, with conditions or without
}

// Difference is between what was recorded and what a profile allows.
type Difference struct {
	// Missing was used, and the profile does not allow it; with the types of the
	// processes that used it.
	Missing []string
	// Unused is what the profile allows and nobody used: calls that are rare, or not needed.
	Unused []string
}

// Diff compares. The order is stable.
func Diff(r Recording, j Judge) Difference {
	users := map[string][]string{}
	used := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(r.Processes)) {
		use := r.Processes[name]
		missing := func(text string) { users[text] = append(users[text], name) }
		for _, c := range use.Calls {
			used[c.Name] = true
			if !j.Call(c) {
				missing("seccomp: " + c.String())
			}
		}
		for access, list := range use.Files {
			for _, p := range list {
				if !j.File(access, p) {
					missing(fmt.Sprintf("landlock: %s %q", access, p))
				}
			}
		}
		for _, p := range use.Bind {
			if !j.Port(p, true) {
				missing(fmt.Sprintf("landlock: bind to port %d, if that was TCP", p))
			}
		}
		for _, p := range use.Connect {
			if !j.Port(p, false) {
				missing(fmt.Sprintf("landlock: connect to port %d, if that was TCP", p))
			}
		}
	}
	var d Difference
	for _, text := range slices.Sorted(maps.Keys(users)) {
		d.Missing = append(d.Missing, fmt.Sprintf("%s (%s)", text, strings.Join(users[text], ", ")))
	}
	for _, name := range j.Names {
		if !used[name] && !slices.Contains(alwaysAllowed, name) {
			d.Unused = append(d.Unused, "seccomp: "+name)
		}
	}
	slices.Sort(d.Unused)
	d.Unused = slices.Compact(d.Unused)
	return d
}

// String is a diff for people: what the profile lacks, then what was not used.
func (d Difference) String() string {
	var out strings.Builder
	for _, text := range d.Missing {
		fmt.Fprintf(&out, "+ %s\n", text)
	}
	for _, text := range d.Unused {
		fmt.Fprintf(&out, "- %s\n", text)
	}
	return out.String()
}
