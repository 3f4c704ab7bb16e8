package learn

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// someRecording is small, so that random ones overlap.
func someRecording(r *rand.Rand) Recording {
	rec := Recording{Format: Format, Version: Version, Service: "postgres", Architecture: "amd64", Processes: map[string]Use{}}
	for range 1 + r.IntN(3) {
		rec.Runs = append(rec.Runs, Run{ID: fmt.Sprintf("%016x", r.IntN(4)), Started: "2026-01-01T00:00:00Z", Lost: r.Uint64N(3), Start: r.IntN(2) == 0})
	}
	for _, name := range []string{"main", "checkpointer", "helper sh"}[:r.IntN(4)] {
		use := newUse()
		for range r.IntN(8) {
			use.Calls = append(use.Calls, Call{Name: "c" + fmt.Sprint(r.IntN(5)), Args: []uint64{r.Uint64N(3)}[:r.IntN(2)]})
			use.Bind = append(use.Bind, uint16(r.IntN(4)))
		}
		for range r.IntN(60) {
			access := []Access{Read, Write, Execute}[r.IntN(3)]
			p := fmt.Sprintf("/d%d/e%d/f%d", r.IntN(2), r.IntN(2), r.IntN(40))
			if r.IntN(20) == 0 {
				p = fmt.Sprintf("/d%d/", r.IntN(2))
			}
			use.Files[access] = append(use.Files[access], p)
		}
		rec.Processes[name] = use
	}
	return rec
}

func render(t *testing.T, r Recording, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	text, err := r.Render()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestMergeInAnyOrderAndTwice(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		a, b, c := someRecording(r), someRecording(r), someRecording(r)
		merge := func(list ...Recording) Recording {
			out := list[0]
			for _, x := range list[1:] {
				var err error
				if out, err = Merge(out, x); err != nil {
					t.Fatal(err)
				}
			}
			return out
		}
		want := render(t, merge(a, b, c), nil)
		for name, got := range map[string]Recording{
			"order": merge(c, b, a), "grouping": merge(a, merge(b, c)), "twice": merge(a, b, c, b, merge(a, c)),
		} {
			if diff := cmp.Diff(want, render(t, got, nil)); diff != "" {
				t.Fatalf("%s: %s", name, diff)
			}
		}
		again, err := Parse("x", []byte(want))
		if got := render(t, again, err); got != want {
			t.Fatalf("read again: %s", cmp.Diff(want, got))
		}
	}
}

func TestMergeOfOtherServices(t *testing.T) {
	if _, err := Merge(Recording{Service: "a"}, Recording{Service: "b"}); err == nil {
		t.Error("recordings of two services are merged")
	}
}

const goodRecording = `{
 "format": "pghardend-recording",
 "version": 1,
 "service": "postgres",
 "architecture": "amd64",
 "runs": [{"id": "00000000000000aa", "started": "2026-01-01T00:00:00Z", "seconds": 1, "start": true, "lost": 0, "unresolved": 0}],
 "processes": {
  "client backend": {
   "calls": [{"name": "read"}, {"name": "socket", "args": [2, 1, 0]}],
   "files": {"read": ["/etc/passwd", "{data_dir}/base/"]},
   "bind": [], "connect": [53]
  }
 }
}
`

func TestParseRefuses(t *testing.T) {
	if _, err := Parse("x.json", []byte(goodRecording)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, with, want string }{
		{`"version": 1`, `"version": 2`, "x.json:3: version 2"},
		{`"version": 1`, `"version": "1"`, "x.json:3: "},
		{`"bind"`, `"Bind"`, `x.json:11: the key "Bind"`},
		{`"bind"`, `"binds"`, "x.json:11: "},
		{`"service": "postgres"`, `"service": "postgres", "service": "x"`, `x.json:4: the key "service"`},
		{`"amd64"`, `"vax"`, `x.json:5: architecture "vax"`},
		{`"/etc/passwd"`, `"/etc/../passwd"`, `x.json:10: "/etc/../passwd"`},
		{`"/etc/passwd"`, `"passwd"`, `x.json:10: "passwd"`},
		{`"name": "read"`, `"name": "read it"`, `x.json:9: "read it"`},
		{`[53]`, `[65536]`, "x.json:11: "},
		{`"00000000000000aa"`, `"aa"`, `x.json:6: run "aa"`},
		{"}\n", "}\n{}", "there is more text"},
		{goodRecording, goodRecording[:200], "x.json:6: "},
	} {
		i := strings.LastIndex(goodRecording, c.old)
		text := goodRecording[:i] + c.with + goodRecording[i+len(c.old):]
		if _, err := Parse("x.json", []byte(text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.with, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(goodRecording))
	f.Add([]byte(`{"processes":{"main":{"files":{"read":["{data_dir}"]}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse("x", data)
		if err != nil {
			return
		}
		text := render(t, r, nil)
		again, err := Parse("x", []byte(text))
		if got := render(t, again, err); got != text {
			t.Errorf("%s\n%s", text, got)
		}
		if _, err := r.Seccomp(); err != nil {
			t.Error(err)
		}
		r.Landlock()
	})
}

func TestClassify(t *testing.T) {
	const exe = "/usr/lib/postgresql/15/bin/postgres"
	for title, want := range map[string]string{
		"postgres: checkpointer ":                          "checkpointer",
		"postgres: 15/main: checkpointer ":                 "checkpointer",
		"postgres: app bench 10.0.0.1(4711) SELECT":        "client backend",
		"postgres: checkpointers app [local] idle":         "client backend",
		"postgres: archiver last was 000000010000000000":   "archiver",
		"postgres: autovacuum worker postgres":             "autovacuum worker",
		"postgres: parallel worker for PID 77 ":            "parallel worker",
		"postgres: logical replication worker for subscr":  "logical replication worker",
		"postgres: logical replication tablesync worker f": "logical replication tablesync worker",
		"postgres: walsender rep 10.0.0.2(1) streaming":    "walsender",
		"postgres: startup recovering 0000":                "startup",
		"postgres: bgworker: mine":                         "background worker",
		exe:                                                typeChild,
	} {
		if got := Classify(exe, exe, title, false); got != want {
			t.Errorf("%q is %q, want %q", title, got, want)
		}
	}
	if got := Classify(exe, "/usr/bin/da\nsh", "postgres: checkpointer", false); got != "helper da_sh" {
		t.Error(got)
	}
	if got := Classify(exe, exe, "whatever", true); got != typeMain {
		t.Error(got)
	}
}

func TestPlace(t *testing.T) {
	for in, want := range map[string]string{
		"/data":                    "{data_dir}/",
		"/data/PG_VERSION":         "{data_dir}/PG_VERSION",
		"/data/base/5/secret_name": "{data_dir}/base/",
		"/database/x":              "/database/x",
		"/proc/4711/oom_score_adj": "/proc/{pid}/oom_score_adj",
		"/proc/self/stat":          "/proc/{pid}/stat",
		"/proc/meminfo":            "/proc/meminfo",
		"/etc/./ssl/x":             "/etc/ssl/x",
	} {
		if got := Place(in, "/data"); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
