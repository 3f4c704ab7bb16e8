package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// State is where a service's life stands.
type State string

// The states of a service.
const (
	StateWaiting  State = "waiting"  // nothing runs; the first start waits for Spec.Gate
	StateStarting State = "starting" // a process runs and is not ready yet
	StateReady    State = "ready"    // it accepts connections (without DataDir: it was executed)
	StateStopping State = "stopping" // it was asked to end
	StateStopped  State = "stopped"  // nothing runs until Start
	StateBackoff  State = "backoff"  // nothing runs; Status.NextTry says when the next try is
	StateFailed   State = "failed"   // something runs that is not provably ours; it is left alone until Start
)

// Spec describes one service. It must not be changed after New.
type Spec struct {
	Name         string        // of the service, for messages
	Argv         []string      // the launch stage, which execs the service in place; absolute path first
	Exe          string        // the service's executable, as /proc/PID/exe shows it after the launch stage
	DataDir      string        // postgres' data directory; "" for services that have none
	RecordFile   string        // runtime_dir/services/NAME.json
	LaunchFile   string        // what a launch without privileges leaves, of its process; "" for none
	LogFile      *os.File      // stdout and stderr of the service; nil: the daemon's stderr. Never a pipe to the daemon
	StartTimeout time.Duration // after this, "starting" is complained about; 0 means 60 s
	StopTimeout  time.Duration // from SIGINT to SIGQUIT, and from there to giving up; 0 means 60 s

	// Verify judges whether a process found running is confined as it should be.
	// It is called before an adoption; an error means state failed. nil: no check.
	Verify func(ctx context.Context, pid int) error
	// Begun is told of each process of the service, before it is more than ours or when
	// it is adopted. nil: nobody is told.
	Begun func(ctx context.Context, pid int)
	// External: something else starts the service, such as a unit of its own; it is
	// adopted whenever it runs, and never started here. See external.go.
	External bool
	// Gate holds back the first start (not an adoption) until it is closed. nil: none.
	Gate <-chan struct{}
}

// Status is a snapshot of a service.
type Status struct {
	Name      string    `json:"name"`
	State     State     `json:"state"`
	PID       int       `json:"pid,omitempty"`
	Since     time.Time `json:"since"`
	Restarts  int       `json:"restarts"` // starts by the back-off, since this daemon began
	LastError string    `json:"last_error,omitempty"`
	Adopted   bool      `json:"adopted"`
	NextTry   time.Time `json:"next_try,omitzero"` // only in state backoff
}

// Supervisor owns the life of one service. See the package comment.
type Supervisor struct {
	spec     Spec
	log      *slog.Logger
	calm     time.Duration // this long ready, and the back-off starts from its beginning
	status   atomic.Pointer[Status]
	changed  chan struct{}
	requests chan request
	began    atomic.Bool
	ended    chan struct{}
}

type requestKind int

const (
	requestStart requestKind = iota
	requestStop
)

type request struct {
	kind  requestKind
	reply chan<- error // buffered, so the owner never waits for who asked
}

const defaultTimeout = 60 * time.Second

// New returns the supervisor of a service. Nothing happens before Run.
func New(spec Spec, log *slog.Logger) *Supervisor {
	if spec.StartTimeout <= 0 {
		spec.StartTimeout = defaultTimeout
	}
	if spec.StopTimeout <= 0 {
		spec.StopTimeout = defaultTimeout
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Supervisor{
		spec:     spec,
		log:      log.With("service", spec.Name),
		calm:     60 * time.Second,
		changed:  make(chan struct{}, 1),
		requests: make(chan request),
		ended:    make(chan struct{}),
	}
	s.status.Store(&Status{Name: spec.Name, State: StateWaiting, Since: time.Now()})
	return s
}

// Run lives the service's life until ctx ends. It then returns nil and leaves the
// process running. An error means that the Spec cannot be used or that Run was
// called before.
func (s *Supervisor) Run(ctx context.Context) error {
	if !s.began.CompareAndSwap(false, true) {
		return fmt.Errorf("cannot supervise service %s: Run was called before; make a new Supervisor", s.spec.Name)
	}
	defer close(s.ended)
	if err := s.spec.validate(); err != nil {
		return fmt.Errorf("cannot supervise service %q: %w", s.spec.Name, err)
	}
	k := newKeeper(s)
	defer k.leave()
	k.tidy(ctx)
	for next := k.find; next != nil; {
		next = next(ctx)
	}
	return nil
}

// Start asks for the service to run and waits until it is ready. An error says why
// this try failed; the back-off goes on trying nevertheless. When ctx ends first
// the request stays in force.
func (s *Supervisor) Start(ctx context.Context) error {
	return s.ask(ctx, requestStart)
}

// Stop ends the service: SIGINT, after StopTimeout SIGQUIT, and after another
// StopTimeout an error with advice; SIGKILL is never sent. It waits until the
// process has gone. The service stays stopped until Start. When ctx ends first the
// request stays in force.
func (s *Supervisor) Stop(ctx context.Context) error {
	return s.ask(ctx, requestStop)
}

// Status returns a snapshot without waiting for anything.
func (s *Supervisor) Status() Status {
	return *s.status.Load()
}

// Changed returns a channel that receives after Status has changed. Changes are
// merged while nobody receives, so it is for one receiver, which then calls Status.
func (s *Supervisor) Changed() <-chan struct{} {
	return s.changed
}

func (s *Supervisor) ask(ctx context.Context, kind requestKind) error {
	verb := "start"
	if kind == requestStop {
		verb = "stop"
	}
	reply := make(chan error, 1)
	select {
	case s.requests <- request{kind, reply}:
	case <-s.ended:
		return fmt.Errorf("cannot %s service %s: %w", verb, s.spec.Name, errEnded)
	case <-ctx.Done():
		return fmt.Errorf("cannot %s service %s: it is not being supervised now: %w", verb, s.spec.Name, ctx.Err())
	}
	select {
	case err := <-reply:
		if err != nil {
			return fmt.Errorf("cannot %s service %s: %w", verb, s.spec.Name, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cannot wait for the %s of service %s, which goes on (state %s): %w", verb, s.spec.Name, s.Status().State, ctx.Err())
	}
}

var errEnded = errors.New("its supervisor has ended; start the daemon")

func (s Spec) validate() error {
	var errs []error
	absolute := func(what, path string) {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s is %q; it must be an absolute path", what, path))
		}
	}
	if s.Name == "" || strings.ContainsRune(s.Name, '/') {
		errs = append(errs, errors.New("its name must not be empty nor contain a slash"))
	}
	if len(s.Argv) == 0 {
		errs = append(errs, errors.New("it has no command"))
	} else {
		absolute("the first word of its command", s.Argv[0])
	}
	absolute("its executable", s.Exe)
	absolute("its record file", s.RecordFile)
	if s.DataDir != "" {
		absolute("its data directory", s.DataDir)
	}
	return errors.Join(errs...)
}
