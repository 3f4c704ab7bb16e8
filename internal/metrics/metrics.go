package metrics

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Layer is one layer of one subject, as in the status.
type Layer struct {
	Name, Subject string
	Enforced      bool
}

// Packets are what the rules of one meaning have counted since they were written.
type Packets struct {
	Family, Direction, Flow, Verdict string
	Packets, Bytes                   uint64
}

// State is how things stand.
type State struct {
	Layers        []Layer // those that are configured
	Degraded      bool
	Conflicts     int            // resources that somebody changes again and again
	LastReconcile time.Time      // end of the last pass that looked at everything; zero if there was none
	LastClean     time.Time      // end of the last pass that left everything as desired
	Sets          map[string]int // members by set; empty unless the kernel was seen to have them
}

// Source is asked at scrapes, by several goroutines, but not more often than is
// good.
type Source interface {
	State(ctx context.Context) State
	// Packets may return some together with an error.
	Packets(ctx context.Context) ([]Packets, error)
}

// Metrics may be used by several goroutines.
type Metrics struct {
	version, backend string
	source           Source

	mu      sync.Mutex // held for moments only
	drifts  family
	denied  family
	execs   family
	selinux family
	repairs map[string]*histogram // by resource
	lost    uint64
	failed  uint64 // scrapes that could not read the packets

	asking chan struct{} // holds a token while a scrape asks the source
	last   reading       // guarded by mu
}

// reading is what the source said last.
type reading struct {
	state     State
	stateAt   time.Time
	packets   []Packets
	packetsAt time.Time
}

// Bounds of samples.
const (
	maxResources = 16
	maxDrifts    = 64
	maxDenied    = 1024
	maxPackets   = 1024
	maxSets      = 256
	maxLayers    = 256
)

// other stands for everything beyond a bound.
const other = "other"

// New makes metrics that ask source.
func New(version, backend string, source Source) *Metrics {
	return &Metrics{
		version: version, backend: backend, source: source,
		drifts: newFamily(maxDrifts), denied: newFamily(maxDenied), execs: newFamily(maxDenied), selinux: newFamily(maxDenied), repairs: map[string]*histogram{},
		asking: make(chan struct{}, 1),
	}
}

// Drift counts a resource that was not as desired.
func (m *Metrics) Drift(resource, cause string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drifts.add(1, resource, cause)
}

// Repaired notes how long a drift was open.
func (m *Metrics) Repaired(resource string, open time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.repairs[resource] == nil && len(m.repairs) >= maxResources {
		resource = other
	}
	if m.repairs[resource] == nil {
		m.repairs[resource] = &histogram{}
	}
	m.repairs[resource].observe(open.Seconds())
}

// Denied counts n denied syscalls.
func (m *Metrics) Denied(n uint64, service, syscall string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.denied.add(n, service, syscall)
}

// Blocked counts n programs that a service could not execute.
func (m *Metrics) Blocked(n uint64, service string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.execs.add(n, service)
}

// DeniedSELinux counts an access that SELinux denied a service, to a class of objects.
func (m *Metrics) DeniedSELinux(service, class string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.selinux.add(1, service, class)
}

// Lost counts an overrun of a source of events.
func (m *Metrics) Lost() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost++
}

const (
	// stateFor bounds what somebody who may reach the port can make us work: a
	// state is read from /proc of each process.
	stateFor = time.Second
	// packetsFor: counters are read by commands.
	packetsFor = 5 * time.Second
	// askTimeout bounds one reading.
	askTimeout = 10 * time.Second
)

// ask returns what the source says, or said lately. While another scrape is
// with the source, it is what that one found there.
func (m *Metrics) ask(ctx context.Context) reading {
	if !m.begin(ctx) {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.last
	}
	defer func() { <-m.asking }()
	m.mu.Lock()
	r := m.last
	m.mu.Unlock()
	// Whoever asked may be gone before the answer, which is then for the next.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	if r.stateAt.IsZero() || time.Since(r.stateAt) >= stateFor {
		r.state, r.stateAt = m.source.State(ctx), time.Now()
	}
	var err error
	if r.packetsAt.IsZero() || time.Since(r.packetsAt) >= packetsFor {
		r.packets, err = m.source.Packets(ctx)
		r.packetsAt = time.Now()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.failed++
	}
	m.last = r
	return r
}

// begin takes the token. False: somebody else has it, and there is something that
// was read before.
func (m *Metrics) begin(ctx context.Context) bool {
	select {
	case m.asking <- struct{}{}:
		return true
	default:
	}
	m.mu.Lock()
	first := m.last.stateAt.IsZero()
	m.mu.Unlock()
	if !first {
		return false
	}
	select {
	case m.asking <- struct{}{}:
		return true
	case <-ctx.Done():
		return false // nobody is there to read it
	}
}

// labels of one sample; what is not used is empty.
type labels [4]string

// family holds the counts of one family, by labels.
type family struct {
	most   int
	counts map[labels]uint64
}

func newFamily(most int) family { return family{most: most, counts: map[labels]uint64{}} }

// add counts under "other" what would be one sample too many.
func (f *family) add(n uint64, values ...string) {
	var l labels
	copy(l[:], values)
	if _, known := f.counts[l]; !known && len(f.counts) >= f.most {
		for i := range values {
			l[i] = other
		}
	}
	f.counts[l] += n
}

// sorted are the labels in order.
func (f *family) sorted() []labels {
	all := make([]labels, 0, len(f.counts))
	for l := range f.counts {
		all = append(all, l)
	}
	slices.SortFunc(all, func(x, y labels) int { return slices.Compare(x[:], y[:]) })
	return all
}

// buckets are upper bounds in seconds: the goals are 2 and 5 ms by event, and
// 1 s by looking.
var buckets = [...]float64{0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10}

type histogram struct {
	counts [len(buckets)]uint64 // each with those below
	count  uint64
	sum    float64
}

func (h *histogram) observe(seconds float64) {
	for i := len(buckets) - 1; i >= 0 && seconds <= buckets[i]; i-- {
		h.counts[i]++
	}
	h.count++
	h.sum += seconds
}
