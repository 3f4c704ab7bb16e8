package mounts

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Result is what one demand came to.
type Result struct {
	Check string // noexec, nosuid, nodev, read-only, hidden
	Want  string
	Got   string // the same as Want if OK
	OK    bool
}

// Check compares a table with the layout, demand by demand.
func (l Layout) Check(t Table) []Result {
	exec := append(l.lacking(t, unix.MOUNT_ATTR_NOEXEC), l.uncovered(t)...)
	writable := append(l.lacking(t, unix.MOUNT_ATTR_RDONLY), l.unsealed(t)...)
	if l.unit {
		return l.checkUnit(t, exec, writable)
	}
	out := []Result{
		result("noexec", "everywhere but "+l.ExecText(), "executable: ", exec),
		result("nosuid", "everywhere", "not on ", l.lacking(t, unix.MOUNT_ATTR_NOSUID)),
		result("nodev", "everywhere but "+strings.Join(l.devices, ", "), "not on ", l.lacking(t, unix.MOUNT_ATTR_NODEV)),
		result("read-only", strings.Join(l.sealed(), ", "), "writable: ", writable),
	}
	if len(l.hide) > 0 {
		out = append(out, result("hidden", strings.Join(l.hide, ", "), "visible: ", l.visible(t)))
	}
	return out
}

// lacking are the mounts within reach that lack a flag.
func (l Layout) lacking(t Table, flag uint64) []string {
	var out []string
	for _, m := range t {
		if l.lacks(m)&flag != 0 && t.reachable(m) {
			out = append(out, m.text())
		}
	}
	return out
}

// uncovered is what is written to and lost the mount that it had below code.
func (l Layout) uncovered(t Table) []string {
	return slices.DeleteFunc(slices.Clone(l.write), func(place string) bool {
		m, ok := t.At(place)
		return ok && (m.Has("noexec") || l.lacks(m) != 0)
	})
}

// unsealed are places that are not read-only, their mount being gone.
func (l Layout) unsealed(t Table) []string {
	return slices.DeleteFunc(l.sealed(), func(place string) bool {
		m, ok := t.At(place)
		return ok && (m.Has("ro") || l.lacks(m)&unix.MOUNT_ATTR_RDONLY != 0)
	})
}

// visible are places that should be hidden.
func (l Layout) visible(t Table) []string {
	return slices.DeleteFunc(slices.Clone(l.hide), func(place string) bool {
		m, ok := t.At(place)
		return ok && m.Point == place && m.Has("ro") && (m.Source == hiddenSource || l.unit && m.Root == systemdHidden)
	})
}

// lacks are the flags that a mount should have and does not.
func (l Layout) lacks(m Mount) uint64 {
	var flags uint64
	written := within(m.Point, l.write)
	switch {
	case within(m.Point, l.exec) && !written:
		if !m.Has("ro") {
			flags |= unix.MOUNT_ATTR_RDONLY
		}
	case !m.Has("noexec"):
		flags |= unix.MOUNT_ATTR_NOEXEC
	}
	if within(m.Point, l.readOnly) && !written && !m.Has("ro") {
		flags |= unix.MOUNT_ATTR_RDONLY
	}
	if l.unit {
		return flags
	}
	if !m.Has("nosuid") {
		flags |= unix.MOUNT_ATTR_NOSUID
	}
	if !m.Has("nodev") && !slices.Contains(l.devices, m.Point) {
		flags |= unix.MOUNT_ATTR_NODEV
	}
	return flags
}

// reachable says whether a path leads to a mount: what is hidden or covered by others
// still arrives from the host, to no effect.
func (t Table) reachable(m Mount) bool {
	at, ok := t.At(m.Point)
	return !ok || at.ID == m.ID // a table without a root proves nothing
}

// maxNamed keeps a host with hundreds of mounts from filling a message.
const maxNamed = 3

func result(check, want, trouble string, offenders []string) Result {
	if len(offenders) == 0 {
		return Result{check, want, want, true}
	}
	slices.Sort(offenders)
	offenders = slices.Compact(offenders)
	got := trouble + strings.Join(offenders[:min(maxNamed, len(offenders))], ", ")
	if more := len(offenders) - maxNamed; more > 0 {
		got += fmt.Sprintf(" and %d more", more)
	}
	return Result{check, want, got, false}
}

// text is a mount for people; a mount point may hold anything.
func (m Mount) text() string {
	point := m.Point
	if quoted := strconv.Quote(point); quoted != `"`+point+`"` {
		point = quoted
	}
	return point + " (" + strings.Join(m.Options, ",") + ")"
}
