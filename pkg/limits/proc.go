package limits

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Read returns all limits of a live process as /proc/PID/limits has them. The
// soft nofile limit of a running Go program is the one the runtime raised, not
// the one its children will have. The error wraps os.ErrProcessDone if there
// is no such process.
func Read(ctx context.Context, pid int) (Set, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("cannot read the limits of process %d: %w", pid, err)
	}
	if pid <= 0 {
		return nil, fmt.Errorf("cannot read the limits of process %d: not a process id", pid)
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/limits")
	// It was gone before the open, between open and read, or during the read.
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || (err == nil && len(data) == 0) {
		err = os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the limits of process %d: %w", pid, err)
	}
	s, err := ParseProc(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read the limits of process %d: %w", pid, err)
	}
	return s, nil
}

// ParseProc reads the text of /proc/PID/limits. All limits this package knows
// must be there, each once; lines of limits that a newer kernel may have are
// passed over.
func ParseProc(data []byte) (Set, error) {
	s := make(Set, len(resources))
	for line := range strings.Lines(string(data)) {
		name, rest, ok := cutLabel(line)
		if !ok {
			continue
		}
		if _, twice := s[name]; twice {
			return nil, fmt.Errorf("limit %s is listed twice", name)
		}
		l, err := parseValues(rest)
		if err != nil {
			return nil, fmt.Errorf("limit %s: %w", name, err)
		}
		s[name] = l
	}
	for _, r := range resources {
		if _, ok := s[r.name]; !ok {
			return nil, fmt.Errorf("no line %q: not the text of /proc/PID/limits", r.label)
		}
	}
	return s, nil
}

// cutLabel splits the label off a line and gives the limit's name. A label is
// followed by a space, so that one label cannot be the start of another.
func cutLabel(line string) (name, rest string, ok bool) {
	for _, r := range resources {
		if rest, ok := strings.CutPrefix(line, r.label+" "); ok {
			return r.name, rest, true
		}
	}
	return "", "", false
}

// parseValues reads "soft hard [unit]".
func parseValues(text string) (Limit, error) {
	f := strings.Fields(text)
	if len(f) != 2 && len(f) != 3 {
		return Limit{}, fmt.Errorf("want soft, hard and a unit, have %q", strings.TrimSpace(text))
	}
	soft, err := parseValue(f[0])
	if err != nil {
		return Limit{}, err
	}
	hard, err := parseValue(f[1])
	if err != nil {
		return Limit{}, err
	}
	return Limit{Soft: soft, Hard: hard}, nil
}

func parseValue(text string) (uint64, error) {
	if text == "unlimited" {
		return Unlimited, nil
	}
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is neither a number nor \"unlimited\"", text)
	}
	return v, nil
}
