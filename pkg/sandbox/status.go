package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Status is what the kernel says about a process in /proc/PID/status, as far as
// confinement is concerned; proc_pid_status(5).
type Status struct {
	Name            string // of the command; the kernel's escapes (\n, \\) are kept
	PID, PPID, TGID int    // PID is the thread's id, TGID the process's
	TracerPID       int    // the thread that traces it, ptrace(2); 0 for none
	// Real, effective, saved set and filesystem id.
	UIDs, GIDs [4]uint32
	Groups     []uint32 // supplementary groups
	// Inheritable, permitted, effective, bounding and ambient capabilities.
	Inh, Prm, Eff, Bnd, Amb CapSet
	NoNewPrivs              bool
	Seccomp                 int // 0 none, 1 strict, 2 filter
	Filters                 int // number of seccomp filters (Linux 5.9)
	Umask                   uint32
	SigBlk, SigIgn          uint64 // blocked, ignored signals: bit n-1 stands for signal n
}

// ReadStatus reads the status of a process, or of the calling thread if pid is 0.
// The error wraps os.ErrProcessDone if the process is gone or has exited.
func ReadStatus(ctx context.Context, pid int) (Status, error) {
	file := "/proc/thread-self/status" // Linux 3.17
	if pid != 0 {
		file = fmt.Sprintf("/proc/%d/status", pid)
	}
	return readStatusFile(ctx, file)
}

// ReadThreadStatus is ReadStatus for any thread of a process.
func ReadThreadStatus(ctx context.Context, pid, tid int) (Status, error) {
	return readStatusFile(ctx, fmt.Sprintf("/proc/%d/task/%d/status", pid, tid))
}

func readStatusFile(ctx context.Context, file string) (Status, error) {
	if err := ctx.Err(); err != nil {
		return Status{}, fmt.Errorf("cannot read %s: %w", file, err)
	}
	data, err := os.ReadFile(file)
	// ESRCH: it exited between open and read.
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return Status{}, fmt.Errorf("cannot read %s: %w", file, os.ErrProcessDone)
	}
	if err != nil {
		return Status{}, fmt.Errorf("cannot read the status of a process: %w", err)
	}
	s, err := ParseStatus(data)
	if err != nil {
		return Status{}, fmt.Errorf("cannot read %s: %w", file, err)
	}
	return s, nil
}

// statusField reads the value of one line into a Status.
type statusField func(*Status, string) error

// statusFields has every line that must be there, by its key.
var statusFields = map[string]statusField{
	"Name":            func(s *Status, v string) error { s.Name = v; return nil },
	"Umask":           func(s *Status, v string) error { return parseUint(&s.Umask, v, 8, 32) },
	"Pid":             func(s *Status, v string) error { return parseInt(&s.PID, v) },
	"PPid":            func(s *Status, v string) error { return parseInt(&s.PPID, v) },
	"TracerPid":       func(s *Status, v string) error { return parseInt(&s.TracerPID, v) },
	"Tgid":            func(s *Status, v string) error { return parseInt(&s.TGID, v) },
	"Uid":             func(s *Status, v string) error { return parseIDs(&s.UIDs, v) },
	"Gid":             func(s *Status, v string) error { return parseIDs(&s.GIDs, v) },
	"Groups":          func(s *Status, v string) error { return parseGroups(&s.Groups, v) },
	"SigBlk":          func(s *Status, v string) error { return parseUint(&s.SigBlk, v, 16, 64) },
	"SigIgn":          func(s *Status, v string) error { return parseUint(&s.SigIgn, v, 16, 64) },
	"CapInh":          func(s *Status, v string) error { return parseUint(&s.Inh, v, 16, 64) },
	"CapPrm":          func(s *Status, v string) error { return parseUint(&s.Prm, v, 16, 64) },
	"CapEff":          func(s *Status, v string) error { return parseUint(&s.Eff, v, 16, 64) },
	"CapBnd":          func(s *Status, v string) error { return parseUint(&s.Bnd, v, 16, 64) },
	"CapAmb":          func(s *Status, v string) error { return parseUint(&s.Amb, v, 16, 64) },
	"NoNewPrivs":      parseNoNewPrivs,
	"Seccomp":         func(s *Status, v string) error { return parseInt(&s.Seccomp, v) },
	"Seccomp_filters": func(s *Status, v string) error { return parseInt(&s.Filters, v) },
}

// ParseStatus reads the text of /proc/PID/status. Every line that Status has a
// field for must be there once; others are passed over. The error wraps
// os.ErrProcessDone for a process that has exited and waits for its parent (a
// zombie): it has no Umask any more.
func ParseStatus(data []byte) (Status, error) {
	var s Status
	seen := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(line, ":")
		parse, wanted := statusFields[key]
		if !ok || !wanted {
			continue
		}
		if seen[key] {
			return Status{}, fmt.Errorf("%s: twice", key)
		}
		seen[key] = true
		value = strings.TrimPrefix(strings.TrimSuffix(value, "\n"), "\t")
		if err := parse(&s, value); err != nil {
			return Status{}, fmt.Errorf("%s: %w", key, err)
		}
	}
	if err := missingFields(seen); err != nil {
		return Status{}, err
	}
	return s, nil
}

func missingFields(seen map[string]bool) error {
	var missing []string
	for _, key := range slices.Sorted(maps.Keys(statusFields)) {
		if !seen[key] {
			missing = append(missing, key)
		}
	}
	switch {
	case len(missing) == 0:
		return nil
	case slices.Equal(missing, []string{"Umask"}):
		return fmt.Errorf("no Umask: %w", os.ErrProcessDone)
	default:
		return fmt.Errorf("no %s: needs Linux 5.9 with CONFIG_SECCOMP_FILTER", strings.Join(missing, ", "))
	}
}

func parseUint[T ~uint32 | ~uint64](to *T, text string, base, size int) error {
	v, err := strconv.ParseUint(text, base, size)
	if err != nil {
		return fmt.Errorf("%q is not a number", text)
	}
	*to = T(v)
	return nil
}

func parseInt(to *int, text string) error {
	v, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return fmt.Errorf("%q is not a number", text)
	}
	*to = int(v)
	return nil
}

func parseNoNewPrivs(s *Status, text string) error {
	if text != "0" && text != "1" {
		return fmt.Errorf("%q is neither 0 nor 1", text)
	}
	s.NoNewPrivs = text == "1"
	return nil
}

func parseIDs(to *[4]uint32, text string) error {
	f := strings.Fields(text)
	if len(f) != len(to) {
		return fmt.Errorf("want four ids, have %q", text)
	}
	for i := range f {
		if err := parseUint(&to[i], f[i], 10, 32); err != nil {
			return err
		}
	}
	return nil
}

func parseGroups(to *[]uint32, text string) error {
	for _, f := range strings.Fields(text) {
		var g uint32
		if err := parseUint(&g, f, 10, 32); err != nil {
			return err
		}
		*to = append(*to, g)
	}
	return nil
}
