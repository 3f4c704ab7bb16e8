package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

const (
	// startPatience is for a process that a daemon has just started: until it is the service's program and has
	// written its postmaster.pid, something speaks against it. That takes milliseconds, on a slow host seconds.
	startPatience = 10 * time.Second
	startLook     = 20 * time.Millisecond
)

// Find looks for the service's process without touching anything: its pid, or 0 if
// nothing runs. An error says that what runs is not provably the service; with one that
// was started a moment ago it waits for that.
func Find(ctx context.Context, spec Spec) (int, error) {
	k := newKeeper(New(spec, slog.New(slog.DiscardHandler)))
	f, err := k.look(ctx)
	if err != nil || f.proc == nil {
		return 0, err
	}
	defer f.proc.close()
	recorded := f.exe != exeID{}
	for began := time.Now(); ; {
		problem, err := k.identify(ctx, f.proc, f.exe, func() (pidFile, error) { return readPIDFile(ctx, spec.DataDir) })
		switch {
		case errors.Is(err, errGone):
			return 0, nil
		case err != nil:
			return 0, fmt.Errorf("cannot identify process %d: %w", f.proc.pid, err)
		case problem == "":
			return f.proc.pid, nil
		case !recorded || time.Since(began) > startPatience:
			return 0, k.foreign(f.proc.pid, problem)
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("cannot wait for process %d, of which %s: %w", f.proc.pid, problem, ctx.Err())
		case <-time.After(startLook):
		}
	}
}

// StopRunning ends the service if it runs, in the way of [Supervisor.Stop], and
// starts nothing. It must not be used while another Supervisor has the service.
func StopRunning(ctx context.Context, spec Spec, log *slog.Logger) error {
	spec.Gate = make(chan struct{}) // never opened: only an adoption passes
	spec.Verify = nil
	spec.External = false // what it says of ends is for a daemon that stays
	ctx, cancel := context.WithCancel(ctx)
	s := New(spec, log)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	err := s.Stop(ctx)
	cancel()
	return errors.Join(err, <-done)
}
