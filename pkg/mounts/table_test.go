package mounts

import (
	"os"
	"strings"
	"testing"
)

const sampleTable = `20 1 254:0 / / rw,nosuid,nodev,noexec,relatime master:1 - ext4 /dev/vda rw
21 20 0:5 / /proc rw,nosuid,nodev,noexec - proc proc rw
30 20 254:0 /usr /usr ro,nosuid,nodev,relatime master:1 - ext4 /dev/vda rw
31 30 254:0 /usr/local/data /usr/local/data rw,nosuid,nodev,noexec - ext4 /dev/vda rw
32 20 0:6 / /dev rw,nosuid,nodev,noexec shared:3 master:2 propagate_from:1 - devtmpfs dev rw
33 32 0:6 /null /dev/null rw,nosuid,noexec - devtmpfs dev rw
34 20 254:0 /etc /etc ro,nosuid,nodev,noexec - ext4 /dev/vda rw
35 20 0:7 / /run rw,nosuid,nodev,noexec - tmpfs tmpfs rw
36 35 0:8 / /run/agent ro,nosuid,nodev,noexec - tmpfs pghardend-hidden ro,mode=0
37 20 0:9 / /srv/with\040space rw,nosuid,nodev,noexec - tmpfs none rw
`

func sample(t *testing.T, more string) Table {
	t.Helper()
	table, err := ParseTable([]byte(sampleTable + more))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

var sampleLayout = Layout{
	exec: []string{"/usr"}, readOnly: []string{"/etc"}, write: []string{"/srv/with space", "/usr/local/data"},
	devices: []string{"/dev/null"}, hide: []string{"/run/agent"},
}

func failed(results []Result) string {
	var out []string
	for _, r := range results {
		if !r.OK {
			out = append(out, r.Check+": "+r.Got)
		}
	}
	return strings.Join(out, "; ")
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct{ old, changed, more, want string }{
		"as it should be": {},
		"executable root": {"/ / rw,nosuid,nodev,noexec", "/ / rw,nosuid,nodev", "", "noexec: executable: / (rw,nosuid,nodev,relatime)"},
		"read-only, but not a place of code": {"/srv/with\\040space rw,nosuid,nodev,noexec", "/srv/with\\040space ro,nosuid,nodev", "",
			"noexec: executable: /srv/with space (ro,nosuid,nodev)"},
		"writable code":                  {"/usr /usr ro", "/usr /usr rw", "", "read-only: writable: /usr (rw,nosuid,nodev,relatime)"},
		"data below code":                {"/usr/local/data rw,nosuid,nodev,noexec", "/usr/local/data rw,nosuid,nodev", "", "noexec: executable: /usr/local/data (rw,nosuid,nodev)"},
		"setuid":                         {"/proc rw,nosuid", "/proc rw", "", "nosuid: not on /proc (rw,nodev,noexec)"},
		"devices":                        {"/dev rw,nosuid,nodev", "/dev rw,nosuid", "", "nodev: not on /dev (rw,nosuid,noexec)"},
		"a copy that is gone":            {"34 20", "34 35", "", "read-only: writable: /etc"},
		"a copy below code that is gone": {"/usr/local/data /usr/local/data", "/x /srv/x", "", "noexec: executable: /usr/local/data"},
		"nothing hidden":                 {"pghardend-hidden", "none", "", "hidden: visible: /run/agent"},
		"arrived":                        {"", "", "40 37 0:50 / /srv/with\\040space/new rw - tmpfs none rw\n", "noexec: executable: /srv/with space/new (rw); nosuid: not on /srv/with space/new (rw); nodev: not on /srv/with space/new (rw)"},
		"arrived below code":             {"", "", "40 30 0:50 / /usr/local/new rw,nosuid,nodev - tmpfs none rw\n", "read-only: writable: /usr/local/new (rw,nosuid,nodev)"},
		"arrived out of reach, hidden":   {"", "", "40 35 0:50 / /run/agent/new rw - tmpfs none rw\n", ""},
		"arrived out of reach, covered":  {"", "", "40 20 0:50 / /usr/share/new rw - tmpfs none rw\n", ""},
		"on top":                         {"", "", "40 37 0:50 / /srv/with\\040space rw,nosuid,nodev - tmpfs none rw\n", "noexec: executable: /srv/with space (rw,nosuid,nodev)"},
		"escape sequences":               {"", "", "40 37 0:50 / /srv/with\\040space/\033 rw,nosuid,nodev - tmpfs none rw\n", `noexec: executable: "/srv/with space/\x1b" (rw,nosuid,nodev)`},
	} {
		table, err := ParseTable([]byte(strings.Replace(sampleTable, c.old, c.changed, 1) + c.more))
		if err != nil {
			t.Fatal(err)
		}
		if got := failed(sampleLayout.Check(table)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := failed(sampleLayout.Check(nil)); !strings.Contains(got, "noexec") || !strings.Contains(got, "read-only") || !strings.Contains(got, "hidden") {
		t.Errorf("an empty table passes: %q", got)
	}
}

func TestAt(t *testing.T) {
	table := sample(t, "")
	for path, want := range map[string]int{
		"/": 20, "/var/lib": 20, "/usr/bin": 30, "/usrlocal": 20, "/usr/local/data/base": 31, "/dev/null": 33, "/dev/nullx": 32, "/run/agent/control": 36, "/srv/with space": 37,
	} {
		if m, ok := table.At(path); !ok || m.ID != want {
			t.Errorf("%s is on %d, want %d", path, m.ID, want)
		}
	}
}

func TestParseTableRefuses(t *testing.T) {
	for _, line := range []string{"x", "1 2 0:1 / /a rw", "a 2 0:1 / /a rw - t s o", "1 2 0:1 / a rw - t s o", "1 2 0:1 / /a - t s o"} {
		if table, err := ParseTable([]byte(line + "\n")); err == nil {
			t.Errorf("%q is %+v", line, table)
		}
	}
}

func TestReadTable(t *testing.T) {
	table, err := ReadTable(t.Context(), os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := table.At("/proc/self"); !ok || m.Type != "proc" {
		t.Errorf("%+v", m)
	}
}

func FuzzParseTable(f *testing.F) {
	f.Add([]byte(sampleTable))
	f.Add([]byte("1 1 0:1 / / rw - t s o\n2 1 0:1 / / rw - t s o\n3 2 0:1 / /\\134 rw - t \\040 o\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		table, err := ParseTable(data)
		if err != nil {
			return
		}
		if len(table) != strings.Count(strings.TrimSuffix(string(data), "\n"), "\n")+1 && len(data) > 0 {
			t.Errorf("%d mounts of %q", len(table), data)
		}
		for _, r := range sampleLayout.Check(table) {
			if r.OK != (r.Got == r.Want) {
				t.Errorf("%+v", r)
			}
		}
	})
}
