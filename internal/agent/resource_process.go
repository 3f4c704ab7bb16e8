package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/internal/supervise"
	"github.com/pghardend/pghardend/pkg/limits"
)

const processesName = "processes"

// runningService is a service that is ready, as its supervisor knows it.
type runningService struct {
	name    string
	pid     int  // the process that the others descend from
	adopted bool // from an earlier daemon
	spec    launch.Spec
}

// running appends the services that are ready and in the configuration. One that
// is being started is still the launch stage, and root's.
func (a *Agent) running(list []runningService) []runningService {
	d := a.desired.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range d.Services {
		name := d.Services[i].Service
		s, ok := a.services[name]
		if !ok {
			continue
		}
		if state := s.Status(); state.State == supervise.StateReady && state.PID != 0 {
			list = append(list, runningService{name: name, pid: state.PID, adopted: state.Adopted, spec: d.Services[i]})
		}
	}
	return list
}

// processesResource keeps limits and OOM scores of live processes, and reports
// what of their confinement only a restart can bring back.
//
// What a service has to have is what it was started with: a change of the
// configuration counts from its next start on, and until then status shows the
// difference. Of a service that was adopted nobody knows; there it is what the
// configuration says and the process has, as far as the two agree.
type processesResource struct {
	running func([]runningService) []runningService
	list    []runningService // that running fills, again and again
	watched map[string]*processWatch
	buf     []byte
	seed    maphash.Seed // of signatures
}

func newProcessesResource(running func([]runningService) []runningService) *processesResource {
	return &processesResource{running: running, watched: map[string]*processWatch{}, buf: make([]byte, 16<<10), seed: maphash.MakeSeed()}
}

func (r *processesResource) Name() string { return processesName }

// Plan implements reconcile.Resource: every process of every service is verified.
func (r *processesResource) Plan(ctx context.Context) (reconcile.Plan, error) {
	var p processPlan
	var errs []error
	r.list = r.running(r.list[:0])
	r.forget(r.list)
	for _, svc := range r.list {
		err := r.planService(ctx, svc, &p)
		if errors.Is(err, os.ErrProcessDone) || errors.Is(err, launch.ErrVanished) {
			continue // is for its supervisor
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("service %s: %w", svc.name, err))
		}
	}
	return p, errors.Join(errs...)
}

func (r *processesResource) planService(ctx context.Context, svc runningService, p *processPlan) error {
	w, err := r.watch(ctx, svc)
	if err != nil {
		return err
	}
	pids, err := launch.Tree(ctx, svc.pid)
	if err != nil {
		return err
	}
	before := p.findings()
	var seen []uint64
	for _, pid := range pids {
		look, err := r.lookAt(ctx, w, pid)
		gone := errors.Is(err, os.ErrProcessDone) || errors.Is(err, launch.ErrVanished)
		if gone && pid != svc.pid {
			continue
		}
		if err != nil {
			return err
		}
		p.add(w.spec, look)
		if !slices.Contains(seen, look.signature) {
			seen = append(seen, look.signature)
		}
	}
	if p.findings() == before {
		w.learn(seen)
	}
	return p.addScore(ctx, w)
}

// processLook is one process as it was found.
type processLook struct {
	process   limits.Process
	signature uint64
	findings  []launch.Finding
}

// lookAt reads the signature before the findings: what changes in between is in
// the findings, and what changes later makes another signature.
func (r *processesResource) lookAt(ctx context.Context, w *processWatch, pid int) (processLook, error) {
	var l processLook
	var err error
	if l.process, err = limits.Identify(ctx, pid); err != nil {
		return l, err
	}
	if l.signature, err = r.signatureOf(ctx, pid); err != nil {
		return l, err
	}
	l.findings, err = launch.Verify(ctx, w.spec, pid)
	return l, err
}

// Apply implements reconcile.Resource. A process that has ended needs nothing.
func (r *processesResource) Apply(ctx context.Context, p reconcile.Plan) error {
	plan, ok := p.(processPlan)
	if !ok {
		return fmt.Errorf("cannot apply a %T to processes", p)
	}
	var errs []error
	for _, c := range plan.limits {
		if err := limits.Repair(ctx, c.process, c.want); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("service %s: %w", c.service, err))
		}
	}
	for _, c := range plan.scores {
		if err := limits.SetOOMScore(ctx, c.process, c.want); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("service %s: %w", c.service, err))
		}
	}
	return errors.Join(append(errs, plan.applyMounts(ctx))...)
}

// processPlan is what differs in live processes.
type processPlan struct {
	limits  []limitChange
	scores  []scoreChange
	mounts  []mountChange
	restart []string // what cannot be given back to a live process
	asked   int      // layers that are missing since the service's mode is complain: no drift, but never learned as right
}

func (p *processPlan) findings() int { return len(p.limits) + len(p.restart) + len(p.mounts) + p.asked }

type limitChange struct {
	service string
	process limits.Process
	want    limits.Set // those that differ
	what    []string   // the differences for people
}

type scoreChange struct {
	service    string
	process    limits.Process
	have, want int
}

// maxRestartLines keeps a service with hundreds of backends from filling an event.
const maxRestartLines = 10

// add sorts the findings of one process. Limits are put back; whoever is to get
// back a filter or lose a capability has to be started again.
func (p *processPlan) add(spec launch.Spec, l processLook) {
	service, want := spec.Service, spec.Limits
	c := limitChange{service: service, process: l.process, want: limits.Set{}}
	for _, f := range l.findings {
		switch {
		case f.OK:
		case f.Complaining(): // its layer and a warning say so
			p.asked++
		case f.Layer == launch.LayerLimits:
			c.want[f.Check] = want[f.Check]
			c.what = append(c.what, fmt.Sprintf("limit %s is %s, want %s", f.Check, f.Got, f.Want))
		case launch.MountsRepairable(f):
			p.addMount(spec, l.process, f)
		default:
			p.restart = append(p.restart, fmt.Sprintf("service %s: %s: restart needed, since no running process can be given that back: "+
				"`pghardend stop --service %s`, then start it", service, FindingText(f), service))
		}
	}
	if len(c.want) > 0 {
		p.limits = append(p.limits, c)
	}
}

// addScore compares the OOM score of the first process alone: the others give
// themselves theirs (PG_OOM_ADJUST_VALUE).
func (p *processPlan) addScore(ctx context.Context, w *processWatch) error {
	if w.spec.OOMScoreAdj == nil {
		return nil
	}
	have, err := limits.OOMScore(ctx, w.root.PID)
	if err != nil {
		return err
	}
	if want := *w.spec.OOMScoreAdj; have != want {
		p.scores = append(p.scores, scoreChange{service: w.spec.Service, process: w.root, have: have, want: want})
	}
	return nil
}

// Empty says whether all is as it should be, also what cannot be put back.
func (p processPlan) Empty() bool {
	return len(p.limits)+len(p.scores)+len(p.mounts)+len(p.restart) == 0
}

// String has one line for each difference.
func (p processPlan) String() string {
	var b strings.Builder
	for _, c := range p.limits {
		for _, what := range c.what {
			fmt.Fprintf(&b, "service %s: process %d: %s\n", c.service, c.process.PID, what)
		}
	}
	for _, c := range p.scores {
		fmt.Fprintf(&b, "service %s: process %d: oom_score_adj is %d, want %d\n", c.service, c.process.PID, c.have, c.want)
	}
	for _, c := range p.mounts {
		fmt.Fprintf(&b, "service %s: process %d: mounts: %s\n", c.spec.Service, c.process.PID, c.what)
	}
	b.WriteString(p.Unrepairable())
	return b.String()
}

// Unrepairable implements reconcile.Unrepairable.
func (p processPlan) Unrepairable() string {
	var b strings.Builder
	for _, text := range p.restart[:min(maxRestartLines, len(p.restart))] {
		fmt.Fprintf(&b, "%s\n", text)
	}
	if more := len(p.restart) - maxRestartLines; more > 0 {
		fmt.Fprintf(&b, "and %d more, see `pghardend verify`\n", more)
	}
	return b.String()
}

// Repairable implements reconcile.Unrepairable.
func (p processPlan) Repairable() bool { return len(p.limits)+len(p.scores)+len(p.mounts) > 0 }

// startedWith is what a service has to have, see processesResource.
func startedWith(ctx context.Context, svc runningService) (launch.Spec, error) {
	spec := svc.spec
	spec.Limits = maps.Clone(spec.Limits)
	if !svc.adopted {
		return spec, nil
	}
	has, err := limits.Read(ctx, svc.pid)
	if err != nil {
		return spec, err
	}
	maps.DeleteFunc(spec.Limits, func(name string, l limits.Limit) bool { return has[name] != l })
	if spec.OOMScoreAdj == nil {
		return spec, nil
	}
	score, err := limits.OOMScore(ctx, svc.pid)
	if score != *spec.OOMScoreAdj {
		spec.OOMScoreAdj = nil
	}
	return spec, err
}
