package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/internal/supervise"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// Agent is the daemon.
type Agent struct {
	version  string
	log      *slog.Logger
	fw       *firewall.Firewall
	source   *fileSource
	loop     *reconcile.Loop
	notify   *notifier
	events   *events
	metrics  *agentMetrics
	complain *complainWatch
	denials  *denials
	policy   *selinuxWatch
	alarms   *alarms
	desired  atomic.Pointer[Desired]
	asking   chan struct{} // holds a token while a request is with the source

	// What the loop keeps, see resources.
	rules     *ruleWatch
	firewall  *firewallResource
	sysctls   *sysctlResource
	processes *processesResource
	files     *filesResource
	cgroups   *cgroupsResource
	selinux   *selinuxResource
	looks     looks
	profiles  profileWatch
	heap      heap
	repairs   repairs

	scoreFault error // why the agent has not the OOM score that is asked for

	mu       sync.Mutex
	group    *errgroup.Group
	groupCtx context.Context //nolint:containedctx // lives as long as group does
	services map[string]*supervise.Supervisor
}

// gcPercent is half of Go's default: the heap is small, and an idle daemon
// allocates next to nothing.
const gcPercent = 50

// Run is the daemon. It returns nil after ctx is done; rules and services stay
// as they are. ErrLocked means that another one already works on runtime_dir.
func Run(ctx context.Context, configFile, version string, reload <-chan struct{}, log *slog.Logger) error {
	unix.Umask(0o077)
	debug.SetGCPercent(gcPercent)
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 2) // a sentry must not wait while a look keeps others busy
	source, release, err := lockedSource(ctx, configFile, log)
	if err != nil {
		return err
	}
	defer release()
	cfg := source.current.Config
	own, err := enterOwnCgroup(ctx, cfg, log)
	if err != nil {
		return err
	}
	fw, err := firewall.Open(ctx, cfg.Firewall.Backend)
	if err != nil {
		return err
	}
	a := newAgent(ctx, source, fw, version, log)
	defer a.close()
	a.cgroups.self, a.scoreFault = own, setOwnScore(ctx, cfg)
	a.rules = newRuleWatch(fw, log)
	a.alarms = newAlarms(fw, a.loop.Alarm, a.rules.answer, a.metrics.lost, log)
	a.alarms.promote = a.promote
	source.watch = newFileWatch(a.filesChanged, log)
	server, err := control.Listen(ctx, cfg.RuntimeDir, a, log)
	if err != nil {
		return err
	}
	a.events.note(control.KindDaemon, fmt.Sprintf("version %s started, backend %s", version, fw.Backend()))
	a.tellOfLoad()
	log.Info("started", "version", version, "node", cfg.Node, "backend", fw.Backend())
	return a.runAll(ctx, server, reload)
}

func newAgent(ctx context.Context, source *fileSource, fw *firewall.Firewall, version string, log *slog.Logger) *Agent {
	a := &Agent{
		version: version, log: log, fw: fw, source: source,
		notify:   newNotifier(log),
		heap:     newHeap(),
		asking:   make(chan struct{}, 1),
		services: map[string]*supervise.Supervisor{},
	}
	first := source.current // a copy: the source goes on writing to its own
	a.desired.Store(&first)
	a.events = newEvents(ctx, first.Config.StateDir, log)
	a.metrics = newMetrics(a)
	a.denials = newDenials(a)
	a.selinux = newSELinuxResource(func() selinuxWant { return wantSELinux(*a.desired.Load()) },
		func() { a.loop.Alarm(reconcile.Alarm{Resource: selinuxName}) })
	a.complain = newComplainWatch(a)
	a.processes = newProcessesResource(a.running)
	a.cgroups = newCgroupsResource(a.running)
	a.files = newFilesResource(a.running, func() config.Config { return a.desired.Load().Config })
	a.files.stirred = func() uint64 { return source.watch.stirred() }
	source.resources = a.resources
	source.accepted = a.accept
	source.running = a.runs
	interval := tickInterval(pollInterval(first.Config.Reconcile.Interval, log), fw.Backend())
	a.loop = reconcile.New(source, reconcile.Options{
		Interval: interval,
		Every:    pulse{interval, log}.run,
		Full:     first.Config.Reconcile.Full,
		Aside:    []string{processesName, filesName, cgroupsName, selinuxName}, // a service's own trouble is no reason to hold up the others
		OnTick:   func() { a.notify.beat(time.Now()) },
		OnEvent: func(e reconcile.Event) {
			a.events.record(e)
			a.metrics.event(e)
		},
	}, log, func(s reconcile.Snapshot) { a.afterPass(ctx, s) })
	a.policy = newSELinuxWatch(a)
	a.denials.selinux = a.policy
	a.selinux.asked, a.selinux.found = a.policy.gone.heed, a.policy.settled
	return a
}

// close gives back what only looks; rules and services stay.
func (a *Agent) close() {
	a.rules.close()
	a.sysctls.close()
	a.processes.close()
	a.files.close()
	a.cgroups.close()
	a.selinux.close()
}

// filesChanged hears of a file or directory that counts. The users of data
// directories may change theirs as often as they like, so only what is read is a
// reason to look at more than files.
func (a *Agent) filesChanged(input bool) {
	if input {
		a.loop.Trigger(reconcile.Trigger{Reason: "files"})
		return
	}
	a.loop.Alarm(reconcile.Alarm{Resource: filesName, At: time.Now()})
}

func (a *Agent) runAll(ctx context.Context, server *control.Server, reload <-chan struct{}) error {
	group, ctx := errgroup.WithContext(ctx)
	a.mu.Lock()
	a.group, a.groupCtx = group, ctx
	a.mu.Unlock()
	toTheEnd, stop := context.WithCancel(context.WithoutCancel(ctx)) // of the loop, whose last events the journal takes
	group.Go(func() error {
		defer stop()
		return a.loop.Run(ctx)
	})
	group.Go(func() error { return server.Serve(ctx) })
	group.Go(func() error { return a.notify.run(ctx) })
	group.Go(func() error { return a.events.run(toTheEnd) })
	group.Go(func() error { return a.settleDown(ctx) })
	group.Go(func() error { return a.metrics.run(ctx) })
	group.Go(func() error { return a.denials.run(ctx) })
	group.Go(func() error { return a.complain.run(ctx) })
	group.Go(func() error {
		a.metrics.keep(ctx, slog.LevelWarn, "changes of SELinux are not announced", func() error { return a.policy.hear(ctx) })
		return nil
	})
	group.Go(func() error { return a.policy.gone.await(ctx) })
	if a.alarms != nil {
		group.Go(func() error { return a.alarms.run(ctx) })
	}
	if a.source.watch != nil {
		group.Go(func() error { return a.source.watch.run(ctx) })
	}
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-reload:
				a.loop.Trigger(reconcile.Trigger{Reason: "reload"})
			}
		}
	})
	return group.Wait()
}

// settleDown gives back the memory that the start took, for reading files and
// building profiles, which is more than is ever needed again, and sees to it that
// being idle costs little.
func (a *Agent) settleDown(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-a.loop.Enforced():
		debug.FreeOSMemory()
		if err := calmMonitor(ctx); err != nil {
			a.log.Debug("the daemon wakes up more often than it could", "error", err)
		}
	}
	return nil
}

// accept is called by the source with each new desired state. Services
// that are new get a supervisor; one whose entry changed or went keeps running
// as it is, since only an operator may end a database.
func (a *Agent) accept(d Desired) {
	a.desired.Store(&d)
	a.complain.accepted()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, svc := range d.Config.Services {
		if _, ok := a.services[svc.Name]; ok {
			continue
		}
		s := supervise.New(a.superviseSpec(d.Config, svc), a.log)
		a.services[svc.Name] = s
		ctx := a.groupCtx
		a.group.Go(func() error {
			if err := s.Run(ctx); err != nil { // the rules go on being kept
				a.log.Error("a service is not supervised", "error", err)
			}
			return nil
		})
	}
}

func (a *Agent) superviseSpec(cfg config.Config, svc config.Service) supervise.Spec {
	spec := superviseSpec(cfg, svc)
	spec.Gate = a.loop.Enforced()
	spec.Begun = func(ctx context.Context, pid int) { a.denials.begun(ctx, svc.Name, pid) }
	spec.Verify = func(ctx context.Context, pid int) error { return a.verifyAdopted(ctx, svc.Name, pid) }
	return spec
}

// superviseSpec starts a service through the launch stage with the accepted
// configuration, which stays good while the file on disk is being edited.
func superviseSpec(cfg config.Config, svc config.Service) supervise.Spec {
	return supervise.Spec{
		Name: svc.Name,
		Argv: []string{
			"/proc/self/exe", "exec", "--service", svc.Name,
			"--config", filepath.Join(cfg.RuntimeDir, acceptedConfig), "--report-fd", "3",
		},
		Exe:          svc.Command[0],
		DataDir:      svc.DataDir,
		RecordFile:   filepath.Join(cfg.RuntimeDir, "services", svc.Name+".json"),
		LaunchFile:   filepath.Join(cfg.RuntimeDir, launch.RecordsDir, svc.Name+".json"),
		StartTimeout: svc.StartTimeout,
		StopTimeout:  svc.StopTimeout,
		External:     svc.External,
	}
}

// verifyAdopted refuses a process whose confinement cannot be had without a
// restart. Limits are left to verify: they may have changed in the config since.
func (a *Agent) verifyAdopted(ctx context.Context, name string, pid int) error {
	spec, ok := a.desired.Load().service(name)
	if !ok {
		return fmt.Errorf("there is no service %s in the configuration any more", name)
	}
	findings, err := launch.Verify(ctx, spec, pid)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range findings {
		if !f.OK && f.Layer != launch.LayerLimits && !f.Complaining() {
			errs = append(errs, errors.New(FindingText(f)))
		}
	}
	return errors.Join(errs...)
}

func (d Desired) service(name string) (launch.Spec, bool) {
	i := slices.IndexFunc(d.Services, func(s launch.Spec) bool { return s.Service == name })
	if i < 0 {
		return launch.Spec{}, false
	}
	return d.Services[i], true
}

// afterPass runs in the loop's goroutine. A pass or tick that ended is the proof
// of life that the watchdog asks for.
func (a *Agent) afterPass(ctx context.Context, s reconcile.Snapshot) {
	state := "WATCHDOG=1\nSTATUS=" + summary(s, a.serviceStates())
	if s.Enforced() { // never before the rules are in place: others are ordered after us
		state = "READY=1\n" + state
	}
	a.notify.send(state)
	a.events.pass(s)
	a.profiles.look(ctx, a.desired.Load(), a.serviceStates(), a.events)
	if list, ok := a.source.openings.settled(); ok { // else after a later pass
		a.events.opened(list)
	}
	a.heap.tidy()
}

// runs is a number that changes whenever a service starts, ends or changes its
// state.
func (a *Agent) runs() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	var sum uint64
	for _, s := range a.services {
		st := s.Status()
		sum += uint64(st.Since.UnixNano()) * uint64(st.PID+1) //nolint:gosec // any number will do
	}
	return sum
}

// summary is what `systemctl status` shows.
func summary(s reconcile.Snapshot, services []supervise.Status) string {
	text := "rules in place"
	if !s.Clean() {
		text = "degraded (" + s.Problems[0].What + "), see `pghardend status`"
	}
	for _, svc := range services {
		text += fmt.Sprintf("; %s %s", svc.Name, svc.State)
	}
	return text
}

func (a *Agent) serviceStates() []supervise.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	var states []supervise.Status
	for _, s := range a.services {
		states = append(states, s.Status())
	}
	slices.SortFunc(states, func(x, y supervise.Status) int {
		if x.Name < y.Name {
			return -1
		}
		return 1
	})
	return states
}

func (a *Agent) supervisor(name string) (*supervise.Supervisor, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.services[name]
	if !ok {
		return nil, fmt.Errorf("%w %q; `pghardend status` lists them", control.ErrNotFound, name)
	}
	return s, nil
}

// StartService implements control.Backend.
func (a *Agent) StartService(ctx context.Context, name string) error {
	s, err := a.supervisor(name)
	if err != nil {
		return err
	}
	return s.Start(ctx)
}

// StopService implements control.Backend.
func (a *Agent) StopService(ctx context.Context, name string) error {
	s, err := a.supervisor(name)
	if err != nil {
		return err
	}
	err = s.Stop(ctx)
	if err == nil {
		a.removeCgroups(ctx, name)
	}
	return err
}

// statusTimeout bounds the reading of /proc for one status.
const statusTimeout = 10 * time.Second
