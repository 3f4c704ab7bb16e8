package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const firstRetry = 50 * time.Millisecond

// Loop is the reconcile loop. Make it with New.
type Loop struct {
	source   Source
	interval time.Duration
	log      *slog.Logger
	onPass   func(Snapshot)

	wake     chan struct{} // holds one token while due is to be served
	mu       sync.Mutex
	due      Trigger // all triggers since the last pass, merged
	requests chan request
	enforced chan struct{}
	ended    chan struct{}
	snapshot atomic.Pointer[Snapshot]

	// Owned by Run's goroutine.
	retry *backoff.ExponentialBackOff
	first uint64           // generation of the first pass
	right map[string]sight // by resource
}

// sight is when, and compared with what, a resource was last seen to be right.
type sight struct {
	at         time.Time
	generation uint64
}

type request struct {
	trigger Trigger
	done    chan Snapshot
}

// New makes a loop that polls every interval. onPass is called after each pass
// from Run's goroutine and must not block.
func New(source Source, interval time.Duration, log *slog.Logger, onPass func(Snapshot)) *Loop {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval = min(firstRetry, interval)
	retry.MaxInterval = interval
	l := &Loop{
		source: source, interval: interval, log: log, onPass: onPass,
		wake:     make(chan struct{}, 1),
		requests: make(chan request),
		enforced: make(chan struct{}),
		ended:    make(chan struct{}),
		retry:    retry,
		right:    map[string]sight{},
	}
	l.snapshot.Store(&Snapshot{})
	return l
}

// Snapshot says how things stood after the last pass. It never blocks.
func (l *Loop) Snapshot() Snapshot { return *l.snapshot.Load() }

// Enforced is closed after the first pass that left every resource as desired.
// A bad input does not hold it back as long as a last good one is in force.
func (l *Loop) Enforced() <-chan struct{} { return l.enforced }

// Trigger asks for a pass soon. It never blocks; triggers that wait are merged.
func (l *Loop) Trigger(t Trigger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Force = t.Force || l.due.Force
	if l.due.Reason != "" {
		t.Reason = l.due.Reason
	}
	l.due = t
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// served takes over what Trigger has merged.
func (l *Loop) served() Trigger {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.due
	l.due = Trigger{}
	return t
}

var errEnded = errors.New("the daemon is shutting down; ask again when it is back")

// Request asks for a pass that begins after the call and waits for its outcome.
func (l *Loop) Request(ctx context.Context, t Trigger) (Snapshot, error) {
	r := request{trigger: t, done: make(chan Snapshot, 1)}
	select {
	case l.requests <- r:
	case <-l.ended:
		return Snapshot{}, errEnded
	case <-ctx.Done():
		return Snapshot{}, fmt.Errorf("the daemon is busy with an earlier pass: %w", ctx.Err())
	}
	select {
	case s, ok := <-r.done:
		if !ok {
			return Snapshot{}, errEnded
		}
		return s, nil
	case <-ctx.Done():
		return Snapshot{}, fmt.Errorf("the pass has not ended in time, but goes on: %w", ctx.Err())
	}
}

// Run makes passes until ctx is done, then finishes what it is writing. It
// leaves the kernel's state as it is. It may be called once.
func (l *Loop) Run(ctx context.Context) error {
	defer close(l.ended)
	next, _ := l.pass(ctx, Trigger{Reason: "start"})
	timer := time.NewTimer(next)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			next, _ = l.pass(ctx, Trigger{Reason: "timer"})
		case <-l.wake:
			next, _ = l.pass(ctx, l.served())
		case r := <-l.requests:
			var whole bool
			if next, whole = l.pass(ctx, r.trigger); whole {
				r.done <- l.Snapshot()
			}
			close(r.done)
		}
		timer.Reset(next)
	}
}

// pass brings every resource to its desired state and returns the time until
// the next pass. It is not whole, and not published, if shutdown cut it short:
// what failed then says nothing.
func (l *Loop) pass(ctx context.Context, t Trigger) (next time.Duration, whole bool) {
	snap := l.Snapshot()
	old := snap.Problems
	snap.Problems = nil
	snap.Passes++

	desired, err := l.source.Load(ctx, t.Force)
	if snap.Passes == 1 {
		l.first = desired.Generation
	}
	if err != nil {
		snap.problem(problemInput, err, old)
	}
	if len(desired.Resources) == 0 { // or "every resource is right" would hold
		snap.problem(problemNothing, errors.New("there is no desired state, so nothing is enforced"), old)
	}
	for _, r := range desired.Resources {
		if ctx.Err() != nil {
			break
		}
		l.visit(ctx, r, desired.Generation, t, &snap, old)
	}
	if ctx.Err() != nil {
		return l.interval, false
	}
	l.publish(snap, desired.Generation, old)
	return l.untilNext(snap, desired.Recheck), true
}

// untilNext is soon after a failed write, and sooner than usual while the input
// changes. A bad input gets better by no retry, so it is looked at as usual.
func (l *Loop) untilNext(snap Snapshot, recheck time.Duration) time.Duration {
	next := l.interval
	if snap.Enforced() {
		l.retry.Reset()
	} else {
		next = min(l.retry.NextBackOff(), l.interval)
	}
	if recheck > 0 {
		next = min(next, recheck)
	}
	return next
}

func (l *Loop) publish(snap Snapshot, generation uint64, old []Problem) {
	snap.Generation, snap.LastPass = generation, time.Now()
	if snap.Clean() {
		snap.LastClean = snap.LastPass
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

// visit handles one resource and writes what came of it into snap.
func (l *Loop) visit(ctx context.Context, r Resource, generation uint64, t Trigger, snap *Snapshot, old []Problem) {
	name := r.Name()
	looked := time.Now() // before the look, so that Event.Since is never too late
	plan, err := r.Plan(ctx)
	if plan == nil || plan.Empty() {
		if err != nil {
			snap.problem(name, err, old)
			return
		}
		l.right[name] = sight{at: looked, generation: generation}
		snap.Events = settle(snap.Events, name, time.Now())
		return
	}
	if ctx.Err() != nil {
		return
	}
	event := Event{Resource: name, Cause: l.cause(name, generation), What: text(plan), Since: l.right[name].at, Found: time.Now()}
	// A write that began is finished and read back, whatever else ends: it may
	// consist of several steps.
	ctx = context.WithoutCancel(ctx)
	applyErr := r.Apply(ctx, plan)
	looked = time.Now()
	left, err := r.Plan(ctx)
	err = errors.Join(applyErr, err)
	if left != nil && !left.Empty() {
		err = errors.Join(err, fmt.Errorf("%s still differs after it was written:\n%s", name, text(left)))
	}
	if err != nil {
		event.Error = err.Error()
		snap.Events = record(snap.Events, event)
		snap.problem(name, err, old)
		return
	}
	l.right[name] = sight{at: looked, generation: generation}
	snap.Events = settle(record(snap.Events, event), name, time.Now())
	event = snap.Events[len(snap.Events)-1]
	l.log.Info("restored", "resource", name, "cause", event.Cause, "trigger", t.Reason, "what", event.What, "open_ms", event.OpenMS)
}

// cause says why a resource is not as desired. One that was not yet right since
// the start or since a change has not drifted, however many passes ago that was.
func (l *Loop) cause(name string, generation uint64) string {
	seen, ever := l.right[name]
	switch {
	case ever && seen.generation == generation:
		return CauseDrift
	case !ever && generation == l.first:
		return CauseStart
	default:
		return CauseChange
	}
}
