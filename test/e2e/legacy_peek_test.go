package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/pkg/firewall"
)

// fwPeek opens a look at the node's legacy tables.
func fwPeek(t testing.TB, b *fwBed) *firewall.LegacyPeek {
	t.Helper()
	var p *firewall.LegacyPeek
	fwMust(t, b.node.Do(func() (err error) {
		p, err = b.fw.OpenLegacyPeek()
		return err
	}))
	t.Cleanup(func() { fwMust(t, p.Close()) })
	return p
}

func fwDigest(t testing.TB, b *fwBed, p *firewall.LegacyPeek) uint64 {
	t.Helper()
	var digest uint64
	fwMust(t, b.node.Do(func() (err error) {
		digest, err = p.Peek()
		return err
	}))
	return digest
}

// Each kind of edit shows in the digest, and undoing it brings the old one back.
func TestF04_LegacyPeekSeesEveryEdit(t *testing.T) {
	b := fwNew(t, firewall.BackendLegacy)
	b.reconcile()
	b.sh("$I4 -A INPUT -s 192.0.2.1 -j ACCEPT; $I6 -A INPUT -s 2001:db8::1 -j ACCEPT")
	p := fwPeek(t, b)
	clean := fwDigest(t, b, p)
	for _, tc := range []struct{ name, edit, undo string }{
		{"rule added", "$I4 -A PGHARDEND-IN -j ACCEPT", "$I4 -D PGHARDEND-IN -j ACCEPT"},
		{"rule inserted", "$I6 -I PGHARDEND-ICMP -j ACCEPT", "$I6 -D PGHARDEND-ICMP 1"},
		{"rule deleted", "$I4 -D INPUT -s 192.0.2.1 -j ACCEPT", "$I4 -A INPUT -s 192.0.2.1 -j ACCEPT"},
		{"rule edited", "$I4 -R INPUT 2 -s 192.0.2.2 -j ACCEPT", "$I4 -R INPUT 2 -s 192.0.2.1 -j ACCEPT"},
		{"target edited", "$I6 -R INPUT 2 -s 2001:db8::1 -j DROP", "$I6 -R INPUT 2 -s 2001:db8::1 -j ACCEPT"},
		{"set of a rule", "$I4 -I INPUT -m set --match-set pgh4-dns src", "$I4 -D INPUT 1"},
		{"jump deleted", "$I6 -D INPUT 1", "$I6 -I INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN"},
		{"rules swapped", "$I4 -D INPUT 1; $I4 -A INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN",
			"$I4 -D INPUT 2; $I4 -I INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN"},
		{"chain flushed", "$I4 -F PGHARDEND-FWD", ""},
		{"chain added", "$I4 -N other", "$I4 -X other"},
		{"policy", "$I4 -P FORWARD DROP", "$I4 -P FORWARD ACCEPT"},
		{"policy of IPv6", "$I6 -P INPUT DROP", "$I6 -P INPUT ACCEPT"},
		{"raw", "$I6 -t raw -F PGHARDEND-RPF", ""},
		{"all of raw", "$I6 -t raw -F", ""},
		{"all", "$I4 -F; $I4 -X", ""},
	} {
		b.sh(tc.edit)
		if fwDigest(t, b, p) == clean {
			t.Errorf("%s: the digest is the same", tc.name)
		}
		if tc.undo == "" {
			b.reconcile()
			clean = fwDigest(t, b, p) // a chain that was written anew may lie elsewhere
			continue
		}
		b.sh(tc.undo)
		if fwDigest(t, b, p) != clean {
			t.Errorf("%s, undone: the digest is another", tc.name)
		}
	}
}

// What packets change is no edit: counters, and the state of matches that have
// one; nor is a table that is none of ours.
func TestLegacyPeekIgnoresTraffic(t *testing.T) {
	b := fwNew(t, firewall.BackendLegacy)
	b.reconcile()
	b.sh(`for I in $I4 $I6; do
		$I -I INPUT -m limit --limit 10/min --limit-burst 2 -j LOG
		$I -I INPUT -m hashlimit --hashlimit-upto 1/sec --hashlimit-mode srcip --hashlimit-name h$$
		$I -I INPUT -m quota --quota 400
		$I -I INPUT -m statistic --mode nth --every 3 --packet 0
		$I -I INPUT -m recent --set --name r$$
		$I -I INPUT -m connlimit --connlimit-upto 5
		done`)
	p := fwPeek(t, b)
	before := fwDigest(t, b, p)
	for _, fam := range firewall.Families {
		fwStrangerGetsNothing(t, b, fam)
		for range 5 {
			b.sh("ping -q -c1 -W1 " + fwAddr(b.control, fam).String() + " >/dev/null || true")
		}
	}
	b.sh("$I4 -t nat -A PREROUTING -j ACCEPT; ipset add pgh4-dns 192.0.2.53")
	if n := b.packets("$I4-save", "INPUT", "quota") + b.packets("$I6-save", "INPUT", "quota"); n == 0 {
		t.Fatal("there was no traffic")
	}
	if fwDigest(t, b, p) != before {
		t.Error("traffic has changed the digest")
	}
}

// Looking must not create what is not there: a table that exists is walked by
// every packet.
func TestLegacyPeekCreatesNoTable(t *testing.T) {
	b := fwNew(t, firewall.BackendLegacy)
	names := func() string {
		return b.sh("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true")
	}
	p := fwPeek(t, b)
	empty := fwDigest(t, b, p)
	if left := names(); left != "" {
		t.Errorf("looking made the tables %q", left)
	}
	b.sh("$I6 -t raw -A PREROUTING -j ACCEPT")
	if fwDigest(t, b, p) == empty {
		t.Error("the new table does not show")
	}
	if made := strings.Fields(names()); !slices.Equal(made, []string{"raw"}) {
		t.Errorf("tables %q, want raw alone", made)
	}
}

func BenchmarkLegacyPeek(b *testing.B) {
	bed := fwNew(b, firewall.BackendLegacy)
	bed.reconcile()
	p := fwPeek(b, bed)
	fwMust(b, bed.node.Do(func() error {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.Peek(); err != nil {
				return err
			}
		}
		return nil
	}))
}
