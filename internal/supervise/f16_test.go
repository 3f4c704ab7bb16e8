package supervise

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestF16_DaemonKilledServiceAdopted(t *testing.T) {
	t.Parallel()
	r := newRig(t, "-")
	d := r.daemon()
	pid := d.await(StateReady).PID
	d.kill()
	for range 3 {
		d = r.daemon()
		if st := d.await(StateReady); st.PID != pid || !st.Adopted || st.Restarts != 0 {
			t.Fatalf("%+v, want pid %d adopted", st, pid)
		}
		d.kill()
	}
	s, _ := r.run()
	if st := awaitState(t, s, StateReady); st.PID != pid || !st.Adopted || st.Restarts != 0 {
		t.Fatalf("%+v, want pid %d adopted", st, pid)
	}
	kill(t, pid, unix.SIGKILL) // noticed though it is nobody's child here
	await(t, "the restart", func() bool { st := s.Status(); return st.State == StateReady && st.PID != pid })
	if st := s.Status(); st.Restarts != 1 || st.Adopted {
		t.Errorf("%+v", st)
	}
	await(t, "the second start", func() bool { return countLines(r.file("starts")) >= 2 })
	if exists(r.file("doubles")) || countLines(r.file("starts")) != 2 {
		t.Error("it was started more often than needed")
	}
}

// The daemon dies after fork, after the record, and after the release.
func TestF16_DaemonKilledAtEachStepOfAStart(t *testing.T) {
	t.Parallel()
	for step, want := range map[string]string{"1": "exits", "2": "exits", "3": "lives"} {
		t.Run("step "+step, func(t *testing.T) {
			r := newRig(t, "-")
			r.Argv = append([]string{self(t), "play-launch"}, r.Argv...)
			out, err := exec.Command(self(t), "play-steps", r.writePlan(), step).Output()
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
			if err != nil {
				t.Fatal(err)
			}
			s, _ := r.run()
			st := awaitState(t, s, StateReady)
			if adopted := st.PID == pid; adopted != (want == "lives") || adopted != st.Adopted {
				t.Errorf("%+v; the first process was %d and %s", st, pid, want)
			}
			await(t, "the service alone", func() bool { pids := r.processes(); return len(pids) == 1 && pids[0] == st.PID })
			await(t, "its start", func() bool { return countLines(r.file("starts")) > 0 })
			if exists(r.file("doubles")) || countLines(r.file("starts")) != 1 {
				t.Error("a second one was started")
			}
		})
	}
}

// Daemons are killed at random moments of a start; never do two services run, and
// none is lost.
func TestF16_DaemonKilledAtRandomMoments(t *testing.T) {
	for _, kind := range []string{"service", "postmaster", "postmaster without records"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "-")
			doubles := r.file("doubles")
			if kind != "service" {
				r = newServerRig(t)
				doubles = filepath.Join(r.DataDir, "doubles")
			}
			r.Argv = append([]string{self(t), "play-launch"}, r.Argv...)
			for i := range 12 {
				d := r.daemon()
				timer := time.NewTimer(time.Duration(rand.IntN(300)) * time.Millisecond)
				<-timer.C
				d.kill()
				if kind == "postmaster without records" {
					_ = os.RemoveAll(filepath.Dir(r.Record))
				} else if i%4 == 3 { // the next one has a start to make
					r.clean()
				}
			}
			s, _ := r.run()
			st := awaitState(t, s, StateReady)
			await(t, "the service alone", func() bool { pids := r.processes(); return len(pids) == 1 && pids[0] == st.PID })
			if kind != "postmaster without records" && exists(doubles) {
				t.Error("two ran at once")
			}
		})
	}
}

// A daemon that dies amid a stop: the next one finishes it.
func TestF16_DaemonKilledAmidAStop(t *testing.T) {
	t.Parallel()
	r := newRig(t, "no-int")
	d := r.daemon("stop")
	await(t, "the first signal", func() bool { return countLines(r.file("signals")) == 1 })
	d.kill()
	r.Stop = 100 * time.Millisecond
	s, _ := r.run()
	if st := awaitState(t, s, StateStopped); st.PID != 0 || countLines(r.file("starts")) != 1 {
		t.Errorf("%+v", st)
	}
	if pids := r.processes(); len(pids) != 0 {
		t.Errorf("%v still run", pids)
	}
}
