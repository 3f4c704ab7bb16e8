package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/supervise"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// Plan is what Apply would change now. It only reads.
func Plan(ctx context.Context, configFile string) (firewall.Plan, error) {
	d, err := Load(ctx, configFile)
	if err != nil {
		return firewall.Plan{}, err
	}
	fw, err := firewall.Open(ctx, d.Config.Firewall.Backend)
	if err != nil {
		return firewall.Plan{}, err
	}
	got, err := fw.Observe(ctx)
	return firewall.Diff(d.Rules, got), err
}

// Apply brings the rules to the files' state and returns what it changed, which
// may be something along with an error. If a daemon is running, it does the
// work. Files that are bad or suspicious are an error, but if no daemon is there
// to keep the rules, those of the last good ones are put in force: at boot that
// is what stands between the host and the network.
func Apply(ctx context.Context, configFile string, force bool) (firewall.Plan, error) {
	d, in, err := loadInput(ctx, configFile)
	if err != nil {
		return applyLastGood(ctx, stateDir(ctx, configFile), configFile, err)
	}
	release, err := lockFor(ctx, d.Config)
	if errors.Is(err, ErrLocked) {
		plan, daemonErr := applyByDaemon(ctx, d, force)
		if errors.Is(daemonErr, control.ErrNoDaemon) { // the holder is none, or one that cannot be asked
			return firewall.Plan{}, err
		}
		return plan, daemonErr
	}
	if err != nil {
		return firewall.Plan{}, err
	}
	defer release()
	if !force {
		if err := checkAgainstLastGood(ctx, d); err != nil {
			release()
			return applyLastGood(ctx, d.Config.StateDir, configFile, err)
		}
	}
	plan, err := applyRules(ctx, d)
	if err != nil {
		return plan, err
	}
	return plan, save(ctx, d.Config, in)
}

// applyLastGood stands in where cause keeps the files from being applied.
func applyLastGood(ctx context.Context, dir, configFile string, cause error) (firewall.Plan, error) {
	good, _, err := loadLastGood(ctx, dir, configFile)
	if err != nil {
		return firewall.Plan{}, fmt.Errorf("%w\nnothing was applied: %w", cause, err)
	}
	release, err := lockFor(ctx, good.Config)
	if errors.Is(err, ErrLocked) {
		return firewall.Plan{}, fmt.Errorf("%w\nnothing was applied: the daemon keeps the last good configuration in force", cause)
	}
	if err != nil {
		return firewall.Plan{}, errors.Join(cause, err)
	}
	defer release()
	plan, err := applyRules(ctx, good)
	if err != nil {
		return plan, fmt.Errorf("%w\nthe last good configuration in %s was not applied either: %w", cause, dir, err)
	}
	return plan, fmt.Errorf("%w\nthe last good configuration in %s is in force instead", cause, dir)
}

func applyByDaemon(ctx context.Context, d Desired, force bool) (firewall.Plan, error) {
	client := control.NewClient(d.Config.RuntimeDir)
	if _, err := client.Status(ctx); err != nil {
		return firewall.Plan{}, err
	}
	fw, err := firewall.Open(ctx, d.Config.Firewall.Backend)
	if err != nil {
		return firewall.Plan{}, err
	}
	got, err := fw.Observe(ctx)
	if err != nil {
		return firewall.Plan{}, err
	}
	plan := firewall.Diff(d.Rules, got)
	if _, err = client.Apply(ctx, force); err != nil {
		return firewall.Plan{}, err
	}
	return plan, nil
}

func applyRules(ctx context.Context, d Desired) (firewall.Plan, error) {
	fw, err := firewall.Open(ctx, d.Config.Firewall.Backend)
	if err != nil {
		return firewall.Plan{}, err
	}
	// A family that cannot be read does not keep the other from being written.
	got, err := fw.Observe(ctx)
	plan := firewall.Diff(d.Rules, got)
	if applyErr := fw.Apply(ctx, plan); applyErr != nil {
		return firewall.Plan{}, errors.Join(err, applyErr)
	}
	if err != nil {
		return plan, err
	}
	if got, err = fw.Observe(ctx); err != nil {
		return plan, err
	}
	if left := firewall.Diff(d.Rules, got); !left.Empty() {
		return plan, fmt.Errorf("the rules still differ after they were written:\n%s", left)
	}
	return plan, nil
}

// Verification is what `verify` prints.
type Verification struct {
	OK       bool             `json:"ok"`
	Problems []string         `json:"problems"`
	Services []VerifiedSvc    `json:"services"`
	Findings []launch.Finding `json:"findings"`
}

// VerifiedSvc is one service that was looked at.
type VerifiedSvc struct {
	Name      string `json:"name"`
	PID       int    `json:"pid"`
	Processes int    `json:"processes"`
}

// Verify compares every live process of the services (or of the one named) and
// the rules with the files. It asks the kernel, not the daemon.
func Verify(ctx context.Context, configFile, service string) (Verification, error) {
	v := Verification{Problems: []string{}, Services: []VerifiedSvc{}, Findings: []launch.Finding{}}
	d, err := Load(ctx, configFile)
	if err != nil {
		return v, err
	}
	if service != "" {
		if _, ok := d.service(service); !ok {
			return v, fmt.Errorf("there is no service %q; services: %s", service, serviceNames(d.Config))
		}
	}
	plan, err := Plan(ctx, configFile)
	if err != nil {
		v.Problems = append(v.Problems, "netfilter: "+err.Error())
	} else if !plan.Empty() {
		v.Problems = append(v.Problems, "netfilter: the kernel differs from the plan:\n"+plan.String())
	}
	for i, spec := range d.Services {
		if service != "" && spec.Service != service {
			continue
		}
		v.addService(ctx, d.Config, d.Config.Services[i], spec)
	}
	v.OK = len(v.Problems) == 0
	return v, nil
}

func (v *Verification) addService(ctx context.Context, cfg config.Config, svc config.Service, spec launch.Spec) {
	pid, err := supervise.Find(ctx, superviseSpec(cfg, svc))
	if err == nil && pid == 0 {
		err = errors.New("not running")
	}
	if err != nil {
		v.Problems = append(v.Problems, fmt.Sprintf("service %s: %v", svc.Name, err))
		return
	}
	findings, processes, err := verifyTree(ctx, spec, pid)
	if err != nil {
		v.Problems = append(v.Problems, fmt.Sprintf("service %s: %v", svc.Name, err))
		return
	}
	v.Services = append(v.Services, VerifiedSvc{Name: svc.Name, PID: pid, Processes: processes})
	v.Findings = append(v.Findings, findings...)
	v.Problems = append(v.Problems, failures(svc.Name, findings)...)
}

// Teardown removes our rules and sets from both backends. It refuses to work
// against a running daemon. With stop, services are ended first, fast.
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
	removed, err := firewall.Teardown(ctx)
	return append(done, removed...), err
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
	spec, err := ServiceSpec(cfg, service)
	if err != nil {
		return err
	}
	spec.Command = append(append([]string{}, spec.Command...), extra...)
	return launch.Exec(ctx, spec, report)
}
