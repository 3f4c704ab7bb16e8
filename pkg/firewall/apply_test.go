package firewall

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// on makes a fault for the calls that begin with a text.
func on(call string, lines int) func(string) (int, error) {
	return func(c string) (int, error) {
		if strings.HasPrefix(c, call) {
			return lines, errFake
		}
		return -1, nil
	}
}

func TestApplyFromNothing(t *testing.T) {
	k := newFakeKernel()
	f := k.firewall()
	rs := render(t, "postgres")
	settle(t, f, rs)
	k.calls = nil
	settle(t, f, rs)
	for _, c := range k.calls {
		if strings.Contains(c, "restore") || strings.Contains(c, "edit") || strings.Contains(c, "destroy") {
			t.Errorf("with nothing to do there was a call of %s", c)
		}
	}
}

// ruin does one random harmful thing to the kernel's state.
func ruin(r *rand.Rand, k *fakeKernel) string {
	id := tableIDs[r.IntN(3)]
	fam := id.family()
	table := k.tables[id]
	chains := slices.Sorted(maps.Keys(table))
	chain := chains[r.IntN(len(chains))]
	sets := slices.DeleteFunc(slices.Sorted(maps.Keys(k.sets)), func(name string) bool { return familyOfSet(name) != fam })
	set := sets[r.IntN(len(sets))]
	rules := table[chain]
	switch r.IntN(9) {
	case 0:
		if !strings.HasPrefix(chain, "f-") {
			table[chain] = nil
		}
		return "flush " + chain
	case 1:
		if len(rules) > 0 {
			i := r.IntN(len(rules))
			table[chain] = slices.Delete(slices.Clone(rules), i, i+1)
		}
		return "delete a rule of " + chain
	case 2:
		table[chain] = slices.Insert(slices.Clone(rules), r.IntN(len(rules)+1), []string{"-m", "comment", "--comment", "f \" \\", "-j", "ACCEPT"})
		return "insert into " + chain
	case 3:
		base := id.builtins()[0]
		table["PGHARDEND-OLD"] = [][]string{{"-m", "set", "--match-set", set, "src", "-j", "ACCEPT"}}
		table[base] = append(slices.Clone(table[base]), []string{"-j", "PGHARDEND-OLD"})
		return "an old chain"
	case 4:
		k.sets[set].members = append(k.sets[set].members, "10.66.0.0/16 nomatch")
		return "a member of " + set
	case 5:
		k.sets[set].members = nil
		return "no members in " + set
	case 6:
		k.sets[set].create = "hash:ip family inet"
		return set + " of another type"
	case 7:
		k.sets[strings.Replace(set, "-", ".", 1)] = &fakeSet{create: "hash:net family inet"}
		return "a set left over from " + set
	}
	if !used(k.tables[IPv4], set) && !used(k.tables[IPv6], set) {
		delete(k.sets, set)
	}
	return "destroy " + set
}

// Whatever happens to the kernel's state, one apply repairs it.
func TestApplyRepairsAnything(t *testing.T) {
	rs := render(t, "pgpool")
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 7))
		k := newFakeKernel()
		f := k.firewall()
		settle(t, f, rs)
		var done []string
		for range 1 + r.IntN(6) {
			done = append(done, ruin(r, k))
		}
		settle(t, f, rs)
		if t.Failed() {
			t.Fatalf("seed %d: %q", seed, done)
		}
	}
}

func TestTeardownKeepsForeignState(t *testing.T) {
	k := newFakeKernel()
	k.tables[IPv4]["f-chain"] = [][]string{{"-j", "RETURN"}}
	k.tables[IPv4]["INPUT"] = [][]string{{"-p", "tcp", "-j", "f-chain"}, {"-m", "comment", "--comment", `odd " \ `, "-j", "ACCEPT"}}
	k.sets["blocklist"] = &fakeSet{create: "hash:ip family inet", members: []string{"192.0.2.1"}}
	before := k.text()
	f := k.firewall()
	settle(t, f, render(t, "pgpool"))
	got, err := f.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Apply(t.Context(), TeardownPlan(got)); err != nil {
		t.Fatal(err)
	}
	if after := k.text(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// F10: a restore that fails midway has changed nothing; the next one repairs.
func TestF10_RestoreFailsMidway(t *testing.T) {
	k := newFakeKernel()
	f := k.firewall()
	rs := render(t, "postgres")
	settle(t, f, rs)
	for _, fam := range Families {
		k.tables[fam][ChainIn] = nil
	}
	before := string(k.save(FilterIPv4))
	k.fail = on("restore ipv4", 5)
	got, err := f.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = f.Apply(t.Context(), Diff(rs, got))
	if !errors.Is(err, errFake) || !strings.Contains(err.Error(), "cannot write ipv4 rules") {
		t.Errorf("error %v", err)
	}
	if after := string(k.save(FilterIPv4)); after != before {
		t.Errorf("the failed restore left something:\n%s", after)
	}
	if got, _ = f.Observe(t.Context()); strings.Contains(Diff(rs, got).String(), "ipv6") {
		t.Error("IPv6 was not repaired")
	}
	k.fail = nil
	settle(t, f, rs)
}

// F10: the state changes between reading and writing.
func TestF10_OverwrittenMidway(t *testing.T) {
	k := newFakeKernel()
	f := k.firewall()
	rs := render(t, "postgres")
	settle(t, f, rs)
	k.tables[IPv4]["INPUT"] = slices.Insert(k.tables[IPv4]["INPUT"], 0, []string{"-j", "ACCEPT"})
	got, err := f.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k.tables[IPv4]["INPUT"] = nil // the jump that the plan wants to move is gone
	if err := f.Apply(t.Context(), Diff(rs, got)); err == nil {
		t.Error("no error, though the plan does not fit any more")
	}
	settle(t, f, rs)
}

// F9: the lock is held; the old rules stay.
func TestF09_LockHeld(t *testing.T) {
	k := newFakeKernel()
	f := k.firewall()
	rs := render(t, "postgres")
	settle(t, f, rs)
	k.tables[IPv4][ChainFwd] = nil
	k.tables[IPv6][ChainFwd] = nil
	k.fail = on("restore", 0)
	got, err := f.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = f.Apply(t.Context(), Diff(rs, got))
	if err == nil || !strings.Contains(err.Error(), "cannot write ipv4 rules") || !strings.Contains(err.Error(), "cannot write ipv6 rules") {
		t.Errorf("error %v", err)
	}
	if len(k.tables[IPv4][ChainIn]) == 0 {
		t.Error("the old rules are gone")
	}
	k.fail = nil
	settle(t, f, rs)
}

// F11: without ip6tables IPv4 is still kept, and nothing is torn down.
func TestF11_Ip6tablesMissing(t *testing.T) {
	k := newFakeKernel()
	f := k.firewall()
	rs := render(t, "postgres")
	settle(t, f, rs)
	f.missing[IPv6] = errors.New("ip6tables is not installed")
	for _, fam := range Families {
		k.tables[fam][ChainIn] = nil
	}
	k.sets["pgh4-pgpool"].members = nil
	before := string(k.save(FilterIPv6))
	got, err := f.Observe(t.Context())
	if err == nil || !strings.Contains(err.Error(), "cannot observe ipv6: ip6tables is not installed") {
		t.Errorf("error %v", err)
	}
	p := Diff(rs, got)
	if err := f.Apply(t.Context(), p); err != nil {
		t.Error(err)
	}
	if len(k.tables[IPv4][ChainIn]) == 0 || len(k.sets["pgh4-pgpool"].members) != 2 || string(k.save(FilterIPv6)) != before {
		t.Errorf("IPv4 not repaired, or IPv6 touched; plan:\n%s", p)
	}
	if err := f.Apply(t.Context(), Diff(rs, nothing())); err == nil || !strings.Contains(err.Error(), "cannot write ipv6 rules: ip6tables is not installed") {
		t.Errorf("a plan with IPv6 in it: %v", err)
	}
}

// F11: a command that answers with an error is not a namespace without rules.
func TestF11_SaveFails(t *testing.T) {
	rs := render(t, "postgres")
	for _, call := range []string{"save ipv4", "save ipv6", "save ipv6 raw", "sets"} {
		k := newFakeKernel()
		f := k.firewall()
		settle(t, f, rs)
		k.fail = on(call, 0)
		got, err := f.Observe(t.Context())
		if !errors.Is(err, errFake) {
			t.Errorf("%s: error %v", call, err)
		}
		if p := Diff(rs, got); !p.Empty() {
			t.Errorf("%s: a plan from what could not be read:\n%s", call, p)
		}
	}
}

func TestF11_IpsetMissing(t *testing.T) {
	k := newFakeKernel()
	f := k.firewall()
	rs := render(t, "postgres")
	settle(t, f, rs)
	f.sets = commandSets{missing: errors.New("ipset is not installed")}
	k.tables[IPv6][ChainOut] = nil
	got, err := f.Observe(t.Context())
	if err == nil || !strings.Contains(err.Error(), "cannot observe the sets: ipset is not installed") {
		t.Errorf("error %v", err)
	}
	if err := f.Apply(t.Context(), Diff(rs, got)); err != nil {
		t.Error(err)
	}
	if len(k.tables[IPv6][ChainOut]) == 0 {
		t.Error("the rules, which need no ipset, were not repaired")
	}
}

// A set that cannot be written keeps no other from being repaired, wherever it
// breaks off, and leaves nothing behind for good.
func TestF15b_IpsetFails(t *testing.T) {
	rs := render(t, "postgres")
	for lines := range 5 {
		t.Run(fmt.Sprint(lines, " lines done"), func(t *testing.T) {
			k := newFakeKernel()
			f := k.firewall()
			settle(t, f, rs)
			for _, s := range k.sets {
				s.members = []string{"10.66.0.1"}
			}
			k.tables[IPv4][ChainIn] = nil
			k.fail = func(call string) (int, error) {
				if call == "edit pgh4-pgpool" { // in place
					return min(lines, 2), errFake
				}
				return on("edit pgh4.pgpool", lines)(call)
			}
			got, err := f.Observe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			err = f.Apply(t.Context(), Diff(rs, got))
			if !errors.Is(err, errFake) || !strings.Contains(err.Error(), "cannot write the set pgh4-pgpool: ") {
				t.Errorf("error %v", err)
			}
			got, err = f.Observe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range Diff(rs, got).Changes {
				if c.Name != "pgh4-pgpool" && c.Name != "pgh4.pgpool" {
					t.Errorf("not repaired: %+v", c)
				}
			}
			k.fail = nil
			settle(t, f, rs)
		})
	}
}

// What cannot be changed in place, since the set is full or has changed
// meanwhile, is replaced as a whole.
func TestF15b_InPlaceFails(t *testing.T) {
	rs := render(t, "postgres")
	for lines := range 3 {
		k := newFakeKernel()
		f := k.firewall()
		settle(t, f, rs)
		k.sets["pgh4-pgpool"].members = []string{"10.66.0.1"}
		k.calls, k.fail = nil, on("edit pgh4-pgpool", lines)
		settle(t, f, rs)
		if !slices.Contains(k.calls, "edit pgh4.pgpool") {
			t.Errorf("%d lines done: not replaced: %q", lines, k.calls)
		}
	}
}

// A set of the wrong type is replaced while no rule names it; if that fails the
// rules come back without those that name it, since a stranger may be in it.
func TestF15b_WrongTypeFails(t *testing.T) {
	k := newFakeKernel()
	f := k.firewall()
	rs := render(t, "postgres")
	settle(t, f, rs)
	k.sets["pgh4-dns"].create = "hash:ip family inet"
	k.tables[IPv4]["f-chain"] = [][]string{{"-m", "set", "--match-set", "pgh4-dns", "src", "-j", "DROP"}} // a foreign rule holds it
	got, err := f.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Apply(t.Context(), Diff(rs, got)); err == nil || !strings.Contains(err.Error(), "cannot write the set pgh4-dns") {
		t.Errorf("error %v", err)
	}
	for chain, rules := range k.tables[IPv4] {
		for _, r := range rules {
			if chain != "f-chain" && slices.Contains(r, "pgh4-dns") {
				t.Errorf("a rule of %s names a set that is not ours: %q", chain, r)
			}
		}
	}
	got, _ = f.Observe(t.Context())
	p := Diff(rs, got)
	for _, c := range p.Changes {
		for _, line := range c.Lines {
			there := slices.Contains(c.Lines, "- "+line[2:]) && slices.Contains(c.Lines, "+ "+line[2:]) // between two that differ
			if c.Resource != resourceSet && !there && !strings.Contains(line, " pgh4-dns ") {
				t.Errorf("not put back: %s %s: %s", c.Family, c.Name, line)
			}
		}
	}
	if !strings.Contains(p.String(), "pgh4-dns: is a hash:ip") {
		t.Errorf("left to do:\n%s", p)
	}
	delete(k.tables[IPv4], "f-chain")
	settle(t, f, rs)
}

// A plan that has begun is carried out, whatever becomes of the caller's ctx.
func TestApplyIsNotCutInHalf(t *testing.T) {
	k := newFakeKernel()
	f := k.firewall()
	rs := render(t, "postgres")
	ctx, cancel := context.WithCancel(t.Context())
	got, err := f.Observe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	k.fail = func(string) (int, error) { cancel(); return -1, nil }
	if err := f.Apply(ctx, Diff(rs, got)); err != nil {
		t.Fatal(err)
	}
	checkSettled(t, f, rs)
	if err := f.Apply(ctx, Diff(rs, nothing())); !errors.Is(err, context.Canceled) {
		t.Errorf("a plan began after the end: %v", err)
	}
}

// orderly is the fake with a note of when each command begins and when it is
// waited for.
type orderly struct {
	*fakeKernel
	events *[]string
}

func (o orderly) start(ctx context.Context, stdin string, path string, args ...string) func() ([]byte, error) {
	*o.events = append(*o.events, "start")
	wait := o.fakeKernel.start(ctx, stdin, path, args...)
	return func() ([]byte, error) {
		*o.events = append(*o.events, "wait")
		return wait()
	}
}

// Commands run side by side, save for writers of the legacy backend, which has
// one lock for all.
func TestCommandsRunSideBySide(t *testing.T) {
	together := []string{"start", "start", "start", "wait", "wait", "wait"}
	for backend, restores := range map[string][]string{
		BackendNFT:    together,
		BackendLegacy: {"start", "wait", "start", "wait", "start", "wait"},
	} {
		var events []string
		k := newFakeKernel()
		f := k.firewall()
		f.backend, f.run = backend, orderly{k, &events}
		got, err := f.Observe(t.Context())
		if err != nil || !slices.Equal(events, together) {
			t.Errorf("%s: reading: %q, %v", backend, events, err)
		}
		events = nil
		if err := f.Apply(t.Context(), Diff(render(t, "postgres"), got)); err != nil || !slices.Equal(events, restores) {
			t.Errorf("%s: writing: %q, %v", backend, events, err)
		}
	}
}

// Rules that change while they are read are of no generation.
func TestObservedGeneration(t *testing.T) {
	for name, tc := range map[string]struct {
		says []uint32 // one answer after the other, 0 for an error
		want uint32
	}{
		"quiet":            {[]uint32{7, 7}, 7},
		"changed":          {[]uint32{7, 8}, 0},
		"unknown before":   {[]uint32{0, 7}, 0},
		"unknown after":    {[]uint32{7, 0}, 0},
		"not to be had":    {[]uint32{0, 0}, 0},
		"legacy, no means": {nil, 0},
	} {
		f := newFakeKernel().firewall()
		if tc.says != nil {
			f.generation = func() (uint32, error) {
				g := tc.says[0]
				tc.says = tc.says[1:]
				if g == 0 {
					return 9, errFake
				}
				return g, nil
			}
		}
		if got, err := f.Observe(t.Context()); err != nil || got.Generation != tc.want {
			t.Errorf("%s: generation %d, %v; want %d", name, got.Generation, err, tc.want)
		}
	}
}
