package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/supervise"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/learn"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// serviceRecorder records the processes of one service, those that run and those
// that start. It is used by one goroutine.
type serviceRecorder struct {
	recorder *learn.Recorder
	tracker  *learn.Tracker
}

// recordService attaches. act may be nil.
func recordService(ctx context.Context, cfg config.Config, svc config.Service, spec launch.Spec, act func(learn.Act)) (*serviceRecorder, error) {
	id, err := launch.Intended(ctx, spec)
	if err != nil {
		return nil, err
	}
	rec, err := learn.Open(ctx, learn.Target{UID: id.UID, Program: spec.Command[0], Number: sandbox.SyscallNumber})
	if err != nil {
		return nil, err
	}
	r := &serviceRecorder{recorder: rec}
	name := func(number int) string {
		name, _ := sandbox.SyscallName(number) // "" if there is none
		return name
	}
	subject := learn.Subject{Command: spec.Command, DataDir: spec.DataDir, Name: name}
	if isPostgres(svc) { // pgpool has another meaning for it
		subject.Question = questionFlag
	}
	r.tracker = learn.NewTracker(subject, rec, act)
	if err := r.enroll(ctx, cfg, svc); err != nil {
		rec.Close()
		return nil, err
	}
	return r, nil
}

// enroll takes the processes that run. One that is made meanwhile is a child of
// one that is taken, or is found when all are looked for again.
func (r *serviceRecorder) enroll(ctx context.Context, cfg config.Config, svc config.Service) error {
	root, err := supervise.Find(ctx, superviseSpec(cfg, svc))
	if err != nil {
		return fmt.Errorf("cannot find service %s: %w", svc.Name, err)
	}
	for more := root != 0; more; {
		pids, err := launch.Tree(ctx, root)
		if errors.Is(err, launch.ErrVanished) {
			return nil // its next start is seen
		}
		if err != nil {
			return err
		}
		more = false
		for _, pid := range pids {
			run, added, err := r.recorder.Enroll(ctx, pid)
			if err != nil {
				return err
			}
			if added {
				more = true
				r.tracker.Enrolled(ctx, pid, run, pid == root)
			}
		}
	}
	return nil
}

// read takes what is there, and waits for a moment if there is nothing.
func (r *serviceRecorder) read(ctx context.Context) (int, error) {
	return r.recorder.Read(ctx, r.tracker.Take)
}

// finish ends the recording and takes the rest.
func (r *serviceRecorder) finish(ctx context.Context) error {
	r.recorder.Detach()
	for {
		if n, err := r.read(ctx); n == 0 || err != nil {
			return err
		}
	}
}
