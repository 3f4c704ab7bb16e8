package supervise

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// starting waits for the launch stage to succeed and the service to be ready.
func (k *keeper) starting(ctx context.Context) phase {
	k.set(StateStarting, k.refusal)
	var report <-chan string
	var probe <-chan error
	probing, endProbe := context.WithCancel(ctx)
	defer endProbe()
	if k.report != nil {
		report = readReport(k.report, &k.wg)
	} else {
		probe = k.probe(probing)
	}
	timeout := time.NewTimer(k.spec.StartTimeout)
	defer timeout.Stop()
	last, late := "the launch stage has not come to an end", false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.proc.ended:
			k.hear(report)
			return k.gone
		case text := <-report:
			report = nil
			if text != "" && k.refusal == "" {
				k.refusal = text
			}
			if k.refusal == "" {
				probe = k.probe(probing)
			}
			k.set(StateStarting, k.refusal)
		case err := <-probe:
			if err == nil {
				return k.ready
			}
			last = err.Error()
			if late {
				k.set(StateStarting, k.lateness(last))
			}
		case <-timeout.C:
			late = true
			k.set(StateStarting, k.lateness(last))
		case r := <-k.requests:
			if next := k.busy(r); next != nil {
				return next
			}
		}
	}
}

func (k *keeper) lateness(last string) string {
	if k.refusal != "" {
		return k.refusal
	}
	return fmt.Sprintf("not ready after %v: %s; crash recovery can take long and is not cut short, see the service's log", k.spec.StartTimeout, last)
}

// hear waits, but not for ever, for what a launch stage that has ended had to say.
func (k *keeper) hear(report <-chan string) {
	if report == nil {
		return
	}
	timeout := time.NewTimer(time.Second)
	defer timeout.Stop()
	select {
	case text := <-report:
		if k.refusal == "" {
			k.refusal = text
		}
	case <-timeout.C: // a descendant still holds the pipe
	}
}

// probe asks again and again whether the service is ready; nil is the last answer.
func (k *keeper) probe(ctx context.Context) <-chan error {
	answers := make(chan error)
	p, since := k.proc, time.Now()
	k.wg.Go(func() {
		for {
			err := k.isReady(ctx, p)
			select {
			case answers <- err:
			case <-ctx.Done():
				return
			}
			if err == nil {
				return
			}
			pause := tick
			if time.Since(since) > k.spec.StartTimeout {
				pause = slowTick
			}
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
	})
	return answers
}

// isReady: a postmaster accepts connections; anything else has been executed.
func (k *keeper) isReady(ctx context.Context, p *process) error {
	if k.spec.DataDir != "" {
		return postmasterReady(ctx, k.spec.DataDir, p.pid)
	}
	f, err := p.facts(ctx)
	if err != nil {
		return err
	}
	if !f.exe.same(serviceExe(ctx, k.spec)) && !f.exe.same(k.exe) {
		return fmt.Errorf("it runs %s, not %s", f.exe.Path, k.spec.Exe)
	}
	return nil
}

// ready watches a service that is as it should be.
func (k *keeper) ready(ctx context.Context) phase {
	k.set(StateReady, "")
	k.answer(&k.starters, nil)
	calm := time.NewTimer(k.calm)
	defer calm.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.proc.ended:
			return k.gone
		case <-calm.C:
			k.pause.Reset()
		case r := <-k.requests:
			if r.kind == requestStart {
				r.reply <- nil
			} else if next := k.busy(r); next != nil {
				return next
			}
		}
	}
}

// busy takes a request while a process runs that may be ended.
func (k *keeper) busy(r request) phase {
	if r.kind == requestStart {
		k.starters = append(k.starters, r.reply)
		return nil
	}
	if err := k.proc.mayStop(); err != nil { // a stop that nobody carries out is not begun
		r.reply <- err
		return nil
	}
	k.stoppers = append(k.stoppers, r.reply)
	return k.stop
}

// idle takes a request while nothing runs.
func (k *keeper) idle(ctx context.Context, r request) phase {
	if r.kind == requestStart {
		k.starters = append(k.starters, r.reply)
		return nil
	}
	k.stoppers = append(k.stoppers, r.reply)
	return k.halt(ctx, "")
}

// gone learns how the process ended. For an adopted one that takes until its
// parent, which is init, has reaped it.
func (k *keeper) gone(ctx context.Context) phase {
	p, result := k.proc, make(chan exit, 1)
	k.wg.Go(func() { result <- p.status(ctx) })
	soon := time.NewTimer(tick)
	defer soon.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-result:
			return k.judge(ctx, e)
		case <-soon.C:
			k.set(StateBackoff, "it has ended; how is known when its parent has reaped it", func(st *Status) { st.PID = 0 })
		case r := <-k.requests:
			if next := k.idle(ctx, r); next != nil {
				return next
			}
		}
	}
}

// judge decides what an end means.
func (k *keeper) judge(ctx context.Context, e exit) phase {
	byHand := k.endedByHand(ctx, e)
	k.drop()
	switch {
	case ctx.Err() != nil:
		return nil
	case k.spec.External:
		k.reason = e.String()
		return k.outside
	case k.refusal != "":
		return k.retry(k.refusal)
	case byHand:
		how := "exit 0"
		if !e.known {
			how = "it removed its postmaster.pid"
		}
		return k.halt(ctx, fmt.Sprintf("stopped by another hand (%s); `pghardend start --service %s` starts it again", how, k.spec.Name))
	case k.hint != "":
		return k.retry(e.String() + "; " + k.hint)
	default:
		return k.retry(e.String())
	}
}

func (k *keeper) endedByHand(ctx context.Context, e exit) bool {
	if e.known || k.spec.DataDir == "" {
		return e.clean()
	}
	pf, err := readPIDFile(ctx, k.spec.DataDir)
	removed := errors.Is(err, os.ErrNotExist) || err == nil && pf.pid != k.proc.pid
	return postmasterEndedByHand(removed, readControl(ctx, k.spec.DataDir))
}

// postmasterEndedByHand tells a clean stop by another hand from a crash where the
// exit status cannot be known. A postmaster that ends in order removes its
// postmaster.pid, but so does one that gives up (disk full in crash recovery); only
// after a shutdown does pg_control say so.
func postmasterEndedByHand(pidFileRemoved bool, state clusterState) bool {
	return pidFileRemoved && state != clusterOpen
}

// retry waits for the next try of the back-off.
func (k *keeper) retry(why string) phase {
	pause := min(k.pause.NextBackOff(), lastPause)
	next := time.Now().Add(pause)
	k.set(StateBackoff, why, func(st *Status) { st.NextTry = next })
	k.answer(&k.starters, fmt.Errorf("%s; next try in %v", why, pause.Round(time.Millisecond)))
	return func(ctx context.Context) phase {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			k.again = true
		case r := <-k.requests:
			if next := k.idle(ctx, r); next != nil {
				return next
			}
		}
		return k.find
	}
}

// halt makes sure that the service stays stopped.
func (k *keeper) halt(ctx context.Context, reason string) phase {
	k.drop()
	if err := k.record(ctx, true, reason); err != nil {
		k.log.Warn("the next daemon will start the service: it cannot be told that it is stopped", "error", err)
	}
	k.again, k.wanted = false, false
	k.set(StateStopped, reason)
	k.answer(&k.starters, errors.New(cmp.Or(reason, "it was stopped")))
	k.answer(&k.stoppers, nil)
	if k.spec.External {
		k.reason = reason
		return k.outside
	}
	return k.stopped
}

// stopped waits to be started.
func (k *keeper) stopped(ctx context.Context) phase { return k.untilStart(ctx, nil) }

// untilStart waits for Start; a Stop gets the answer given.
func (k *keeper) untilStart(ctx context.Context, onStop error) phase {
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-k.requests:
			if r.kind == requestStop {
				r.reply <- onStop
				continue
			}
			return k.resume(r)
		}
	}
}

// resume obeys Start after a stop or a failure. The record is left as it is until
// there is a process to put into it: it may name one that is still to be found.
func (k *keeper) resume(r request) phase {
	k.pause.Reset()
	k.wanted = true
	k.starters = append(k.starters, r.reply)
	return k.find
}

// fail leaves alone what runs, until Start.
func (k *keeper) fail(why string) phase {
	k.drop()
	k.set(StateFailed, why)
	err := errors.New(why)
	k.answer(&k.starters, err)
	k.answer(&k.stoppers, err)
	if k.spec.External {
		return k.lookAgain
	}
	return func(ctx context.Context) phase { return k.untilStart(ctx, err) }
}

// stop ends the process: SIGINT, then SIGQUIT, then advice.
func (k *keeper) stop(ctx context.Context) phase {
	k.wanted = false
	if err := k.record(ctx, true, ""); err != nil {
		k.log.Warn("the next daemon will not know that the service is to be stopped", "error", err)
	}
	k.answer(&k.starters, errors.New("it is being stopped"))
	k.set(StateStopping, "")
	ladder := []unix.Signal{unix.SIGINT, unix.SIGQUIT}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for step := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-k.proc.ended:
			return k.finish(step == len(ladder))
		case <-timer.C:
			if step == len(ladder) {
				k.giveUp(fmt.Errorf("pid %d still runs %v after SIGINT and %v after SIGQUIT; it may wait for a disk (cat /proc/%d/stack /proc/%d/wchan); SIGKILL is left to you: it means crash recovery",
					k.proc.pid, 2*k.spec.StopTimeout, k.spec.StopTimeout, k.proc.pid, k.proc.pid))
				return k.stuck
			}
			if err := k.proc.signal(ladder[step]); err != nil {
				k.giveUp(err)
				return k.stuck
			}
			step++
			timer.Reset(k.spec.StopTimeout)
		case r := <-k.requests:
			k.whileStopping(r)
		}
	}
}

func (k *keeper) giveUp(err error) {
	k.set(StateStopping, err.Error())
	k.answer(&k.stoppers, err)
}

// whileStopping takes a request and reports whether it is for a stop.
func (k *keeper) whileStopping(r request) bool {
	if r.kind == requestStart {
		r.reply <- fmt.Errorf("pid %d is being stopped; try again when it has ended", k.proc.pid)
		return false
	}
	k.stoppers = append(k.stoppers, r.reply)
	return true
}

// stuck waits for a process that would not end. Another Stop begins anew.
func (k *keeper) stuck(ctx context.Context) phase {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.proc.ended:
			return k.finish(true)
		case r := <-k.requests:
			if k.whileStopping(r) {
				return k.stop
			}
		}
	}
}

// finish follows the end of a process that was asked to end.
func (k *keeper) finish(quit bool) phase {
	return func(ctx context.Context) phase {
		if k.proc.child != nil {
			k.proc.status(ctx) // reaps it
		}
		reason := ""
		if quit {
			reason = fmt.Sprintf("it did not end within %v of SIGINT and was sent SIGQUIT; a postgres recovers at its next start", k.spec.StopTimeout)
		}
		return k.halt(ctx, reason)
	}
}
