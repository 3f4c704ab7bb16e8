package learn

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// wideDirs hold what packages bring and administrators set. It is root's and for
// all to read, and moves with each update, so it is granted as a whole.
var wideDirs = []string{"/usr", "/lib", "/lib32", "/lib64", "/etc", "/proc", "/sys/devices/system", "/sys/kernel/mm"}

// optionalDirs are not on every machine.
var optionalDirs = []string{"/lib", "/lib32", "/lib64", "/sys/devices/system", "/sys/kernel/mm"}

// neverWritten is what a service must not be given to write, policies/landlock.
const neverWritten = "[/usr, /bin, /sbin, /lib, /lib32, /lib64, /libx32, /etc, /proc, /sys, /dev, /boot, /root, /run/systemd, " +
	"/var/lib/dpkg, /var/lib/rpm,\n  /var/lib/systemd, /var/spool/cron]"

// accessOrder is that of policies.
var accessOrder = []Access{Read, Update, Write, Link, Socket}

// Landlock writes what was recorded as a Landlock policy in the format of
// policies/landlock: by directories, files of /dev aside. Below it, as comments,
// stands what a configuration has to declare: helpers and ports.
func (r Recording) Landlock() []byte {
	use := r.All()
	grants := map[string]map[Access]bool{}
	for access, list := range use.Files {
		if access == Execute {
			continue
		}
		for _, p := range list {
			place := grantPlace(p, access)
			if grants[place] == nil {
				grants[place] = map[Access]bool{}
			}
			grants[place][access] = true
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "# What the service %s used while it was recorded; see docs/learn.md.\nversion: 1\npaths:\n", r.Service)
	for _, place := range slices.Sorted(maps.Keys(grants)) {
		var words []string
		for _, a := range accessOrder {
			if grants[place][a] {
				words = append(words, string(a))
			}
		}
		if place == "/proc" && grants[place][Update] {
			fmt.Fprintln(&out, "  - {path: /proc, allow: [update], if: oom_score_adj}")
			words = []string{string(Read)}
		}
		text := place
		if place == dataDirMark {
			text = `"` + place + `"`
		}
		fmt.Fprintf(&out, "  - {path: %s, allow: [%s]%s}\n", text, strings.Join(words, ", "), optional(place))
	}
	fmt.Fprintf(&out, "scope: [signals, abstract-sockets]\nnever_write: %s\n", neverWritten)
	fmt.Fprintf(&out, "# services.NAME.helpers: [%s]\n", strings.Join(r.Helpers(), ", "))
	fmt.Fprintf(&out, "# ports: bind %v, connect %v (TCP and UDP)\n", use.Bind, use.Connect)
	return []byte(out.String())
}

func optional(place string) string {
	if slices.Contains(optionalDirs, place) || strings.HasPrefix(place, "/run/") {
		return ", optional: true"
	}
	return ""
}

// grantPlace is the directory that a rule for a file is for.
func grantPlace(p string, access Access) string {
	p = strings.ReplaceAll(p, pidMark, "self")
	clean := strings.TrimSuffix(p, "/")
	switch {
	case clean == dataDirMark || strings.HasPrefix(clean, dataDirMark+"/"):
		return dataDirMark
	case strings.HasPrefix(clean, "/dev/") && strings.Count(clean, "/") == 2 && (access == Read || access == Update):
		return clean
	}
	for _, dir := range wideDirs {
		if (access == Read || access == Update) && beneath(clean, dir) {
			return dir
		}
	}
	if clean == p && path.Dir(p) != "/" { // a file
		return path.Dir(p)
	}
	return clean
}

func beneath(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// Helpers are the programs that were executed, the service's own and the dynamic
// loader aside.
func (r Recording) Helpers() []string {
	var out []string
	for name, use := range r.Processes {
		for _, p := range use.Files[Execute] {
			if name == typeMain && slices.Contains(r.Processes[typeMain].Files[Execute], p) && !r.executedByOthers(p) {
				continue
			}
			if !strings.HasPrefix(path.Base(p), "ld-") {
				out = append(out, p)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (r Recording) executedByOthers(p string) bool {
	for name, use := range r.Processes {
		if name != typeMain && slices.Contains(use.Files[Execute], p) {
			return true
		}
	}
	return false
}
