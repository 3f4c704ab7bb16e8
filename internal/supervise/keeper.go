package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	firstPause = 100 * time.Millisecond // of the back-off
	lastPause  = 30 * time.Second
	tick       = 50 * time.Millisecond // between two looks while something is awaited
	slowTick   = time.Second           // once the start time-out has passed
)

// keeper is the goroutine of Run: the only owner of the service's state. Its
// phases wait for whatever may happen in one state and return the next phase, or
// nil when ctx has ended.
type keeper struct {
	*Supervisor
	pause    *backoff.ExponentialBackOff
	wg       sync.WaitGroup // readers and watchers of the process at hand
	proc     *process       // nil when nothing runs
	exe      exeID          // what the record says proc runs
	report   *os.File       // read end of the launch stage's report; nil if adopted
	adopted  bool
	refusal  string // why the launch stage refused
	hint     string // see found
	passed   bool   // the gate of Spec is behind us
	wanted   bool   // Start was asked for after a stop, whatever the record says
	again    bool   // the next launch is one by the back-off
	reason   string // how an external service ended
	starters []chan<- error
	stoppers []chan<- error
}

type phase func(context.Context) phase

func newKeeper(s *Supervisor) *keeper {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = firstPause, lastPause
	pause.Multiplier, pause.RandomizationFactor = 2, 0.2
	return &keeper{Supervisor: s, pause: pause}
}

func (k *keeper) tidy(ctx context.Context) {
	removeLeftovers(ctx, k.spec.RecordFile)
}

// leave ends the supervision and leaves the process running.
func (k *keeper) leave() {
	k.drop()
	k.answer(&k.starters, errEnded)
	k.answer(&k.stoppers, errEnded)
}

// drop lets go of the process at hand and joins what watched it.
func (k *keeper) drop() {
	if k.proc != nil {
		k.proc.close()
	}
	if k.report != nil {
		k.report.Close()
	}
	k.wg.Wait()
	k.proc, k.report, k.adopted = nil, nil, false
}

// set publishes a state and who is concerned by it.
func (k *keeper) set(state State, lastError string, change ...func(*Status)) {
	old := k.Status()
	now := Status{Name: old.Name, State: state, Since: old.Since, Restarts: old.Restarts, LastError: lastError, Adopted: k.adopted}
	if k.proc != nil {
		now.PID = k.proc.pid
	}
	for _, f := range change {
		f(&now)
	}
	if now.State != old.State || now.PID != old.PID {
		now.Since = time.Now()
	}
	if now == old {
		return
	}
	k.status.Store(&now)
	select {
	case k.changed <- struct{}{}:
	default:
	}
	k.logChange(now)
}

func (k *keeper) logChange(st Status) {
	level := slog.LevelInfo
	attrs := []slog.Attr{slog.String("state", string(st.State))}
	if st.PID != 0 {
		attrs = append(attrs, slog.Int("pid", st.PID), slog.Bool("adopted", st.Adopted))
	}
	if st.LastError != "" {
		level = slog.LevelWarn
		attrs = append(attrs, slog.String("error", st.LastError))
	}
	if !st.NextTry.IsZero() {
		attrs = append(attrs, slog.Time("next_try", st.NextTry))
	}
	k.log.LogAttrs(context.Background(), level, "service is "+string(st.State), attrs...)
}

func (k *keeper) answer(waiters *[]chan<- error, err error) {
	for _, reply := range *waiters {
		reply <- err
	}
	*waiters = nil
}

// find looks around: adopt, start, or leave alone.
func (k *keeper) find(ctx context.Context) phase {
	k.refusal, k.hint = "", ""
	f, err := k.look(ctx)
	var foreign *foreignError
	switch {
	case ctx.Err() != nil:
		if f.proc != nil {
			f.proc.close()
		}
		return nil
	case errors.As(err, &foreign):
		return k.fail(err.Error())
	case err != nil:
		return k.retry(err.Error())
	case f.proc != nil:
		k.proc, k.exe = f.proc, f.exe
		k.proc.watch(&k.wg)
		if f.stopped && !k.wanted && !k.spec.External {
			k.adopted = true
			return k.stop
		}
		return k.settle
	case k.spec.External:
		return k.outside
	case f.stopped && !k.wanted:
		k.set(StateStopped, f.reason)
		return k.stopped
	default:
		k.hint = f.hint
		return k.await
	}
}

// settle waits until the process found is what it should be. One that a dead
// daemon has just released may still be at the launch stage.
func (k *keeper) settle(ctx context.Context) phase {
	timeout := time.NewTimer(k.spec.StartTimeout)
	defer timeout.Stop()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		problem, err := k.identify(ctx, k.proc, k.exe, func() (pidFile, error) { return readPIDFile(ctx, k.spec.DataDir) })
		switch {
		case err == nil && problem == "":
			return k.adopt
		case err != nil:
			problem = err.Error()
		}
		k.set(StateStarting, "found, not adopted yet: "+problem)
		select {
		case <-ctx.Done():
			return nil
		case <-k.proc.ended:
			return k.gone
		case r := <-k.requests:
			if next := k.busy(r); next != nil {
				return next
			}
		case <-timeout.C:
			return k.fail(k.foreign(k.proc.pid, problem).Error())
		case <-ticker.C:
		}
	}
}

// adopt takes over the process found if the caller finds it confined.
func (k *keeper) adopt(ctx context.Context) phase {
	if k.spec.Verify != nil {
		if err := k.spec.Verify(ctx, k.proc.pid); err != nil {
			switch {
			case ctx.Err() != nil:
				return nil
			case k.proc.dead():
				return k.gone
			}
			return k.fail(k.foreign(k.proc.pid, fmt.Sprintf("it is not confined as configured (%v)", err)).Error())
		}
	}
	k.adopted = true
	k.begun(ctx)
	if f, err := k.proc.facts(ctx); err == nil {
		k.exe = f.exe
	}
	if err := k.record(ctx, false, ""); err != nil {
		k.log.Warn("the next daemon will have to do without the record", "error", err)
	}
	return k.starting
}

// record writes down the process at hand and what is wanted of it. It is not cut
// short by the end of ctx: the next daemon relies on it.
func (k *keeper) record(ctx context.Context, stopped bool, reason string) error {
	r := record{Service: k.spec.Name, DataDir: k.spec.DataDir, Exe: k.exe, Stopped: stopped, Reason: reason}
	if k.proc != nil {
		r.PID, r.Start = k.proc.pid, k.proc.start
	}
	return writeRecord(context.WithoutCancel(ctx), k.spec.RecordFile, r)
}

// await holds back the first start until the gate of Spec is open.
func (k *keeper) await(ctx context.Context) phase {
	if k.passed || k.spec.Gate == nil {
		return k.launch
	}
	k.set(StateWaiting, "")
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.spec.Gate:
			k.passed = true
			return k.launch
		case r := <-k.requests:
			if next := k.idle(ctx, r); next != nil {
				return next
			}
		}
	}
}

func (k *keeper) begun(ctx context.Context) {
	if k.spec.Begun != nil {
		k.spec.Begun(ctx, k.proc.pid)
	}
}

// launch follows the start protocol of the package comment.
func (k *keeper) launch(ctx context.Context) phase {
	child, err := fork(ctx, k.spec)
	if err != nil {
		return k.retry(fmt.Sprintf("cannot start service %s: %v", k.spec.Name, err))
	}
	k.proc, k.report, k.exe, k.refusal = child.proc, child.report, serviceExe(ctx, k.spec), ""
	k.proc.watch(&k.wg)
	k.begun(ctx)
	err = k.record(ctx, false, "")
	if err != nil && k.spec.DataDir != "" {
		k.log.Warn("the next daemon will find the service by postmaster.pid only", "error", err)
		err = nil
	}
	if err == nil {
		err = child.release()
	} else {
		child.abandon()
	}
	if err != nil {
		k.refusal = fmt.Sprintf("cannot start service %s: %v", k.spec.Name, err)
	}
	if k.again {
		k.again = false
		k.set(StateStarting, "", func(st *Status) { st.Restarts++ })
	}
	return k.starting
}
