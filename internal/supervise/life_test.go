package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestStartReadyStop(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/notify")
	t.Setenv("WATCHDOG_PID", "1")
	t.Setenv("LD_PRELOAD", "")
	t.Setenv("LC_ALL", "C.UTF-8")
	r := newRig(t, "-", "describe")
	r.Argv = append([]string{self(t), "play-launch"}, r.Argv...)
	s, _ := r.run()
	st := awaitState(t, s, StateReady)
	if st.PID == 0 || st.Adopted || st.Restarts != 0 || st.LastError != "" || st.Name != "t" {
		t.Errorf("status %+v", st)
	}
	await(t, "the description", func() bool { return exists(r.file("description")) })
	data, err := os.ReadFile(r.file("description"))
	if err != nil {
		t.Fatal(err)
	}
	got := string(data)
	for _, want := range []string{"fd 0 /dev/null\n", "fd 1 " + r.Log + "\n", "fd 2 " + r.Log + "\n", "leader true\n", "cwd /\n", "pdeathsig 0\n", "LC_ALL=C.UTF-8", "PATH="} {
		if !strings.Contains(got, want) {
			t.Errorf("the service lacks %q", want)
		}
	}
	for _, stray := range []string{"fd 3", "fd 4", "fd 5", "NOTIFY_SOCKET", "WATCHDOG", "LD_PRELOAD", "HOME="} {
		if strings.Contains(got, stray) {
			t.Errorf("the service has %q", stray)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
	if err := s.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if st := s.Status(); st.State != StateStopped || st.PID != 0 || st.LastError != "" {
		t.Errorf("after Stop: %+v", st)
	}
	if _, err := readStat(st.PID); !errors.Is(err, errGone) {
		t.Errorf("the process still runs or is a zombie: %v", err)
	}
}

func TestCrashIsRestartedWithBackoff(t *testing.T) {
	r := newRig(t, "fail=2")
	var seen []Status
	s, _ := r.run(func(s *Supervisor) {
		go func() {
			for range s.Changed() {
				_ = s.Status()
			}
		}()
	})
	await(t, "two crashes and a start", func() bool {
		st := s.Status()
		if st.State == StateBackoff && (len(seen) == 0 || seen[len(seen)-1].Restarts != st.Restarts) {
			seen = append(seen, st)
		}
		return st.State == StateReady && st.Restarts == 2
	})
	for _, st := range seen {
		if st.LastError != "exit status 1" || st.NextTry.IsZero() || st.PID != 0 {
			t.Errorf("in back-off: %+v", st)
		}
	}
	if len(seen) != 2 {
		t.Errorf("saw %d back-offs, want 2", len(seen))
	}
	if st := s.Status(); !st.NextTry.IsZero() || st.LastError != "" {
		t.Errorf("ready: %+v", st)
	}
	pid := s.Status().PID
	kill(t, pid, unix.SIGKILL)
	await(t, "the restart", func() bool { st := s.Status(); return st.State == StateReady && st.PID != pid })
	if st := s.Status(); st.Restarts != 3 {
		t.Errorf("restarts %d, want 3", st.Restarts)
	}
}

func TestBackoffGrowsAndIsForgottenWhenCalm(t *testing.T) {
	r := newRig(t, "fail=4")
	s, _ := r.run(func(s *Supervisor) { s.calm = 300 * time.Millisecond })
	var pauses []time.Duration
	var last time.Time
	await(t, "four crashes", func() bool {
		st := s.Status()
		if st.State == StateBackoff && st.NextTry != last {
			last = st.NextTry
			pauses = append(pauses, st.NextTry.Sub(st.Since))
		}
		return st.State == StateReady && st.Restarts == 4
	})
	for i, pause := range pauses {
		want := firstPause << i
		if pause < want/2 || pause > want*13/10 {
			t.Errorf("pause %d is %v, want about %v", i, pause, want)
		}
	}
	timer := time.NewTimer(2 * s.calm) // the calm itself is what is tested
	<-timer.C
	kill(t, s.Status().PID, unix.SIGKILL)
	st := awaitState(t, s, StateBackoff)
	if pause := st.NextTry.Sub(st.Since); pause > 2*firstPause {
		t.Errorf("after the calm the pause is %v, want about %v", pause, firstPause)
	}
}

func TestStopEscalatesToSIGQUIT(t *testing.T) {
	r := newRig(t, "no-int")
	r.Stop = 200 * time.Millisecond
	s, _ := r.run()
	awaitSignals(t, r, s)
	if err := s.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if st := s.Status(); st.State != StateStopped || !strings.Contains(st.LastError, "SIGQUIT") {
		t.Errorf("%+v", st)
	}
	data, _ := os.ReadFile(r.file("signals"))
	if string(data) != "interrupt\nquit\n" {
		t.Errorf("signals %q", data)
	}
}

func TestStopNeverKills(t *testing.T) {
	r := newRig(t, "no-int", "no-quit")
	r.Stop = 100 * time.Millisecond
	s, _ := r.run()
	awaitSignals(t, r, s)
	pid := s.Status().PID
	err := s.Stop(context.Background())
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d still runs", pid)) {
		t.Fatalf("Stop: %v", err)
	}
	if st := s.Status(); !alive(t, pid) || st.State != StateStopping || st.PID != pid || st.LastError == "" {
		t.Errorf("%+v", st)
	}
	if err := s.Start(context.Background()); err == nil || !strings.Contains(err.Error(), "being stopped") {
		t.Errorf("Start while stopping: %v", err)
	}
	signals := func() string {
		data, _ := os.ReadFile(r.file("signals"))
		return string(data)
	}
	await(t, "both signals", func() bool { return signals() == "interrupt\nquit\n" })
	if err := s.Stop(context.Background()); err == nil { // asks both signals again
		t.Error("a second Stop succeeded")
	}
	await(t, "both signals, twice", func() bool { return signals() == "interrupt\nquit\ninterrupt\nquit\n" })
	kill(t, pid, unix.SIGKILL)
	awaitState(t, s, StateStopped)
}

// awaitSignals waits until the service is ready and handles signals.
func awaitSignals(t *testing.T, r *rig, s *Supervisor) {
	t.Helper()
	awaitState(t, s, StateReady)
	await(t, "the service", func() bool { return exists(r.file("starts")) })
}

func TestLaunchRefusalIsKeptAndRetried(t *testing.T) {
	r := newRig(t, "-")
	need := r.file("need")
	r.Argv = append([]string{self(t), "play-launch", "-need", need}, r.Argv...)
	s, _ := r.run()
	err := s.Start(context.Background())
	want := "cannot start service t: step data-dir: " + need + " is missing"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Start: %v", err)
	}
	st := awaitState(t, s, StateBackoff)
	if st.LastError != want {
		t.Errorf("last error %q, want %q", st.LastError, want)
	}
	if err := os.WriteFile(need, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if st = awaitState(t, s, StateReady); st.LastError != "" || st.Restarts == 0 {
		t.Errorf("after the fix: %+v", st)
	}
}

func TestMissingProgram(t *testing.T) {
	r := newRig(t, "-")
	r.Argv = []string{r.file("nothing")}
	s, _ := r.run()
	st := awaitState(t, s, StateBackoff)
	if !strings.Contains(st.LastError, "cannot execute "+r.Argv[0]) {
		t.Errorf("%+v", st)
	}
}

// A clean end that nobody asked us for is somebody's decision; it outlives the daemon.
func TestCleanExitIsNotRestarted(t *testing.T) {
	r := newRig(t, "-")
	s, end := r.run()
	awaitSignals(t, r, s)
	kill(t, s.Status().PID, unix.SIGTERM)
	st := awaitState(t, s, StateStopped)
	want := "stopped by another hand (exit 0); `pghardend start --service t` starts it again"
	if st.LastError != want {
		t.Errorf("reason %q", st.LastError)
	}
	end()

	s, end = r.run()
	if st := awaitState(t, s, StateStopped); st.LastError != want {
		t.Errorf("the next daemon: %+v", st)
	}
	if err := s.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	pid := awaitState(t, s, StateReady).PID
	end()

	s, _ = r.run()
	if st := awaitState(t, s, StateReady); st.PID != pid || !st.Adopted {
		t.Errorf("after Start and another daemon: %+v", st)
	}
	await(t, "the second start", func() bool { return countLines(r.file("starts")) >= 2 })
	if n := countLines(r.file("starts")); n != 2 {
		t.Errorf("%d starts, want 2", n)
	}
}

func TestStartTimeoutDoesNotKill(t *testing.T) {
	r := newServerRig(t, "slow")
	r.Start = 200 * time.Millisecond
	s, _ := r.run()
	await(t, "the complaint", func() bool {
		text := s.Status().LastError
		return strings.Contains(text, "not ready after 200ms") && strings.Contains(text, `"starting"`)
	})
	await(t, "the server", func() bool { return exists(filepath.Join(r.DataDir, "starts")) })
	st := s.Status()
	if st.State != StateStarting || st.Restarts != 0 || !alive(t, st.PID) {
		t.Errorf("%+v", st)
	}
	kill(t, st.PID, unix.SIGUSR1)
	if now := awaitState(t, s, StateReady); now.PID != st.PID || now.LastError != "" {
		t.Errorf("%+v", now)
	}
}

func TestGateHoldsBackTheFirstStartOnly(t *testing.T) {
	r := newRig(t, "-")
	gate := make(chan struct{})
	s, end := r.run(func(s *Supervisor) { s.spec.Gate = gate })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := s.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start before the gate: %v", err)
	}
	if st := s.Status(); st.State != StateWaiting || len(r.processes()) != 0 {
		t.Errorf("%+v %v", st, r.processes())
	}
	close(gate)
	st := awaitState(t, s, StateReady)
	end()

	s, _ = r.run(func(s *Supervisor) { s.spec.Gate = make(chan struct{}) })
	if now := awaitState(t, s, StateReady); now.PID != st.PID {
		t.Errorf("an adoption waited for the gate: %+v", now)
	}
	if err := s.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestStopBeforeTheGate(t *testing.T) {
	r := newRig(t, "-")
	gate := make(chan struct{})
	s, _ := r.run(func(s *Supervisor) { s.spec.Gate = gate })
	if err := s.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	close(gate)
	if st := s.Status(); st.State != StateStopped || exists(r.file("starts")) {
		t.Errorf("%+v", st)
	}
	if err := s.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if st := s.Status(); st.State != StateReady {
		t.Errorf("%+v", st)
	}
}

func TestStopEndsABackoff(t *testing.T) {
	r := newRig(t, "fail=1000")
	s, _ := r.run()
	awaitState(t, s, StateBackoff)
	if err := s.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if st := s.Status(); st.State != StateStopped {
		t.Errorf("%+v", st)
	}
}

// A record that cannot be written: without a data directory the next daemon could
// not find the service, so it must not begin.
func TestUnwritableRecord(t *testing.T) {
	block := func(r *rig) {
		if err := os.WriteFile(filepath.Dir(r.Record), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("no data directory", func(t *testing.T) {
		r := newRig(t, "-")
		block(r)
		s, _ := r.run()
		st := awaitState(t, s, StateBackoff)
		if !strings.Contains(st.LastError, "directory of the records") || exists(r.file("starts")) {
			t.Errorf("%+v", st)
		}
		if err := os.Remove(filepath.Dir(r.Record)); err != nil {
			t.Fatal(err)
		}
		awaitState(t, s, StateReady)
	})
	t.Run("data directory", func(t *testing.T) {
		r := newServerRig(t)
		block(r)
		s, end := r.run()
		pid := awaitState(t, s, StateReady).PID
		end()
		s, _ = r.run()
		if st := awaitState(t, s, StateReady); st.PID != pid || !st.Adopted {
			t.Errorf("%+v", st)
		}
	})
}

func TestOtherChildrenKeepTheirExits(t *testing.T) {
	r := newRig(t, "fail=1000")
	s, _ := r.run()
	awaitState(t, s, StateBackoff)
	for i := range 30 {
		want := i % 3
		err := exec.Command("/bin/sh", "-c", fmt.Sprintf("exit %d", want)).Run()
		var exit *exec.ExitError
		got := 0
		if errors.As(err, &exit) {
			got = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Fatalf("exit %d, want %d", got, want)
		}
	}
}

func TestConcurrentRequests(t *testing.T) {
	r := newRig(t, "-")
	s, _ := r.run()
	awaitState(t, s, StateReady)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if i%2 == 0 {
					_ = s.Start(ctx)
				} else {
					_ = s.Stop(ctx)
				}
				_ = s.Status()
			}
		})
	}
	wg.Wait()
	await(t, "a start", func() bool { return s.Start(context.Background()) == nil })
	if exists(r.file("doubles")) {
		t.Error("two ran at once")
	}
	if st := s.Status(); st.State != StateReady || !alive(t, st.PID) {
		t.Errorf("%+v", st)
	}
}

func TestRequestsAndContexts(t *testing.T) {
	r := newRig(t, "no-int")
	s, end := r.run()
	awaitSignals(t, r, s)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := s.Stop(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "goes on") {
		t.Errorf("Stop: %v", err)
	}
	reply := make(chan error, 1)
	s.requests <- request{requestStop, reply} // once sent, it is in the owner's hands
	end()
	if err := <-reply; !errors.Is(err, errEnded) {
		t.Errorf("Stop when Run ended: %v", err)
	}
	if err := s.Start(context.Background()); !errors.Is(err, errEnded) {
		t.Errorf("Start after Run: %v", err)
	}
	if err := s.Run(context.Background()); err == nil {
		t.Error("Run ran twice")
	}
}

func TestSpecIsChecked(t *testing.T) {
	s := New(Spec{Name: "a/b", Argv: []string{"postgres"}, DataDir: "data"}, nil)
	err := s.Run(context.Background())
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"slash", "first word", "executable", "record file", "data directory"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
