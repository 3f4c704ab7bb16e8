package launch

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The ways in which a process belongs to a service.
const (
	RoleFirst      = "first"      // the one that the others descend from
	RoleDescendant = "descendant" // by its parents
	RoleAsked      = "asked"      // the agent has started it to ask the service something
	RoleStray      = "stray"      // belongs to it by what it is or holds, and descends from nothing of it
)

// kin is one process of a service.
type kin struct {
	pid  int
	role string
	why  []string // of a stray
}

// household is what makes a process one of a service.
type household struct {
	first   int
	user    string
	uid     uint32
	program program
	dataDir string
	ports   []uint16 // that no other program is to listen on
	// cgroup is that of the first process if it is the service's alone, else "".
	cgroup string
}

// surroundings are what the census is seen against.
type surroundings struct {
	all    map[int]look
	self   look             // the one who looks
	listen map[int][]uint16 // TCP ports that are not loopback's alone, by process, in our network namespace
}

// families finds every process of every service. One that descends from a first
// process is that service's. Any other one is a stray of the service for which
// most speaks: it holds the data directory, is in the cgroup, listens on a port
// of the service, runs the program or has the user. The last three count in
// the network namespace of the one who looks: a container may well use the same
// numbers and programs. Root's processes are strays for nothing but the program.
func families(houses []household, s surroundings) [][]kin {
	out := make([][]kin, len(houses))
	parents := make(map[int]int, len(s.all))
	for pid, l := range s.all {
		parents[pid] = l.status.PPID
	}
	taken := map[int]bool{}
	for i, h := range houses {
		if _, ok := s.all[h.first]; !ok {
			continue
		}
		for _, pid := range descendants(parents, h.first) {
			if taken[pid] {
				continue // a service that another one has started
			}
			taken[pid] = true
			role := RoleDescendant
			if pid == h.first {
				role = RoleFirst
			}
			out[i] = append(out[i], kin{pid: pid, role: role})
		}
	}
	for _, pid := range slices.Sorted(maps.Keys(s.all)) {
		if taken[pid] || pid == s.self.status.PID {
			continue
		}
		if i, why := closest(houses, pid, s); i >= 0 {
			role := RoleStray
			if s.isAgent(s.all[pid].status.PPID) {
				role = RoleAsked
			}
			out[i] = append(out[i], kin{pid: pid, role: role, why: why})
		}
	}
	return out
}

// isAgent: root runs the program that looks.
func (s surroundings) isAgent(pid int) bool {
	l, ok := s.all[pid]
	return ok && isRoot(l) && l.program.is(s.self.program)
}

func isRoot(l look) bool { return l.status.UIDs == [4]uint32{} }

// is says whether two processes run one file, or what an upgrade has put in its place.
func (p program) is(o program) bool {
	const deleted = " (deleted)"
	return p.path != "" && (p.stat.Dev == o.stat.Dev && p.stat.Ino == o.stat.Ino || strings.TrimSuffix(p.path, deleted) == strings.TrimSuffix(o.path, deleted))
}

// closest is the service for which most speaks; -1 if nothing speaks for any.
func closest(houses []household, pid int, s surroundings) (int, []string) {
	best, bestRank, bestWhy := -1, 0, []string(nil)
	for i, h := range houses {
		rank, why := h.claim(pid, s)
		if rank > bestRank {
			best, bestRank, bestWhy = i, rank, why
		}
	}
	return best, bestWhy
}

// claim says what makes a process one of the service, strongest first.
func (h household) claim(pid int, s surroundings) (rank int, why []string) {
	l := s.all[pid]
	near := l.netns == s.self.netns && l.userns == s.self.userns
	for i, c := range []struct {
		holds bool
		text  string
	}{
		{h.dataDir != "" && !isRoot(l) && slices.Contains(l.holds, h.dataDir), "holds " + h.dataDir},
		{h.cgroup != "" && !isRoot(l) && l.cgroup == h.cgroup, "is in the service's cgroup"},
		{near && !isRoot(l) && overlap(s.listen[pid], h.ports), fmt.Sprintf("listens on a port of the service (%s)", portText(s.listen[pid]))},
		{near && l.program.is(h.program), "runs " + shown(l.program.path)},
		{near && slices.Contains(l.status.UIDs[:], h.uid), h.hasUser()},
	} {
		if c.holds {
			rank += 1 << (8 - i)
			why = append(why, c.text)
		}
	}
	return rank, why
}

func (h household) hasUser() string { return "has the user " + h.user }

func overlap(a, b []uint16) bool {
	return slices.ContainsFunc(a, func(p uint16) bool { return slices.Contains(b, p) })
}

func portText(ports []uint16) string {
	text := make([]string, len(ports))
	for i, p := range ports {
		text[i] = fmt.Sprint(p)
	}
	return strings.Join(text, ", ")
}

// familyFinding says whether the process may be there at all.
func familyFinding(k kin, h household, all map[int]look) Finding {
	want := fmt.Sprintf("process %d or a descendant", h.first)
	if h.first == 0 {
		want = "none, the service does not run"
	}
	f := Finding{PID: k.pid, Layer: LayerProcess, Check: "family", Want: want, Got: k.role, OK: k.role != RoleStray}
	if !f.OK {
		parent := all[k.pid].status.PPID
		f.Got = fmt.Sprintf("%s; its parent is %d", strings.Join(k.why, ", "), parent)
		if p, ok := all[parent]; ok {
			f.Got += " (" + shown(p.status.Name) + ")"
		}
		if len(k.why) == 1 && k.why[0] == h.hasUser() {
			f.Got += "; who breaks into the service can take it over, and with it leave the box: run client programs as another user " +
				"(psql -U over the socket, let in by a map of pg_ident.conf)"
		}
	}
	return f
}
