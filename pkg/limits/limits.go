// Package limits sets, reads and compares the resource limits of a process
// (setrlimit(2)).
//
// # API
//
// A [Set] names the limits an operator asked for; limits not in it stay as they
// are. [Set.Validate], [Set.Check], [ParseProc] and [Diff] are pure.
// [Set.ApplySelf] changes the calling process and is for the launch stage, just
// before execve. [Read] asks the kernel what a live process has, so that the
// effect of ApplySelf is proved on the process that came out of execve and not
// on the one that went in. [Repair] and [SetOOMScore] put back what a live process
// has lost; [Match] is the cheap question whether they have to.
//
// # Design
//
// Values are in the unit of getrlimit(2): bytes for as, core, data, fsize,
// memlock, msgqueue, rss and stack, seconds for cpu, microseconds for rttime,
// a plain number for the others. What is read is /proc/PID/limits: every user
// may read it, while prlimit(2) on a process of another user needs
// CAP_SYS_RESOURCE, and the file is the view an operator compares with.
//
// # Thread safety
//
// All functions are safe for concurrent use as long as no Set is modified
// meanwhile. Resource limits belong to the process, not to the thread.
package limits

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Unlimited is RLIM_INFINITY: no limit at all.
const Unlimited uint64 = math.MaxUint64

// Limit is one resource limit. The kernel enforces Soft; the process itself may
// move Soft up to Hard, and Hard only down (unless it has CAP_SYS_RESOURCE).
type Limit struct{ Soft, Hard uint64 }

// String is "soft:hard", or one value where both are equal.
func (l Limit) String() string {
	if l.Soft == l.Hard {
		return format(l.Hard)
	}
	return format(l.Soft) + ":" + format(l.Hard)
}

// Set maps names of limits, lower case and without RLIMIT_ (nofile, core …), to
// values.
type Set map[string]Limit

// resource is one limit the kernel has.
type resource struct {
	name  string // as in Set
	label string // as in /proc/PID/limits, see fs/proc/base.c
	id    int    // RLIMIT_*, getrlimit(2)
}

// resources is in the order in which ApplySelf sets them: those that may keep
// the Go runtime from growing its heap, stacks or threads come last.
var resources = []resource{
	{"core", "Max core file size", unix.RLIMIT_CORE},
	{"cpu", "Max cpu time", unix.RLIMIT_CPU},
	{"fsize", "Max file size", unix.RLIMIT_FSIZE},
	{"locks", "Max file locks", unix.RLIMIT_LOCKS},
	{"memlock", "Max locked memory", unix.RLIMIT_MEMLOCK},
	{"msgqueue", "Max msgqueue size", unix.RLIMIT_MSGQUEUE},
	{"nice", "Max nice priority", unix.RLIMIT_NICE},
	{"nofile", "Max open files", unix.RLIMIT_NOFILE},
	{"rss", "Max resident set", unix.RLIMIT_RSS},
	{"rtprio", "Max realtime priority", unix.RLIMIT_RTPRIO},
	{"rttime", "Max realtime timeout", unix.RLIMIT_RTTIME},
	{"sigpending", "Max pending signals", unix.RLIMIT_SIGPENDING},
	{"nproc", "Max processes", unix.RLIMIT_NPROC},
	{"stack", "Max stack size", unix.RLIMIT_STACK},
	{"data", "Max data size", unix.RLIMIT_DATA},
	{"as", "Max address space", unix.RLIMIT_AS},
}

// Validate reports every name that is not a limit and every soft value above
// its hard one, all of them joined.
func (s Set) Validate() error {
	var errs []error
	for _, name := range s.names() {
		l := s[name]
		switch {
		case !known(name):
			errs = append(errs, fmt.Errorf("unknown limit %q: use one of %s", name, strings.Join(knownNames(), " ")))
		case l.Soft > l.Hard:
			errs = append(errs, fmt.Errorf("limit %s: soft %s is above hard %s: lower soft or raise hard",
				name, format(l.Soft), format(l.Hard)))
		}
	}
	return errors.Join(errs...)
}

// Check reports every limit that a process with the limits current may not give
// itself, because it is above the current hard limit. It does not count on
// CAP_SYS_RESOURCE: a limit that holds only while a capability is there is not
// one to build on. Validate is included.
func (s Set) Check(current Set) error {
	if err := s.Validate(); err != nil {
		return err
	}
	var errs []error
	for _, name := range s.names() {
		want := s[name]
		cur, ok := current[name]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("limit %s: the current hard limit is not known", name))
		case want.Hard > cur.Hard:
			errs = append(errs, fmt.Errorf("limit %s: %s is above the current hard limit %s: "+
				"lower it, or raise the hard limit of whatever starts this process (systemd: %s=)",
				name, format(want.Hard), format(cur.Hard), "Limit"+strings.ToUpper(name)))
		}
	}
	return errors.Join(errs...)
}

// ApplySelf sets the limits on the calling process, reads each back, and leaves
// them as they are for the program that is executed next. On error some limits
// may be set already: the caller is expected to give up, not to go on.
//
// It goes through syscall.Setrlimit for a reason: the Go runtime raises the soft
// nofile limit at start and puts the original back on exec, unless it was set
// through its own function (golang.org/issue/46279). A limit set with a bare
// system call would be undone at the last moment.
func (s Set) ApplySelf() error {
	if err := s.Validate(); err != nil {
		return fmt.Errorf("cannot set limits: %w", err)
	}
	for _, r := range resources {
		want, ok := s[r.name]
		if !ok {
			continue
		}
		if err := set(r, want); err != nil {
			return fmt.Errorf("cannot set limit %s to %s: %w", r.name, want, err)
		}
	}
	return nil
}

// set changes one limit of the calling process and reads it back.
func set(r resource, want Limit) error {
	err := syscall.Setrlimit(r.id, &syscall.Rlimit{Cur: want.Soft, Max: want.Hard})
	switch {
	case errors.Is(err, unix.EPERM) && r.id == unix.RLIMIT_NOFILE:
		return fmt.Errorf("%w: it is above the hard limit or above /proc/sys/fs/nr_open", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: it is above the hard limit", err)
	case err != nil:
		return err
	}
	var got syscall.Rlimit
	if err := syscall.Getrlimit(r.id, &got); err != nil {
		return fmt.Errorf("cannot read it back: %w", err)
	}
	if l := (Limit{got.Cur, got.Max}); l != want {
		return fmt.Errorf("the kernel made it %s", l)
	}
	return nil
}

// Diff has one line for every limit of want that got does not have exactly,
// sorted by name; it is empty when all agree.
func Diff(want, got Set) []string {
	var lines []string
	for _, name := range want.names() {
		switch g, ok := got[name]; {
		case !ok:
			lines = append(lines, fmt.Sprintf("%s: want %s, not there", name, want[name]))
		case g != want[name]:
			lines = append(lines, fmt.Sprintf("%s: want %s, is %s", name, want[name], g))
		}
	}
	return lines
}

func (s Set) names() []string { return slices.Sorted(maps.Keys(s)) }

func known(name string) bool {
	return slices.ContainsFunc(resources, func(r resource) bool { return r.name == name })
}

func knownNames() []string {
	names := make([]string, 0, len(resources))
	for _, r := range resources {
		names = append(names, r.name)
	}
	slices.Sort(names)
	return names
}

func format(v uint64) string {
	if v == Unlimited {
		return "unlimited"
	}
	return strconv.FormatUint(v, 10)
}
