package launch

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// census is a host on which 100 looks. 10 is a service with a child, 30 are strays.
func census() surroundings {
	add := func(all map[int]look, pid, parent int, uid uint32, path string, ino uint64, change ...func(*look)) {
		l := look{netns: "net:[1]", userns: "user:[1]", cgroup: "0::/other\n", program: program{path: path, stat: unix.Stat_t{Dev: 1, Ino: ino}},
			status: sandbox.Status{Name: path, PID: pid, PPID: parent, UIDs: [4]uint32{uid, uid, uid, uid}}}
		for _, c := range change {
			c(&l)
		}
		all[pid] = l
	}
	elsewhere := func(l *look) { l.netns = "net:[2]" }
	all := map[int]look{}
	add(all, 1, 0, 0, "/sbin/init", 1)
	add(all, 5, 1, 0, "/usr/bin/pghardend", 9)
	add(all, 100, 1, 0, "/usr/bin/pghardend", 9)
	add(all, 10, 5, 26, "/pg/postgres", 2, func(l *look) { l.cgroup = "0::/pg\n" })
	add(all, 11, 10, 26, "/usr/bin/dash", 3)
	add(all, 12, 11, 0, "/usr/bin/su", 4) // whoever it has become
	add(all, 20, 1, 99, "/usr/bin/sleep", 5)
	add(all, 21, 1, 26, "/usr/bin/sleep", 5, elsewhere)
	add(all, 22, 1, 0, "/usr/bin/tar", 6, func(l *look) { l.holds = []string{"/data"} })
	add(all, 30, 1, 26, "/usr/bin/sleep", 5)
	add(all, 31, 1, 99, "/usr/bin/cat", 7, elsewhere, func(l *look) { l.holds = []string{"/data"} })
	add(all, 32, 1, 98, "/pg/postgres (deleted)", 8)
	add(all, 33, 1, 99, "/usr/bin/cat", 7, elsewhere, func(l *look) { l.cgroup = "0::/pg\n" })
	add(all, 34, 1, 99, "/usr/bin/nc", 7)
	add(all, 35, 1, 99, "/usr/bin/cat", 7, func(l *look) { l.status.UIDs[2] = 26 })
	add(all, 36, 5, 26, "/pg/postgres", 2)
	return surroundings{all: all, self: all[100], listen: map[int][]uint16{34: {5432}, 20: {80}}}
}

func TestFamilies(t *testing.T) {
	pg := household{first: 10, user: "postgres", uid: 26, dataDir: "/data", ports: []uint16{5432}, cgroup: "0::/pg\n",
		program: program{path: "/pg/postgres", stat: unix.Stat_t{Dev: 1, Ino: 2}}}
	got := map[int]kin{}
	for _, k := range families([]household{pg}, census())[0] {
		got[k.pid] = k
	}
	for pid, want := range map[int][2]string{
		10: {RoleFirst}, 11: {RoleDescendant}, 12: {RoleDescendant}, 36: {RoleAsked},
		30: {RoleStray, "has the user postgres"}, 31: {RoleStray, "holds /data"}, 32: {RoleStray, "runs /pg/postgres"},
		33: {RoleStray, "cgroup"}, 34: {RoleStray, "5432"}, 35: {RoleStray, "has the user postgres"},
	} {
		k := got[pid]
		if k.role != want[0] || !strings.Contains(strings.Join(k.why, " "), want[1]) {
			t.Errorf("process %d is %+v, want %q", pid, k, want)
		}
		delete(got, pid)
	}
	if len(got) > 0 {
		t.Errorf("these are of no service: %+v", got)
	}
}

// What is one service's is no stray of another, and the strays go to the one for
// which most speaks.
func TestFamiliesOfTwoServices(t *testing.T) {
	s := census()
	pg := household{first: 10, user: "postgres", uid: 26, dataDir: "/data"}
	exporter := household{first: 30, user: "postgres", uid: 26, program: s.all[30].program}
	got := families([]household{exporter, pg}, s)
	pids := func(list []kin, role string) (out []int) {
		for _, k := range list {
			if k.role == role {
				out = append(out, k.pid)
			}
		}
		slices.Sort(out)
		return out
	}
	if a := pids(got[0], RoleFirst); !slices.Equal(a, []int{30}) {
		t.Errorf("the exporter is %v", a)
	}
	if a := pids(got[1], RoleStray); !slices.Equal(a, []int{31}) {
		t.Errorf("strays of postgres: %v", a)
	}
	if a := pids(got[0], RoleStray); !slices.Equal(a, []int{20, 35}) {
		t.Errorf("strays of the exporter: %v", a)
	}
}

func TestCompareFilters(t *testing.T) {
	one := func(names ...string) (out []sandbox.Loaded) {
		for _, n := range names {
			out = append(out, sandbox.Loaded{Digest: n})
		}
		return out
	}
	for name, c := range map[string]struct {
		loaded []sandbox.Loaded
		ok     bool
		got    string
	}{
		"the profile's":  {one("ours"), true, "ours"},
		"under another":  {one("a", "ours"), true, "ours, under 1 of the caller's"},
		"none":           {nil, false, "none"},
		"another":        {one("a", "b"), false, "a b: another profile"},
		"one after it":   {one("ours", "a"), false, "ours, and 1 loaded after it: a"},
		"twice":          {one("ours", "ours"), true, "ours, under 1"},
		"between others": {one("a", "ours", "b", "c"), false, "2 loaded after it: b c"},
	} {
		if got, ok := compareFilters(c.loaded, "ours"); ok != c.ok || !strings.Contains(got, c.got) {
			t.Errorf("%s: %v %q", name, ok, got)
		}
	}
}

func TestInheritedFilter(t *testing.T) {
	first := sandbox.Status{PID: 10, Seccomp: 2, Filters: 1}
	for name, c := range map[string]struct {
		first, own sandbox.Status
		ok         bool
	}{
		"as many":              {first, sandbox.Status{PID: 11, Seccomp: 2, Filters: 1}, true},
		"one more":             {first, sandbox.Status{PID: 11, Seccomp: 2, Filters: 2}, false},
		"none":                 {first, sandbox.Status{PID: 11}, false},
		"neither has":          {sandbox.Status{PID: 10}, sandbox.Status{PID: 11}, false},
		"a count without mode": {first, sandbox.Status{PID: 11, Seccomp: 1, Filters: 1}, false},
	} {
		if f := inheritedFilter(11, c.first, c.own); f.OK != c.ok {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestThreadFault(t *testing.T) {
	same := confined()
	for want, change := range map[string]func(*sandbox.Status){
		"":             func(s *sandbox.Status) { s.PID, s.Name = 8, "worker" },
		"uid":          func(s *sandbox.Status) { s.UIDs[3] = 0 },
		"gid":          func(s *sandbox.Status) { s.GIDs[0] = 0 },
		"groups":       func(s *sandbox.Status) { s.Groups = nil },
		"capabilities": func(s *sandbox.Status) { s.Amb = 1 },
		"no_new_privs": func(s *sandbox.Status) { s.NoNewPrivs = false },
		"seccomp mode": func(s *sandbox.Status) { s.Seccomp = 0 },
		"filters":      func(s *sandbox.Status) { s.Filters++ },
	} {
		other := confined()
		change(&other)
		if got := threadFault(same, other); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestEnvironmentFaults(t *testing.T) {
	id := Identity{User: "postgres", Home: "/var/lib/postgresql"}
	extra := []string{"PGTZ=UTC"}
	e, err := buildEnvironment([]string{"LANG=C", "LC_ALL=C", "NOTIFY_SOCKET=/x", "LD_PRELOAD=x"}, 7, id, extra)
	wantNone(t, err)
	if faults := environmentFaults(e.vars, id, extra); faults != nil {
		t.Errorf("what the launch stage makes: %q", faults)
	}
	for want, got := range map[string][]string{
		"LD_PRELOAD is not allowed":    append(slices.Clone(e.vars), "LD_PRELOAD=secret"),
		"HOME is there twice":          append(slices.Clone(e.vars), "HOME="+id.Home),
		"PGTZ is missing":              slices.DeleteFunc(slices.Clone(e.vars), func(s string) bool { return s == "PGTZ=UTC" }),
		"PGTZ has another value":       append(slices.DeleteFunc(slices.Clone(e.vars), func(s string) bool { return s == "PGTZ=UTC" }), "PGTZ=secret"),
		`"a\x1b[2J" is not allowed`:    append(slices.Clone(e.vars), "a\x1b[2J=secret"),
		"secretwithout is not allowed": append(slices.Clone(e.vars), "secretwithout"),
	} {
		if faults := environmentFaults(got, id, extra); len(faults) != 1 || faults[0] != want {
			t.Errorf("got %q, want %q", faults, want)
		}
	}
}
