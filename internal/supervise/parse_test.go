package supervise

import (
	"encoding/binary"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestParsePIDFile(t *testing.T) {
	full := "812\n/var/lib/postgresql/15/main\n1763800000\n5432\n/var/run/postgresql\nlocalhost\n   181797      4\nready   \n"
	for name, test := range map[string]struct {
		text string
		want pidFile
		err  string
	}{
		"full":            {full, pidFile{812, false, "/var/lib/postgresql/15/main", 5432, "/var/run/postgresql", "localhost", "ready"}, ""},
		"standby":         {strings.Replace(full, "ready  ", "standby", 1), pidFile{812, false, "/var/lib/postgresql/15/main", 5432, "/var/run/postgresql", "localhost", "standby"}, ""},
		"just created":    {"812\n/d\n1763800000\n5432\n\n", pidFile{812, false, "/d", 5432, "", "", ""}, ""},
		"status cut":      {strings.TrimSuffix(full, "\n"), pidFile{812, false, "/var/lib/postgresql/15/main", 5432, "/var/run/postgresql", "localhost", ""}, ""},
		"port cut":        {"812\n/d\n1763800000\n54", pidFile{812, false, "/d", 0, "", "", ""}, ""},
		"single user":     {"-812\n/d\n1763800000\n5432\n\n\n", pidFile{812, true, "/d", 5432, "", "", ""}, ""},
		"spaces in a dir": {"812\n/a b \n", pidFile{812, false, "/a b ", 0, "", "", ""}, ""},
		"empty":           {"", pidFile{}, "half-written"},
		"pid cut":         {"81", pidFile{}, "half-written"},
		"dir cut":         {"812\n/var/lib/po", pidFile{}, "half-written"},
		"no pid":          {"x\n/d\n", pidFile{}, "not a PID"},
		"zero":            {"0\n/d\n", pidFile{}, "not a PID"},
		"huge":            {"99999999999999999999\n/d\n", pidFile{}, "not a PID"},
		"out of range":    {"4194305\n/d\n", pidFile{}, "not a PID"},
		"relative":        {"812\nd\n", pidFile{}, "not an absolute path"},
		"nul":             {"812\n/d\x00\n", pidFile{}, "not an absolute path"},
		"bad port":        {"812\n/d\n1\n70000\n", pidFile{}, "not a port"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parsePIDFile([]byte(test.text))
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Fatalf("error %v, want %q", err, test.err)
			}
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func FuzzParsePIDFile(f *testing.F) {
	f.Add([]byte("812\n/var/lib/postgresql/15/main\n1763800000\n5432\n/var/run/postgresql\n*\n   181797      4\nready   \n"))
	f.Add([]byte("-812\n/d\n1\n5432\n\n\n"))
	f.Add([]byte("812\n/d"))
	f.Add([]byte("\n\n\n\n\n\n\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		pf, err := parsePIDFile(data)
		if err != nil {
			if pf != (pidFile{}) {
				t.Errorf("an error with a result: %+v", pf)
			}
			return
		}
		if pf.pid <= 0 || pf.pid > maxPID || pf.port < 0 || pf.port > 65535 || pf.dataDir == "" || pf.dataDir[0] != '/' {
			t.Errorf("%+v", pf)
		}
		// A reader that sees less sees no other PID and no other directory.
		for cut := range data {
			if part, err := parsePIDFile(data[:cut]); err == nil && (part.pid != pf.pid || part.dataDir != pf.dataDir) {
				t.Errorf("cut at %d: %+v, whole: %+v", cut, part, pf)
			}
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	whole, _ := json.Marshal(record{Version: 1, Service: "t", Boot: "b", PID: 7, Start: 8, Exe: exeID{"/bin/x", 1, 2}, DataDir: "/d", Stopped: true, Reason: "r"})
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte(`{"version":1,"pid":-1}`))
	f.Add([]byte(`{"version":1} {}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if err != nil {
			return
		}
		if r.Version != recordVersion || r.PID < 0 || r.PID > maxPID {
			t.Errorf("%+v", r)
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseRecord(again); err != nil || back != r {
			t.Errorf("%+v became %+v, %v", r, back, err)
		}
	})
}

func TestParseReport(t *testing.T) {
	for in, want := range map[string]string{
		"":   "",
		"\n": "",
		`{"step":"user","error":"cannot start service postgres: step user: no user p","code":72}` + "\n": "cannot start service postgres: step user: no user p",
		"panic: boom\n":   "panic: boom",
		`{"step":"user"}`: `{"step":"user"}`,
	} {
		if got := parseReport([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzParseReport(f *testing.F) {
	f.Add([]byte(`{"step":"user","error":"no","code":72}`))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if parseReport(data) == "" && strings.TrimSpace(string(data)) != "" {
			t.Error("a refusal was taken for success")
		}
	})
}

func controlFile(version, state uint32) []byte {
	data := make([]byte, 8192)
	binary.NativeEndian.PutUint32(data[8:], version)
	binary.NativeEndian.PutUint32(data[16:], state)
	return data
}

func TestParseControl(t *testing.T) {
	for name, test := range map[string]struct {
		data []byte
		want clusterState
	}{
		"shut down":             {controlFile(1300, 1), clusterShutDown},
		"shut down in recovery": {controlFile(1300, 2), clusterShutDown},
		"in production":         {controlFile(1300, 6), clusterOpen},
		"shutting down":         {controlFile(1300, 3), clusterOpen},
		"unknown state":         {controlFile(1300, 7), clusterUnknown},
		"other byte order":      {controlFile(0x14050000, 1), clusterUnknown},
		"short":                 {controlFile(1300, 1)[:19], clusterUnknown},
		"none":                  {nil, clusterUnknown},
	} {
		if got := parseControl(test.data); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func FuzzParseControl(f *testing.F) {
	f.Add(controlFile(1300, 1))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, data []byte) { parseControl(data) })
}

func TestPostmasterEndedByHand(t *testing.T) {
	for _, test := range []struct {
		removed bool
		state   clusterState
		want    bool
	}{
		{true, clusterShutDown, true},
		{true, clusterUnknown, true},
		{true, clusterOpen, false},
		{false, clusterShutDown, false},
		{false, clusterOpen, false},
	} {
		if got := postmasterEndedByHand(test.removed, test.state); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

func TestEnvironment(t *testing.T) {
	got := environment([]string{"A=b", "LANG=C", "LC_TIME=de", "TZ=UTC", "PATH=/bin", "NOTIFY_SOCKET=x", "WATCHDOG_USEC=1", "LD_LIBRARY_PATH=y", "PGDATA=z", "LANGUAGE=q"})
	slices.Sort(got)
	if want := []string{"LANG=C", "LC_TIME=de", "PATH=/bin", "TZ=UTC"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := environment(nil); len(got) != 1 || !strings.HasPrefix(got[0], "PATH=/") {
		t.Errorf("%q", got)
	}
}

func TestEndOfAProcess(t *testing.T) {
	for e, want := range map[exit]string{
		{}:                            "exit status unknown",
		{known: true, status: 0}:      "exit status 0",
		{known: true, status: 1 << 8}: "exit status 1",
		{known: true, status: 9}:      "signal 9",
	} {
		if got := e.String(); !strings.Contains(got, want) {
			t.Errorf("%+v: %q", e, got)
		}
		if e.clean() != (e.known && e.status == 0) {
			t.Errorf("%+v: clean %v", e, e.clean())
		}
	}
}

func TestGateNeedsADaemon(t *testing.T) {
	if err := Gate(nil); err == nil {
		t.Error("no command passed")
	}
}
