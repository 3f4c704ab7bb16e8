package limits

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// all is a set with every limit the package knows.
func all(l Limit) Set {
	s := Set{}
	for _, r := range resources {
		s[r.name] = l
	}
	return s
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name string
		set  Set
		want []string // parts of the error; none: valid
	}{
		{"empty", nil, nil},
		{"every limit", all(Limit{1, 2}), nil},
		{"soft equals hard", Set{"core": {0, 0}}, nil},
		{"unlimited", Set{"memlock": {Unlimited, Unlimited}}, nil},
		{"finite below unlimited", Set{"nofile": {1024, Unlimited}}, nil},
		{"soft above hard", Set{"nofile": {1025, 1024}}, []string{"limit nofile: soft 1025 is above hard 1024"}},
		{"soft unlimited, hard not", Set{"core": {Unlimited, 5}}, []string{"limit core: soft unlimited is above hard 5"}},
		{"unknown", Set{"files": {1, 1}}, []string{`unknown limit "files"`, "nofile nproc"}},
		{"upper case", Set{"NOFILE": {1, 1}}, []string{`unknown limit "NOFILE"`}},
		{"all problems together", Set{"files": {1, 1}, "cpu": {2, 1}}, []string{`"files"`, "limit cpu"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkError(t, tt.set.Validate(), tt.want) })
	}
}

func TestF31_CheckRefusesWhatIsAboveHard(t *testing.T) {
	current := all(Limit{Soft: 10, Hard: 100})
	tests := []struct {
		name string
		set  Set
		cur  Set
		want []string
	}{
		{"empty", nil, current, nil},
		{"below", Set{"nofile": {5, 50}}, current, nil},
		{"soft above the current soft", Set{"nofile": {100, 100}}, current, nil},
		{"exactly hard", all(Limit{100, 100}), current, nil},
		{"one above hard", Set{"nofile": {100, 101}}, current,
			[]string{"limit nofile: 101 is above the current hard limit 100", "systemd: LimitNOFILE="}},
		{"unlimited above finite", Set{"memlock": {0, Unlimited}}, current,
			[]string{"limit memlock: unlimited is above the current hard limit 100"}},
		{"unlimited where unlimited", Set{"core": {0, Unlimited}}, all(Limit{0, Unlimited}), nil},
		{"all named", Set{"nofile": {1, 101}, "nproc": {1, 102}, "core": {0, 0}}, current,
			[]string{"limit nofile", "limit nproc"}},
		{"current not known", Set{"nofile": {1, 1}}, Set{}, []string{"limit nofile: the current hard limit is not known"}},
		{"invalid", Set{"x": {1, 1}}, current, []string{`unknown limit "x"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkError(t, tt.set.Check(tt.cur), tt.want) })
	}
}

func TestDiff(t *testing.T) {
	want := Set{"nofile": {1024, 4096}, "core": {0, 0}, "memlock": {Unlimited, Unlimited}}
	tests := []struct {
		name string
		got  Set
		diff []string
	}{
		{"the same", Set{"nofile": {1024, 4096}, "core": {0, 0}, "memlock": {Unlimited, Unlimited}, "cpu": {1, 1}}, nil},
		{"soft differs", Set{"nofile": {1023, 4096}, "core": {0, 0}, "memlock": {Unlimited, Unlimited}},
			[]string{"nofile: want 1024:4096, is 1023:4096"}},
		{"hard differs", Set{"nofile": {1024, 4096}, "core": {0, Unlimited}, "memlock": {Unlimited, Unlimited}},
			[]string{"core: want 0, is 0:unlimited"}},
		{"nothing there", nil, []string{"core: want 0, not there", "memlock: want unlimited, not there",
			"nofile: want 1024:4096, not there"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.diff, Diff(want, tt.got)); d != "" {
				t.Errorf("Diff (-want +got):\n%s", d)
			}
		})
	}
}

// checkError expects no error if parts is empty, otherwise one that has every part.
func checkError(t *testing.T, err error, parts []string) {
	t.Helper()
	if len(parts) == 0 {
		if err != nil {
			t.Fatalf("error %v, want none", err)
		}
		return
	}
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}
