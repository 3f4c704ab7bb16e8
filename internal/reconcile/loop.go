package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	maxEvents    = 64
	firstRetry   = 50 * time.Millisecond
	triggerQueue = 16
)

// Loop is the reconcile loop. Make it with New.
type Loop struct {
	source   Source
	interval time.Duration
	log      *slog.Logger
	onPass   func(Snapshot)

	triggers   chan Trigger
	requests   chan request
	enforced   chan struct{}
	snapshot   atomic.Pointer[Snapshot]

	// Owned by Run's goroutine.
	retry   *backoff.ExponentialBackOff
	isClean map[string]time.Time // resource → when it was last seen to be right
	applied uint64               // generation of the last pass
}

type request struct {
	trigger Trigger
	done    chan Snapshot
}

// New makes a loop that polls every interval. onPass is called after each pass
// from Run's goroutine and must not block.
func New(source Source, interval time.Duration, log *slog.Logger, onPass func(Snapshot)) *Loop {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval = firstRetry
	retry.MaxInterval = interval
	l := &Loop{
		source: source, interval: interval, log: log, onPass: onPass,
		triggers:   make(chan Trigger, triggerQueue),
		requests:   make(chan request),
		enforced:   make(chan struct{}),
		retry:      retry,
		isClean:    map[string]time.Time{},
	}
	l.snapshot.Store(&Snapshot{})
	return l
}

// Snapshot says how things stood after the last pass. It never blocks.
func (l *Loop) Snapshot() Snapshot { return *l.snapshot.Load() }

// Enforced is closed after the first pass that left every resource as desired.
// A bad input does not hold it back as long as a last good one is in force.
func (l *Loop) Enforced() <-chan struct{} { return l.enforced }

// Trigger asks for a pass soon. It never blocks: if many are waiting, a pass
// is due anyway.
func (l *Loop) Trigger(t Trigger) {
	select {
	case l.triggers <- t:
	default:
	}
}

// Request asks for a pass and waits for its outcome.
func (l *Loop) Request(ctx context.Context, t Trigger) (Snapshot, error) {
	r := request{trigger: t, done: make(chan Snapshot, 1)}
	select {
	case l.requests <- r:
	case <-ctx.Done():
		return Snapshot{}, fmt.Errorf("the daemon is busy: %w", ctx.Err())
	}
	select {
	case s := <-r.done:
		return s, nil
	case <-ctx.Done():
		return Snapshot{}, fmt.Errorf("the pass has not ended in time: %w", ctx.Err())
	}
}

// Run makes passes until ctx is done. It leaves the kernel's state as it is.
func (l *Loop) Run(ctx context.Context) error {
	next := l.pass(ctx, Trigger{Reason: "start"})
	timer := time.NewTimer(next)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			next = l.pass(ctx, Trigger{Reason: "timer"})
		case t := <-l.triggers:
			next = l.pass(ctx, l.drain(t))
		case r := <-l.requests:
			next = l.pass(ctx, r.trigger)
			r.done <- l.Snapshot()
		}
		timer.Reset(next)
	}
}

// drain merges the triggers that are waiting into one.
func (l *Loop) drain(t Trigger) Trigger {
	for {
		select {
		case more := <-l.triggers:
			t.Force = t.Force || more.Force
		default:
			return t
		}
	}
}

// pass brings every resource to its desired state and returns the time until
// the next pass.
func (l *Loop) pass(ctx context.Context, t Trigger) time.Duration {
	snap := l.Snapshot()
	snap.Passes++
	old := snap.Problems
	snap.Problems = nil

	desired, err := l.source.Load(ctx, t.Force)
	if err != nil {
		snap.problem(problemInput, err, old)
	}
	cause := CauseDrift
	switch {
	case snap.Passes == 1:
		cause = CauseStart
	case desired.Generation != l.applied:
		cause = CauseChange
	}
	l.applied = desired.Generation
	for _, r := range desired.Resources {
		event, err := l.reconcile(ctx, r, cause)
		if event != nil {
			snap.Events = record(snap.Events, *event)
		}
		if err != nil {
			snap.problem(r.Name(), err, old)
		}
	}
	if ctx.Err() != nil { // cut short by shutdown: what failed says nothing
		return l.interval
	}
	l.publish(snap, desired.Generation, old)
	if len(snap.Problems) > 0 {
		return min(l.retry.NextBackOff(), l.interval)
	}
	l.retry.Reset()
	return l.interval
}

func (l *Loop) publish(snap Snapshot, generation uint64, old []Problem) {
	now := time.Now()
	snap.Generation, snap.LastPass = generation, now
	if len(snap.Events) > maxEvents {
		snap.Events = slices.Clone(snap.Events[len(snap.Events)-maxEvents:])
	}
	if snap.Clean() {
		snap.LastClean = now
	}
	l.logChanges(old, snap.Problems)
	l.snapshot.Store(&snap)
	if snap.Enforced() {
		select {
		case <-l.enforced:
		default:
			close(l.enforced)
		}
	}
	if l.onPass != nil {
		l.onPass(snap)
	}
}

// reconcile handles one resource. The event is nil if it was as desired.
func (l *Loop) reconcile(ctx context.Context, r Resource, cause string) (*Event, error) {
	plan, observeErr := r.Plan(ctx)
	found := time.Now()
	if plan == nil || plan.Empty() {
		if observeErr == nil {
			l.isClean[r.Name()] = found
		}
		return nil, observeErr
	}
	event := &Event{Resource: r.Name(), Cause: cause, What: plan.String(), Since: l.isClean[r.Name()], Found: found}
	applyErr := r.Apply(ctx, plan)
	left, againErr := r.Plan(ctx)
	err := errors.Join(applyErr, againErr)
	if left != nil && !left.Empty() {
		err = errors.Join(err, fmt.Errorf("%s still differs after it was written:\n%s", r.Name(), left))
	}
	if err != nil {
		event.Error = err.Error()
		return event, err
	}
	event.Repaired = time.Now()
	l.isClean[r.Name()] = event.Repaired
	from := event.Found
	if cause == CauseDrift && !event.Since.IsZero() {
		from = event.Since
	}
	event.OpenMS = float64(event.Repaired.Sub(from).Microseconds()) / 1000
	l.log.Info("restored", "resource", r.Name(), "cause", cause, "what", event.What, "open_ms", event.OpenMS)
	return event, nil
}

// record appends an event. One that only repeats the last failure of its
// resource takes that one's place, so that a long failure does not push all
// else out of the history.
func record(events []Event, e Event) []Event {
	events = slices.Clone(events)
	for i := len(events) - 1; i >= 0; i-- {
		last := &events[i]
		if last.Resource != e.Resource {
			continue
		}
		if last.Error != "" && last.What == e.What {
			e.Since, e.Found = last.Since, last.Found
			events = slices.Delete(events, i, i+1)
		}
		break
	}
	return append(events, e)
}

// problem records err, keeping the time of an earlier problem of the same kind.
func (s *Snapshot) problem(what string, err error, old []Problem) {
	p := Problem{What: what, Text: err.Error(), Since: time.Now()}
	if i := slices.IndexFunc(old, func(o Problem) bool { return o.What == what }); i >= 0 {
		p.Since = old[i].Since
	}
	s.Problems = append(s.Problems, p)
}

// logChanges says once what went wrong and once that it is well again.
func (l *Loop) logChanges(old, now []Problem) {
	for _, p := range now {
		if !slices.ContainsFunc(old, func(o Problem) bool { return o.What == p.What && o.Text == p.Text }) {
			l.log.Error("degraded", "what", p.What, "reason", p.Text)
		}
	}
	for _, o := range old {
		if !slices.ContainsFunc(now, func(p Problem) bool { return p.What == o.What }) {
			l.log.Info("well again", "what", o.What)
		}
	}
}
