package e2e

import (
	"context"
	"net/netip"
	"testing"

	"github.com/pghardend/pghardend/pkg/firewall"
)

// fwMany are n addresses, half of them IPv6.
func fwMany(n int) []netip.Prefix {
	list := make([]netip.Prefix, n)
	for i := range list {
		a := netip.AddrFrom4([4]byte{10, 100 + byte(i>>16), byte(i >> 8), byte(i)})
		if i%2 == 1 {
			a = netip.AddrFrom16([16]byte{0xfd, 0, 1, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
		}
		list[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return list
}

// fwSetBench is a bed whose rules are in place, with n members in a role's sets.
func fwSetBench(t testing.TB, n int) *fwBed {
	b := fwNew(t, firewall.BackendNFT)
	b.spec.Members["pgpool"] = fwMany(n)
	b.want = fwRender(t, b.spec)
	fwMust(t, b.apply(b.plan()))
	return b
}

// in runs f once for each round, in the node.
func (b *fwBed) in(t *testing.B, f func(ctx context.Context) error) {
	t.Helper()
	fwMust(t, b.node.Do(func() error {
		for t.Loop() {
			if err := f(t.Context()); err != nil {
				return err
			}
		}
		return nil
	}))
}

// A network of 10,000 members, of whom the kernel has none.
func BenchmarkSetsFull10000(t *testing.B) {
	b := fwSetBench(t, 10000)
	got := b.observe()
	for _, fam := range firewall.Families {
		set := got.Sets[firewall.SetName("pgpool", fam)]
		set.Members = nil
		got.Sets[firewall.SetName("pgpool", fam)] = set
	}
	plan := firewall.Diff(b.want, got)
	t.ReportAllocs()
	b.in(t, func(ctx context.Context) error { return b.fw.Apply(ctx, plan) })
}

// One member more, then one less, of 10,000.
func BenchmarkSetsOneOf10000(t *testing.B) {
	b := fwSetBench(t, 10000)
	before := b.observe()
	b.sh("ipset add pgh4-pgpool 192.0.2.7")
	plans := []firewall.Plan{firewall.Diff(b.want, b.observe())}
	b.spec.Members["pgpool"] = append(fwMany(10000), netip.MustParsePrefix("192.0.2.7/32"))
	plans = append(plans, firewall.Diff(fwRender(t, b.spec), before))
	t.ReportAllocs()
	round := 0
	b.in(t, func(ctx context.Context) error {
		round++
		return b.fw.Apply(ctx, plans[round%2])
	})
}

func BenchmarkSetsPeek(t *testing.B) {
	b := fwSetBench(t, 4)
	t.ReportAllocs()
	b.in(t, func(context.Context) error {
		_, err := b.fw.SetsPeek()
		return err
	})
}

func BenchmarkFirewallObserve(t *testing.B) {
	b := fwSetBench(t, 4)
	b.in(t, func(ctx context.Context) error {
		_, err := b.fw.Observe(ctx)
		return err
	})
}

// From Open to rules in place, as at the daemon's start on a new machine.
func BenchmarkFirewallFromNothing(t *testing.B) {
	b := fwNew(t, firewall.BackendNFT)
	b.in(t, func(ctx context.Context) error {
		fw, err := firewall.Open(ctx, firewall.BackendAuto)
		if err != nil {
			return err
		}
		got, err := fw.Observe(ctx)
		if err != nil {
			return err
		}
		if err := fw.Apply(ctx, firewall.Diff(b.want, got)); err != nil {
			return err
		}
		t.StopTimer()
		defer t.StartTimer()
		_, err = firewall.Teardown(ctx)
		return err
	})
}
