package reconcile

import (
	"time"

	"golang.org/x/time/rate"
)

// How fast somebody who fights us is answered. Nobody who edits rules by hand,
// and no tool that starts, makes more than the burst.
const (
	freeRepairs  = 20 // at once
	repairRate   = 10 // more of those each second
	firstDelay   = 10 * time.Millisecond
	maxDelay     = time.Second // a bound, not an end: repairs go on
	forgiveAfter = 10 * time.Second
)

// How many alarms a second are answered that turn out to be about nothing of
// ours. A tool that writes thousands of its own rules is not to keep us busy.
const (
	freeLooks  = 200
	looksRate  = 100
	looksDelay = 10 * time.Millisecond
)

// damper says how soon one resource may be put back again. The times it is given
// have monotonic readings, so no clock that jumps deceives it.
type damper struct {
	repairs *rate.Limiter
	looks   *rate.Limiter
	last    time.Time // of repairs
	delay   time.Duration
	until   time.Time
}

func newDamper() damper {
	return damper{
		repairs: rate.NewLimiter(repairRate, freeRepairs),
		looks:   rate.NewLimiter(looksRate, freeLooks),
	}
}

// repaired counts a repair that ended now.
func (d *damper) repaired(now time.Time) {
	if now.Sub(d.last) >= forgiveAfter {
		d.delay = 0
		d.repairs = rate.NewLimiter(repairRate, freeRepairs)
	}
	d.last = now
	d.repairs.AllowN(now, 1)
	if d.repairs.TokensAt(now) >= 1 {
		return
	}
	d.delay = min(max(2*d.delay, firstDelay), maxDelay)
	d.until = now.Add(d.delay)
}

// looked counts an alarm that was about nothing of ours.
func (d *damper) looked(now time.Time) {
	if !d.looks.AllowN(now, 1) {
		d.until = later(d.until, now.Add(looksDelay))
	}
}

// wait is how long the next repair has to wait.
func (d *damper) wait(now time.Time) time.Duration { return max(0, d.until.Sub(now)) }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// earlier is the first of two times, of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
