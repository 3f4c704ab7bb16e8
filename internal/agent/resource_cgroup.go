package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/limits"
)

const cgroupsName = "cgroups"

// cgroupsResource keeps the control groups of running services and of the agent
// itself: what they have, and who is in them. Groups are made by the launch stage,
// and by the agent as it starts; here they are only put right. Unlike limits,
// settings follow the configuration at once.
type cgroupsResource struct {
	running func([]runningService) []runningService
	self    limits.CgroupPlan // the agent's own; nothing if it has none

	list    []runningService // that running fills, again and again
	watched []lookedService  // in the last look
	files   []keptText       // what it has seen
	buf     []byte
}

// keptText is a file of the kernel's and what it said when all was right.
type keptText struct {
	file *os.File
	text []byte
}

func newCgroupsResource(running func([]runningService) []runningService) *cgroupsResource {
	return &cgroupsResource{running: running, buf: make([]byte, 4<<10)}
}

func (r *cgroupsResource) Name() string { return cgroupsName }

// Plan implements reconcile.Resource: every process of every service is looked at.
func (r *cgroupsResource) Plan(ctx context.Context) (reconcile.Plan, error) {
	var p cgroupPlan
	r.list = r.running(r.list[:0])
	kept := map[string]bool{}
	errs := []error{r.plan(ctx, "the agent", r.self, []int{os.Getpid()}, &p, kept)}
	for _, svc := range r.list {
		err := r.planService(ctx, svc, &p, kept)
		if errors.Is(err, os.ErrProcessDone) || errors.Is(err, launch.ErrVanished) {
			continue // is for its supervisor
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("service %s: %w", svc.name, err))
		}
	}
	err := errors.Join(errs...)
	if err == nil && p.Empty() {
		err = r.learn(kept)
	}
	return p, err
}

func (r *cgroupsResource) planService(ctx context.Context, svc runningService, p *cgroupPlan, kept map[string]bool) error {
	state, err := launch.ReadCgroup(ctx, svc.spec, svc.pid)
	if err != nil || len(state.Plan.Groups) == 0 {
		return err // status says why there is nothing to keep
	}
	pids, err := launch.Tree(ctx, svc.pid)
	if err != nil {
		return err
	}
	return r.plan(ctx, "service "+svc.name, state.Plan, pids, p, kept)
}

// plan compares groups with what they should have, and processes with where they
// should be. The first of them is looked at in each tick.
func (r *cgroupsResource) plan(ctx context.Context, subject string, want limits.CgroupPlan, pids []int, p *cgroupPlan, kept map[string]bool) error {
	if len(want.Groups) == 0 {
		return nil
	}
	readings, err := want.Observe(ctx)
	if err != nil {
		return err
	}
	for _, reading := range readings {
		kept[filepath.Join(reading.Group.Dir, reading.Setting.File)] = true
		if !reading.OK {
			p.settings = append(p.settings, cgroupChange{subject, reading})
		}
	}
	for i, pid := range pids {
		process, err := limits.Identify(ctx, pid)
		var out []limits.CgroupOutside
		if err == nil {
			out, err = want.Outside(ctx, pid)
		}
		if errors.Is(err, os.ErrProcessDone) && i > 0 {
			continue
		}
		if err != nil {
			return err
		}
		for _, o := range out {
			p.moves = append(p.moves, cgroupMove{subject, process, o})
		}
	}
	kept[fmt.Sprintf("/proc/%d/cgroup", pids[0])] = true
	return nil
}

// learn keeps the files of a look that found nothing.
func (r *cgroupsResource) learn(paths map[string]bool) error {
	r.forget()
	for path := range paths {
		file, err := os.Open(path)
		if err != nil {
			r.forget()
			return fmt.Errorf("cannot watch %s: %w", path, err)
		}
		n, err := rawRead(int(file.Fd()), r.buf)
		r.files = append(r.files, keptText{file, bytes.Clone(r.buf[:n])})
		if err != nil { // it has changed meanwhile, which the next tick sees
			r.files[len(r.files)-1].text = nil
		}
	}
	for _, svc := range r.list {
		r.watched = append(r.watched, lookedService{svc.name, svc.pid})
	}
	return nil
}

func (r *cgroupsResource) forget() {
	for _, k := range r.files {
		k.file.Close()
	}
	r.files, r.watched = r.files[:0], r.watched[:0]
}

// Peek implements reconcile.Peeker: one read for each setting, and one for the
// first process of each service. What was done to the others denials tell of, where they are traced, or the full look finds it.
func (r *cgroupsResource) Peek(context.Context) bool {
	r.list = r.running(r.list[:0])
	if !slices.EqualFunc(r.list, r.watched, func(a runningService, b lookedService) bool { return a.name == b.name && a.pid == b.pid }) {
		return true
	}
	for _, k := range r.files {
		n, err := rawRead(int(k.file.Fd()), r.buf)
		if err != nil || !bytes.Equal(r.buf[:n], k.text) {
			return true
		}
	}
	return false
}

// Apply implements reconcile.Resource. A process that has ended needs nothing.
func (r *cgroupsResource) Apply(ctx context.Context, p reconcile.Plan) error {
	plan, ok := p.(cgroupPlan)
	if !ok {
		return fmt.Errorf("cannot apply a %T to control groups", p)
	}
	var errs []error
	for _, c := range plan.settings {
		if err := c.reading.Restore(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.subject, err))
		}
	}
	for _, m := range plan.moves {
		if err := m.outside.Bring(ctx, m.process); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("%s: %w", m.subject, err))
		}
	}
	return errors.Join(errs...)
}

func (r *cgroupsResource) close() { r.forget() }

// cgroupPlan is what differs in control groups.
type cgroupPlan struct {
	settings []cgroupChange
	moves    []cgroupMove
}

type cgroupChange struct {
	subject string
	reading limits.CgroupReading
}

type cgroupMove struct {
	subject string
	process limits.Process
	outside limits.CgroupOutside
}

// Empty says whether all is as it should be.
func (p cgroupPlan) Empty() bool { return len(p.settings)+len(p.moves) == 0 }

// String has one line for each difference.
func (p cgroupPlan) String() string {
	var b strings.Builder
	for _, c := range p.settings {
		fmt.Fprintf(&b, "%s: %s of control group %s is %s, want %s\n", c.subject, c.reading.Setting.File, c.reading.Group.Path, c.reading.Got, c.reading.Setting.Value)
	}
	for _, m := range p.moves[:min(maxRestartLines, len(p.moves))] {
		fmt.Fprintf(&b, "%s: process %d is in the control group %s, want %s\n", m.subject, m.process.PID, m.outside.Got, m.outside.Want)
	}
	if more := len(p.moves) - maxRestartLines; more > 0 {
		fmt.Fprintf(&b, "and %d more processes\n", more)
	}
	return b.String()
}
