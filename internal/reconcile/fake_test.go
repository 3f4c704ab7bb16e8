package reconcile

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const interval = time.Second

// thing is a resource with a state that a test can change behind our back.
type thing struct {
	name string
	want string

	mu     sync.Mutex
	have   string
	looks  []time.Time // when Plan was called
	writes int

	lag   time.Duration                                                  // from reading to the answer
	look  func(ctx context.Context)                                      // called by Plan, before it reads
	plan  func(ctx context.Context, have string) (Plan, error)           // instead of comparing
	write func(ctx context.Context, writes int) (have string, err error) // instead of writing want
}

type diff struct{ from, to string }

func (d diff) Empty() bool    { return d.from == d.to }
func (d diff) String() string { return d.from + " → " + d.to }

func (r *thing) Name() string { return r.name }

func (r *thing) Plan(ctx context.Context) (Plan, error) {
	r.mu.Lock()
	look := r.look
	r.mu.Unlock()
	if look != nil {
		look(ctx)
	}
	plan, err := r.compare(ctx)
	if r.lag > 0 {
		<-time.After(r.lag)
	}
	return plan, err
}

func (r *thing) compare(ctx context.Context) (Plan, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looks = append(r.looks, time.Now())
	if r.plan != nil {
		return r.plan(ctx, r.have)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return diff{r.have, r.want}, nil
}

func (r *thing) Apply(ctx context.Context, _ Plan) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes++
	if r.write != nil {
		var err error
		r.have, err = r.write(ctx, r.writes)
		return err
	}
	r.have = r.want
	return nil
}

func (r *thing) set(have string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.have = have
}

func (r *thing) setLook(look func(ctx context.Context)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.look = look
}

func (r *thing) get() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.have
}

func (r *thing) looked() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]time.Time{}, r.looks...)
}

func (r *thing) written() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.writes
}

// swift is a thing with a reflex and a cheap look.
type swift struct {
	thing
	reflexes []time.Time
	peeked   int
	blind    bool                                    // the cheap look never says anything
	reflex   func(have string) (now string, e error) // instead of writing want
}

func (r *swift) Peek(context.Context) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peeked++
	return !r.blind && r.have != r.want
}

func (r *swift) Reflex(context.Context) (Plan, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reflexes = append(r.reflexes, time.Now())
	was := r.have
	var err error
	if r.reflex != nil {
		r.have, err = r.reflex(was)
	} else {
		r.have = r.want
	}
	return diff{was, r.have}, err
}

func (r *swift) reflexed() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]time.Time{}, r.reflexes...)
}

// peekSource is a source that may be looked at cheaply.
type peekSource struct {
	*source
	changed atomic.Bool
}

func (s *peekSource) Peek(context.Context) bool { return s.changed.Swap(false) }

// source yields what a test last put into it.
type source struct {
	mu      sync.Mutex
	desired Desired
	err     error
	forced  []bool
	hang    chan struct{} // Load waits for its end
}

func newSource(resources ...Resource) *source {
	return &source{desired: Desired{Generation: 1, Resources: resources}}
}

func (s *source) Load(_ context.Context, force bool) (Desired, error) {
	s.mu.Lock()
	hang := s.hang
	s.mu.Unlock()
	if hang != nil {
		<-hang
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forced = append(s.forced, force)
	return s.desired, s.err
}

func (s *source) update(f func(s *source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *source) loads() []bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]bool{}, s.forced...)
}

// bed is a loop that runs in a bubble of virtual time, with its log.
type bed struct {
	*Loop
	stop func() // ends Run and waits for it
	log  *logText
}

// logText is a log that may be read while it is written.
type logText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *logText) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *logText) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

func (w *logText) Reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Reset()
}

func start(t *testing.T, s Source) *bed {
	t.Helper()
	return startWith(t, s, Options{Interval: interval})
}

func startWith(t *testing.T, s Source, o Options) *bed {
	t.Helper()
	b := &bed{log: &logText{}}
	b.Loop = New(s, o, slog.New(slog.NewTextHandler(b.log, nil)), nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run must end without an error: %v", err)
		}
	})
	t.Cleanup(b.stop)
	synctest.Wait()
	return b
}

// after lets virtual time pass.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func lastEvent(t *testing.T, s Snapshot) Event {
	t.Helper()
	if len(s.Events) == 0 {
		t.Fatal("there is no event")
	}
	return s.Events[len(s.Events)-1]
}
