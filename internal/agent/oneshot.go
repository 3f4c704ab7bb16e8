package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/internal/supervise"
	"github.com/pghardend/pghardend/pkg/firewall"
	"github.com/pghardend/pghardend/pkg/sysctl"
)

// Changes are what Plan found, or Apply did.
type Changes struct {
	Sysctl      sysctl.Plan
	Firewall    firewall.Plan
	Connections firewall.Cuts // by Apply only: they come and go
}

// Empty says whether all is as it should be.
func (c Changes) Empty() bool {
	return c.Sysctl.Empty() && c.Firewall.Empty() && c.Connections.Empty()
}

func (c Changes) String() string {
	return c.Sysctl.String() + c.Firewall.String() + c.Connections.String()
}

// Plan is what Apply would change now, connections aside. It only reads.
func Plan(ctx context.Context, configFile string) (Changes, error) {
	d, _, err := loadAsked(ctx, configFile)
	if err != nil {
		return Changes{}, err
	}
	return planFor(ctx, d)
}

func planFor(ctx context.Context, d Desired) (Changes, error) {
	fw, err := firewall.Open(ctx, d.Config.Firewall.Backend)
	if err != nil {
		return Changes{}, err
	}
	return difference(ctx, fw, d)
}

// loadAsked reads the files and what else the daemon's state is built from.
func loadAsked(ctx context.Context, configFile string) (Desired, input, error) {
	d, in, err := loadInput(ctx, configFile)
	if err != nil {
		return Desired{}, in, err
	}
	d, err = withExtra(ctx, d, configFile)
	return d, in, err
}

// withExtra adds what the services say and the openings. Those that cannot be
// read are not in force, as with the daemon, which says why.
func withExtra(ctx context.Context, d Desired, configFile string) (Desired, error) {
	var extra Extra
	extra.Facts = readFacts(ctx, d.Config, configFile)
	if list, err := loadOpenings(ctx, d.Config.StateDir); err == nil {
		extra.Openings = openNow(list, time.Now())
	}
	if len(extra.Facts) == 0 && len(extra.Openings) == 0 {
		return d, nil // as it was built
	}
	return Build(d.Config, d.Peers, extra)
}

// difference compares the kernel with d. On an error it has what could be read.
func difference(ctx context.Context, fw *firewall.Firewall, d Desired) (Changes, error) {
	var c Changes
	var sysctlErr error
	if d.Config.Sysctl.Manage {
		var got sysctl.Observed
		got, sysctlErr = sysctl.Observe(ctx, d.Sysctls)
		c.Sysctl = sysctl.Diff(d.Sysctls, got)
	}
	got, err := fw.Observe(ctx)
	c.Firewall = firewall.Diff(d.Rules, got)
	return c, errors.Join(leaveHint(sysctlErr), err)
}

// Apply brings the rules to the files' state and returns what it changed, which
// may be something along with an error. If a daemon is running, it does the
// work. Files that are bad or suspicious are an error, but if no daemon is there
// to keep the rules, those of the last good ones are put in force: at boot that
// is what stands between the host and the network. An earlier change that still
// waits for its confirmation goes on waiting: Until says how long.
func Apply(ctx context.Context, configFile string, force bool) (Applied, error) {
	d, in, err := loadInput(ctx, configFile)
	if err != nil {
		changes, err := applyLastGood(ctx, stateDir(ctx, configFile), configFile, err)
		return Applied{Changes: changes}, err
	}
	release, err := lockFor(ctx, d.Config)
	if errors.Is(err, ErrLocked) {
		applied, daemonErr := applyByDaemon(ctx, d, control.ApplyRequest{Force: force})
		if errors.Is(daemonErr, control.ErrNoDaemon) { // the holder is none, or one that cannot be asked
			return Applied{}, err
		}
		return applied, daemonErr
	}
	if err != nil {
		return Applied{}, err
	}
	defer release()
	allowed := always
	if !force {
		allowed = aside(func() error {
			return errors.Join(checkAgainstLastGood(ctx, d, in), checkConfirmed(ctx, d.Config.StateDir, in))
		})
	}
	changes, err := applyWithExtra(ctx, d, configFile, allowed)
	if err := allowed(); err != nil {
		release()
		changes, err := applyLastGood(ctx, d.Config.StateDir, configFile, err)
		return Applied{Changes: changes}, err
	}
	if err != nil {
		return Applied{Changes: changes}, err
	}
	return Applied{Changes: changes}, save(ctx, d.Config, in)
}

// always allows what has been checked before.
func always() error { return nil }

// aside begins f, whose result is that of the function it returns.
func aside(f func() error) func() error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return sync.OnceValue(func() error { return <-done })
}

// applyLastGood stands in where cause keeps the files from being applied.
func applyLastGood(ctx context.Context, dir, configFile string, cause error) (Changes, error) {
	good, _, err := loadLastGood(ctx, dir, configFile)
	if err != nil {
		return Changes{}, nothingGoodError{cause, err}
	}
	release, err := lockFor(ctx, good.Config)
	if errors.Is(err, ErrLocked) {
		return Changes{}, fmt.Errorf("%w\nnothing was applied: the daemon keeps the last good configuration in force", cause)
	}
	if err != nil {
		return Changes{}, errors.Join(cause, err)
	}
	defer release()
	plan, err := applyWithExtra(ctx, good, filepath.Join(dir, lastGoodDir, acceptedConfig), always)
	if err != nil {
		return plan, fmt.Errorf("%w\nthe last good configuration in %s was not applied either: %w", cause, dir, err)
	}
	return plan, fmt.Errorf("%w\nthe last good configuration in %s is in force instead", cause, dir)
}

func applyByDaemon(ctx context.Context, d Desired, r control.ApplyRequest) (Applied, error) {
	client := control.NewClient(d.Config.RuntimeDir)
	if _, err := client.Status(ctx); err != nil {
		return Applied{}, err
	}
	d, err := withExtra(ctx, d, d.Config.File)
	if err != nil {
		return Applied{}, err
	}
	changes, err := planFor(ctx, d)
	if err != nil {
		return Applied{}, err
	}
	status, err := client.Apply(ctx, r)
	if err != nil {
		return Applied{}, err
	}
	applied := Applied{Changes: changes, ByDaemon: true}
	if status.Pending != nil {
		applied.Until = status.Pending.Until
	}
	return applied, nil
}

// applyWithExtra asks allowed before it writes.
func applyWithExtra(ctx context.Context, d Desired, configFile string, allowed func() error) (Changes, error) {
	d, err := withExtra(ctx, d, configFile)
	if err != nil {
		return Changes{}, err
	}
	return applyRules(ctx, d, allowed)
}

// applyRules brings the kernel to d and returns what it changed. What cannot be
// read or written does not keep the rest from being put right.
func applyRules(ctx context.Context, d Desired, allowed func() error) (Changes, error) {
	fw, err := firewall.Open(ctx, d.Config.Firewall.Backend)
	if err != nil {
		return Changes{}, err
	}
	found, readErr := difference(ctx, fw, d)
	if err := allowed(); err != nil {
		return Changes{}, err
	}
	done := found
	sysctlErr := leaveHint(sysctl.Apply(ctx, found.Sysctl))
	if sysctlErr != nil {
		done.Sysctl = sysctl.Plan{}
	}
	if err := writeRules(ctx, fw, d, found.Firewall); err != nil {
		done.Firewall = firewall.Plan{}
		return done, errors.Join(readErr, sysctlErr, err)
	}
	if err := errors.Join(readErr, sysctlErr); err != nil {
		return done, err
	}
	// The rules are in force: what connections they leave is looked at while they are read back.
	var cuts firewall.Cuts
	looked := aside(func() (err error) {
		cuts, err = unwanted(ctx, d)
		return err
	})
	left, err := difference(ctx, fw, d)
	lookErr := looked()
	if err != nil {
		return done, err
	}
	if !left.Empty() {
		return done, fmt.Errorf("the kernel still differs after it was written:\n%s", left)
	}
	if lookErr != nil {
		return done, lookErr
	}
	if err := firewall.Cut(ctx, cuts.Connections); err != nil {
		return done, err
	}
	done.Connections = cuts
	return done, nil
}

// writeRules tries twice if a command ran out of time. The first write after a boot
// loads two dozen kernel modules, one after the other; on a slow host that takes
// longer than a command may. Those that are loaded stay.
func writeRules(ctx context.Context, fw *firewall.Firewall, d Desired, plan firewall.Plan) error {
	err := fw.Apply(ctx, plan)
	if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	again, readErr := difference(ctx, fw, d)
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	return fw.Apply(ctx, again.Firewall)
}

// Verification is what `verify` prints.
type Verification struct {
	OK       bool          `json:"ok"`
	Problems []string      `json:"problems"`
	Services []VerifiedSvc `json:"services"`
	// Processes are all that belong to the services, strays too.
	Processes []launch.Process `json:"processes"`
	Findings  []launch.Finding `json:"findings"`
}

// VerifiedSvc is one service that was looked at.
type VerifiedSvc struct {
	Name      string `json:"name"`
	PID       int    `json:"pid"`
	Processes int    `json:"processes"`
}

// Verify compares every live process of the services (or of the one named) and
// the rules with the files. It asks the kernel, not the daemon. With deep the
// seccomp filter of each process is read, see launch.Examine.
func Verify(ctx context.Context, configFile, service string, deep bool) (Verification, error) {
	v := Verification{Problems: []string{}, Services: []VerifiedSvc{}, Processes: []launch.Process{}, Findings: []launch.Finding{}}
	d, in, err := loadAsked(ctx, configFile)
	if err != nil {
		return v, err
	}
	if service != "" {
		if _, ok := d.service(service); !ok {
			return v, fmt.Errorf("there is no service %q; services: %s", service, serviceNames(d.Config))
		}
	}
	v.addNode(ctx, d, in)
	v.addServices(ctx, d, service, deep)
	v.OK = len(v.Problems) == 0
	return v, nil
}

// addNode compares what is not a service's: sysctls, rules and sets, connections.
func (v *Verification) addNode(ctx context.Context, d Desired, in input) {
	why := ""
	if in.notInForce(ctx, d.Config) {
		why = " (" + notInForce + ")"
	}
	plan, err := planFor(ctx, d)
	if err != nil {
		v.Problems = append(v.Problems, "netfilter: "+err.Error())
	}
	for _, part := range []reconcile.Plan{plan.Sysctl, plan.Firewall} {
		if !part.Empty() {
			v.Problems = append(v.Problems, "netfilter: the kernel differs from the plan"+why+":\n"+part.String())
		}
	}
	cuts, err := unwanted(ctx, d)
	if err != nil {
		v.Problems = append(v.Problems, "netfilter: "+err.Error())
	} else if !cuts.Empty() {
		v.Problems = append(v.Problems, "netfilter: connections that the rules would not let begin:\n"+cuts.String())
	}
}

// Teardown removes our rules and sets from both backends and leaves sysctls as
// they are. It refuses to work against a running daemon. With stop, services are
// ended first, fast.
func Teardown(ctx context.Context, configFile string, stop bool, log *slog.Logger) ([]string, error) {
	cfg, err := LoadConfig(ctx, configFile)
	if err != nil {
		return nil, err
	}
	release, err := lockFor(ctx, cfg)
	if errors.Is(err, ErrLocked) {
		return nil, fmt.Errorf("cannot tear down; stop the daemon first (systemctl stop pghardend): %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot tear down: %w", err)
	}
	defer release()
	var done []string
	for _, svc := range cfg.Services {
		text, err := teardownService(ctx, superviseSpec(cfg, svc), stop, log)
		if err != nil {
			return done, err
		}
		done = append(done, text)
	}
	if err := teardownCgroups(ctx, cfg); err != nil { // a service that goes on keeps its own
		done = append(done, "some control groups stay: "+err.Error())
	}
	removed, err := firewall.Teardown(ctx)
	done = append(done, removed...)
	if err == nil && cfg.Sysctl.Manage {
		// What they were before is not known, and the next start may not be ours.
		done = append(done, "network sysctls stay as they are until the next boot, or until something else sets them")
	}
	return done, err
}

func teardownService(ctx context.Context, spec supervise.Spec, stop bool, log *slog.Logger) (string, error) {
	pid, err := supervise.Find(ctx, spec)
	if err != nil {
		return "", err
	}
	switch {
	case pid == 0:
		return fmt.Sprintf("service %s is not running", spec.Name), nil
	case !stop:
		return fmt.Sprintf("service %s goes on running (process %d), confined, but without our firewall rules; --stop-services would end it", spec.Name, pid), nil
	}
	if err := supervise.StopRunning(ctx, spec, log); err != nil {
		return "", fmt.Errorf("cannot stop service %s, so nothing was removed: %w", spec.Name, err)
	}
	// The record would keep a later daemon from starting what was stopped here.
	if err := os.Remove(spec.RecordFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("stopped service %s, but cannot forget that: %w", spec.Name, err)
	}
	return fmt.Sprintf("stopped service %s (process %d)", spec.Name, pid), nil
}

// Exec turns this process into the service. It returns only on failure.
func Exec(ctx context.Context, configFile, service string, extra []string, report *os.File) error {
	cfg, err := LoadConfig(ctx, configFile)
	if err != nil {
		return err
	}
	spec, err := launchSpec(ctx, cfg, service)
	if err != nil {
		return err
	}
	spec.Command = append(append([]string{}, spec.Command...), extra...)
	boundTasks(&spec.Cgroup, cfg, service, knownFacts(ctx, cfg))
	if report != nil { // the daemon starts it
		spec.PrivilegeHint = startedByAgent(service)
	}
	if err := noteExternal(ctx, cfg, service, extra); err != nil {
		return err
	}
	if spec.Complain.At(time.Now()) { // also where systemd or Patroni starts it and no daemon runs
		fmt.Fprintf(os.Stderr, "pghardend: WARNING: service %s is NOT confined by seccomp and Landlock (%s)\n", service, spec.Complain.Text())
	}
	if err := makeHidden(ctx, cfg, spec); err != nil {
		return err
	}
	return launch.Exec(ctx, spec, report)
}

// Ask turns this process into the service's program, which says what a setting is. It returns only on failure.
func Ask(ctx context.Context, configFile, service, setting string) error {
	cfg, err := LoadConfig(ctx, configFile)
	if err != nil {
		return err
	}
	spec, err := questionSpec(ctx, cfg, service, setting)
	if err != nil {
		return err
	}
	return launch.Exec(ctx, spec, nil)
}
