package e2e

import (
	"strings"
	"testing"

	"github.com/pghardend/pghardend/pkg/firewall"
)

// fwNative is a rule that iptables cannot print, wherever it is put: with one
// such rule iptables-save prints nothing of the whole table.
const fwNative = "ct state { established, related } counter"

// A table that iptables refuses to print is kept like any other, and the foreign
// rule that is the reason stays.
func TestF04_RulesThatIptablesCannotPrint(t *testing.T) {
	const above = "iptables-nft -I INPUT -s 192.0.2.1 -j DROP; "
	for _, tc := range []struct {
		name, script string
		want         []string // of the plan; a line with "!" must not be in it
		gone         bool     // the rule stood in a chain of ours
	}{
		{"below our jump", "nft add rule ip filter INPUT " + fwNative + " accept", nil, false},
		{"above our jump", "nft insert rule ip filter INPUT " + fwNative + " accept",
			[]string{"ipv4 jump INPUT: not in first place", "foreign rule above our jump, kept: ipv4 -A INPUT [rule with handle", "!chain"}, false},
		{"drop above our jump", above + "nft insert rule ip filter INPUT ct state invalid counter drop; nft add rule ip filter INPUT " + fwNative, nil, false},
		{"verdict map above our jump", "nft insert rule ip filter INPUT tcp dport vmap { 22 : accept }; nft add rule ip filter INPUT " + fwNative,
			[]string{"ipv4 jump INPUT: not in first place"}, false},
		{"jump deleted", "nft add rule ip filter INPUT " + fwNative + "; iptables-nft -D INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN",
			[]string{"ipv4 jump INPUT: missing", "!chain"}, false},
		{"jump twice", "nft add rule ip filter INPUT " + fwNative + "; iptables-nft -A INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN",
			[]string{"ipv4 jump INPUT: there more than once"}, false},
		{"chain flushed", "nft add rule ip filter INPUT " + fwNative + "; iptables-nft -F PGHARDEND-OUT",
			[]string{"ipv4 chain PGHARDEND-OUT: differs", "!jump", "!PGHARDEND-IN"}, false},
		{"rule edited", "nft add rule ip filter FORWARD " + fwNative + "; iptables-nft -R PGHARDEND-FWD 2 -m comment --comment pghardend:drop -j ACCEPT",
			[]string{"ipv4 chain PGHARDEND-FWD: differs", "- -m comment --comment pghardend:drop -j ACCEPT"}, false},
		{"chain of an older version", "nft add rule ip filter INPUT " + fwNative + "; iptables-nft -N PGHARDEND-OLD",
			[]string{"ipv4 chain PGHARDEND-OLD: not wanted"}, false},
		{"in our chain", "nft insert rule ip filter PGHARDEND-IN " + fwNative + " accept",
			[]string{"ipv4 chain PGHARDEND-IN: differs", "- [rule with handle", "!jump", "!PGHARDEND-OUT"}, true},
		{"in a chain of bans", above + "iptables-nft -N f2b; iptables-nft -I INPUT -j f2b; nft add rule ip filter f2b ct mark 7 counter drop; nft add rule ip filter OUTPUT " + fwNative, nil, false},
		{"in a chain that accepts", "iptables-nft -N f2b; iptables-nft -I INPUT -j f2b; nft add rule ip filter f2b " + fwNative + " accept",
			[]string{"ipv4 jump INPUT: not in first place", "kept: ipv4 -A INPUT -j f2b"}, false},
		// With this one in the chain iptables cannot even delete a rule there.
		{"above our jump and not understood at all", "nft insert rule ip filter INPUT ct mark 7 counter accept; nft add rule ip filter INPUT " + fwNative,
			[]string{"ipv4 jump INPUT: not in first place"}, false},
		{"in our chain and not understood at all", "nft insert rule ip filter PGHARDEND-OUT " + fwNative + "; nft insert rule ip filter PGHARDEND-OUT ct mark 7 counter accept",
			[]string{"ipv4 chain PGHARDEND-OUT: differs"}, true},
		{"a rule at which iptables stops", "nft insert rule ip filter INPUT meta length 5 accept; iptables-nft -F PGHARDEND-FWD",
			[]string{"ipv4 jump INPUT: not in first place", "ipv4 chain PGHARDEND-FWD: differs", "!PGHARDEND-IN: differs"}, false},
		{"one in our chain", "nft insert rule ip filter PGHARDEND-OUT meta skuid 5 accept", []string{"ipv4 chain PGHARDEND-OUT: differs", "!jump"}, true},
		{"a base chain of nft's own", "nft 'add chain ip filter early { type filter hook input priority -5; }'; nft add rule ip filter early " + fwNative, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := fwNew(t, firewall.BackendNFT)
			b.reconcile()
			b.sh(tc.script)
			if text := b.sh("iptables-nft-save -t filter 2>&1 || true"); !strings.Contains(text, "incompatible") && !strings.Contains(text, "rule failed") {
				t.Fatalf("iptables prints the table:\n%s", text)
			}
			p := b.reconcile().String()
			for _, want := range tc.want {
				absent, isAbsent := strings.CutPrefix(want, "!")
				if strings.Contains(p, absent) == isAbsent {
					t.Errorf("want %q in the plan:\n%s", want, p)
				}
			}
			if tc.want == nil && p != "" {
				t.Errorf("plan:\n%s", p)
			}
			left := b.sh("nft list table ip filter")
			native := strings.Contains(left, "ct state { established, related }") || strings.Contains(left, "meta length") || strings.Contains(left, "meta skuid 5")
			if native == tc.gone {
				t.Errorf("left:\n%s", left)
			}
			for _, fam := range firewall.Families {
				fwStrangerGetsNothing(t, b, fam)
			}
		})
	}
}

// What is removed at the end is ours alone.
func TestF04_TeardownOfATableThatIptablesCannotPrint(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.reconcile()
	b.sh("nft add rule ip filter INPUT " + fwNative + " accept; nft insert rule ip filter INPUT ct mark 7 counter drop")
	fwMust(t, b.node.Do(func() error { _, err := firewall.Teardown(t.Context()); return err }))
	left := b.sh("nft list ruleset; ipset list -n")
	if strings.Contains(left, "PGHARDEND") || strings.Contains(left, "pgh4") || !strings.Contains(left, "ct state { established, related }") {
		t.Errorf("left:\n%s", left)
	}
}

// What was read without iptables-save is good enough for an image as well.
func TestF02_ReflexInATableThatIptablesCannotPrint(t *testing.T) {
	b := rxNew(t)
	b.sh("nft add rule ip filter INPUT " + fwNative + " accept; nft insert rule ip filter INPUT ct mark 7 counter drop; nft add rule ip filter DOCKER " + fwNative)
	if p := b.reconcile(); !p.Empty() {
		t.Errorf("foreign rules in places that do not matter, but the plan is:\n%s", p)
	}
	b.learn()
	before := b.sh("nft -s list chain ip filter DOCKER")
	for _, drift := range []string{
		"nft delete rule ip filter INPUT handle $(nft -a list chain ip filter INPUT | awk '/jump PGHARDEND-IN/ { print $NF; exit }')",
		"iptables-nft -F PGHARDEND-OUT",
		"nft insert rule ip filter PGHARDEND-IN " + fwNative + " accept",
		"nft insert rule ip filter INPUT " + fwNative + " accept",
		"ip6tables-nft -F PGHARDEND-IN",
	} {
		b.sh(drift)
		if r := b.repair(); r.Empty() {
			t.Errorf("%s: nothing was put back", drift)
		}
	}
	fwSame(t, before, b.sh("nft -s list chain ip filter DOCKER"))
}

// The jump that is too far down is all there is until the new one is in place.
func TestF10_OldJumpStaysIfTheRestoreFails(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.reconcile()
	b.sh("nft insert rule ip filter INPUT ct mark 7 counter accept")
	got := b.observe()
	got.SetsRead = false // so that the plan makes no set
	spec := b.spec
	spec.Role = "pgpool"
	p := firewall.Diff(fwRender(t, spec), got)
	if !strings.Contains(p.String(), "ipv4 jump INPUT: not in first place") {
		t.Fatalf("plan:\n%s", p)
	}
	if err := b.apply(p); err == nil || !strings.Contains(err.Error(), "pgh4-applications") {
		t.Fatalf("error %v", err)
	}
	if left := b.sh("nft list chain ip filter INPUT"); strings.Count(left, "jump PGHARDEND-IN") != 1 {
		t.Errorf("left:\n%s", left)
	}
	b.reconcile()
}

// iptables-save prints nothing of nft's sets, so that such a rule can look like
// one of ours.
func TestF04_RuleThatIptablesPrintsInPart(t *testing.T) {
	for _, tc := range []struct{ name, script, want string }{
		{"in our chain", `H=$(nft -a list chain ip filter PGHARDEND-FWD | awk '/drop/ { print $NF; exit }')
			nft replace rule ip filter PGHARDEND-FWD handle $H ip saddr { 192.0.2.1, 192.0.2.2 } counter drop comment '"pghardend:drop"'`,
			"ipv4 chain PGHARDEND-FWD: differs"},
		{"jump", `H=$(nft -a list chain ip filter INPUT | awk '/jump PGHARDEND-IN/ { print $NF; exit }')
			nft replace rule ip filter INPUT handle $H ip saddr { 192.0.2.1, 192.0.2.2 } counter jump PGHARDEND-IN comment '"pghardend:jump"'`,
			"ipv4 jump INPUT: missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := fwNew(t, firewall.BackendNFT)
			b.reconcile()
			before := b.sh("iptables-nft-save -t filter | grep -v '^[#:]'")
			b.sh(tc.script)
			if after := b.sh("iptables-nft-save -t filter | grep -v '^[#:]'"); after != before {
				t.Fatalf("iptables shows the difference:\n%s", after)
			}
			if p := b.reconcile().String(); !strings.Contains(p, tc.want) {
				t.Errorf("plan:\n%s", p)
			}
			fwStrangerGetsNothing(t, b, firewall.IPv4)
		})
	}
}
