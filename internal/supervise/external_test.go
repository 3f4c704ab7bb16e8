package supervise

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// startOutside runs the rig's service as its own unit would, with the record that
// `pghardend exec` leaves.
func (r *rig) startOutside() int {
	r.t.Helper()
	cmd := exec.Command(r.Argv[0], r.Argv[1:]...)
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	r.t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	r.forge(cmd.Process.Pid, func(rec *record) { rec.Exe = exeID{Path: r.Exe} })
	return cmd.Process.Pid
}

func external(s *Supervisor) { s.spec.External = true }

func TestExternalIsAdoptedAndNeverStarted(t *testing.T) {
	r := newRig(t, "-")
	s, end := r.run(external)
	awaitState(t, s, StateWaiting)
	if err := s.Start(context.Background()); err == nil || !strings.Contains(err.Error(), "start its unit") {
		t.Errorf("Start: %v", err)
	}
	first := r.startOutside()
	if st := awaitState(t, s, StateReady); !st.Adopted || st.PID != first {
		t.Errorf("%+v, want %d adopted", st, first)
	}
	kill(t, first, unix.SIGKILL)
	awaitState(t, s, StateWaiting)
	second := r.startOutside()
	await(t, "the second one", func() bool { return s.Status().PID == second && s.Status().State == StateReady })
	if st := s.Status(); st.Restarts != 0 {
		t.Errorf("%+v: restarts are its unit's", st)
	}
	if err := s.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	awaitState(t, s, StateWaiting)
	// What a stop leaves in the record holds for the one that was stopped.
	third := r.startOutside()
	await(t, "the third one", func() bool { return s.Status().PID == third && s.Status().State == StateReady })
	end()
	if !alive(t, third) {
		t.Error("the daemon's end was the service's")
	}
	if pids := r.processes(); len(pids) != 1 || pids[0] != third {
		t.Errorf("%v run, want %d alone", pids, third)
	}
}

// One that runs unconfined is refused, and found when it has been started as it should be.
func TestExternalIsLookedAtAgain(t *testing.T) {
	r := newRig(t, "-")
	confined := make(chan struct{})
	wrong := r.startOutside()
	s, _ := r.run(external, func(s *Supervisor) {
		s.spec.Verify = func(context.Context, int) error {
			select {
			case <-confined:
				return nil
			default:
				return context.DeadlineExceeded
			}
		}
	})
	if st := awaitState(t, s, StateFailed); !strings.Contains(st.LastError, "not confined as configured") {
		t.Errorf("%+v", st)
	}
	if !alive(t, wrong) {
		t.Error("it was ended")
	}
	close(confined)
	awaitState(t, s, StateReady)
}

func TestNoteNamesThisProcess(t *testing.T) {
	r := newRig(t, "-")
	spec := r.spec()
	if err := Note(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	rec, err := readRecord(t.Context(), r.Record)
	if err != nil {
		t.Fatal(err)
	}
	if want := unix.Getpid(); rec.PID != want || rec.Stopped || rec.Exe.Path == "" {
		t.Errorf("%+v, want pid %d", rec, want)
	}
}
