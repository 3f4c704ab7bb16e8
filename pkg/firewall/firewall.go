package firewall

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Firewall reads and writes this network namespace's tables and sets.
type Firewall struct {
	backend string
	run     runner
	tools   [2]tools
	missing [2]error // why a family's tools cannot be used
	unused  [3]bool  // tables that are not even to be looked at
	ipset   string
	noIpset error // why ipset cannot be used
}

// Open probes the tools. backend is auto (that of the command iptables), nft
// or legacy. Tools of one family, or ipset, that are missing are reported by
// Observe and Apply, so that the rest is still kept; Open fails only if the
// rules of neither family can be written.
//
// Needs CAP_NET_ADMIN for anything beyond Open.
func Open(ctx context.Context, backend string) (*Firewall, error) {
	return open(ctx, backend, execRunner{})
}

func open(ctx context.Context, backend string, run runner) (*Firewall, error) {
	chosen, err := chooseBackend(ctx, run, backend)
	if err != nil {
		return nil, fmt.Errorf("cannot open the firewall: %w", err)
	}
	f := &Firewall{backend: chosen, run: run}
	for _, fam := range Families {
		f.tools[fam], f.missing[fam] = findTools(ctx, run, fam, chosen)
	}
	if f.missing[IPv4] != nil && f.missing[IPv6] != nil {
		return nil, fmt.Errorf("cannot open the firewall: %w", errors.Join(f.missing[:]...))
	}
	if f.ipset, err = run.find("ipset"); err != nil {
		f.noIpset = fmt.Errorf("ipset is not installed; install the package ipset: %w", err)
	}
	return f, nil
}

// Backend is nft or legacy.
func (f *Firewall) Backend() string { return f.backend }

// Observe reads our tables and our sets. On an error the parts that
// could be read are still returned, and Diff leaves the others alone.
func (f *Firewall) Observe(ctx context.Context) (Observed, error) {
	var got Observed
	var errs []error
	for _, id := range tableIDs {
		t, err := f.observeTable(ctx, id)
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot observe %s: %w", id, err))
		}
		got.Tables[id] = t
	}
	got.At = time.Now()
	sets, err := f.observeSets(ctx)
	if err != nil {
		errs = append(errs, fmt.Errorf("cannot observe the sets: %w", err))
	}
	got.Sets, got.SetsRead = sets, err == nil
	return got, errors.Join(errs...)
}

func (f *Firewall) observeTable(ctx context.Context, id TableID) (ObservedTable, error) {
	fam := id.family()
	switch {
	case f.unused[id]:
		return ObservedTable{}, nil
	case f.missing[fam] != nil && id == RawIPv6:
		return ObservedTable{}, nil // said already, for the filter table
	case f.missing[fam] != nil:
		return ObservedTable{}, f.missing[fam]
	}
	out, err := f.run.run(ctx, "", f.tools[fam].save, "-t", id.name())
	if err != nil {
		return ObservedTable{}, err
	}
	return ParseSave(id.name(), out)
}

func (f *Firewall) observeSets(ctx context.Context) (map[string]ObservedSet, error) {
	out, err := f.runIpset(ctx, "", "save")
	if err != nil {
		return nil, err
	}
	return ParseSets(out)
}

// Apply carries the plan out. Tables and sets are independent: a failure in
// one does not keep the others from being repaired. A restore that fails has
// changed nothing in its table.
//
// Once begun, a plan is carried out even if ctx ends, since half of one may
// leave new connections shut out; each command in it is bounded in time.
func (f *Firewall) Apply(ctx context.Context, p Plan) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("cannot apply the plan: %w", err)
	}
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, id := range tableIDs {
		errs = append(errs, f.restore(ctx, id, p.detach[id]))
	}
	var alien []string
	for _, set := range p.sets {
		if _, err := f.runIpset(ctx, set.text(time.Now()), "restore"); err != nil {
			errs = append(errs, fmt.Errorf("cannot write the set %s: %w", set.name, err))
			if set.alien {
				alien = append(alien, set.name)
			}
		}
	}
	for _, id := range tableIDs {
		errs = append(errs, f.restore(ctx, id, withoutSets(p.rules[id], alien)))
	}
	for _, name := range p.dropSets {
		if _, err := f.runIpset(ctx, "", "destroy", name); err != nil {
			errs = append(errs, fmt.Errorf("cannot remove the set %s; if a foreign rule names it, remove that rule: %w", printable(name), err))
		}
	}
	return errors.Join(errs...)
}

func (f *Firewall) runIpset(ctx context.Context, stdin string, args ...string) ([]byte, error) {
	if f.noIpset != nil {
		return nil, f.noIpset
	}
	return f.run.run(ctx, stdin, f.ipset, args...)
}

func (f *Firewall) restore(ctx context.Context, id TableID, text string) error {
	if text == "" {
		return nil
	}
	fam := id.family()
	if f.missing[fam] != nil {
		return fmt.Errorf("cannot write %s rules: %w", id, f.missing[fam])
	}
	args := append([]string{"--noflush"}, lockArgs()...)
	if _, err := f.run.run(ctx, text, f.tools[fam].restore, args...); err != nil {
		return fmt.Errorf("cannot write %s rules: %w", id, err)
	}
	return nil
}
