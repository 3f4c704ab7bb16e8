package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRecordOfAnotherProcess(t *testing.T) {
	for name, change := range map[string]func(*record){
		"recycled pid":  func(r *record) { r.Start-- },
		"another boot":  func(r *record) { r.Boot = "d0f39d5c-0000-4c1b-9d4c-000000000000" },
		"dead":          func(r *record) { r.PID = deadPID(t) },
		"other version": func(r *record) { r.Version++ },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "-")
			bystander := startSleep(t, "/")
			r.forge(bystander, change)
			s, _ := r.run()
			st := awaitState(t, s, StateReady)
			if st.Adopted || st.PID == bystander {
				t.Errorf("%+v; %d is a bystander", st, bystander)
			}
			if err := s.Stop(context.Background()); err != nil {
				t.Error(err)
			}
			if !alive(t, bystander) {
				t.Error("the bystander was killed")
			}
		})
	}
}

func TestRecordThatOthersMayWrite(t *testing.T) {
	r := newRig(t, "-")
	bystander := startSleep(t, "/")
	r.forge(bystander, func(*record) {})
	if err := os.Chmod(r.Record, 0o666); err != nil {
		t.Fatal(err)
	}
	s, _ := r.run()
	if st := awaitState(t, s, StateReady); st.Adopted || st.PID == bystander {
		t.Errorf("%+v; %d is a bystander", st, bystander)
	}
}

// The record is right but the process has become something else.
func TestRecordedProcessRunsSomethingElse(t *testing.T) {
	r := newRig(t, "-")
	r.Start = 200 * time.Millisecond
	other := startSleep(t, "/")
	r.forge(other, func(rec *record) { rec.Exe = exeID{Path: r.Exe} })
	s, _ := r.run()
	st := awaitState(t, s, StateFailed)
	if !strings.Contains(st.LastError, fmt.Sprintf("t already runs as pid %d but it runs ", other)) || !strings.Contains(st.LastError, "kill -INT") {
		t.Errorf("%+v", st)
	}
	if err := s.Stop(context.Background()); err == nil || !alive(t, other) {
		t.Errorf("Stop: %v", err)
	}
}

func TestSpoiltRecord(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"empty":     func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"truncated": func(p string) error { return os.WriteFile(p, []byte(`{"version":1,"pid":1`), 0o600) },
		"fifo":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"symlink":   func(p string) error { return os.Symlink("/etc/passwd", p) },
		"writable by others": func(p string) error {
			return errors.Join(os.WriteFile(p, []byte(`{"version":1}`), 0o600), os.Chmod(p, 0o666))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "-")
			if err := errors.Join(os.MkdirAll(filepath.Dir(r.Record), 0o700), spoil(r.Record)); err != nil {
				t.Fatal(err)
			}
			s, _ := r.run()
			st := awaitState(t, s, StateReady)
			rec, err := readRecord(context.Background(), r.Record)
			if err != nil || rec.PID != st.PID {
				t.Errorf("record afterwards: %+v, %v", rec, err)
			}
		})
	}
}

func TestLeftoversAreRemoved(t *testing.T) {
	r := newRig(t, "-")
	dir := filepath.Dir(r.Record)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	keep := []string{"t2.json", ".t.jsonx", ".t2.json123"}
	for _, name := range append(keep, ".t.json123", ".t.json9") {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := r.run()
	awaitState(t, s, StateReady)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(keep)+1 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestUpgradedBinaryIsStillOurs(t *testing.T) {
	r := newRig(t, "-")
	r.Exe = r.file("server")
	copyFile(t, "/bin/sleep", r.Exe)
	r.Argv = []string{self(t), "play-launch", r.Exe, "3600"}
	s, end := r.run()
	pid := awaitState(t, s, StateReady).PID
	end()
	copyFile(t, "/bin/sleep", r.file("new"))
	if err := os.Rename(r.file("new"), r.Exe); err != nil {
		t.Fatal(err)
	}
	if link, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); link != r.Exe+" (deleted)" {
		t.Fatalf("exe is %s", link)
	}
	p, err := openProcess(context.Background(), pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if f, err := p.facts(context.Background()); err != nil || f.exe.Path != r.Exe {
		t.Errorf("without a record it would be taken for %+v, %v", f.exe, err)
	}
	s, _ = r.run()
	if st := awaitState(t, s, StateReady); st.PID != pid || !st.Adopted {
		t.Errorf("%+v", st)
	}
}

func TestLostRecordIsMadeUpByPIDFile(t *testing.T) {
	t.Parallel()
	r := newServerRig(t)
	d := r.daemon()
	pid := d.await(StateReady).PID
	d.kill()
	if err := os.RemoveAll(filepath.Dir(r.Record)); err != nil {
		t.Fatal(err)
	}
	s, end := r.run()
	if st := awaitState(t, s, StateReady); st.PID != pid || !st.Adopted || st.Restarts != 0 {
		t.Errorf("%+v", st)
	}
	if rec, err := readRecord(context.Background(), r.Record); err != nil || rec.PID != pid {
		t.Errorf("the record was not made anew: %+v %v", rec, err)
	}
	end()
}

func TestAdoptedPostmasterEnds(t *testing.T) {
	t.Parallel()
	adopted := func(t *testing.T) (*rig, *Supervisor, int) {
		r := newServerRig(t)
		d := r.daemon()
		pid := d.await(StateReady).PID
		d.kill()
		s, _ := r.run()
		if st := awaitState(t, s, StateReady); st.PID != pid || !st.Adopted {
			t.Fatalf("%+v", st)
		}
		return r, s, pid
	}
	t.Run("by another hand", func(t *testing.T) {
		r, s, pid := adopted(t)
		kill(t, pid, unix.SIGINT)
		st := awaitState(t, s, StateStopped)
		if !strings.HasPrefix(st.LastError, "stopped by another hand (") || countLines(filepath.Join(r.DataDir, "starts")) != 1 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("crash", func(t *testing.T) {
		_, s, pid := adopted(t)
		kill(t, pid, unix.SIGKILL)
		await(t, "the restart", func() bool { st := s.Status(); return st.State == StateReady && st.PID != pid && st.Restarts == 1 })
	})
	t.Run("gives up in order", func(t *testing.T) { // disk full in crash recovery
		_, s, pid := adopted(t)
		if err := os.MkdirAll(filepath.Join(s.spec.DataDir, "global"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.spec.DataDir, "global", "pg_control"), controlFile(1300, 6), 0o600); err != nil {
			t.Fatal(err)
		}
		kill(t, pid, unix.SIGUSR2)
		await(t, "the restart", func() bool { st := s.Status(); return st.State == StateReady && st.PID != pid && st.Restarts == 1 })
	})
	t.Run("by us", func(t *testing.T) {
		_, s, pid := adopted(t)
		if err := s.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		if alive(t, pid) || s.Status().LastError != "" {
			t.Errorf("%+v", s.Status())
		}
	})
}

// What another hand started on our data directory is reported, not touched.
func TestForeignPostmaster(t *testing.T) {
	r := newServerRig(t)
	other := startSleep(t, r.DataDir)
	if err := writePIDFile(r.DataDir, pidFileText(other, r.DataDir, r.dir, "", "ready   ")); err != nil {
		t.Fatal(err)
	}
	s, _ := r.run()
	st := awaitState(t, s, StateFailed)
	for _, want := range []string{fmt.Sprintf("postgres with pid %d already runs on %s but it runs ", other, r.DataDir), "pg_ctl -D", "pghardend start --service t"} {
		if !strings.Contains(st.LastError, want) {
			t.Errorf("%q is not in %q", want, st.LastError)
		}
	}
	if err := s.Start(context.Background()); err == nil {
		t.Error("Start succeeded beside it")
	}
	if !alive(t, other) || exists(filepath.Join(r.DataDir, "starts")) {
		t.Error("it was touched, or a second one started")
	}
	kill(t, other, unix.SIGKILL)
	await(t, "its end", func() bool { return !alive(t, other) })
	if err := s.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestSingleUserPostgresIsLeftAlone(t *testing.T) {
	r := newServerRig(t)
	other := startSleep(t, r.DataDir)
	text := strings.Replace(pidFileText(other, r.DataDir, r.dir, "", ""), strconv.Itoa(other), strconv.Itoa(-other), 1)
	if err := writePIDFile(r.DataDir, text); err != nil {
		t.Fatal(err)
	}
	r.Exe, _ = filepath.EvalSymlinks("/bin/sleep")
	s, _ := r.run()
	if st := awaitState(t, s, StateFailed); !strings.Contains(st.LastError, "single-user") || !alive(t, other) {
		t.Errorf("%+v", st)
	}
}

// A postmaster.pid left by a crash whose PID another process has now.
func TestStalePIDFile(t *testing.T) {
	r := newServerRig(t)
	bystander := startSleep(t, r.dir)
	if err := writePIDFile(r.DataDir, pidFileText(bystander, r.DataDir, r.dir, "", "ready   ")); err != nil {
		t.Fatal(err)
	}
	s, _ := r.run()
	st := awaitState(t, s, StateBackoff) // the server itself refuses, as postgres would
	if want := filepath.Join(r.DataDir, pidFileName); !strings.Contains(st.LastError, "remove "+want) {
		t.Errorf("%+v", st)
	}
	if !alive(t, bystander) {
		t.Error("the bystander was touched")
	}
	if err := os.Remove(filepath.Join(r.DataDir, pidFileName)); err != nil {
		t.Fatal(err)
	}
	awaitState(t, s, StateReady)
}

func TestHalfWrittenPIDFileIsNotTakenForNone(t *testing.T) {
	r := newServerRig(t)
	path := filepath.Join(r.DataDir, pidFileName)
	for _, text := range []string{"", "12", "12\n/half"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, end := r.run()
		st := awaitState(t, s, StateBackoff)
		if !strings.Contains(st.LastError, "half-written") || exists(filepath.Join(r.DataDir, "starts")) {
			t.Errorf("%q: %+v", text, st)
		}
		end()
	}
	s, _ := r.run()
	awaitState(t, s, StateBackoff)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	awaitState(t, s, StateReady)
}

func TestVerifyDecidesAnAdoption(t *testing.T) {
	t.Parallel()
	r := newServerRig(t)
	d := r.daemon()
	pid := d.await(StateReady).PID
	d.kill()
	var confined atomic.Bool
	s, _ := r.run(func(s *Supervisor) {
		s.spec.Verify = func(_ context.Context, got int) error {
			if got != pid {
				t.Errorf("asked about pid %d", got)
			}
			if confined.Load() {
				return nil
			}
			return errors.New("seccomp mode 0, want 2")
		}
	})
	st := awaitState(t, s, StateFailed)
	if !strings.Contains(st.LastError, "seccomp mode 0, want 2") || st.Adopted {
		t.Errorf("%+v", st)
	}
	if err := s.Stop(context.Background()); err == nil || !alive(t, pid) {
		t.Errorf("Stop of what is not adopted: %v", err)
	}
	confined.Store(true)
	if err := s.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if st := s.Status(); st.PID != pid || !st.Adopted || st.Restarts != 0 {
		t.Errorf("%+v", st)
	}
}

func TestDataDirectoryChangedInTheConfig(t *testing.T) {
	r := newServerRig(t)
	s, end := r.run()
	pid := awaitState(t, s, StateReady).PID
	end()
	old := r.DataDir
	r.DataDir = r.file("data2")
	if err := os.Mkdir(r.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, _ = r.run()
	if st := awaitState(t, s, StateFailed); !strings.Contains(st.LastError, strconv.Quote(old)) || !alive(t, pid) {
		t.Errorf("%+v", st)
	}
}

func TestIdentityOfAPostmaster(t *testing.T) {
	r := newServerRig(t)
	s, _ := r.run()
	pid := awaitState(t, s, StateReady).PID
	ctx := context.Background()
	p, err := openProcess(ctx, pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	link := r.file("link")
	if err := os.Symlink(r.DataDir, link); err != nil {
		t.Fatal(err)
	}
	elsewhere, err := os.Stat(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*facts, *pidFile)
		want   string
	}{
		"itself":         {func(*facts, *pidFile) {}, ""},
		"by a symlink":   {func(_ *facts, pf *pidFile) { pf.dataDir = link }, ""},
		"another user's": {func(f *facts, _ *pidFile) { f.uid++ }, "not that of the directory's owner"},
		"another cwd":    {func(f *facts, _ *pidFile) { f.cwd = elsewhere }, "works in another directory"},
		"another pid":    {func(_ *facts, pf *pidFile) { pf.pid++ }, "names pid"},
		"another dir":    {func(_ *facts, pf *pidFile) { pf.dataDir = r.dir }, "names data directory"},
		"single user":    {func(_ *facts, pf *pidFile) { pf.single = true }, "single-user"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := p.facts(ctx)
			if err != nil {
				t.Fatal(err)
			}
			pf, err := readPIDFile(ctx, r.DataDir)
			if err != nil {
				t.Fatal(err)
			}
			test.change(&f, &pf)
			problem, err := newKeeper(s).identifyPostmaster(ctx, p, f, pf)
			if err != nil || (problem == "") != (test.want == "") || !strings.Contains(problem, test.want) {
				t.Errorf("%q, %v, want %q", problem, err, test.want)
			}
		})
	}
}

// A stop that the record remembers, and then another hand's postmaster: Start must
// come to an answer both times.
func TestStartAfterAStopAndAForeignPostmaster(t *testing.T) {
	r := newServerRig(t)
	s, end := r.run()
	awaitState(t, s, StateReady)
	if err := s.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	end()
	other := startSleep(t, r.DataDir)
	if err := writePIDFile(r.DataDir, pidFileText(other, r.DataDir, r.dir, "", "ready")); err != nil {
		t.Fatal(err)
	}
	s, _ = r.run()
	awaitState(t, s, StateFailed)
	if err := s.Start(context.Background()); err == nil {
		t.Error("no error")
	}
	kill(t, other, unix.SIGKILL)
	await(t, "its end", func() bool { return !alive(t, other) })
	if err := s.Start(context.Background()); err != nil {
		t.Error(err)
	}
}

// Kernels before 6.15 do not tell the exit status of an adopted process.
func TestEndOfAnAdoptedPostmasterWithoutItsStatus(t *testing.T) {
	r := newServerRig(t)
	k := newKeeper(New(r.spec(), nil))
	k.proc = &process{pid: 4711}
	ctx := context.Background()
	for name, test := range map[string]struct {
		pidFile string
		want    bool
	}{
		"removed":                {"", true},
		"left":                   {pidFileText(4711, r.DataDir, r.dir, "", "ready"), false},
		"a successor's":          {pidFileText(4712, r.DataDir, r.dir, "", "ready"), true},
		"a successor half there": {"47", false},
	} {
		_ = os.Remove(filepath.Join(r.DataDir, pidFileName))
		if test.pidFile != "" {
			if err := writePIDFile(r.DataDir, test.pidFile); err != nil {
				t.Fatal(err)
			}
		}
		if got := k.endedByHand(ctx, exit{}); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	k.spec.DataDir = ""
	if k.endedByHand(ctx, exit{}) {
		t.Error("nothing says that it was not a crash")
	}
}
