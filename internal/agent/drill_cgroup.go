package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"github.com/pghardend/pghardend/internal/drill"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/limits"
)

// drillGroup is the control group that stands in for that of a drilled service: of the drill's own, empty at
// its end, and with a bound that is small enough to be reached.
func drillGroup(uid int) launch.Cgroup {
	return launch.Cgroup{Mode: launch.CgroupRequired, Want: limits.Cgroup{MemoryMax: drill.GroupMemory}, Name: fmt.Sprintf("pghardend-drill-%d", uid)}
}

// drillBound says whether the service is bounded, and if not why; and if no group can be made here to show it, why.
func drillBound(ctx context.Context, svc config.Service, uid int) (off, noGroup string) {
	switch {
	case svc.Cgroup.Mode == config.CgroupOff:
		off = "cgroup.mode is off"
	case svc.Cgroup.MemoryMax == 0:
		off = "the service has no cgroup.memory_max"
	}
	plan, err := drillGroupPlan(ctx, svc.Name, uid)
	if err == nil {
		made := plan.Make(ctx)
		err = made.Remove(ctx)
		if len(made.Missing) > 0 {
			err = errors.Join(errors.New(made.Missing[0].String()), err)
		}
	}
	if err != nil {
		noGroup = fmt.Sprintf("no control group can be made for a drill here: %v", err)
	}
	return off, noGroup
}

func drillGroupPlan(ctx context.Context, service string, uid int) (limits.CgroupPlan, error) {
	sight, err := limits.LookCgroups(ctx, os.Getpid())
	if err != nil {
		return limits.CgroupPlan{}, err
	}
	g := drillGroup(uid)
	plan := limits.PlanCgroup(g.Want, sight, g.Name, "service."+service) // as launch has it
	for _, group := range plan.Groups {
		if group.Base == "" {
			return plan, errors.New("the service manager has not delegated one: run it by `systemd-run -p Delegate=yes -p DelegateSubgroup=drill -P pghardend drill` (systemd 254)")
		}
	}
	return plan, nil
}

// removeDrillGroup removes what a drill that was ended has left. Its processes are gone.
func removeDrillGroup(ctx context.Context, service string, uid int) error {
	plan, err := drillGroupPlan(ctx, service, uid)
	if err != nil {
		return nil //nolint:nilerr // where there can be none, none was made
	}
	return plan.Remove(ctx)
}

// inDrillGroup has a launch enter the drill's group.
func inDrillGroup(spec *launch.Spec) error {
	u, err := user.Lookup(drill.User)
	if err != nil {
		return fmt.Errorf("cannot find the drill's user: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return fmt.Errorf("cannot find the drill's user: %w", err)
	}
	spec.Cgroup = drillGroup(uid)
	return nil
}
