package firewall

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// round is what the reconcile loop does: look, write, look again.
func round(t *testing.T, f *Firewall, rs Ruleset) (left Plan, err error) {
	t.Helper()
	got, err := f.Observe(t.Context())
	p := Diff(rs, got)
	if applyErr := f.Apply(t.Context(), p); err == nil {
		err = applyErr
	}
	got, lookErr := f.Observe(t.Context())
	if err == nil {
		err = lookErr
	}
	return Diff(rs, got), err
}

// F9, F10 and F11 at the seam: what fails n times is right after the next try, is
// reported each time, and leaves the rules that were there.
func TestF10_FailsSomeTimes(t *testing.T) {
	rs := render(t, "postgres")
	for _, call := range []string{"restore ipv4", "restore ipv6", "save ipv4", "save ipv6", "sets", "edit pgh4"} {
		for lines := range 3 {
			for n := 1; n <= 4; n++ {
				k := newFakeKernel()
				f := k.firewall()
				settle(t, f, rs)
				for _, fam := range Families {
					k.tables[fam][ChainOut] = k.tables[fam][ChainOut][1:]
				}
				k.sets["pgh4-pgpool"].members = []string{"10.66.0.1"}
				k.sets["pgh4-dns"].create = "hash:ip family inet"
				tries, written := 0, len(k.tables[IPv4][ChainIn])
				k.fail = func(c string) (int, error) {
					if !strings.HasPrefix(c, call) || tries >= n {
						return -1, nil
					}
					tries++
					return lines, errFake
				}
				for left := n; left > 0 && tries < n; left-- {
					if left, err := round(t, f, rs); err == nil && !left.Empty() {
						t.Errorf("%s fails %d times: not reported", call, n)
					}
					if len(k.tables[IPv4][ChainIn]) < written-rulesNaming(rs, "pgh4-dns") {
						t.Errorf("%s fails %d times: rules were torn down", call, n)
					}
				}
				if left, err := round(t, f, rs); err != nil || !left.Empty() {
					t.Errorf("%s failed %d times after %d lines, then: %v\n%s", call, n, lines, err, left)
				}
			}
		}
	}
}

// rulesNaming counts the rules of IPv4's inbound chain that need a set.
func rulesNaming(rs Ruleset, set string) (n int) {
	for _, table := range rs.Tables {
		for _, c := range table.Chains {
			for _, r := range c.Rules {
				if c.Name == ChainIn && strings.Contains(r.String(), set) {
					n++
				}
			}
		}
	}
	return n
}

// F10: somebody writes between any two of our calls. Nothing of theirs is lost,
// and the first round that nobody disturbs puts everything right.
func TestF10_OverwrittenBetweenAnyCalls(t *testing.T) {
	rs := render(t, "pgpool")
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 10))
		k := newFakeKernel()
		k.tables[IPv4]["f-chain"] = [][]string{{"-j", "RETURN"}}
		k.sets["blocklist"] = &fakeSet{create: "hash:ip family inet"}
		f := k.firewall()
		settle(t, f, rs)
		var done []string
		disturb := func(string) (int, error) {
			switch r.IntN(4) {
			case 0:
				done = append(done, ruin(r, k))
			case 1:
				return r.IntN(3), errFake
			}
			return -1, nil
		}
		for range 1 + r.IntN(5) {
			done = append(done, ruin(r, k))
			k.fail = disturb
			_, _ = round(t, f, rs) // what fails is tried again
			k.fail = nil
		}
		if left, err := round(t, f, rs); err != nil || !left.Empty() {
			t.Fatalf("seed %d: %v\nleft:\n%s\nafter %q", seed, err, left, done)
		}
		touched := func(call string) bool { return strings.HasSuffix(call, " blocklist") }
		if _, there := k.tables[IPv4]["f-chain"]; !there || slices.ContainsFunc(k.calls, touched) {
			t.Fatalf("seed %d: the foreign chain or set was touched: %q", seed, k.calls)
		}
		checkOnlyOnce(t, k, fmt.Sprint("seed ", seed))
	}
}

// checkOnlyOnce wants each of our jumps once.
func checkOnlyOnce(t *testing.T, k *fakeKernel, what string) {
	t.Helper()
	for _, fam := range Families {
		for _, chain := range slices.Sorted(maps.Keys(k.tables[fam])) {
			n := 0
			for _, r := range k.tables[fam][chain] {
				if slices.Contains(r, "pghardend:jump") {
					n++
				}
			}
			if n > 1 {
				t.Errorf("%s: %d jumps from %s", what, n, chain)
			}
		}
	}
}
