package sandbox

import (
	"fmt"
	"slices"
	"strings"

	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// Entry is what a profile says about one system call, for people and for
// comparing profiles.
type Entry struct {
	Syscall string   `json:"syscall"`
	Action  string   `json:"action"`           // allow, the name of an error, log, trap, kill-thread or kill-process
	When    string   `json:"when,omitempty"`   // conditions on arguments, all of which hold; none: always
	Arches  []string `json:"arches,omitempty"` // GOARCH; none: all that have the call
	Reason  string   `json:"reason,omitempty"`
	Origins []string `json:"origins"` // the base profile, features
}

// actionAllow is the action of an Entry that lets the call through.
const actionAllow = "allow"

// Name is the name that ParseProfile was given.
func (p Profile) Name() string { return p.name }

// Features are the names of what With added.
func (p Profile) Features() []string { return slices.Clone(p.features) }

// Default is what calls get that are in no entry, as in Entry.Action.
func (p Profile) Default() string { return actionText(p.def) }

// Entries has every rule, sorted by call, action and condition.
func (p Profile) Entries() []Entry {
	list := make([]Entry, 0, len(p.rules))
	for _, r := range p.rules {
		list = append(list, Entry{
			Syscall: r.syscall, Action: actionText(r.action), When: conditionText(r.conds),
			Arches: r.arches, Reason: r.reason, Origins: r.origins,
		})
	}
	slices.SortStableFunc(list, func(a, b Entry) int { return strings.Compare(a.key(), b.key()) })
	return list
}

// key is what an entry says; the rest is why.
func (e Entry) key() string {
	return strings.Join([]string{e.Syscall, e.Action, e.When, strings.Join(e.Arches, ",")}, "\x00")
}

// Allowed has the names of the calls of an architecture (GOARCH: amd64, arm64)
// that are let through with some arguments at least, sorted.
func (p Profile) Allowed(arch string) ([]string, error) {
	m, ok := machines[arch]
	if !ok {
		return nil, fmt.Errorf("architecture %s is not supported", arch)
	}
	var names []string
	for _, r := range p.rules {
		_, ok, err := r.number(m)
		if err != nil {
			return nil, err
		}
		if ok && r.action == seccomp.ActAllow {
			names = append(names, r.syscall)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// EntryChange is an entry that only one of two profiles has.
type EntryChange struct {
	Added bool  `json:"added"` // else it was removed
	Entry Entry `json:"entry"`
}

// DiffEntries lists what changes from one list of entries to another, in the
// order of Entries. Reasons and origins do not count.
func DiffEntries(from, to []Entry) []EntryChange {
	var changes []EntryChange
	missing := func(in []Entry, e Entry) bool {
		return !slices.ContainsFunc(in, func(o Entry) bool { return o.key() == e.key() })
	}
	for _, e := range from {
		if missing(to, e) {
			changes = append(changes, EntryChange{Entry: e})
		}
	}
	for _, e := range to {
		if missing(from, e) {
			changes = append(changes, EntryChange{Added: true, Entry: e})
		}
	}
	slices.SortStableFunc(changes, func(a, b EntryChange) int { return strings.Compare(a.Entry.Syscall, b.Entry.Syscall) })
	return changes
}

func actionText(a seccomp.ScmpAction) string {
	switch a & 0xffff {
	case seccomp.ActAllow:
		return actionAllow
	case seccomp.ActErrno:
		errno := unix.Errno(uint16(a.GetReturnCode()))
		if name := unix.ErrnoName(errno); name != "" {
			return name
		}
		return fmt.Sprintf("errno-%d", uint(errno))
	case seccomp.ActLog:
		return "log"
	case seccomp.ActTrap:
		return "trap"
	case seccomp.ActKillThread:
		return "kill-thread"
	default:
		return "kill-process"
	}
}

var opText = map[seccomp.ScmpCompareOp]string{
	seccomp.CompareNotEqual: "!=", seccomp.CompareLess: "<", seccomp.CompareLessOrEqual: "<=",
	seccomp.CompareEqual: "==", seccomp.CompareGreaterEqual: ">=", seccomp.CompareGreater: ">",
}

// conditionText counts arguments from 0, as profiles do.
func conditionText(conds []seccomp.ScmpCondition) string {
	var parts []string
	for _, c := range conds {
		if c.Op == seccomp.CompareMaskedEqual {
			parts = append(parts, fmt.Sprintf("arg%d & %#x == %#x", c.Argument, c.Operand1, c.Operand2))
			continue
		}
		parts = append(parts, fmt.Sprintf("arg%d %s %#x", c.Argument, opText[c.Op], c.Operand1))
	}
	return strings.Join(parts, " && ")
}
