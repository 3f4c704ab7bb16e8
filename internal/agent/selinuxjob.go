package agent

import (
	"context"
	"errors"
	"sync"

	"github.com/pghardend/pghardend/pkg/mac"
)

// selinuxJob changes the policy, one change at a time, in a goroutine of its own: a
// policy takes seconds to build, and rules must not wait for that.
type selinuxJob struct {
	done func() // called when one has ended

	mu     sync.Mutex
	busy   bool
	failed error // the last one
}

// errBuilding is no failure, but nothing is right before it has ended.
var errBuilding = errors.New("the SELinux policy is being built and loaded, which takes from seconds to minutes")

// run starts what the plan asks for. Its error is of the one before.
func (j *selinuxJob) run(ctx context.Context, p selinuxPlan) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.busy {
		return errBuilding
	}
	failed := j.failed
	j.busy, j.failed = true, nil
	go func() {
		err := changePolicy(ctx, p)
		j.mu.Lock()
		j.busy, j.failed = false, err
		j.mu.Unlock()
		j.done()
	}()
	if failed != nil {
		return failed
	}
	return errBuilding
}

// changePolicy: the module first, whose types the others need.
func changePolicy(ctx context.Context, p selinuxPlan) error {
	if p.module {
		if err := mac.LoadModule(ctx, p.want.module); err != nil {
			return err
		}
	}
	var errs []error
	for _, domain := range p.permissive {
		errs = append(errs, mac.RemovePermissive(ctx, domain))
	}
	for _, c := range p.ports {
		errs = append(errs, mac.SetPort(ctx, c.want))
	}
	return errors.Join(errs...)
}
