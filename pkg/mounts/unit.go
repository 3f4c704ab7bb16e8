package mounts

import "strings"

// systemdHidden is what systemd mounts on the directories of InaccessiblePaths=, as
// the file system that it is on calls it: nobody may enter it.
const systemdHidden = "/systemd/inaccessible/dir"

// OfUnit is the layout for mounts that systemd has made by the directives of a unit,
// systemd.exec(5). It cannot ask for all that Enter does: nodev on every mount is not to
// be had, so what counts is a /dev of the unit's own with nothing but harmless nodes
// (PrivateDevices=); and nosuid, which is worth nothing under no_new_privs, is left out.
func (l Layout) OfUnit() Layout {
	l.unit = true
	return l
}

func (l Layout) checkUnit(t Table, exec, writable []string) []Result {
	out := []Result{
		result("noexec", "everywhere but "+l.ExecText(), "executable: ", exec),
		result("read-only", strings.Join(l.sealed(), ", "), "writable: ", writable),
		result("devices", "a /dev of its own", "", hostDevices(t)),
	}
	if len(l.hide) > 0 {
		out = append(out, result("hidden", strings.Join(l.hide, ", "), "visible: ", l.visible(t)))
	}
	return out
}

// hostDevices: the host's /dev is a devtmpfs, or that of a container below it.
func hostDevices(t Table) []string {
	m, ok := t.At("/dev/null")
	if ok && m.Point == "/dev" && m.Type == "tmpfs" && m.Has("ro") {
		return nil
	}
	return []string{"the host's"}
}
