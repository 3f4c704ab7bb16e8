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

// Event.Trigger where it is not a Trigger's reason.
const (
	reasonStart   = "start"
	reasonTick    = "tick"    // Peek said so
	reasonFull    = "full"    // nothing said so
	reasonRetry   = "retry"   // something was not as desired
	reasonRecheck = "recheck" // the source asked for it
	reasonEvent   = "event"   // an alarm
	reasonVerify  = "verify"  // some time after alarms
)

// Loop is the reconcile loop. Make it with New.
type Loop struct {
	source Source
	opts   Options
	log    *slog.Logger
	onPass func(Snapshot)

	wake     chan struct{} // holds one token while due is to be served
	mu       sync.Mutex
	due      Trigger // all triggers since the last pass, merged
	requests chan request
	alarms   chan Alarm
	enforced chan struct{}
	ended    chan struct{}
	snapshot atomic.Pointer[Snapshot]
	epoch    time.Time    // its monotonic reading counts
	lastLook atomic.Int64 // since epoch, so that a tick need not allocate; 0: none

	ticks chan seen // of Options.Every, for Run's goroutine

	// Owned by who holds reins: Run's goroutine whenever it does anything, and else
	// a tick of Options.Every.
	reins    sync.Mutex
	timer    *time.Timer
	retry    *backoff.ExponentialBackOff
	first    uint64 // generation of the first pass
	desired  Desired
	parts    map[string]*part // by resource
	events   []Event
	lastID   uint64
	nextTick time.Time
	nextFull time.Time
	recheck  time.Time // zero: the source does not ask for it
}

type request struct {
	trigger Trigger
	done    chan Snapshot
}

// Options are a loop's times, and who is told. The functions may be nil; OnTick and
// OnEvent must not block and are called one at a time.
type Options struct {
	Interval time.Duration // from tick to tick
	// Every calls tick once in each Interval, until ctx is done; nil: a timer of
	// Run's goroutine does. As long as there is nothing to do, a tick stays in the
	// goroutine that calls it, so that one thread that wakes up is enough.
	Every func(ctx context.Context, tick func())
	// Full is the time between two full looks, give or take a tenth. One that is
	// not above Interval makes each tick a full look.
	Full    time.Duration
	Aside   []string    // resources that Enforced does not wait for
	OnTick  func()      // before a tick's pass, if there is one: proof of life
	OnEvent func(Event) // for each event that is new, and again when it is over
}

// New makes a loop. onPass is called after each pass from Run's goroutine and
// must not block.
func New(source Source, o Options, log *slog.Logger, onPass func(Snapshot)) *Loop {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval = min(firstRetry, o.Interval)
	retry.MaxInterval = o.Interval
	l := &Loop{
		source: source, opts: o, log: log, onPass: onPass,
		wake:     make(chan struct{}, 1),
		requests: make(chan request),
		alarms:   make(chan Alarm, maxAlarms),
		ticks:    make(chan seen, 1),
		enforced: make(chan struct{}),
		ended:    make(chan struct{}),
		epoch:    time.Now(),
		retry:    retry,
		parts:    map[string]*part{},
	}
	l.snapshot.Store(&Snapshot{})
	return l
}

// Snapshot says how things stood after the last pass or reflex. It never blocks.
func (l *Loop) Snapshot() Snapshot {
	s := *l.snapshot.Load()
	if at := l.lastLook.Load(); at > 0 { // by today's wall clock, be it the one of then or not
		now := time.Now()
		s.LastLook = now.Add(time.Duration(at) - now.Sub(l.epoch))
	}
	return s
}

func (l *Loop) looked() { l.lastLook.Store(max(1, int64(time.Since(l.epoch)))) }

// Enforced is closed after the first pass whose Snapshot is Enforced. A bad input
// does not hold it back as long as a last good one is in force.
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
	if l.opts.Every != nil {
		var beside sync.WaitGroup
		defer beside.Wait()
		beside.Go(func() { l.opts.Every(ctx, func() { l.beside(ctx) }) })
	}
	l.reins.Lock()
	defer l.reins.Unlock()
	l.timer = time.NewTimer(l.opts.Interval)
	defer l.timer.Stop()
	l.pass(ctx, fullRound(Trigger{Reason: reasonStart}))
	for l.serveNext(ctx) {
	}
	return nil
}

// serveNext waits for what is to be done next, and does it. False: it is the end.
func (l *Loop) serveNext(ctx context.Context) bool {
	l.setTimer(l.nextTime())
	l.reins.Unlock()
	select {
	case <-ctx.Done():
		l.reins.Lock()
		return false
	case a := <-l.alarms:
		l.reins.Lock()
		l.heed(ctx, a)
	case <-l.timer.C:
		l.reins.Lock()
		l.onTime(ctx)
	case s := <-l.ticks:
		l.reins.Lock()
		l.onTick(ctx, s)
	case <-l.wake:
		l.reins.Lock()
		l.pass(ctx, fullRound(l.served()))
	case r := <-l.requests:
		l.reins.Lock()
		round := fullRound(r.trigger)
		round.asked = true
		if l.pass(ctx, round) {
			r.done <- l.Snapshot()
		}
		close(r.done)
	}
	return true
}
