package reconcile

import (
	"context"
	"slices"
	"time"
)

// Plan is the difference between desired and observed.
type Plan interface {
	Empty() bool
	String() string // for people
}

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

// Desired is what the system should be.
type Desired struct {
	Generation uint64 // changes with every accepted change of the input
	Resources  []Resource
	// Recheck, if positive, is when Load wants to be called again at the latest:
	// the input is changing right now.
	Recheck time.Duration
}

// Source yields the desired state. When the newest input is bad it returns the
// last good state together with the error.
type Source interface {
	// Load is called at the start of each pass. force accepts an input that is
	// suspicious but not wrong.
	Load(ctx context.Context, force bool) (Desired, error)
}

// Trigger asks for a pass.
type Trigger struct {
	Reason string
	Force  bool // accept a suspicious input
}

// Causes of an Event.
const (
	CauseStart  = "start"  // it was not right yet since this daemon began
	CauseChange = "change" // the desired state changed
	CauseDrift  = "drift"  // the kernel's state changed
)

// Event is one resource that was not as desired.
type Event struct {
	Resource string    `json:"resource"`
	Cause    string    `json:"cause"`
	What     string    `json:"what"`
	Since    time.Time `json:"since"`           // it was last seen to be right at this time; zero if never
	Found    time.Time `json:"found"`           // it was seen to be wrong
	Repaired time.Time `json:"repaired"`        // it was seen to be right again; zero if it was not
	OpenMS   float64   `json:"open_ms"`         // upper bound of how long it was wrong, from Since (or Found) to Repaired
	Error    string    `json:"error,omitempty"` // why our last write did not repair it
}

// Problem.What where it is not a resource's name.
const (
	problemInput   = "config"        // the Source reports an error
	problemNothing = "desired state" // the Source has no resource
)

// Problem is a reason for being degraded.
type Problem struct {
	What  string    `json:"what"` // "config", "desired state" or a resource's name
	Text  string    `json:"text"`
	Since time.Time `json:"since"`
}

// Snapshot is how things stood after the last pass.
type Snapshot struct {
	Passes     uint64
	Generation uint64
	LastPass   time.Time
	LastClean  time.Time // end of the last pass without a problem
	Problems   []Problem
	Events     []Event // oldest first, the last maxEvents
}

// Clean says whether the last pass left everything as desired.
func (s Snapshot) Clean() bool { return s.Passes > 0 && len(s.Problems) == 0 }

// Enforced says whether the last pass left every resource as desired, be the
// newest input good or bad.
func (s Snapshot) Enforced() bool {
	return s.Passes > 0 && !slices.ContainsFunc(s.Problems, func(p Problem) bool { return p.What != problemInput })
}

// Right says whether the last pass left the named resources as desired.
func (s Snapshot) Right(resources ...string) bool {
	return s.Passes > 0 && !slices.ContainsFunc(s.Problems, func(p Problem) bool {
		return p.What == problemNothing || slices.Contains(resources, p.What)
	})
}
