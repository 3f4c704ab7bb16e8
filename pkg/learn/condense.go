package learn

import (
	"path"
	"slices"
	"strings"
)

// dataDirMark stands for the service's data directory, as in Landlock policies.
const dataDirMark = "{data_dir}"

// pidMark stands for a process in /proc.
const pidMark = "{pid}"

// maxFiles of one directory are listed; more are written as the directory.
const maxFiles = 16

// Place gives a path the form that recordings have: the data directory becomes a
// word, of which the first level is kept (base/, pg_wal/), and so do processes in
// /proc. Names in the data directory may come from users.
func Place(p, dataDir string) string {
	p = path.Clean(p)
	if dataDir != "" && (p == dataDir || strings.HasPrefix(p, dataDir+"/")) {
		rest := strings.TrimPrefix(strings.TrimPrefix(p, dataDir), "/")
		first, _, deeper := strings.Cut(rest, "/")
		switch {
		case rest == "":
			return dataDirMark + "/"
		case deeper:
			return dataDirMark + "/" + first + "/"
		}
		return dataDirMark + "/" + first
	}
	if rest, ok := strings.CutPrefix(p, "/proc/"); ok {
		first, more, deeper := strings.Cut(rest, "/")
		if strings.Trim(first, "0123456789") == "" || first == "self" || first == "thread-self" {
			if deeper {
				return "/proc/" + pidMark + "/" + more
			}
			return "/proc/" + pidMark + "/"
		}
	}
	return p
}

// condense sorts paths and leaves out what a directory among them covers. A
// directory with more than maxFiles files of its own stands for them. What comes
// out does not depend on the order or on what was condensed before: files of a
// directory only ever go where the directory or one above it comes in. Programs
// are always listed, since a directory would be too much.
func condense(list []string, access Access) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	list = slices.Compact(list)
	if access == Execute {
		return list
	}
	files := map[string]int{}
	dirs := map[string]bool{}
	for _, p := range list {
		if strings.HasSuffix(p, "/") {
			dirs[p] = true
		} else {
			files[path.Dir(p)+"/"]++
		}
	}
	for dir, n := range files {
		if n > maxFiles && dir != "//" {
			dirs[dir] = true
		}
	}
	var out []string
	for p := range dirs {
		if !covered(p, dirs) {
			out = append(out, p)
		}
	}
	for _, p := range list {
		if !strings.HasSuffix(p, "/") && !covered(p, dirs) {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// covered looks for a directory above a path.
func covered(p string, dirs map[string]bool) bool {
	for i := len(p) - 2; i > 0; i-- {
		if p[i] == '/' && dirs[p[:i+1]] {
			return true
		}
	}
	return false
}
