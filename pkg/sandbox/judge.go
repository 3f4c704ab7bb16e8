package sandbox

import (
	"slices"

	seccomp "github.com/seccomp/libseccomp-golang"
)

// SyscallNumber is the number that a system call has on this machine; false if
// it has none.
func SyscallNumber(name string) (int, bool) {
	if !knownSyscall(name) {
		return 0, false
	}
	nr, err := seccomp.GetSyscallFromName(name)
	return int(nr), err == nil && nr >= 0
}

// Allows says whether a profile lets a call pass whose first arguments are
// known. A condition on one that is not known is taken to hold.
func (p Profile) Allows(name string, args []uint64) bool {
	for _, r := range p.rules {
		if r.syscall == name && matchesKnown(r, args) {
			return r.action == seccomp.ActAllow || r.action == seccomp.ActLog
		}
	}
	return false // ParseProfile takes no default that allows
}

func matchesKnown(r rule, args []uint64) bool {
	for _, c := range r.conds {
		if c.Argument < uint(len(args)) && !holds(c, args[c.Argument]) {
			return false
		}
	}
	return true
}

// AllowedNames are the calls that a profile lets pass, under conditions or always, sorted.
func (p Profile) AllowedNames() []string {
	var names []string
	for _, r := range p.rules {
		if r.action == seccomp.ActAllow || r.action == seccomp.ActLog {
			names = append(names, r.syscall)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
