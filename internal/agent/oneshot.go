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

// Apply brings the rules to the files' state and returns what it changed. If a
// daemon is running, it does the work.
func Apply(ctx context.Context, configFile string, force bool, log *slog.Logger) (firewall.Plan, error) {
	d, in, err := loadInput(ctx, configFile)
	if err != nil {
		return firewall.Plan{}, err
	}
	held, err := lock(d.Config.RuntimeDir)
	if errors.Is(err, ErrLocked) {
		return applyByDaemon(ctx, d, force)
	}
	if err != nil {
		return firewall.Plan{}, err
	}
	defer held.Close()
	if !force {
		if err := checkAgainstLastGood(ctx, d); err != nil {
			return firewall.Plan{}, err
		}
	}
	plan, err := applyRules(ctx, d)
	if err != nil {
		return plan, err
	}
	s := fileSource{configFile: configFile, log: log, current: d, currentIn: in}
	return plan, s.save()
}

func applyByDaemon(ctx context.Context, d Desired, force bool) (firewall.Plan, error) {
	fw, err := firewall.Open(ctx, d.Config.Firewall.Backend)
	if err != nil {
		return firewall.Plan{}, err
	}
	got, err := fw.Observe(ctx)
	if err != nil {
		return firewall.Plan{}, err
	}
	plan := firewall.Diff(d.Rules, got)
	_, err = control.NewClient(d.Config.RuntimeDir).Apply(ctx, force)
	return plan, err
}

func applyRules(ctx context.Context, d Desired) (firewall.Plan, error) {
	fw, err := firewall.Open(ctx, d.Config.Firewall.Backend)
	if err != nil {
		return firewall.Plan{}, err
	}
	r := firewallResource{fw: fw, want: d.Rules}
	got, err := fw.Observe(ctx)
	if err != nil {
		return firewall.Plan{}, err
	}
	plan := firewall.Diff(d.Rules, got)
	if err := fw.Apply(ctx, plan); err != nil {
		return plan, err
	}
	left, err := r.Plan(ctx)
	if err == nil && !left.Empty() {
		err = fmt.Errorf("the rules still differ after they were written:\n%s", left)
	}
	return plan, err
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
	v := Verification{Problems: []string{}, Services: []VerifiedSvc{}}
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
	held, err := lock(cfg.RuntimeDir)
	if err != nil {
		return nil, fmt.Errorf("cannot tear down; stop the daemon first (systemctl stop pghardend): %w", err)
	}
	defer held.Close()
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
	if err := supervise.StopFound(ctx, spec, log); err != nil {
		return "", fmt.Errorf("cannot stop service %s, so nothing was removed: %w", spec.Name, err)
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
