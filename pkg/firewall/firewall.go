package firewall

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
)

// Firewall reads and writes this network namespace's filter tables and sets.
type Firewall struct {
	backend string
	run     runner
	tools   [2]tools
	missing [2]error // why a family's tools cannot be used
}

// Open probes the tools. backend is auto (that of the command iptables), nft
// or legacy. A family whose tools are missing is reported by Observe and Apply,
// so that the other one is still kept; Open fails only if neither can be used
// or ipset is missing.
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
	if _, err := exec.LookPath("ipset"); err != nil {
		return nil, fmt.Errorf("cannot open the firewall: install the package ipset: %w", err)
	}
	f := &Firewall{backend: chosen, run: run}
	for _, fam := range Families {
		f.tools[fam], f.missing[fam] = findTools(ctx, run, fam, chosen)
	}
	if f.missing[IPv4] != nil && f.missing[IPv6] != nil {
		return nil, fmt.Errorf("cannot open the firewall: %w", errors.Join(f.missing[:]...))
	}
	return f, nil
}

// Backend is nft or legacy.
func (f *Firewall) Backend() string { return f.backend }

// Observe reads both filter tables and our sets. On an error the parts that
// could be read are still returned, and Diff leaves the others alone.
func (f *Firewall) Observe(ctx context.Context) (Observed, error) {
	var got Observed
	var errs []error
	for _, fam := range Families {
		t, err := f.observeTable(ctx, fam)
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot observe %s: %w", fam, err))
		}
		got.Tables[fam] = t
	}
	sets, err := f.observeSets(ctx)
	if err != nil {
		errs = append(errs, fmt.Errorf("cannot observe the sets: %w", err))
	}
	got.Sets, got.SetsRead = sets, err == nil
	return got, errors.Join(errs...)
}

func (f *Firewall) observeTable(ctx context.Context, fam Family) (ObservedTable, error) {
	if f.missing[fam] != nil {
		return ObservedTable{}, f.missing[fam]
	}
	out, err := f.run.run(ctx, "", f.tools[fam].save, "-t", "filter")
	if err != nil {
		return ObservedTable{}, err
	}
	return ParseSave(out)
}

func (f *Firewall) observeSets(ctx context.Context) (map[string]ObservedSet, error) {
	out, err := f.run.run(ctx, "", "ipset", "save")
	if err != nil {
		return nil, err
	}
	return ParseSets(out)
}

// Apply carries the plan out. The families are independent: a failure in one
// does not keep the other from being repaired. A restore that fails has changed
// nothing in its family.
func (f *Firewall) Apply(ctx context.Context, p Plan) error {
	var errs []error
	for _, fam := range Families {
		if err := f.restore(ctx, fam, p.detach[fam]); err != nil {
			errs = append(errs, err)
		}
	}
	if p.setsText != "" {
		if _, err := f.run.run(ctx, p.setsText, "ipset", "restore"); err != nil {
			errs = append(errs, fmt.Errorf("cannot write the sets: %w", err))
		}
	}
	for _, fam := range Families {
		if err := f.restore(ctx, fam, p.rules[fam]); err != nil {
			errs = append(errs, err)
		}
	}
	for _, name := range p.dropSets {
		if _, err := f.run.run(ctx, "", "ipset", "destroy", name); err != nil {
			errs = append(errs, fmt.Errorf("cannot remove the set %s; if a foreign rule names it, remove that rule: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (f *Firewall) restore(ctx context.Context, fam Family, text string) error {
	if text == "" {
		return nil
	}
	if f.missing[fam] != nil {
		return fmt.Errorf("cannot write %s rules: %w", fam, f.missing[fam])
	}
	args := append([]string{"--noflush"}, lockArgs()...)
	if _, err := f.run.run(ctx, text, f.tools[fam].restore, args...); err != nil {
		return fmt.Errorf("cannot write %s rules: %w", fam, err)
	}
	return nil
}
