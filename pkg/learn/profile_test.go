package learn

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/mac"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

func recordingOf(use Use) Recording {
	return Recording{Format: Format, Version: Version, Service: "postgres", Architecture: "amd64",
		Runs: []Run{{ID: "00000000000000aa", Started: "2026-01-01T00:00:00Z"}}, Processes: map[string]Use{"main": use}}
}

// The profile allows what was recorded, with its arguments, and not what is next to it.
func TestSeccompAllowsWhatWasRecordedOnly(t *testing.T) {
	recorded := []Call{
		{"lseek", nil}, {"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, 0}}, {"clone", []uint64{0x1200000}}, {"clone3", nil},
		{"mprotect", []uint64{0, 0, 1}}, {"ioctl", []uint64{0, unix.TCGETS}}, {"fcntl", []uint64{0, unix.F_GETFL}},
		{"prctl", []uint64{unix.PR_SET_NAME}}, {"prctl", []uint64{prCapAmbient, 1}}, {"prlimit64", []uint64{0}}, {"personality", []uint64{0}},
		{"shmat", []uint64{0, 0, 0}}, {"number_511", nil},
	}
	text, err := recordingOf(Use{Calls: recorded}).Seccomp()
	if err != nil {
		t.Fatal(err)
	}
	profile, err := sandbox.ParseProfile("learned", text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if _, err := sandbox.Compile(profile); err != nil {
		t.Fatal(err)
	}
	for _, c := range recorded {
		if want := c.Name != "clone3" && c.Name != "number_511"; profile.Allows(c.Name, c.Args) != want {
			t.Errorf("%s: allowed is not %t", c, want)
		}
	}
	for _, c := range []Call{
		{"ptrace", nil}, {"socket", []uint64{unix.AF_INET, unix.SOCK_RAW, 0}}, {"socket", []uint64{unix.AF_ALG, unix.SOCK_STREAM, 0}},
		{"clone", []uint64{unix.CLONE_NEWUSER}}, {"mprotect", []uint64{0, 0, 4}}, {"mprotect", []uint64{0, 0, 6}}, {"ioctl", []uint64{0, unix.TIOCSTI}},
		{"fcntl", []uint64{0, unix.F_SETOWN}}, {"prctl", []uint64{unix.PR_SET_DUMPABLE}}, {"prctl", []uint64{prCapAmbient, 2}},
		{"prlimit64", []uint64{1}}, {"personality", []uint64{8}}, {"shmat", []uint64{0, 0, shmExec}},
	} {
		if profile.Allows(c.Name, c.Args) {
			t.Errorf("%s is allowed", c)
		}
	}
}

func TestLandlockPolicy(t *testing.T) {
	r := recordingOf(Use{Bind: []uint16{5432}, Files: map[Access][]string{
		Read:    {"/usr/lib/x.so", "/etc/passwd", "/proc/{pid}/stat", "/dev/urandom", "/srv/ca/root.crt"},
		Update:  {"/dev/null", "/proc/{pid}/oom_score_adj"},
		Write:   {"{data_dir}/base/", "{data_dir}/postmaster.pid", "/dev/shm/PostgreSQL.1", "/run/postgresql/x.lock"},
		Socket:  {"/run/postgresql/.s.PGSQL.5432"},
		Execute: {"/usr/lib/postgresql/15/bin/postgres"},
	}})
	text := string(r.Landlock())
	if _, err := mac.ParsePolicy("learned", []byte(text)); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, line := range []string{
		"{path: /usr, allow: [read]}", "{path: /etc, allow: [read]}", "{path: /proc, allow: [read]}",
		"{path: /proc, allow: [update], if: oom_score_adj}", "{path: /dev/urandom, allow: [read]}", "{path: /dev/null, allow: [update]}",
		"{path: /srv/ca, allow: [read]}", `{path: "{data_dir}", allow: [write]}`, "{path: /dev/shm, allow: [write]}",
		"{path: /run/postgresql, allow: [write, socket], optional: true}", "helpers: []", "bind [5432]",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("the policy has no %s", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// reports plays the kernel's side.
func report(kind uint32, run uint64, number int, text string, args ...uint64) Report {
	r := Report{kind: kind, pid: uint32(run), run: run, number: uint32(number), dirFD: unix.AT_FDCWD, data: make([]byte, dataSize)}
	copy(r.args[:], args)
	copy(r.data, text)
	return r
}

func TestTrackerByTypeOfProcess(t *testing.T) {
	names := []string{"read", "write", "openat", "unlink", "chdir", "bind", "socket", "ptrace"}
	number := func(name string) int { return slices.Index(names, name) }
	var acts []Act
	var forgotten []uint32
	tr := &Tracker{
		subject: Subject{Command: []string{"/bin/pg", "-D", "/data"}, DataDir: "/data", Question: "-C", Name: func(n int) string { return names[n] }},
		runs:    map[uint64]*run{}, uses: map[string]Use{}, places: places{},
		forget: func(pid uint32) { forgotten = append(forgotten, pid) }, act: func(a Act) { acts = append(acts, a) },
	}
	line := func(words ...string) string { return strings.Join(words, "\x00") + "\x00" }
	ours, question, other := line("/bin/pg", "-D", "/data", "-c", "port=1"), line("/bin/pg", "-D", "/data", "-C", "port"), line("/bin/pg", "-D", "/database")
	// What a question does counts as the service's; that it was started meanwhile does not follow.
	tr.Take(report(kindExec, 8, 0, question, 0, uint64(len(question))))
	if tr.Started() || len(tr.runs) != 1 {
		t.Errorf("after a question: started %v, %d runs", tr.Started(), len(tr.runs))
	}
	tr.Take(report(kindExit, 8, 0, ""))
	sin := string(binary.NativeEndian.AppendUint16(nil, unix.AF_INET)) + "\x15\x38\x7f\x00\x00\x01"
	for _, r := range []Report{
		report(kindExec, 1, 0, ours, 0, uint64(len(ours))),
		report(kindExec, 9, 0, other, 0, uint64(len(other))), report(kindCall, 9, number("ptrace"), ""),
		report(kindSock, 1, number("bind"), sin, 8),
		report(kindFork, 2, 0, "", 1), report(kindCall, 2, number("read"), ""),
		report(kindPath, 2, number("openat"), "base/5/1234", 0, unix.O_RDWR),
		report(kindTitle, 2, 0, "postgres: checkpointer "), report(kindExit, 2, 0, ""),
		report(kindFork, 3, 0, "", 1), report(kindCall, 3, number("write"), ""), report(kindExec, 4, 0, "/bin/nothere", 3),
		report(kindPath, 4, number("chdir"), "/nowhere"), report(kindPath, 4, number("unlink"), "x"), report(kindExit, 4, 0, "nothere"),
	} {
		tr.Take(r)
	}
	uses := tr.Use(t.Context())
	main, checkpointer, helper := uses["main"], uses["checkpointer"], uses["helper nothere"]
	if !slices.Equal(main.Bind, []uint16{5432}) || len(main.Calls) != 1 || main.Calls[0].Name != "write" {
		t.Errorf("main: %+v", main)
	}
	if len(checkpointer.Calls) != 1 || !slices.Equal(checkpointer.Files[Update], []string{"{data_dir}/base/"}) ||
		!slices.Equal(checkpointer.Files[Read], []string{"{data_dir}/base/"}) {
		t.Errorf("checkpointer: %+v", checkpointer)
	}
	if !slices.Equal(helper.Files[Write], []string{"/nowhere/x"}) || !slices.Equal(helper.Files[Execute], []string{"/bin/nothere"}) {
		if !slices.Equal(helper.Files[Execute], []string{"/usr/bin/nothere"}) { // where /bin is a link
			t.Errorf("helper: %+v", helper)
		}
	}
	if len(uses) != 3 || !slices.Equal(forgotten, []uint32{9}) || !tr.Started() {
		t.Errorf("%d types, forgotten %v", len(uses), forgotten)
	}
	if slices.ContainsFunc(acts, func(a Act) bool { return a.Call.Name == "ptrace" }) || len(acts) < 5 {
		t.Errorf("acts: %+v", acts)
	}
}

func TestParseReportTakesAnything(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 47), make([]byte, 48), make([]byte, reportSize)} {
		if _, ok := parseReport(b); ok {
			t.Errorf("%d zeros are a report", len(b))
		}
	}
}
