package agent

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// fakeRules stands for the kernel's rules: right while there is no drift.
type fakeRules struct {
	applied chan struct{} // gets one token per write, if it has room

	mu       sync.Mutex
	drift    string
	applyErr error
}

type fakePlan string

func (p fakePlan) Empty() bool    { return p == "" }
func (p fakePlan) String() string { return string(p) }

func (r *fakeRules) Name() string { return "firewall" }

func (r *fakeRules) Plan(context.Context) (reconcile.Plan, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fakePlan(r.drift), nil
}

func (r *fakeRules) Apply(context.Context, reconcile.Plan) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.applyErr == nil {
		r.drift = ""
	}
	select {
	case r.applied <- struct{}{}:
	default:
	}
	return r.applyErr
}

func (r *fakeRules) set(drift string, applyErr error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drift, r.applyErr = drift, applyErr
}

// testAgent is the daemon with rules that are not the kernel's, and a timer that
// never fires: the tests ask for each pass.
func testAgent(t *testing.T, s *fileSource, rules reconcile.Resource) *Agent {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	a := newAgent(t.Context(), s, new(firewall.Firewall), "test", log)
	s.resources = func(Desired) []reconcile.Resource { return []reconcile.Resource{rules} }
	a.loop = reconcile.New(s, reconcile.Options{Interval: time.Hour}, log, func(s reconcile.Snapshot) { a.afterPass(t.Context(), s) })
	return a
}

// run starts all parts and returns a function that ends them.
func run(t *testing.T, a *Agent, reload ...chan struct{}) (stop func()) {
	t.Helper()
	server, err := control.Listen(t.Context(), t.TempDir(), a, a.log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.runAll(ctx, server, append(reload, nil)[0]) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// One `apply` is enough for a changed file, although it has to settle.
func TestApplyTakesOverAChangedFile(t *testing.T) {
	f := newFiles(t)
	a := testAgent(t, f.started(), &fakeRules{})
	run(t, a)
	if st, err := a.Apply(t.Context(), control.ApplyRequest{}); err != nil || st.Generation != 1 {
		t.Fatalf("%+v, %v", st, err)
	}
	f.write(f.peers, replace(t, goodPeers, "10.20.1.20", "10.20.1.29"))
	if st, err := a.Apply(t.Context(), control.ApplyRequest{}); err != nil || st.Generation != 2 {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestF13_ApplyForceAcceptsWhatIsSuspicious(t *testing.T) {
	f := newFiles(t)
	a := testAgent(t, f.started(), &fakeRules{})
	run(t, a)
	f.write(f.peers, upTo(goodPeers, "  - {name: pg-1")+from(goodPeers, "networks:"))
	_, err := a.Apply(t.Context(), control.ApplyRequest{})
	contains(t, err, "only 1 of the 4 nodes", "`pghardend apply --force` accepts it")
	if st, err := a.Apply(t.Context(), control.ApplyRequest{Force: true}); err != nil || st.State != control.StateOK {
		t.Errorf("%+v, %v", st, err)
	}
	if st, err := a.Apply(t.Context(), control.ApplyRequest{}); err != nil || st.Generation != 2 {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestApplyEndsWithTheDaemon(t *testing.T) {
	f := newFiles(t)
	a := testAgent(t, f.started(), &fakeRules{})
	stop := run(t, a)
	stop()
	_, err := a.Apply(t.Context(), control.ApplyRequest{})
	contains(t, err, "shutting down")
}

// Status is asked for while files change and are accepted.
func TestStatusDuringChanges(t *testing.T) {
	f := newFiles(t)
	rules := &fakeRules{}
	a := testAgent(t, f.started(), rules)
	run(t, a)
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	for range 3 {
		asking.Go(func() {
			for ctx.Err() == nil {
				if st := a.Status(ctx); st.Node != "pg-0" {
					t.Errorf("%+v", st)
				}
			}
		})
	}
	for _, address := range []string{"10.20.1.31", "10.20.1.32", "10.20.1.33"} {
		f.write(f.peers, replace(t, goodPeers, "10.20.1.20", address))
		rules.set("flushed", nil)
		if _, err := a.Apply(t.Context(), control.ApplyRequest{}); err != nil {
			t.Error(err)
		}
	}
	cancel()
	asking.Wait()
}

func TestReloadTriggersAPass(t *testing.T) {
	f := newFiles(t)
	rules := &fakeRules{applied: make(chan struct{}, 1)}
	a := testAgent(t, f.started(), rules)
	reload := make(chan struct{})
	run(t, a, reload)
	<-a.loop.Enforced()
	rules.set("flushed", nil)
	reload <- struct{}{}
	<-rules.applied // the timer would take a minute
}

// A service that is not in the configuration any more keeps its supervisor: only
// an operator ends a database. The rules go on being kept whatever it does.
func TestRemovedServiceKeepsItsSupervisor(t *testing.T) {
	f := newFiles(t)
	withService := f.configText() + replace(t, serviceText, "/var/lib/postgresql/15/main", filepath.Join(f.dir, "no-data"))
	f.write(f.config, withService)
	rules := &fakeRules{}
	rules.set("different", errors.New("never right")) // so that nothing is started
	a := testAgent(t, f.started(), rules)
	run(t, a)
	_, _ = a.Apply(t.Context(), control.ApplyRequest{})
	supervisor, err := a.supervisor("postgres")
	if err != nil {
		t.Fatal(err)
	}
	f.write(f.config, f.configText())
	_, err = a.Apply(t.Context(), control.ApplyRequest{})
	contains(t, err, "never right")
	if again, err := a.supervisor("postgres"); err != nil || again != supervisor {
		t.Errorf("supervisor %p, was %p, %v", again, supervisor, err)
	}
	st := a.Status(t.Context())
	if len(st.Services) != 1 || !strings.Contains(strings.Join(st.Reasons, "\n"), "service postgres is not in the configuration any more") {
		t.Errorf("%+v", st)
	}
	f.write(f.config, withService)
	_, _ = a.Apply(t.Context(), control.ApplyRequest{})
	if again, err := a.supervisor("postgres"); err != nil || again != supervisor {
		t.Errorf("a second supervisor %p for one service, was %p, %v", again, supervisor, err)
	}
}

func TestUnknownService(t *testing.T) {
	a := &Agent{}
	for _, err := range []error{a.StartService(t.Context(), "x"), a.StopService(t.Context(), "x")} {
		if !errors.Is(err, control.ErrNotFound) || err.Error() != "there is no service \"x\"; `pghardend status` lists them" {
			t.Errorf("error %v", err)
		}
	}
}

// The launch stage reads the accepted copy, so that a service can restart while
// the file on disk is broken.
func TestSupervisedServiceUsesTheAcceptedCopy(t *testing.T) {
	f := newFiles(t)
	f.write(f.config, f.configText()+serviceText)
	s := f.restarted(t)
	spec := superviseSpec(s.current.Config, s.current.Config.Services[0])
	accepted := filepath.Join(f.run, acceptedConfig)
	if got := strings.Join(spec.Argv, " "); got != "/proc/self/exe exec --service postgres --config "+accepted+" --report-fd 3" {
		t.Errorf("argv %s", got)
	}
	if spec.DataDir != "/var/lib/postgresql/15/main" || spec.Exe != "/usr/lib/postgresql/15/bin/postgres" || spec.RecordFile != filepath.Join(f.run, "services", "postgres.json") {
		t.Errorf("spec %+v", spec)
	}
	f.write(f.config, "broken")
	cfg, err := LoadConfig(t.Context(), accepted)
	if err != nil {
		t.Fatal(err)
	}
	if launched, err := ServiceSpec(cfg, "postgres"); err != nil || launched.DataDir != spec.DataDir {
		t.Errorf("%+v, %v", launched, err)
	}
}

// A supervisor that cannot work is no reason for the rules to be left alone.
func TestBrokenSupervisorDoesNotEndTheDaemon(t *testing.T) {
	f := newFiles(t)
	a := testAgent(t, f.started(), &fakeRules{})
	run(t, a)
	<-a.loop.Enforced()
	d := *a.desired.Load()
	d.Config.Services = []config.Service{{Name: "broken", Command: []string{"not/absolute"}}}
	a.accept(d)
	contains(t, a.StartService(t.Context(), "broken"), "its supervisor has ended")
	if _, err := a.Apply(t.Context(), control.ApplyRequest{}); err != nil {
		t.Errorf("the loop: %v", err)
	}
}

func TestFirewallResourceRefusesAForeignPlan(t *testing.T) {
	r := &firewallResource{fw: new(firewall.Firewall)}
	contains(t, r.Apply(t.Context(), fakePlan("x")), "cannot apply a agent.fakePlan to the firewall")
}
