package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is one line of /proc/PID/mountinfo, proc_pid_mountinfo(5), as far as it
// matters here.
type Mount struct {
	ID, Parent int
	Root       string // of what is mounted, in its file system
	Point      string // as the process sees it
	Type       string // of the file system
	Source     string
	Options    []string // of the mount, not of the file system
}

// Has says whether the mount has an option such as noexec.
func (m Mount) Has(option string) bool { return slices.Contains(m.Options, option) }

// Table is what a process has mounted.
type Table []Mount

// ReadTable reads the mounts of a process; thread 0 is the calling one. Of a process
// that has ended the error is os.ErrNotExist.
func ReadTable(ctx context.Context, pid int) (Table, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(procFile(pid, "mountinfo"))
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: its namespaces are gone already
		err = os.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the mounts of process %d: %w", pid, err)
	}
	return ParseTable(data)
}

func procFile(pid int, name string) string {
	if pid == 0 {
		return "/proc/thread-self/" + name
	}
	return fmt.Sprintf("/proc/%d/%s", pid, name)
}

// ParseTable reads the text of /proc/PID/mountinfo.
func ParseTable(data []byte) (Table, error) {
	var t Table
	for line := range strings.Lines(string(data)) {
		m, err := parseMount(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("cannot read a line of mountinfo: %w: %.200q", err, line)
		}
		t = append(t, m)
	}
	return t, nil
}

// parseMount reads
//
//	36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=continue
//
// in which the number of fields in front of the dash varies.
func parseMount(line string) (Mount, error) {
	fields := strings.Split(line, " ")
	dash := slices.Index(fields, "-")
	if dash < 6 || len(fields) < dash+3 {
		return Mount{}, errors.New("too few fields")
	}
	m := Mount{Root: unescape(fields[3]), Point: unescape(fields[4]), Options: strings.Split(fields[5], ","), Type: fields[dash+1], Source: unescape(fields[dash+2])}
	if !strings.HasPrefix(m.Point, "/") {
		return Mount{}, errors.New("the mount point is no absolute path")
	}
	var err error
	if m.ID, err = strconv.Atoi(fields[0]); err == nil {
		m.Parent, err = strconv.Atoi(fields[1])
	}
	return m, err
}

// unescape undoes what the kernel does to space, tab, newline, # and backslash.
func unescape(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if v, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// At is the mount that a path without links is on. A table without a root has none.
func (t Table) At(path string) (Mount, bool) {
	current := slices.IndexFunc(t, func(m Mount) bool {
		return m.Point == "/" && !slices.ContainsFunc(t, func(p Mount) bool { return p.ID == m.Parent && p.ID != m.ID })
	})
	if current < 0 {
		return Mount{}, false
	}
	// The kernel walks down and steps onto what is mounted first on its way, which may
	// cover others further down.
	for range t {
		next := -1
		for i, m := range t {
			if i != current && m.Parent == t[current].ID && below(path, m.Point) && (next < 0 || len(m.Point) < len(t[next].Point)) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		current = next
	}
	return t[current], true
}

// Own says whether a process has a mount namespace other than the caller's and,
// where the caller may ask for that (in a container it may not), the first process's.
// Root is needed to ask for another user's.
func Own(ctx context.Context, pid int) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	own, err := os.Readlink(procFile(pid, "ns/mnt"))
	if err != nil {
		return false, fmt.Errorf("cannot read the mount namespace: %w", err)
	}
	caller, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return false, fmt.Errorf("cannot read the mount namespace: %w", err)
	}
	first, err := os.Readlink("/proc/1/ns/mnt")
	if err != nil && !errors.Is(err, os.ErrPermission) {
		return false, fmt.Errorf("cannot read the mount namespace of the first process: %w", err)
	}
	return own != caller && own != first, nil
}
