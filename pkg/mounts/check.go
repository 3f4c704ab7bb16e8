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
	var exec, suid, dev, writable, shown []string
	for _, m := range t {
		lacks := l.lacks(m)
		if lacks == 0 || !t.reachable(m) {
			continue
		}
		if lacks&unix.MOUNT_ATTR_RDONLY != 0 {
			writable = append(writable, m.text())
		}
		if lacks&unix.MOUNT_ATTR_NOEXEC != 0 {
			exec = append(exec, m.text())
		}
		if lacks&unix.MOUNT_ATTR_NOSUID != 0 {
			suid = append(suid, m.text())
		}
		if lacks&unix.MOUNT_ATTR_NODEV != 0 {
			dev = append(dev, m.text())
		}
	}
	for _, place := range l.sealed() {
		if m, ok := t.At(place); !ok || !m.Has("ro") && l.lacks(m)&unix.MOUNT_ATTR_RDONLY == 0 {
			writable = append(writable, place)
		}
	}
	for _, place := range l.hide {
		if m, ok := t.At(place); !ok || m.Point != place || m.Source != hiddenSource || !m.Has("ro") {
			shown = append(shown, place)
		}
	}
	for _, place := range l.write {
		if m, ok := t.At(place); !ok || !m.Has("noexec") { // also if the table as such makes no sense
			exec = append(exec, place)
		}
	}
	out := []Result{
		result("noexec", "everywhere but "+l.ExecText(), "executable: ", exec),
		result("nosuid", "everywhere", "not on ", suid),
		result("nodev", "everywhere but "+strings.Join(l.devices, ", "), "not on ", dev),
		result("read-only", strings.Join(l.sealed(), ", "), "writable: ", writable),
	}
	if len(l.hide) > 0 {
		out = append(out, result("hidden", strings.Join(l.hide, ", "), "visible: ", shown))
	}
	return out
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
