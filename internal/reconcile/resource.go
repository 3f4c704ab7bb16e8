package reconcile

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Plan is the difference between desired and observed.
type Plan interface {
	Empty() bool
	String() string // for people
}

// Unrepairable is a Plan with a part that cannot be put back in place, such as
// the seccomp filter of a running process.
type Unrepairable interface {
	Plan
	// Unrepairable says what needs which restart, one line for each; empty if
	// nothing does.
	Unrepairable() string
	// Repairable says whether there is anything else, which is for Apply.
	Repairable() bool
}

// ErrNotDue is what Plan returns if it did not look, because all that it would
// see is as it was: then things stand as its last look has left them, and were not
// seen to be right a moment ago.
var ErrNotDue = errors.New("no look is due")

// AskedError is what Apply returns if it may not write, but has asked somebody else to:
// it does not wait, and a later look finds it done.
type AskedError struct {
	Whom string // for people
	Err  error
}

func (e *AskedError) Error() string { return e.Err.Error() }
func (e *AskedError) Unwrap() error { return e.Err }

// Resource is one kind of state in the kernel or on disk.
type Resource interface {
	Name() string
	// Plan observes and compares. With an error it may still return a plan for
	// the part that could be observed; nil if there is none.
	Plan(ctx context.Context) (Plan, error)
	// Apply carries out what Plan returned. It has to end by itself in bounded
	// time: its ctx is not cancelled when the loop is told to end.
	Apply(ctx context.Context, p Plan) error
}

// Peeker is a Resource, or a Source, that can be looked at cheaply.
type Peeker interface {
	// Peek says whether anything may differ from when Plan last found nothing, or
	// whether Load would yield something else than it last did. It runs no command,
	// writes nothing and hardly allocates: it is called in each tick.
	Peek(ctx context.Context) bool
}

// Reflexive is a Resource that can put back at once what an alarm announces.
type Reflexive interface {
	// Reflex returns what it put back, be it with an error; nil or an empty plan if
	// nothing differed. It is called in Run's goroutine, also while Plan of the same
	// resource or Load of the source runs in another, but never during Apply. Its
	// ctx is not cancelled when the loop is told to end.
	Reflex(ctx context.Context) (Plan, error)
}

// Timed is a Plan of a Reflexive that knows when it had its effect: that may be
// before all of it was written.
type Timed interface {
	Plan
	Repaired() time.Time
}

// Announced is a Plan that knows whether alarms tell of what it takes back. If
// not, who made an alarm has nothing to do with it.
type Announced interface {
	Plan
	Announced() bool
}

// Desired is what the system should be.
type Desired struct {
	Generation uint64 // changes with every accepted change of the input
	Resources  []Resource
	// Recheck, if positive, is when Load wants to be called again at the latest:
	// the input is changing right now.
	Recheck time.Duration
}

// Source yields the desired state. When the newest input is bad it returns the
// last good state together with the error. It may be a Peeker as well.
type Source interface {
	// Load is called at the start of each pass that is not for single resources
	// only. force accepts an input that is suspicious but not wrong.
	Load(ctx context.Context, force bool) (Desired, error)
}

// Trigger asks for a pass.
type Trigger struct {
	Reason string
	Force  bool // accept a suspicious input
}

// Alarm says that something of a resource may have been changed just now.
type Alarm struct {
	Resource string
	At       time.Time // when it was noticed; zero: it may have been at any time since the last look
	// Who, if not nil, says who did it. It is called after the repair, in Run's
	// goroutine, and may take a few milliseconds; nil if it is not known.
	Who func() *Culprit
}

// Culprit is the process that changed something, as far as it was still there to
// be looked at.
type Culprit struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	UID     int    `json:"uid"`              // -1: unknown
	Exe     string `json:"exe,omitempty"`    // its executable
	Args    string `json:"args,omitempty"`   // its command line, cut
	Parent  string `json:"parent,omitempty"` // who started it, as "fail2ban-server (812)"
}

// Causes of an Event.
const (
	CauseStart  = "start"  // it was not right yet since this daemon began
	CauseChange = "change" // the desired state changed
	CauseDrift  = "drift"  // the kernel's state changed
)

// Event is one resource that was not as desired.
type Event struct {
	ID       uint64    `json:"id"` // counts from this daemon's start
	Resource string    `json:"resource"`
	Cause    string    `json:"cause"`
	Trigger  string    `json:"trigger"` // what made us look: event, tick, full, a Trigger's reason …
	What     string    `json:"what"`
	Since    time.Time `json:"since"`    // it was last seen to be right at this time; zero if never
	Found    time.Time `json:"found"`    // it was seen to be wrong
	Repaired time.Time `json:"repaired"` // it was seen to be right again; zero if it was not
	OpenMS   float64   `json:"open_ms"`  // upper bound of how long it was wrong, from Since (or Found) to Repaired
	Who      *Culprit  `json:"who,omitempty"`
	Restart  bool      `json:"restart,omitempty"` // no write of ours can repair it, see Unrepairable
	Error    string    `json:"error,omitempty"`   // why our last write did not repair it
	Asked    string    `json:"asked,omitempty"`   // who was asked to do it instead, see AskedError
}

// ProblemConflict is Problem.What if somebody changes a resource again and again.
const ProblemConflict = "conflict"

// Problem.What where it is not a resource's name.
const (
	problemInput   = "config"        // the Source reports an error
	problemNothing = "desired state" // the Source has no resource
)

// Problem is a reason for being degraded.
type Problem struct {
	What     string    `json:"what"`               // "config", "desired state", "conflict" or a resource's name
	Resource string    `json:"resource,omitempty"` // that a conflict is about
	Restart  bool      `json:"restart,omitempty"`  // only a restart puts it right, see Unrepairable
	Aside    bool      `json:"aside,omitempty"`    // Enforced does not wait for it, see Options
	Text     string    `json:"text"`
	Since    time.Time `json:"since"`
}

// same says whether both are about the same, whatever they say.
func (p Problem) same(o Problem) bool { return p.What == o.What && p.Resource == o.Resource }

// Snapshot is how things stood after the last pass or reflex.
type Snapshot struct {
	Passes     uint64
	Generation uint64
	LastPass   time.Time // at some resources or all
	LastFull   time.Time // end of the last pass that looked at every resource
	LastClean  time.Time // end of the last pass without a problem
	LastLook   time.Time // end of the last tick or pass; zero before the first
	Problems   []Problem
	Events     []Event // oldest first, the last maxEvents
}

// Clean says whether the last pass left everything as desired.
func (s Snapshot) Clean() bool { return s.Passes > 0 && len(s.Problems) == 0 }

// Enforced says whether the last pass left every resource as desired, be the
// newest input good or bad, and as far as that can be had without a restart;
// those that Options leaves aside do not count. A conflict is no obstacle: what
// somebody changes is put back each time.
func (s Snapshot) Enforced() bool {
	return s.Passes > 0 && !slices.ContainsFunc(s.Problems, func(p Problem) bool {
		return p.What != problemInput && p.What != ProblemConflict && !p.Restart && !p.Aside
	})
}

// Right says whether the last pass left the named resources as desired.
func (s Snapshot) Right(resources ...string) bool {
	return s.Passes > 0 && !slices.ContainsFunc(s.Problems, func(p Problem) bool {
		return p.What == problemNothing || slices.Contains(resources, p.What)
	})
}
