package reconcile

import (
	"context"
	"math/rand/v2"
	"time"
)

// seen is what came of a tick.
type seen struct {
	missed bool  // the loop was busy, so it is still to be made
	round  round // the pass that it calls for
}

// onTime does what is due. All times are kept here and served by one timer, so
// that an idle daemon wakes up once in each interval.
func (l *Loop) onTime(ctx context.Context) {
	l.serveHeld(ctx)
	now := time.Now()
	switch {
	case isDue(l.nextTick, now):
		if r, ok := l.tick(ctx, now); ok {
			l.pass(ctx, r)
		}
	case isDue(l.recheck, now):
		l.pass(ctx, round{Trigger: Trigger{Reason: reasonRecheck}, load: true})
	case l.anyDue(now):
		l.pass(ctx, round{})
	}
}

// beside is a tick of Options.Every. It makes no pass, which might hold up those
// that follow.
func (l *Loop) beside(ctx context.Context) {
	s := seen{missed: true}
	if l.reins.TryLock() {
		var ok bool
		s.round, ok = l.ticked(ctx)
		s.missed = false
		l.reins.Unlock()
		if !ok {
			return
		}
	}
	select {
	case l.ticks <- s:
	default: // the one that waits is as good: what is not right stays so
	}
}

// onTick takes over from beside.
func (l *Loop) onTick(ctx context.Context, s seen) {
	ok := !s.missed
	if s.missed {
		s.round, ok = l.ticked(ctx)
	}
	if ok {
		l.pass(ctx, s.round)
	}
}

// ticked makes a tick of Options.Every, unless a failed write has made the timer
// set the pace.
func (l *Loop) ticked(ctx context.Context) (round, bool) {
	if !l.nextTick.IsZero() || l.snapshot.Load().Passes == 0 {
		return round{}, false
	}
	return l.tick(ctx, time.Now())
}

// regular is when the next tick is due after one, or a pass, that left all as it
// should be; never if it does not depend on the timer.
func (l *Loop) regular(now time.Time) time.Time {
	if l.opts.Every != nil {
		return time.Time{}
	}
	return now.Add(l.opts.Interval)
}

// nextTime is when onTime is to be called.
func (l *Loop) nextTime() time.Time {
	next := earlier(earlier(l.nextTick, l.recheck), l.nextHeld())
	for _, r := range l.desired.Resources {
		next = earlier(next, l.part(r.Name()).due)
	}
	return next
}

func (l *Loop) setTimer(at time.Time) {
	if at.IsZero() {
		l.timer.Stop()
		return
	}
	l.timer.Reset(max(0, time.Until(at)))
}

// tick looks cheaply, and says which pass is to be made, if that says so or it is
// time. While all is well it allocates nothing and publishes nothing.
func (l *Loop) tick(ctx context.Context, now time.Time) (r round, ok bool) {
	l.nextTick = l.regular(now)
	snap := l.snapshot.Load()
	switch {
	case !snap.Enforced():
		r = fullRound(Trigger{Reason: reasonRetry})
	case l.opts.Full <= l.opts.Interval || !now.Before(l.nextFull):
		r = fullRound(Trigger{Reason: reasonFull})
	default:
		// No retry mends a bad file, but it may be one of ours that cannot be written.
		r = round{Trigger: Trigger{Reason: reasonTick}, load: isDue(l.recheck, now) || snap.says(problemInput) || l.peeks(ctx, l.source)}
		l.peekAll(ctx, snap)
	}
	l.looked()
	if l.opts.OnTick != nil {
		l.opts.OnTick()
	}
	return r, r.load || l.anyDue(time.Now())
}

// peekAll asks for a look at what may differ. What may not is as right as it was
// at its last look, which keeps the times in events close.
func (l *Loop) peekAll(ctx context.Context, snap *Snapshot) {
	for _, r := range l.desired.Resources {
		p, now := l.part(r.Name()), time.Now()
		peeker, ok := r.(Peeker)
		switch {
		case ok && peeker.Peek(ctx), snap.says(r.Name()), p.fights.over(now):
			p.want(now, reasonTick)
		case ok && p.steady(l.desired.Generation) && p.due.IsZero():
			p.right.at = now
		}
	}
}

func (l *Loop) peeks(ctx context.Context, what any) bool {
	p, ok := what.(Peeker)
	return ok && p.Peek(ctx)
}

// isDue says whether a time has come, of which zero is never.
func isDue(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

func (l *Loop) anyDue(now time.Time) bool {
	for _, r := range l.desired.Resources {
		if l.part(r.Name()).isDue(now) {
			return true
		}
	}
	return false
}

// schedule sets the times that follow from a pass: soon after a failed write, and
// sooner than usual while the input changes. A bad input gets better by no retry.
func (l *Loop) schedule(r round, snap Snapshot, now time.Time) {
	next := l.regular(now)
	if snap.Enforced() {
		l.retry.Reset()
	} else {
		next = now.Add(min(l.retry.NextBackOff(), l.opts.Interval))
	}
	switch {
	case r.all:
		l.nextTick, l.nextFull = next, now.Add(jitter(l.opts.Full))
	case r.Reason == reasonTick:
		l.nextTick = next
	default: // single looks, be there many of them, do not put off the tick
		l.nextTick = earlier(l.nextTick, next)
	}
	if !r.load {
		return
	}
	l.recheck = time.Time{}
	if l.desired.Recheck > 0 {
		l.recheck = now.Add(l.desired.Recheck)
	}
}

// jitter is d give or take a tenth, so that many nodes do not look at the same time.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d)) //nolint:gosec // no secret
}
