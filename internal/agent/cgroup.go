package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/limits"
)

// agentMember is the agent's own group in that of its services.
const agentMember = "agent"

// cgroupName is the group around those of an agent. Several agents side by side
// differ in their runtime_dir.
func cgroupName(cfg config.Config) string {
	if cfg.RuntimeDir == config.DefaultRuntimeDir {
		return "pghardend"
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(cfg.RuntimeDir)) // it never fails
	return fmt.Sprintf("pghardend-%08x", h.Sum32())
}

func cgroupWant(c config.Cgroup) limits.Cgroup {
	return limits.Cgroup{CPUWeight: c.CPUWeight, IOWeight: c.IOWeight, MemoryHigh: c.MemoryHigh, MemoryMax: c.MemoryMax, TasksMax: c.TasksMax}
}

func cgroupSpec(cfg config.Config, svc config.Service) launch.Cgroup {
	c := launch.Cgroup{
		Mode: svc.Cgroup.Mode, Want: cgroupWant(svc.Cgroup), Name: cgroupName(cfg), RecordDir: filepath.Join(cfg.RuntimeDir, "cgroup"),
		DefaultTasks: svc.Cgroup.TasksMax == 0 && !svc.Cgroup.TasksUnlimited && svc.Cgroup.Mode != config.CgroupOff,
	}
	if c.DefaultTasks {
		c.Want.TasksMax = tasksFor(Capacity{Clients: svc.MaxConnections, WALSenders: defaultWALSenders})
	}
	return c
}

// boundTasks replaces a bound that was derived by one from what the service says of
// itself. Where the configuration says it, that counts.
func boundTasks(c *launch.Cgroup, cfg config.Config, service string, facts Facts) {
	given := slices.ContainsFunc(cfg.Services, func(s config.Service) bool { return s.Name == service && s.MaxConnections != 0 })
	if said, ok := facts[service]; ok && c.DefaultTasks && !given {
		c.Want.TasksMax = tasksFor(said)
	}
}

// knownFacts is what the daemon has last heard of the services. Without it a bound
// is one for the whole machine, until the daemon puts that right.
func knownFacts(ctx context.Context, cfg config.Config) Facts {
	facts := Facts{}
	for name, a := range loadAnswers(ctx, filepath.Join(cfg.RuntimeDir, factsFile)) {
		if a.Capacity.Clients != 0 {
			facts[name] = a.Capacity
		}
	}
	return facts
}

// otherTasks is for what is not a client's: the server's own processes, parallel and
// background workers, and commands that they run.
const otherTasks = 256

// tasksFor bounds a service by the clients it takes; 0 if that is not known. The
// postmaster may have twice as many children as it takes clients, the others being
// those that tell a client that there are too many (MaxLivePostmasterChildren).
func tasksFor(c Capacity) uint64 {
	if c.Clients <= 0 {
		return 0
	}
	return 2*uint64(c.Clients+c.WALSenders) + otherTasks //nolint:gosec // both are counts, at most 2^18
}

// enterOwnCgroup gives the agent what its services cannot take from it. An error
// means that this is required and cannot be had.
func enterOwnCgroup(ctx context.Context, cfg config.Config, log *slog.Logger) (limits.CgroupPlan, error) {
	own := cfg.Agent.Cgroup
	if own.Mode == config.CgroupOff {
		return limits.CgroupPlan{}, nil
	}
	sight, err := limits.LookCgroups(ctx, os.Getpid())
	if err != nil {
		return limits.CgroupPlan{}, err
	}
	plan := limits.PlanCgroup(cgroupWant(own), sight, cgroupName(cfg), agentMember).MakeAround(ctx, os.Getpid())
	if err := plan.Enter(ctx, os.Getpid()); err != nil {
		plan = plan.Without(err.Error())
	}
	if len(plan.Missing) == 0 {
		return plan, nil
	}
	if own.Mode == config.CgroupRequired {
		return plan, fmt.Errorf("%s: control groups cannot give the agent what agent.cgroup asks for: %s; or set agent.cgroup.mode to %s to start without",
			cfg.Where("agent.cgroup"), plan.Missing[0], config.CgroupPreferred)
	}
	log.Warn("the agent has no control group of its own", "missing", plan.Missing[0].String())
	return plan, nil
}

// setOwnScore makes the OOM killer spare the agent, or not. Without the capability
// to do so it goes on, since a host without an agent is worse.
func setOwnScore(ctx context.Context, cfg config.Config) error {
	if cfg.Agent.OOMScoreAdj == nil {
		return nil
	}
	self, err := limits.Identify(ctx, os.Getpid())
	if err != nil {
		return err
	}
	return limits.SetOOMScore(ctx, self, *cfg.Agent.OOMScoreAdj)
}

// addCgroup shows the layer of a running service, as the kernel has it now.
func addCgroup(ctx context.Context, spec launch.Spec, pid int, s *control.Status) {
	state, findings, err := cgroupFindings(ctx, spec, pid)
	if errors.Is(err, launch.ErrVanished) {
		return // is for its supervisor
	}
	if err != nil {
		s.Reasons = append(s.Reasons, fmt.Sprintf("service %s cannot be verified: %v", spec.Service, err))
		return
	}
	text, enforced := state.Text(findings)
	s.Layers = append(s.Layers, control.Layer{
		Name: launch.LayerCgroup, Subject: spec.Service, Configured: !state.Off(), Enforced: enforced, Detail: text,
	})
	problems := failures(spec.Service, findings)
	s.Reasons = append(s.Reasons, problems...)
	if !state.Off() && !enforced && len(problems) == 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("service %s is not bounded by control groups as asked: %s", spec.Service, text))
	}
}

func cgroupFindings(ctx context.Context, spec launch.Spec, pid int) (launch.CgroupState, []launch.Finding, error) {
	state, err := launch.ReadCgroup(ctx, spec, pid)
	if err != nil || state.Off() {
		return state, nil, err
	}
	pids, err := launch.Tree(ctx, pid)
	if err != nil {
		return state, nil, err
	}
	findings, err := state.Findings(ctx, pids)
	return state, findings, err
}

// addOwnCgroup shows the agent's own group.
func (a *Agent) addOwnCgroup(ctx context.Context, cfg config.Config, s *control.Status) {
	state := launch.CgroupState{Mode: cfg.Agent.Cgroup.Mode, Plan: a.cgroups.self}
	findings, err := state.Findings(ctx, []int{os.Getpid()})
	if err != nil {
		s.Reasons = append(s.Reasons, fmt.Sprintf("the agent's control group: %v", err))
		return
	}
	text, enforced := state.Text(findings)
	s.Layers = append(s.Layers, control.Layer{
		Name: launch.LayerCgroup, Subject: "agent", Configured: !state.Off(), Enforced: enforced, Detail: text,
	})
	for _, f := range findings {
		if !f.OK {
			s.Reasons = append(s.Reasons, "the agent: "+FindingText(f))
		}
	}
	if !state.Off() && !enforced {
		s.Warnings = append(s.Warnings, "the agent is not bounded by control groups as asked: "+text)
	}
	if a.scoreFault != nil {
		s.Reasons = append(s.Reasons, fmt.Sprintf("agent.oom_score_adj: %v", a.scoreFault))
	}
}

// The first process of a service ends last, but its group is in use until others have
// reaped theirs.
const (
	emptyPatience = 2 * time.Second
	emptyPoll     = 20 * time.Millisecond
)

// removeCgroups removes what a stopped service leaves.
func (a *Agent) removeCgroups(ctx context.Context, name string) {
	if spec, ok := a.desired.Load().service(name); ok {
		_, err := backoff.Retry(ctx, func() (struct{}, error) {
			err := launch.RemoveCgroups(ctx, spec)
			if err != nil && !errors.Is(err, unix.EBUSY) {
				err = backoff.Permanent(err)
			}
			return struct{}{}, err
		}, backoff.WithBackOff(backoff.NewConstantBackOff(emptyPoll)), backoff.WithMaxElapsedTime(emptyPatience))
		if err != nil { // empty, it does no harm
			a.log.Warn("cannot remove the control group of a stopped service", "service", name, "error", err)
		}
	}
}

// teardownCgroups removes all groups that are empty: those of services and of an
// agent that runs no more.
func teardownCgroups(ctx context.Context, cfg config.Config) error {
	sight, err := limits.LookCgroups(ctx, os.Getpid())
	if err != nil {
		return err
	}
	var errs []error
	for _, svc := range cfg.Services {
		if spec, err := ServiceSpec(cfg, svc.Name); err == nil {
			errs = append(errs, launch.RemoveCgroups(ctx, spec))
		}
	}
	if own := cfg.Agent.Cgroup; own.Mode != config.CgroupOff {
		errs = append(errs, limits.PlanCgroup(cgroupWant(own), sight, cgroupName(cfg), agentMember).Remove(ctx))
	}
	return errors.Join(errs...)
}
