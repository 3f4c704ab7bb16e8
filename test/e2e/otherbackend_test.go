package e2e

import (
	"strings"
	"testing"

	"github.com/pghardend/pghardend/pkg/firewall"
)

func fwOther(t testing.TB, b *fwBed) firewall.OtherRules {
	t.Helper()
	var o firewall.OtherRules
	fwMust(t, b.node.Do(func() (err error) {
		o, err = b.fw.OtherBackend(t.Context())
		return err
	}))
	return o
}

// Rules in the backend that is not ours are seen, told from our own leftovers,
// and looking makes no table.
func TestF08_RulesInTheOtherBackend(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		other := firewall.BackendLegacy
		if b.backend == other {
			other = firewall.BackendNFT
		}
		b.reconcile()
		if o := fwOther(t, b); !o.Empty() || o.Backend != other {
			t.Errorf("at first: %+v", o)
		}
		left := "cat /proc/net/ip_tables_names"
		if b.backend == firewall.BackendLegacy {
			left = "nft list tables"
		}
		if made := b.sh(left); b.backend == firewall.BackendNFT && made != "" || strings.Contains(made, "table") {
			t.Errorf("looking made the tables %q", made)
		}

		b.sh("O=iptables-" + other + `; $O -N f2b; $O -A f2b -j RETURN; $O -A INPUT -j f2b; $O -P FORWARD DROP
			$O -t nat -A POSTROUTING -j MASQUERADE; ip6tables-` + other + " -A INPUT -j ACCEPT")
		o := fwOther(t, b)
		if v4, v6 := o.Families[firewall.IPv4], o.Families[firewall.IPv6]; v4.Rules != 3 || v6.Rules != 1 || o.Serious() {
			t.Errorf("foreign rules: %+v", o)
		}
		if s := o.String(); !strings.Contains(s, "3 ipv4 rules (") || !strings.Contains(s, "1 ipv6 rules (filter)") {
			t.Errorf("in words: %s", s)
		}

		b.sh("ip6tables-" + other + " -P OUTPUT DROP")
		if o := fwOther(t, b); !o.Families[firewall.IPv6].Drops || o.Families[firewall.IPv4].Drops || !o.Serious() {
			t.Errorf("a policy that drops: %+v", o)
		}
		b.sh("ip6tables-" + other + " -P OUTPUT ACCEPT")

		fw, err := firewall.Open(t.Context(), other)
		fwMust(t, err)
		fwMust(t, b.node.Do(func() error {
			got, err := fw.Observe(t.Context())
			if err != nil {
				return err
			}
			return fw.Apply(t.Context(), firewall.Diff(b.want, got))
		}))
		if o := fwOther(t, b); !o.Families[firewall.IPv4].Ours || !o.Families[firewall.IPv6].Ours || !strings.Contains(o.String(), "pghardend teardown") {
			t.Errorf("ours of an earlier backend: %+v", o)
		}
		fwMust(t, b.node.Do(func() error { _, err := firewall.Teardown(t.Context()); return err }))
		if o := fwOther(t, b); o.Families[firewall.IPv4].Ours || o.Serious() || o.Families[firewall.IPv4].Rules != 3 {
			t.Errorf("after the teardown: %+v", o)
		}
	})
}

// The counters are those of the rules that the packets came by.
func TestCounters(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.reconcile()
		for _, fam := range firewall.Families {
			fwStrangerGetsNothing(t, b, fam)
		}
		var got []firewall.Counter
		fwMust(t, b.node.Do(func() (err error) {
			got, err = b.fw.Counters(t.Context())
			return err
		}))
		for _, fam := range firewall.Families {
			var dropped uint64
			for _, c := range got {
				if c.Family == fam && c.Flow == "drop" && c.Direction == "in" && c.Verdict == firewall.VerdictDrop {
					dropped = c.Packets
				}
			}
			if want := b.packets(fwIpt(fam)+"-save", "PGHARDEND-IN", `"pghardend:drop"`); dropped == 0 || dropped != uint64(want) {
				t.Errorf("%s: %d packets dropped, iptables-save counts %d", fam, dropped, want)
			}
		}
	})
}
