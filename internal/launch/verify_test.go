package launch

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/limits"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// confined is a status with nothing to complain about.
func confined() sandbox.Status {
	ids := func(id uint32) [4]uint32 { return [4]uint32{id, id, id, id} }
	return sandbox.Status{PID: 7, UIDs: ids(101), GIDs: ids(104), Groups: []uint32{300, 20}, NoNewPrivs: true, Seccomp: 2, Filters: 1}
}

// faults lists the checks that failed.
func faults(findings []Finding) string {
	var names []string
	for _, f := range findings {
		if !f.OK {
			names = append(names, f.Check)
		}
	}
	return strings.Join(names, " ")
}

func TestCompareStatus(t *testing.T) {
	id := postgres
	id.Groups = []uint32{20, 300}
	raw := capability(unix.CAP_NET_RAW)
	unknown := sandbox.CapSet(1) << 63
	for name, c := range map[string]struct {
		change func(*sandbox.Status)
		keep   sandbox.CapSet
		want   string
	}{
		"confined":            {func(*sandbox.Status) {}, 0, ""},
		"real uid":            {func(s *sandbox.Status) { s.UIDs[0] = 0 }, 0, "uid"},
		"saved uid":           {func(s *sandbox.Status) { s.UIDs[2] = 0 }, 0, "uid"},
		"filesystem gid":      {func(s *sandbox.Status) { s.GIDs[3] = 0 }, 0, "gid"},
		"one group more":      {func(s *sandbox.Status) { s.Groups = []uint32{20, 27, 300} }, 0, "groups"},
		"one group less":      {func(s *sandbox.Status) { s.Groups = []uint32{20} }, 0, "groups"},
		"inheritable":         {func(s *sandbox.Status) { s.Inh = raw }, 0, "inheritable"},
		"permitted":           {func(s *sandbox.Status) { s.Prm = raw }, 0, "permitted"},
		"effective":           {func(s *sandbox.Status) { s.Eff = raw }, 0, "effective"},
		"bounding":            {func(s *sandbox.Status) { s.Bnd = unknown }, 0, "bounding"},
		"ambient":             {func(s *sandbox.Status) { s.Amb = raw }, 0, "ambient"},
		"kept and there":      {func(s *sandbox.Status) { s.Inh, s.Prm, s.Eff, s.Bnd, s.Amb = raw, raw, raw, raw, raw }, raw, ""},
		"kept, not effective": {func(s *sandbox.Status) { s.Inh, s.Prm, s.Bnd, s.Amb = raw, raw, raw, raw }, raw, "effective"},
		"new privileges":      {func(s *sandbox.Status) { s.NoNewPrivs = false }, 0, "no_new_privs"},
		"no seccomp":          {func(s *sandbox.Status) { s.Seccomp, s.Filters = 0, 0 }, 0, "mode filters"},
		"strict seccomp":      {func(s *sandbox.Status) { s.Seccomp, s.Filters = 1, 0 }, 0, "mode filters"},
		"two filters":         {func(s *sandbox.Status) { s.Filters = 2 }, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := confined()
			c.change(&s)
			findings := append(compareStatus(s, id, c.keep, 40), compareSeccomp(s, before{known: true})...)
			if got := faults(findings); got != c.want {
				t.Errorf("faults %q, want %q", got, c.want)
			}
			for _, f := range findings {
				if f.PID != 7 || f.Layer == "" || f.Want == "" || f.Got == "" {
					t.Errorf("incomplete: %+v", f)
				}
			}
		})
	}
}

// Filters of a container or a unit, which are on the agent too, are not taken for the service's own.
func TestFiltersOfOthersDoNotCount(t *testing.T) {
	for filters, want := range map[int]string{0: "mode filters", 10: "filters", 11: "filters", 12: ""} {
		s := confined()
		s.Filters = filters
		if filters == 0 {
			s.Seccomp = 0
		}
		if got := faults(compareSeccomp(s, before{filters: 11, known: true})); got != want {
			t.Errorf("%d filters beside 11 of the agent's: faults %q, want %q", filters, got, want)
		}
	}
}

func TestCompareLimits(t *testing.T) {
	want := limits.Set{"nofile": {Soft: 100, Hard: 200}, "core": {}}
	got := compareLimits(7, want, limits.Set{"nofile": {Soft: 100, Hard: 200}, "core": {}, "as": {}})
	if len(got) != 2 || faults(got) != "" {
		t.Errorf("got %+v", got)
	}
	got = compareLimits(7, want, limits.Set{"nofile": {Soft: 100, Hard: 201}})
	if faults(got) != "core nofile" {
		t.Errorf("got %+v", got)
	}
}

func TestCompareProgram(t *testing.T) {
	const want = "/usr/lib/postgresql/15/bin/postgres"
	file := func(uid, mode uint32, links uint64) unix.Stat_t {
		st := regular(uid, mode)
		st.Nlink = links
		return st
	}
	for name, c := range map[string]struct {
		p     program
		child bool
		ok    bool
	}{
		"itself":                  {program{want, file(0, 0o755, 1)}, false, true},
		"upgraded":                {program{want + " (deleted)", file(0, 0o755, 0)}, false, true},
		"another":                 {program{"/usr/bin/dash", file(0, 0o755, 1)}, false, false},
		"child, itself":           {program{want, file(0, 0o755, 1)}, true, true},
		"child, helper":           {program{"/usr/bin/dash", file(0, 0o755, 1)}, true, true},
		"child, own file":         {program{"/var/lib/postgresql/x", file(101, 0o755, 1)}, true, false},
		"child, writable":         {program{"/usr/bin/dash", file(0, 0o757, 1)}, true, false},
		"child, from memory":      {program{"/memfd:x (deleted)", file(101, 0o777, 0)}, true, false},
		"child, root's, unlinked": {program{"/x (deleted)", file(0, 0o755, 0)}, true, false},
	} {
		if f := compareProgram(7, want, c.p, c.child); f.OK != c.ok {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// The name of a program is the service user's choice where it is the finding.
func TestProgramNamesCannotWriteToTheTerminal(t *testing.T) {
	f := compareProgram(7, "/usr/bin/postgres", program{path: "/tmp/\x1b[2J\nall checks passed"}, false)
	if want := `"/tmp/\x1b[2J\nall checks passed"`; f.OK || f.Got != want {
		t.Errorf("got %q, want %s", f.Got, want)
	}
	if f := compareProgram(7, "/usr/bin/postgres", program{path: "/tmp/ö x"}, false); f.Got != "/tmp/ö x" {
		t.Errorf("got %q", f.Got)
	}
}

// A process that is not confined at all must fail at every check that tells.
func TestVerifyUnconfined(t *testing.T) {
	pid := startReady(t, nil, "sh", "-c", "echo ready; exec cat")
	spec := Spec{Service: "pg", User: "daemon", Command: []string{"/usr/bin/sleep"}, Limits: limits.Set{"nofile": {Soft: 7, Hard: 7}}}
	findings, err := Verify(context.Background(), spec, pid)
	wantNone(t, err)
	got := faults(findings)
	for _, check := range []string{"bounding", "no_new_privs", "mode", "filters", "nofile", "exe"} {
		if !strings.Contains(got, check) {
			t.Errorf("%s passed; failed were %s", check, got)
		}
	}
}

func TestVerifyVanished(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Service: "pg", User: "nobody", Command: []string{"/usr/bin/cat"}}
	findings, err := Verify(context.Background(), spec, cmd.Process.Pid)
	if !errors.Is(err, ErrVanished) || findings != nil {
		t.Errorf("got %v, %v", findings, err)
	}
	// A zombie has ended too, though its number is still taken.
	zombie := exec.Command("true")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = zombie.Wait() }()
	info := unix.Siginfo{}
	if err := unix.Waitid(unix.P_PID, zombie.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(context.Background(), spec, zombie.Process.Pid); !errors.Is(err, ErrVanished) {
		t.Errorf("zombie: got %v", err)
	}
}

// A process can end its first thread and go on without one, with nothing left to
// see at /proc/PID/exe: that is a finding and not a process that has ended.
func TestVerifyHeadless(t *testing.T) {
	pid := startHelper(t)
	spec := Spec{Service: "pg", User: "nobody", Command: []string{"/usr/bin/cat"}}
	findings, err := Verify(context.Background(), spec, pid)
	wantNone(t, err)
	last := findings[len(findings)-1]
	if last.Check != "exe" || last.OK || last.Got != errNoProgram.Error() {
		t.Errorf("the program is %+v", last)
	}
}

func TestVerifyNeedsASpec(t *testing.T) {
	_, err := Verify(context.Background(), Spec{Service: "pg"}, 1)
	wantError(t, err, "no program")
	_, err = Verify(context.Background(), Spec{Service: "pg", User: "nosuchuser", Command: []string{"/x"}}, 1)
	wantError(t, err, "nosuchuser")
}
