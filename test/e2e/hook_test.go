package e2e

import (
	"strings"
	"testing"

	"github.com/pghardend/pghardend/pkg/firewall"
)

// fwOwnRules are rules that iptables shows like ours while they do something else.
const fwOwnRules = `H=$(nft -a list chain ip filter PGHARDEND-IN | awk '/drop/ { h = $NF } END { print h }')
nft replace rule ip filter PGHARDEND-IN handle $H `

// A table can be right in every rule that iptables shows and decide nothing.
func TestF04_RulesThatAreThereAndDoNotCount(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.reconcile()
	const unhook = "nft 'flush chain ip filter INPUT; delete chain ip filter INPUT'; nft add chain ip filter INPUT; "
	const at = "nft 'flush chain ip filter INPUT; delete chain ip filter INPUT'; nft 'add chain ip filter INPUT { type filter "
	const jump = `nft add rule ip filter INPUT counter jump PGHARDEND-IN comment '"pghardend:jump"'; nft add rule ip filter INPUT udp dport 77 counter accept; `
	for _, tc := range []struct{ name, script, want string }{
		{"dormant", "nft add table ip filter '{ flags dormant; }'", "ipv4 table filter: dormant"},
		{"dormant IPv6", "nft add table ip6 filter '{ flags dormant; }'", "ipv6 table filter: dormant"},
		{"dormant raw", "nft add table ip6 raw '{ flags dormant; }'", "ipv6 table raw: dormant"},
		{"all made by somebody else", "nft flush ruleset; nft add table ip filter '{ flags dormant; }'", "ipv4 table filter: dormant"},
		{"no hook", unhook + jump, "ipv4 chain INPUT: not hooked"},
		{"no hook, no rule", unhook, "ipv4 chain INPUT: not hooked"},
		{"dormant as well", unhook + jump + "nft add table ip filter '{ flags dormant; }'", "ipv4 chain INPUT: not hooked"},
		{"another hook", at + "hook forward priority 0; }'; " + jump, "ipv4 chain INPUT: not hooked"},
		{"another priority", at + "hook input priority 7; policy drop; }'; " + jump, "ipv4 chain INPUT: not hooked"},
		{"compared with the link header", fwOwnRules + `@ll,0,8 5 counter drop comment '"pghardend:drop"'`, "ipv4 chain PGHARDEND-IN: differs"},
		{"a verdict map that accepts, then drop", "nft insert rule ip filter INPUT tcp dport vmap { 5432 : accept } counter drop", "ipv4 jump INPUT: not in first place"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b.t = t
			b.sh(tc.script)
			if p := b.reconcile().String(); !strings.Contains(p, tc.want) {
				t.Errorf("the plan does not say %q:\n%s", tc.want, p)
			}
			fwStrangerGetsNothing(t, b, firewall.IPv4)
			left := b.sh("nft list chain ip filter INPUT")
			if strings.Contains(tc.script, jump) && !strings.Contains(left, "udp dport 77 counter packets 0 bytes 0 accept") {
				t.Errorf("a foreign rule is gone:\n%s", left)
			}
			if strings.Contains(tc.script, "policy drop") != strings.Contains(left, "policy drop") {
				t.Errorf("another policy:\n%s", left)
			}
			b.sh("iptables-nft -P INPUT ACCEPT")
		})
	}
}

// What cannot be put right is said.
func TestF04_BuiltInChainThatCannotBeHooked(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.reconcile()
	b.sh("nft 'flush chain ip filter INPUT; delete chain ip filter INPUT'; nft 'add chain ip filter INPUT; add chain ip filter mine; add rule ip filter mine jump INPUT'")
	if err := b.apply(b.plan()); err == nil || !strings.Contains(err.Error(), "leads to [INPUT]") {
		t.Errorf("error %v", err)
	}
	b.sh("nft flush chain ip filter mine")
	b.reconcile()
}

// A reflex sees it as well, and leaves it to the ordinary look.
func TestF04_ReflexSeesHooks(t *testing.T) {
	b := rxNew(t)
	b.sh("nft 'flush chain ip filter OUTPUT; delete chain ip filter OUTPUT; add chain ip filter OUTPUT; add rule ip filter OUTPUT counter jump PGHARDEND-OUT'")
	if r, err := b.reflex.Repair(); err == nil || !strings.Contains(err.Error(), "OUTPUT of table filter is not hooked as iptables would") {
		t.Errorf("error %v, repair:\n%s", err, r)
	}
	b.reconcile()
	b.learn()
}

// Bans by a set of nft's are as harmless above our jump as those by an ipset.
func TestF03_ReflexLeavesBansByNftSet(t *testing.T) {
	b := rxNew(t)
	b.sh("nft insert rule ip filter INPUT ip saddr { 192.0.2.1, 192.0.2.2 } counter drop")
	if r := b.repair(); !r.Empty() {
		t.Errorf("repair:\n%s", r)
	}
}

// All that a repair writes is known to be ours, whatever it is written by.
func TestF04_OwnCommitsOfRepairs(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.reconcile()
	b.sh("nft insert rule ip filter INPUT ct mark 7 counter accept; nft add table ip filter '{ flags dormant; }'; " +
		"nft 'flush chain ip6 filter INPUT; delete chain ip6 filter INPUT; add chain ip6 filter INPUT'")
	w := b.watch()
	b.reconcile()
	commits := evAll(t, w)
	for _, c := range commits {
		if !b.fw.Own(c) {
			t.Errorf("taken for somebody else's: %+v", c)
		}
	}
	if len(commits) < 5 { // awake, hooked, two restores, the old jump
		t.Errorf("only %d commits", len(commits))
	}
}
