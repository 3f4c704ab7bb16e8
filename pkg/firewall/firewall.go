package firewall

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Firewall reads and writes this network namespace's tables and sets.
type Firewall struct {
	backend string
	run     runner
	tools   [2]tools
	missing [2]error // why a family's tools cannot be used
	unused  [3]bool  // tables that are not even to be looked at
	sets    setKernel
	own     *ownCommits // which commits of rules are by this Firewall
	peek    setPeek

	// generation numbers the state of the rules, nil if there is none.
	generation func() (uint32, error)
}

// Open probes the tools. backend is auto (that of the command iptables), nft
// or legacy. Tools of one family that are missing are reported by Observe and
// Apply, so that the rest is still kept, and so are sets that can be had neither
// by netlink nor by the command ipset; Open fails only if the rules of neither
// family can be written.
//
// Needs CAP_NET_ADMIN for anything beyond Open.
func Open(ctx context.Context, backend string) (*Firewall, error) {
	own := &ownCommits{}
	f, err := open(ctx, backend, execRunner{begin: own.start}, netlinkSets{})
	if err != nil {
		return nil, err
	}
	f.own = own
	if f.backend == BackendNFT {
		f.generation = nftGeneration
	}
	return f, nil
}

func open(ctx context.Context, backend string, run runner, sets setKernel) (*Firewall, error) {
	chosen, err := chooseBackend(ctx, run, backend)
	if err != nil {
		return nil, fmt.Errorf("cannot open the firewall: %w", err)
	}
	f := &Firewall{backend: chosen, run: run, own: &ownCommits{}}
	var probes sync.WaitGroup // on threads in any network namespace: a version is the same in all
	for _, fam := range Families {
		probes.Go(func() { f.tools[fam], f.missing[fam] = findTools(ctx, run, fam, chosen) })
	}
	probes.Wait()
	if f.missing[IPv4] != nil && f.missing[IPv6] != nil {
		return nil, fmt.Errorf("cannot open the firewall: %w", errors.Join(f.missing[:]...))
	}
	command := commandSets{run: run}
	if command.path, err = run.find("ipset"); err != nil {
		command.missing = fmt.Errorf("ipset is not installed; install the package ipset: %w", err)
	}
	f.sets = eitherSets{sets, command}
	return f, nil
}

// Backend is nft or legacy.
func (f *Firewall) Backend() string { return f.backend }

// Observe reads our tables and our sets. On an error the parts that
// could be read are still returned, and Diff leaves the others alone.
func (f *Firewall) Observe(ctx context.Context) (Observed, error) {
	var got Observed
	var errs []error
	before := f.rulesGeneration()
	var tables [3]func() (ObservedTable, error)
	for _, id := range tableIDs {
		tables[id] = f.startTable(ctx, id)
	}
	got.At = time.Now()
	sets, setsErr := f.observeSets(ctx) // while the commands run
	got.Sets, got.SetsRead = sets, setsErr == nil
	for _, id := range tableIDs {
		t, err := tables[id]()
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot observe %s: %w", id, err))
		}
		got.Tables[id] = t
	}
	if setsErr != nil {
		errs = append(errs, fmt.Errorf("cannot observe the sets: %w", setsErr))
	}
	if after := f.rulesGeneration(); after == before {
		got.Generation = after
	}
	return got, errors.Join(errs...)
}

// rulesGeneration is 0 if there is none to be had.
func (f *Firewall) rulesGeneration() uint32 {
	if f.generation == nil {
		return 0
	}
	g, err := f.generation()
	if err != nil {
		return 0
	}
	return g
}

// startTable begins to read a table, and returns what waits for it.
func (f *Firewall) startTable(ctx context.Context, id TableID) func() (ObservedTable, error) {
	fam := id.family()
	switch {
	case f.unused[id], f.missing[fam] != nil && id == RawIPv6: // the latter is said for the filter table
		return func() (ObservedTable, error) { return ObservedTable{}, nil }
	case f.missing[fam] != nil:
		err := fmt.Errorf("%w; commands are looked for at the start, so restart the daemon after that (services go on)", f.missing[fam])
		return func() (ObservedTable, error) { return ObservedTable{}, err }
	}
	wait := f.run.start(ctx, "", f.tools[fam].save, "-t", id.name())
	return func() (ObservedTable, error) {
		var t ObservedTable
		out, err := wait()
		if err == nil {
			t, err = ParseSave(id.name(), out)
		}
		switch {
		case unreadable(err):
			t, err = f.observePartly(ctx, id)
		case err == nil && f.generation != nil:
			t, err = withoutLossy(id, t)
		}
		if err == nil && f.generation != nil {
			t, err = withHooks(id, t)
		}
		return t, err
	}
}

func (f *Firewall) observeSets(ctx context.Context) (map[string]ObservedSet, error) {
	s, err := f.sets.open(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()
	return s.list(ctx)
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
	errs := f.repairTables(p.repairs)
	errs = append(errs, f.restoreAll(ctx, p.detach)...)
	var sets setSession
	var err error
	if len(p.sets) > 0 || len(p.dropSets) > 0 {
		if sets, err = f.sets.open(ctx); err != nil {
			sets = noSets{err}
		}
		defer sets.close()
	}
	alien, setErrs := editSets(ctx, sets, p.sets)
	errs = append(errs, setErrs...)
	rules := p.rules
	for _, id := range tableIDs {
		rules[id] = withoutSets(rules[id], alien)
	}
	errs = append(errs, f.restoreRules(ctx, p, rules)...)
	for _, name := range p.dropSets {
		if err := sets.edit(ctx, []setOp{{verb: verbDestroy, set: name}}); err != nil {
			errs = append(errs, fmt.Errorf("cannot remove the set %s; if a foreign rule names it, remove that rule: %w", printable(name), err))
		}
	}
	return errors.Join(errs...)
}

// editSets returns the sets of another type that are still there.
func editSets(ctx context.Context, sets setSession, edits []setEdit) (alien []string, errs []error) {
	for _, e := range edits {
		err := sets.edit(ctx, e.write(time.Now()))
		if err != nil && e.instead != nil {
			err = sets.edit(ctx, e.instead(time.Now()))
		}
		if err == nil {
			continue
		}
		errs = append(errs, fmt.Errorf("cannot write the set %s: %w", e.name, err))
		if e.alien {
			alien = append(alien, e.name)
		}
	}
	return alien, errs
}

// restoreAll writes the tables side by side: each is a transaction of its own.
// Legacy commands wait for one lock, some versions by sleeping for a second, so
// they run one after the other.
func (f *Firewall) restoreAll(ctx context.Context, texts [3]string) (errs []error) {
	var waits [3]func() error
	for _, id := range tableIDs {
		waits[id] = f.startRestore(ctx, id, texts[id])
		if f.backend == BackendLegacy {
			err := waits[id]()
			waits[id] = func() error { return err }
		}
	}
	for _, wait := range waits {
		errs = append(errs, wait())
	}
	return errs
}

func (f *Firewall) startRestore(ctx context.Context, id TableID, text string) func() error {
	if text == "" {
		return func() error { return nil }
	}
	fam := id.family()
	if f.missing[fam] != nil {
		return func() error { return fmt.Errorf("cannot write %s rules: %w", id, f.missing[fam]) }
	}
	args := append([]string{"--noflush"}, lockArgs()...)
	wait := f.run.start(ctx, text, f.tools[fam].restore, args...)
	return func() error {
		if _, err := wait(); err != nil {
			return fmt.Errorf("cannot write %s rules: %w", id, err)
		}
		return nil
	}
}
