package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// Find looks for the service's process without touching anything: its pid, or 0 if
// nothing runs. An error says that what runs is not provably the service.
func Find(ctx context.Context, spec Spec) (int, error) {
	k := newKeeper(New(spec, slog.New(slog.DiscardHandler)))
	f, err := k.look(ctx)
	if err != nil || f.proc == nil {
		return 0, err
	}
	defer f.proc.close()
	problem, err := k.identify(ctx, f.proc, f.exe, func() (pidFile, error) { return readPIDFile(ctx, spec.DataDir) })
	switch {
	case errors.Is(err, errGone):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("cannot identify process %d: %w", f.proc.pid, err)
	case problem != "":
		return 0, k.foreign(f.proc.pid, problem)
	}
	return f.proc.pid, nil
}

// StopRunning ends the service if it runs, in the way of [Supervisor.Stop], and
// starts nothing. It must not be used while another Supervisor has the service.
func StopRunning(ctx context.Context, spec Spec, log *slog.Logger) error {
	spec.Gate = make(chan struct{}) // never opened: only an adoption passes
	spec.Verify = nil
	ctx, cancel := context.WithCancel(ctx)
	s := New(spec, log)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	err := s.Stop(ctx)
	cancel()
	return errors.Join(err, <-done)
}
