package agent

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/pghardend/pghardend/internal/culprit"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/audit"
	"github.com/pghardend/pghardend/pkg/firewall"
)

const (
	// whoPatience is how long the loop waits for a culprit's name, which takes
	// microseconds to read.
	whoPatience = 5 * time.Millisecond
	// reopenPause is between two attempts to hear of changes again; it grows.
	reopenPause    = time.Second
	maxReopenPause = 5 * time.Minute
)

// alarms hears of rules that others change and tells the loop.
type alarms struct {
	fw    *firewall.Firewall
	alarm func(reconcile.Alarm)
	log   *slog.Logger
	lost  func()                 // called for each overrun
	how   atomic.Pointer[string] // for status
	said  string                 // of run: why it failed

	answer  func()        // puts rules back ahead of the loop
	promote func() error  // has somebody else give a sentry its priority; nil: there is nobody
	last    atomic.Uint32 // generation that a sentry has answered
}

const polled = "polled"

func newAlarms(fw *firewall.Firewall, alarm func(reconcile.Alarm), answer, lost func(), log *slog.Logger) *alarms {
	w := &alarms{fw: fw, alarm: alarm, answer: answer, lost: lost, log: log}
	w.say(polled)
	return w
}

func (w *alarms) say(how string) { w.how.Store(&how) }

// source is what announces changes now, for people.
func (w *alarms) source() string {
	if w == nil {
		return polled
	}
	return *w.how.Load()
}

// run listens until ctx is done. Without notifications the loop goes on looking
// once per interval, so no failure here is more than a delay.
func (w *alarms) run(ctx context.Context) error {
	hear := w.hearAudit
	if w.fw.Backend() == firewall.BackendNFT {
		hear = w.hearCommits
	}
	for pause := reopenPause; ctx.Err() == nil; pause = min(2*pause, maxReopenPause) {
		w.failed(ctx, hear(ctx))
		wait(ctx, pause)
	}
	return nil
}

// failed says why nothing is announced, but not each time.
func (w *alarms) failed(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	w.say(polled)
	if err != nil && err.Error() != w.said {
		w.said = err.Error()
		w.log.Warn("changes of rules are not announced, but found by looking once per reconcile.interval", "error", err)
	}
}

// wait says whether the time passed, or ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// hearCommits follows nf_tables' own notifications.
func (w *alarms) hearCommits(ctx context.Context) error {
	watcher, err := firewall.WatchCommits()
	if err != nil {
		return err
	}
	defer func() { _ = watcher.Close() }() // nothing can be lost
	defer w.openSentry(ctx)()
	w.say("nft notifications")
	for {
		commit, err := watcher.Next(ctx)
		switch {
		case errors.Is(err, firewall.ErrOverrun):
			w.overrun()
		case err != nil:
			return err
		case !w.fw.Own(commit) && !w.answered(commit):
			w.raise(ctx, commit.At, commit.Process(), commit.Command, -1)
		}
	}
}

// openSentry has commits answered at once, where that can be done. It returns
// what ends that.
func (w *alarms) openSentry(ctx context.Context) (stop func()) {
	sentry, err := w.fw.OpenSentry(func(c firewall.Commit) {
		// Who it was can be read for sure as long as it is kept from going on. Should that
		// make us wait, the watcher's alarm stands in.
		who := reconcile.Culprit(culprit.Look(ctx, c.Process(), c.Command))
		w.last.Store(c.Generation)
		w.answer() // the loop, which would want the same lock, is told afterwards
		w.alarm(reconcile.Alarm{Resource: firewallName, At: c.At, Who: func() *reconcile.Culprit { return &who }})
	}, w.promote)
	if err != nil {
		w.log.Info("rules are put back some 10 ms later than they could be", "because", err)
		return func() {}
	}
	return func() { _ = sentry.Close() } // it only listened
}

// answered says whether the commit has been answered by a sentry. That may come a
// moment later, and then there are two alarms of it, which does no harm.
func (w *alarms) answered(c firewall.Commit) bool { return w.last.Load() == c.Generation }

// overrun is an alarm of which nobody knows who is behind it, or since when.
func (w *alarms) overrun() {
	w.lost()
	w.alarm(reconcile.Alarm{Resource: firewallName})
}

// raise tells the loop first and finds out who it was while that repairs: the
// process may be gone in a moment. uid is what is known of it, or -1.
func (w *alarms) raise(ctx context.Context, at time.Time, pid int, command string, uid int) {
	var who reconcile.Culprit
	known := make(chan struct{})
	w.alarm(reconcile.Alarm{Resource: firewallName, At: at, Who: func() *reconcile.Culprit {
		timer := time.NewTimer(whoPatience)
		defer timer.Stop()
		select {
		case <-known:
			return &who
		case <-timer.C:
			unseen := reconcile.Culprit(culprit.Look(ctx, 0, command)) // its name, made printable
			unseen.PID, unseen.UID = pid, uid
			return &unseen
		}
	}})
	runtime.Gosched() // the loop goes first, and on this thread
	who = reconcile.Culprit(culprit.Look(ctx, pid, command))
	if who.UID < 0 {
		who.UID = uid
	}
	close(known)
}

// hearAudit is for the legacy backend, of whose changes only audit records tell.
func (w *alarms) hearAudit(ctx context.Context) error {
	watcher, err := audit.Watch()
	if watcher == nil {
		return err
	}
	defer func() { _ = watcher.Close() }() // nothing can be lost
	if err == nil {
		w.say("audit")
	} else {
		w.log.Info("changes of rules are found by looking once per reconcile.interval", "because", err)
	}
	for {
		record, err := watcher.Next(ctx)
		switch {
		case errors.Is(err, audit.ErrOverrun):
			w.overrun()
		case err != nil:
			return err
		case record.Change != nil:
			w.say("audit") // it may have been switched on since
			w.changed(ctx, record.Change)
		}
	}
}

// changed is a record of any table's change. Our own commands make them as well.
func (w *alarms) changed(ctx context.Context, c *audit.Change) {
	now := time.Now()
	if !w.fw.Own(firewall.Commit{At: now, PID: c.PID, Command: c.Command}) {
		w.raise(ctx, now, c.PID, c.Command, c.UID)
	}
}
