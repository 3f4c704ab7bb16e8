package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/limits"
)

// mountChange is flags that mounts of a service lack, those that have arrived from the
// host for the most part.
type mountChange struct {
	spec    launch.Spec
	process limits.Process
	what    string
}

// addMount takes a finding once for each service: its processes share their mounts. Should
// one of them not, it is found when these are right.
func (p *processPlan) addMount(spec launch.Spec, process limits.Process, f launch.Finding) {
	what := fmt.Sprintf("%s is %s, want %s", f.Check, f.Got, f.Want)
	same := func(c mountChange) bool { return c.spec.Service == spec.Service && c.what == what }
	if !slices.ContainsFunc(p.mounts, same) {
		p.mounts = append(p.mounts, mountChange{spec, process, what})
	}
}

// applyMounts repairs each process once, all of its flags.
func (p processPlan) applyMounts(ctx context.Context) error {
	var errs []error
	var done []limits.Process
	for _, c := range p.mounts {
		if slices.Contains(done, c.process) {
			continue
		}
		done = append(done, c.process)
		if now, err := limits.Identify(ctx, c.process.PID); err != nil || now != c.process {
			continue // it has ended
		}
		if err := launch.RepairMounts(ctx, c.spec, c.process.PID); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("service %s: %w", c.spec.Service, err))
		}
	}
	return errors.Join(errs...)
}
