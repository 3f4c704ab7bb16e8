package firewall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Teardown removes our chains, jumps and sets from every backend that has any,
// and says what it removed. Foreign state stays as it is.
func Teardown(ctx context.Context) ([]string, error) {
	return teardown(ctx, execRunner{}, netlinkSets{}, legacyInUse)
}

func teardown(ctx context.Context, run runner, sets setKernel, legacyInUse func() [3]bool) ([]string, error) {
	var errs []error
	var plans []Plan
	var opened []*Firewall
	for _, backend := range []string{BackendNFT, BackendLegacy} {
		var unused [3]bool
		// Merely looking at an unused legacy table would load its kernel module.
		if backend == BackendLegacy {
			used := legacyInUse()
			if used == [3]bool{} {
				continue
			}
			unused = [3]bool{!used[0], !used[1], !used[2]}
		}
		f, err := open(ctx, backend, run, sets)
		if err != nil {
			continue // not installed, so it has no rules of ours
		}
		f.unused = unused
		got, err := f.Observe(ctx)
		errs = append(errs, err)
		opened, plans = append(opened, f), append(plans, TeardownPlan(got))
	}
	if len(opened) == 0 {
		return nil, errors.New("cannot tear down: neither iptables-nft nor iptables-legacy is installed; install the package iptables")
	}
	var removed []string
	for i, f := range opened {
		if i < len(opened)-1 {
			plans[i] = plans[i].withoutSets() // they go last: rules of either backend may name them
		}
		if err := f.Apply(ctx, plans[i]); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, c := range plans[i].Changes {
			line := fmt.Sprintf("removed %s %s %s", c.Family, c.Resource, c.Name)
			if c.Resource != resourceSet {
				line += " (" + f.backend + ")"
			}
			removed = append(removed, line)
		}
	}
	return removed, errors.Join(errs...)
}

// withoutSets is the plan for the rules alone.
func (p Plan) withoutSets() Plan {
	p.sets, p.dropSets = nil, nil
	p.Changes = slices.DeleteFunc(slices.Clone(p.Changes), func(c Change) bool { return c.Resource == resourceSet })
	return p
}

// legacyInUse says which legacy tables this network namespace has; the kernel
// lists those that exist in these files.
func legacyInUse() (used [3]bool) {
	for _, id := range tableIDs {
		file := "ip_tables_names"
		if id.family() == IPv6 {
			file = "ip6_tables_names"
		}
		data, err := os.ReadFile("/proc/thread-self/net/" + file)
		used[id] = err == nil && slices.Contains(strings.Fields(string(data)), id.name())
	}
	return used
}
