package launch

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestF34_EnvironmentAllowList(t *testing.T) {
	caller := []string{
		"PATH=/tmp/evil", "HOME=/root", "USER=root", "LOGNAME=root", "LANG=C.UTF-8", "LC_ALL=C", "TZ=UTC",
		"LD_PRELOAD=/tmp/x.so", "LD_LIBRARY_PATH=/tmp", "GLIBC_TUNABLES=glibc.malloc.check=3", "GCONV_PATH=/tmp",
		"LC_=x", "LC_ALL_x=y", "BASH_ENV=/tmp/x", "PGDATA=/tmp", "MALLOC_CHECK_=3", "SSH_AUTH_SOCK=/x", "PERL5LIB=/x",
		"NOTIFY_SOCKET=/run/notify", "WATCHDOG_USEC=1000", "WATCHDOG_PID=42", "LISTEN_PID=42", "LISTEN_FDS=2",
		"LISTEN_FDNAMES=a:b", "no equals sign", "=weird",
	}
	got, err := buildEnvironment(caller, 42, postgres, []string{"PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj", "EMPTY="})
	wantNone(t, err)
	want := environment{sockets: 2, vars: []string{
		"EMPTY=", "HOME=/var/lib/postgresql", "LANG=C.UTF-8", "LC_ALL=C", "LISTEN_FDNAMES=a:b", "LISTEN_FDS=2",
		"LISTEN_PID=42", "LOGNAME=postgres", "NOTIFY_SOCKET=/run/notify", "PATH=" + fixedPath,
		"PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj", "TZ=UTC", "USER=postgres", "WATCHDOG_PID=42", "WATCHDOG_USEC=1000",
	}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(environment{})); d != "" {
		t.Error(d)
	}
}

// What is meant for another process, the caller's parent, is not for this one.
func TestF34_ProtocolOfAnotherProcess(t *testing.T) {
	got, err := buildEnvironment([]string{"WATCHDOG_USEC=1000", "WATCHDOG_PID=41", "LISTEN_PID=41", "LISTEN_FDS=2"}, 42, postgres, nil)
	wantNone(t, err)
	for _, v := range got.vars {
		if strings.HasPrefix(v, "WATCHDOG_") || strings.HasPrefix(v, "LISTEN_") {
			t.Errorf("passed on: %s", v)
		}
	}
	if got.sockets != 0 {
		t.Errorf("%d sockets", got.sockets)
	}
	got, err = buildEnvironment([]string{"WATCHDOG_USEC=1000"}, 42, postgres, nil)
	wantNone(t, err)
	if !slices.Contains(got.vars, "WATCHDOG_USEC=1000") {
		t.Error("a watchdog for everybody was dropped")
	}
}

func TestF34_EnvironmentRefused(t *testing.T) {
	for name, c := range map[string]struct {
		caller, extra []string
		word          string
	}{
		"loader":           {nil, []string{"LD_PRELOAD=/x"}, "LD_PRELOAD"},
		"tunables":         {nil, []string{"GLIBC_TUNABLES=x=y"}, "GLIBC_TUNABLES"},
		"service manager":  {nil, []string{"LISTEN_FDS=3"}, "LISTEN_FDS"},
		"no value":         {nil, []string{"JUSTANAME"}, "NAME=value"},
		"no name":          {nil, []string{"=x"}, "name of a variable"},
		"odd name":         {nil, []string{"A B=x"}, "name of a variable"},
		"twice":            {nil, []string{"A=1", "A=2"}, "twice"},
		"NUL":              {nil, []string{"A=x\x00y"}, "NUL"},
		"sockets":          {[]string{"LISTEN_PID=42", "LISTEN_FDS=many"}, nil, "LISTEN_FDS"},
		"sockets missing":  {[]string{"LISTEN_PID=42"}, nil, "LISTEN_FDS"},
		"sockets negative": {[]string{"LISTEN_PID=42", "LISTEN_FDS=-1"}, nil, "LISTEN_FDS"},
		"sockets too many": {[]string{"LISTEN_PID=42", "LISTEN_FDS=2147483647"}, nil, "LISTEN_FDS"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := buildEnvironment(c.caller, 42, postgres, c.extra)
			wantError(t, err, c.word)
		})
	}
}

// Whatever the caller has set, nothing gets through that is not listed here.
func FuzzEnvironment(f *testing.F) {
	f.Add("LD_PRELOAD=/x\nLANG=C\nLC_ALL=de\nLISTEN_PID=42\nLISTEN_FDS=1")
	f.Add("LC_LD_=1\n=\n==\nTZ=\nPATH=x")
	allowed := []string{"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "NOTIFY_SOCKET", "WATCHDOG_USEC",
		"WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := buildEnvironment(strings.Split(text, "\n"), 42, postgres, nil)
		if err != nil {
			return
		}
		names := map[string]bool{}
		for _, v := range got.vars {
			name, _, ok := strings.Cut(v, "=")
			if !ok || names[name] || !slices.Contains(allowed, name) && !isLocale(name) {
				t.Errorf("passed on: %q", v)
			}
			names[name] = true
		}
		if !slices.Contains(got.vars, "PATH="+fixedPath) {
			t.Error("PATH is not the fixed one")
		}
	})
}
