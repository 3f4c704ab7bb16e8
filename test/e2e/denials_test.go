package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

// denialSoon is in what time an event has to be there, which takes milliseconds.
const denialSoon = 10 * time.Second

// awaitDenial waits for an event of a denial with all words.
func (s *slice) awaitDenial(words ...string) control.Event {
	s.t.Helper()
	var found control.Event
	ctx, cancel := context.WithTimeout(s.ctx, denialSoon)
	defer cancel()
	must(s.t, s.agent.Await(ctx, "an event of a denial", func(context.Context) error {
		list := s.denialEvents()
		i := slices.IndexFunc(list, func(e control.Event) bool { return holds(e.What, words) })
		if i < 0 {
			return fmt.Errorf("none with %q among %+v", words, list)
		}
		found = list[i]
		return nil
	}))
	return found
}

func (s *slice) denialEvents() []control.Event {
	s.t.Helper()
	var list []control.Event
	for _, e := range s.allEvents() {
		if e.Kind == control.KindDenied {
			list = append(list, e)
		}
	}
	return list
}

func (s *slice) allEvents() []control.Event {
	s.t.Helper()
	var list []control.Event
	for line := range strings.Lines(s.want(0, nil, "events", "--json", "--limit", "0").Stdout) {
		var e control.Event
		must(s.t, json.Unmarshal([]byte(line), &e))
		list = append(list, e)
	}
	return list
}

func holds(text string, words []string) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
}

// awaitTraced waits until the kernel tells of denials.
func (s *slice) awaitTraced() {
	s.t.Helper()
	s.awaitStatus("denials are traced", func(st control.Status) error {
		if st.Denials.Source != "trace" {
			return fmt.Errorf("%+v, %q", st.Denials, st.Warnings)
		}
		return nil
	})
}

// A36: a shell that postgres may not execute is an event that names the program, the
// process and the backend behind it, and no argument: that is the attacker's, or a
// password.
func TestA36_BlockedShellIsAnEvent(t *testing.T) {
	t.Run("control", func(t *testing.T) {
		a := landlockSlice(t, withoutLandlock)
		a.awaitTraced()
		if out, err := a.program("id -un"); err != nil || !strings.Contains(out, "postgres") {
			t.Errorf("%q %v; the test proves nothing", out, err)
		}
		if list := a.denialEvents(); len(list) > 0 {
			t.Errorf("what is allowed is told of as denied: %+v", list)
		}
	})
	t.Run("confined", func(t *testing.T) {
		a := landlockSlice(t, nil)
		a.awaitTraced()
		if _, err := a.program("echo hunter2"); err == nil {
			t.Fatal("it is executed")
		}
		e := a.awaitDenial("/bin/sh", "blocked", "EPERM")
		if e.Resource != "postgres" || e.Who == nil || e.Who.PID == 0 || !strings.HasPrefix(e.Who.Parent, "postgres (") || e.Who.UID != atoi(t, a.cluster.User.Uid) {
			t.Errorf("%+v, by %+v", e, e.Who)
		}
		a.want(0, []string{"LAST DENIALS", "postgres: the execution of /bin/sh was blocked", "by postgres ("}, "status")
		if got := a.metric("pghardend_denied_execs_total"); got != 1 {
			t.Errorf("%v executions are counted", got)
		}
		log, err := os.ReadFile(a.agent.LogPath)
		must(t, err)
		if i := strings.Index(string(log), `"level":"WARN","msg":"denied","service":"postgres"`); i < 0 {
			t.Error("it is not in the log")
		}
		for _, e := range a.allEvents() {
			if strings.Contains(fmt.Sprintf("%+v %+v", e, e.Who), "hunter2") {
				t.Errorf("an argument is told: %+v", e)
			}
		}
	})
}

// A36: helpers that are declared are executed, and what they may not is told as well: the
// shell is the parent then.
func TestA36_HelperRunsAndWhatItMayNotIsAnEvent(t *testing.T) {
	a := landlockSlice(t, withPrograms(t, "sh", "cat"))
	a.awaitTraced()
	if out, err := a.program("cat /proc/self/comm"); err != nil || !strings.Contains(out, "cat") {
		t.Errorf("%q %v", out, err)
	}
	if _, err := a.program("/usr/bin/id -un"); err == nil {
		t.Fatal("it is executed")
	}
	if e := a.awaitDenial("/usr/bin/id", "blocked"); e.Who.Command != "sh" || e.Who.PID == 0 {
		t.Errorf("by %+v", e.Who)
	}
}

// A39: what ALTER SYSTEM has the archiver execute is an event, and an archive command
// whose programs are declared works.
func TestA39_BlockedArchiveCommandIsAnEvent(t *testing.T) {
	archive := func(t *testing.T, change func(*testbed.Service), command string) (*attack, string) {
		s := newSlice(t, "nft", map[string]string{"archive_mode": "on"})
		if change != nil {
			s.configure(change)
		}
		s.start()
		s.awaitTraced()
		a := &attack{slice: s}
		to := filepath.Join(s.cluster.Data, "archived")
		_, err := a.superuser("ALTER SYSTEM SET archive_command = '" + strings.ReplaceAll(command, "TO", to) + "'")
		must(t, err)
		_, err = a.superuser("SELECT pg_reload_conf(); CREATE TABLE x (); SELECT pg_switch_wal()")
		must(t, err)
		return a, to
	}
	t.Run("blocked", func(t *testing.T) {
		a, _ := archive(t, nil, "PGPASSWORD=hunter2 touch TO")
		e := a.awaitDenial("/bin/sh", "blocked")
		if !strings.HasPrefix(e.Who.Parent, "postgres (") || strings.Contains(e.What, "hunter2") {
			t.Errorf("%+v, by %+v", e, e.Who)
		}
	})
	t.Run("declared", func(t *testing.T) {
		a, to := archive(t, withPrograms(t, "sh", "cp"), "cp %p TO")
		ctx, cancel := context.WithTimeout(a.ctx, 30*time.Second)
		defer cancel()
		must(t, a.agent.Await(ctx, "the archiver", func(context.Context) error {
			if n, err := a.superuser("SELECT archived_count FROM pg_stat_archiver"); err != nil || n == "0" {
				return errors.Join(err, errors.New("nothing is archived"))
			}
			_, err := os.Stat(to)
			return err
		}))
		if list := a.denialEvents(); len(list) > 0 {
			t.Errorf("denied: %+v", list)
		}
	})
}

// A37: a system call that the profile denies is an event that names it, once, and counted as often as
// it was tried; one that it does not know is normal, and counted alone.
func TestA37_DeniedSyscallIsAnEventByName(t *testing.T) {
	const often = 20000
	call := func(name string, times int) string {
		number := map[string]int{"ptrace": unix.SYS_PTRACE, "clone3": unix.SYS_CLONE3}[name]
		return fmt.Sprintf(`perl -e 'for (1..%d) { $r = syscall(%d, 16, 0, 0, 0) } print $r, " ", $!+0'`, times, number)
	}
	a := landlockSlice(t, withPrograms(t, "sh", "perl"))
	a.awaitTraced()
	for name, errno := range map[string]int{"ptrace": int(unix.EPERM), "clone3": int(unix.ENOSYS)} {
		if out, err := a.program(call(name, often)); err != nil || !strings.Contains(out, fmt.Sprintf("-1 %d", errno)) {
			t.Fatalf("%s: %q, %v", name, out, err)
		}
	}
	e := a.awaitDenial("system call ptrace was denied by the seccomp profile (EPERM)")
	if e.Who.Command != "perl" || !strings.HasPrefix(e.Who.Parent, "sh (") {
		t.Errorf("by %+v", e.Who)
	}
	if list := a.denialEvents(); len(list) != 1 {
		t.Errorf("%d events, one is enough: %+v", len(list), list)
	}
	for _, name := range []string{"ptrace", "clone3"} {
		b := mtBed{t: t, node: a.node, agent: a.agent}
		text, err := b.scrape(a.ctx, "unix", b.socket())
		must(t, err)
		_, number, _ := strings.Cut(text, fmt.Sprintf("pghardend_denied_syscalls_total{service=\"postgres\",syscall=%q} ", name))
		var n float64
		if _, err := fmt.Sscan(number, &n); err != nil || n < often || name == "ptrace" && n > often { // the C library tries clone3 as well
			t.Errorf("%s is counted %v times, of %d: %v", name, n, often, err)
		}
	}
	a.want(0, []string{"system call ptrace was denied"}, "status")
}

// A service that a daemon takes over is followed as well, with what it started before.
func TestDenialsOfAnAdoptedService(t *testing.T) {
	a := landlockSlice(t, nil)
	must(t, a.agent.Kill9(a.ctx))
	must(t, a.agent.Start())
	a.awaitOK()
	a.awaitTraced()
	if _, err := a.program("true"); err == nil {
		t.Fatal("it is executed")
	}
	a.awaitDenial("/bin/sh", "blocked")
}

// Without tracing, status says what is not told of and why.
func TestDenialsUntraced(t *testing.T) {
	s := newSlice(t, "nft", nil)
	text, err := os.ReadFile(s.agent.ConfigPath)
	must(t, err)
	must(t, testbed.WriteFile(s.agent.ConfigPath, string(text)+"denials: {trace: false}\n"))
	s.start()
	s.awaitStatus("a warning", func(st control.Status) error {
		if st.Denials.Source == "trace" || !slices.ContainsFunc(st.Warnings, func(w string) bool {
			return strings.Contains(w, "blocked executions") && strings.Contains(w, "denials.trace is false")
		}) {
			return fmt.Errorf("%+v, %q", st.Denials, st.Warnings)
		}
		return nil
	})
}
