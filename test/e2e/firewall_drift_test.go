package e2e

import (
	"strings"
	"testing"

	"github.com/pghardend/pghardend/pkg/firewall"
)

// fwDrift is one fault: a script run in the node, and what the plan must say.
// A line starting with "!" must not be in the plan.
type fwDrift struct {
	name   string
	script string
	want   []string
}

// fwTestDrift breaks the rules in each way, with foreign state around, and
// checks what the plan says, that one apply repairs it and that nothing foreign
// changes.
func fwTestDrift(t *testing.T, drifts []fwDrift) {
	t.Helper()
	fwTestDriftOf(t, func(b *fwBed) firewall.Spec { return b.spec }, drifts)
}

// fwTestDriftOf does so with rules of another spec.
func fwTestDriftOf(t *testing.T, spec func(b *fwBed) firewall.Spec, drifts []fwDrift) {
	t.Helper()
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.sh(fwForeign)
		b.want = fwRender(t, spec(b))
		b.reconcile()
		for _, d := range drifts {
			t.Run(d.name, func(t *testing.T) {
				b.t = t
				b.sh(d.script)
				before := b.foreign()
				p := b.plan().String()
				for _, want := range d.want {
					absent, isAbsent := strings.CutPrefix(want, "!")
					if isAbsent && strings.Contains(p, absent) {
						t.Errorf("the plan must not say %q:\n%s", absent, p)
					}
					if !isAbsent && !strings.Contains(p, want) {
						t.Errorf("the plan does not say %q:\n%s", want, p)
					}
				}
				b.reconcile()
				fwSame(t, before, b.foreign())
			})
		}
	})
}

func TestF01_ChainsFlushedOrDeleted(t *testing.T) {
	fwTestDrift(t, []fwDrift{
		{"one flushed", "$I4 -F PGHARDEND-IN", []string{"ipv4 chain PGHARDEND-IN: differs", "!jump", "!ipv6", "!PGHARDEND-OUT"}},
		{"icmp flushed", "$I6 -F PGHARDEND-ICMP", []string{"ipv6 chain PGHARDEND-ICMP: differs", "!jump", "!ipv4"}},
		{"all deleted", `for I in $I4 $I6; do for C in IN:INPUT OUT:OUTPUT FWD:FORWARD; do
			$I -D ${C#*:} -m comment --comment pghardend:jump -j PGHARDEND-${C%:*}; done
			for C in IN OUT FWD ICMP; do $I -F PGHARDEND-$C; done; for C in IN OUT FWD ICMP; do $I -X PGHARDEND-$C; done; done`,
			[]string{"ipv4 chain PGHARDEND-IN: missing", "ipv6 chain PGHARDEND-ICMP: missing", "ipv6 jump OUTPUT: missing", "ipv4 jump FORWARD: missing"}},
	})
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.reconcile()
		b.sh("$I4 -F; $I4 -X; $I6 -F; $I6 -X")
		if p := b.reconcile().String(); !strings.Contains(p, "ipv4 jump INPUT: missing") || !strings.Contains(p, "ipv6 chain PGHARDEND-FWD: missing") {
			t.Errorf("plan:\n%s", p)
		}
	})
}

// nft flush ruleset takes the tables themselves away.
func TestF07_NftFlushRuleset(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.reconcile()
	b.sh("nft flush ruleset")
	if p := b.reconcile().String(); !strings.Contains(p, "ipv4 chain PGHARDEND-IN: missing") || !strings.Contains(p, "ipv6 jump INPUT: missing") {
		t.Errorf("plan:\n%s", p)
	}
}

func TestF02_OnlyJumpDeleted(t *testing.T) {
	fwTestDrift(t, []fwDrift{
		{"input", "$I4 -D INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN", []string{"ipv4 jump INPUT: missing", "!chain", "! set pgh", "!ipv6"}},
		{"output v6", "$I6 -D OUTPUT 1", []string{"ipv6 jump OUTPUT: missing", "!chain", "!ipv4"}},
		{"forward", "$I4 -D FORWARD 1", []string{"ipv4 jump FORWARD: missing", "!chain", "!INPUT"}},
	})
}

func TestF03_RulesAboveTheJump(t *testing.T) {
	fwTestDrift(t, []fwDrift{
		{"accept", "$I4 -I INPUT -s 192.0.2.1 -m comment --comment above -j ACCEPT",
			[]string{"ipv4 jump INPUT: not in first place", "foreign rule above our jump, kept: ipv4 -A INPUT -s 192.0.2.1/32 -m comment --comment above -j ACCEPT", "!chain"}},
		{"drop", "$I4 -I INPUT -s 192.0.2.2 -j DROP", []string{"!ipv4"}},
		{"reject", "$I6 -I OUTPUT -d 2001:db8::1 -j REJECT", []string{"!ipv6"}},
		{"log", `$I4 -I FORWARD -j LOG --log-prefix "x: "`, []string{"!ipv4"}},
		{"return", "$I4 -I OUTPUT -d 192.0.2.3 -j RETURN", []string{"ipv4 jump OUTPUT: not in first place"}},
		{"chain of bans", "$I4 -I INPUT -p tcp -j f2b-sshd", []string{"!ipv4"}},
		{"chain that accepts", "$I4 -N nested; $I4 -A nested -p udp -j ACCEPT; $I4 -N outer; $I4 -A outer -j nested; $I4 -I INPUT -j outer",
			[]string{"ipv4 jump INPUT: not in first place", "kept: ipv4 -A INPUT -j outer"}},
		{"goto", "$I6 -N away; $I6 -I INPUT -g away", []string{"ipv6 jump INPUT: not in first place", "kept: ipv6 -A INPUT -g away"}},
		{"odd set name", "ipset create '#x' hash:net; $I4 -I INPUT -m set --match-set '#x' src -j ACCEPT",
			[]string{"ipv4 jump INPUT: not in first place", `--match-set "#x" src -j ACCEPT`}},
		{"twice", "$I4 -A INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN", []string{"ipv4 jump INPUT: there more than once"}},
		{"edited", "$I4 -R INPUT $($I4 -S INPUT | grep -n -m1 pghardend:jump | awk -F: '{print $1-1}') -s 192.0.2.0/24 -m comment --comment pghardend:jump -j PGHARDEND-IN",
			[]string{"ipv4 jump INPUT: differs", "- -A INPUT -s 192.0.2.0/24", "+ -I INPUT 1 -m comment --comment pghardend:jump -j PGHARDEND-IN"}},
		{"by goto", "$I6 -D INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN; $I6 -I INPUT -m comment --comment pghardend:jump -g PGHARDEND-IN",
			[]string{"ipv6 jump INPUT: differs"}},
		{"into the wrong chain", "$I6 -I INPUT -j PGHARDEND-FWD", []string{"ipv6 jump INPUT: there more than once"}},
	})
}

// A jump to our chain that cannot be written down in a restore must not block
// the repair of everything else.
func TestF03_JumpThatCannotBeWritten(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.reconcile()
		b.sh("$I4 -I INPUT -m comment --comment 'two\nlines' -j PGHARDEND-IN; $I4 -F PGHARDEND-OUT")
		if p := b.reconcile().String(); !strings.Contains(p, `kept: ipv4 -A INPUT -m comment --comment "two\nlines" -j PGHARDEND-IN`) {
			t.Errorf("plan:\n%s", p)
		}
		fwMust(t, b.node.Do(func() error { _, err := firewall.Teardown(t.Context()); return err }))
		if left := b.sh("$I4 -S"); strings.Count(left, "-A ") != 1 || !strings.Contains(left, "lines\" -j PGHARDEND-IN") {
			t.Errorf("teardown left:\n%s", left)
		}
	})
}

// fwEdit replaces, in one chain, the first rule that matches, with its comment kept.
func fwEdit(ipt, chain, match, sed string) string {
	return `N=$(` + ipt + ` -S ` + chain + ` | sed 1d | grep -n -m1 -e '` + match + `' | cut -d: -f1)
		R=$(` + ipt + ` -S ` + chain + ` $N | sed -E 's/^-A [^ ]+ //; ` + sed + `')
		eval "` + ipt + ` -R ` + chain + ` $N $R"`
}

func TestF04_RuleEditedCommentKept(t *testing.T) {
	const kept = "pghardend:postgres"
	fwTestDrift(t, []fwDrift{
		{"port", fwEdit("$I4", "PGHARDEND-IN", "dport 5432", "s/5432/5433/"), []string{"chain PGHARDEND-IN: differs", "- -p tcp -m tcp --dport 5433", "+ -p tcp -m tcp --dport 5432", kept}},
		{"set", fwEdit("$I4", "PGHARDEND-IN", "pgh4-pgpool src .*pghardend:postgres", "s/pgh4-pgpool/pgh4-dns/"), []string{"chain PGHARDEND-IN: differs", "pgh4-dns src"}},
		{"set direction", fwEdit("$I6", "PGHARDEND-IN", "dport 5432", "s/ src/ dst/"), []string{"ipv6 chain PGHARDEND-IN: differs", " dst ", " src "}},
		{"target", fwEdit("$I4", "PGHARDEND-IN", "pghardend:drop", "s/DROP/ACCEPT/"), []string{"- -m comment --comment pghardend:drop -j ACCEPT"}},
		{"state", fwEdit("$I6", "PGHARDEND-IN", "ESTABLISHED", "s/RELATED,ESTABLISHED/NEW,RELATED,ESTABLISHED/"), []string{"NEW,RELATED,ESTABLISHED"}},
		{"negation", fwEdit("$I4", "PGHARDEND-OUT", "ESTABLISHED", "s/! -p/-p/"), []string{"chain PGHARDEND-OUT: differs", "- -p icmp", "+ ! -p icmp"}},
		{"limit", fwEdit("$I4", "PGHARDEND-IN", "hashlimit", "s/20.sec/900\\/sec/; s/name pgh-echo-20/name other/"), []string{"900/sec"}},
		{"icmp type", fwEdit("$I4", "PGHARDEND-ICMP", "icmp-type 11", "s/type 11/type 5/"), []string{"- -p icmp -m icmp --icmp-type 5"}},
		{"order", "R=$($I4 -S PGHARDEND-IN 1 | sed 's/^-A [^ ]* //'); $I4 -D PGHARDEND-IN 1; $I4 -A PGHARDEND-IN $R", []string{"chain PGHARDEND-IN: differs"}},
		{"added", "$I6 -I PGHARDEND-OUT 3 -j ACCEPT", []string{"- -j ACCEPT"}},
		{"fewer", "$I4 -D PGHARDEND-FWD 2", []string{"+ -m comment --comment pghardend:drop -j DROP"}},
	})
}

// Another tool's view of the same rule: native nft expressions in our chain.
func TestF04_RuleAddedByNft(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.reconcile()
	b.sh("nft insert rule ip filter PGHARDEND-IN tcp dport 23 accept")
	if p := b.reconcile().String(); !strings.Contains(p, "- -p tcp -m tcp --dport 23 -j ACCEPT") {
		t.Errorf("plan:\n%s", p)
	}
}

func TestF05_PolicyChanged(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.reconcile()
		b.sh("for I in $I4 $I6; do $I -P INPUT ACCEPT; $I -P FORWARD ACCEPT; done")
		for _, fam := range firewall.Families {
			fwStrangerGetsNothing(t, b, fam)
		}
		b.sh("for I in $I4 $I6; do $I -P INPUT DROP; $I -P OUTPUT DROP; done")
		if p := b.plan(); !p.Empty() {
			t.Errorf("a policy is not ours, but the plan is:\n%s", p)
		}
	})
}

func TestF06_OnlyIp6tablesFlushed(t *testing.T) {
	fwTestDrift(t, []fwDrift{
		{"flushed", "for C in IN OUT FWD ICMP; do $I6 -F PGHARDEND-$C; done", []string{"ipv6 chain PGHARDEND-IN", "!ipv4", "! set pgh"}},
	})
}
