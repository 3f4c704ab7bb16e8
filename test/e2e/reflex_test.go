package e2e

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/pkg/firewall"
)

// rxBed is a node with an image of its rules.
type rxBed struct {
	*fwBed
	reflex *firewall.Reflex
}

func rxNew(t testing.TB) *rxBed {
	t.Helper()
	b := &rxBed{fwBed: fwNew(t, firewall.BackendNFT)}
	b.sh(fwForeign)
	b.reconcile()
	fwMust(t, b.node.Do(func() (err error) {
		b.reflex, err = b.fw.OpenReflex()
		return err
	}))
	t.Cleanup(func() { fwMust(t, b.reflex.Close()) })
	b.learn()
	return b
}

func (b *rxBed) learn() {
	b.t.Helper()
	fwMust(b.t, b.reflex.Learn(b.want, b.observe()))
	if !b.reflex.Learned() || b.reflex.Changed() {
		b.t.Fatal("nothing learned")
	}
}

// repair checks that afterwards the ordinary look finds nothing to do.
func (b *rxBed) repair() firewall.Repair {
	b.t.Helper()
	r, err := b.reflex.Repair()
	fwMust(b.t, err)
	if p := b.plan(); !p.Empty() {
		b.t.Fatalf("after putting back\n%sthere is still to do:\n%s", r, p)
	}
	if b.reflex.Changed() {
		b.t.Error("the reflex takes its own commit for somebody else's")
	}
	return r
}

func rxDrifts() []fwDrift {
	deleteAll := `for I in $I4 $I6; do for C in IN:INPUT OUT:OUTPUT FWD:FORWARD; do
		$I -D ${C#*:} -m comment --comment pghardend:jump -j PGHARDEND-${C%:*}; done
		for C in IN OUT FWD ICMP META; do $I -F PGHARDEND-$C; done; for C in IN OUT FWD ICMP META; do $I -X PGHARDEND-$C; done; done`
	return []fwDrift{
		{"F03 more bans", "$I4 -I INPUT -p tcp -m tcp --dport 22 -j f2b-sshd; $I4 -I f2b-sshd -s 192.0.2.8 -j REJECT", []string{"!ipv4"}},
		{"F03 accept in bans", "$I4 -I f2b-sshd -s 192.0.2.9 -j ACCEPT", []string{"ipv4 jump INPUT: not in first place"}},
		{"F01 chain flushed", "$I4 -F PGHARDEND-IN", []string{"ipv4 chain PGHARDEND-IN: differs", "+ -i lo", "!jump", "!ipv6", "!PGHARDEND-OUT"}},
		{"F01 chains deleted", deleteAll, []string{"ipv4 chain PGHARDEND-IN: missing", "ipv6 chain PGHARDEND-META: missing", "ipv6 jump OUTPUT: missing"}},
		{"F02 jump deleted", "$I4 -D INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN", []string{"ipv4 jump INPUT: missing", "!chain", "!ipv6"}},
		{"F02 raw jump deleted", "$I6 -t raw -D PREROUTING 1", []string{"ipv6 jump raw PREROUTING: missing", "!ipv4"}},
		{"F03 accept on top", "$I4 -I INPUT -s 192.0.2.1 -j ACCEPT", []string{"ipv4 jump INPUT: not in first place", "foreign rule above our jump, kept", "!chain"}},
		{"F03 drop on top", "$I4 -I INPUT -s 192.0.2.2 -j DROP", []string{"!ipv4"}},
		{"F03 reject on top", "$I6 -I OUTPUT -d 2001:db8::1 -j REJECT", []string{"!ipv6"}},
		{"F03 log on top", `$I4 -I FORWARD -j LOG --log-prefix "x: "`, []string{"!ipv4"}},
		{"F03 bans on top", "$I6 -N bans; $I6 -A bans -s 2001:db8::7 -j REJECT; $I6 -A bans -j RETURN; $I6 -I INPUT -p tcp -j bans", []string{"!ipv6"}},
		{"F03 return on top", "$I4 -I OUTPUT -d 192.0.2.3 -j RETURN", []string{"ipv4 jump OUTPUT: not in first place"}},
		{"F03 goto on top", "$I6 -N away; $I6 -I INPUT -g away", []string{"ipv6 jump INPUT: not in first place"}},
		{"F03 jump twice", "$I4 -A INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN", []string{"ipv4 jump INPUT: there more than once"}},
		{"F04 port edited", fwEdit("$I4", "PGHARDEND-IN", "dport 5432", "s/5432/5433/"), []string{"chain PGHARDEND-IN: differs", "- a rule that is not ours", "+ -p tcp -m tcp --dport 5432"}},
		{"F04 limit edited", fwEdit("$I4", "PGHARDEND-IN", "hashlimit", "s/20.sec/900\\/sec/; s/name pgh-echo-20/name other/"), []string{"+ -p icmp -m icmp --icmp-type 8"}},
		{"F04 rule deleted", "$I4 -D PGHARDEND-FWD 2", []string{"+ -m comment --comment pghardend:drop -j DROP"}},
		{"F04 order", "R=$($I4 -S PGHARDEND-IN 1 | sed 's/^-A [^ ]* //'); $I4 -D PGHARDEND-IN 1; $I4 -A PGHARDEND-IN $R", []string{"chain PGHARDEND-IN: differs"}},
		{"F05 policy", "$I4 -P INPUT DROP; $I4 -P INPUT ACCEPT", []string{"!ipv4"}},
		{"F06 only IPv6", "for C in IN OUT FWD ICMP; do $I6 -F PGHARDEND-$C; done", []string{"ipv6 chain PGHARDEND-IN", "!ipv4"}},
		{"dormant", "nft add table ip filter '{ flags dormant; }'", []string{"ipv4 table filter: dormant"}},
	}
}

// Each kind of drift is put back without a command, and nothing foreign changes.
func TestF01_F06_ReflexPutsBack(t *testing.T) {
	b := rxNew(t)
	for _, d := range rxDrifts() {
		t.Run(d.name, func(t *testing.T) {
			b.t = t
			b.sh(d.script)
			if !b.reflex.Changed() {
				t.Error("the change is not seen")
			}
			before := b.foreign()
			p := b.repair().String()
			for _, want := range d.want {
				absent, isAbsent := strings.CutPrefix(want, "!")
				if isAbsent && strings.Contains(p, absent) {
					t.Errorf("the repair must not say %q:\n%s", absent, p)
				}
				if !isAbsent && !strings.Contains(p, want) {
					t.Errorf("the repair does not say %q:\n%s", want, p)
				}
			}
			fwSame(t, before, b.foreign())
			b.sh("nft list ruleset > /dev/null") // what we wrote can be read by nft as well
		})
	}
}

// What only nft understands makes a table unreadable for iptables, but not for
// the image.
func TestF04_ReflexRemovesNativeRule(t *testing.T) {
	b := rxNew(t)
	before := b.foreign()
	b.sh("nft insert rule ip filter PGHARDEND-IN ct state { established, related } counter accept; $I4 -D OUTPUT 1")
	if p := b.repair().String(); !strings.Contains(p, "- a rule that is not ours") || !strings.Contains(p, "jump OUTPUT: missing") {
		t.Errorf("repair:\n%s", p)
	}
	fwSame(t, before, b.foreign())
	b.sh("nft insert rule ip filter INPUT tcp dport vmap { 22 : accept }")
	r, err := b.reflex.Repair()
	if fwMust(t, err); !strings.Contains(r.String(), "ipv4 jump INPUT: not in first place") {
		t.Errorf("repair:\n%s", r)
	}
}

// nft flush ruleset takes the tables away, and the chains that packets enter by.
func TestF07_ReflexAfterFlushRuleset(t *testing.T) {
	b := rxNew(t)
	for _, script := range []string{"nft flush ruleset", "nft delete table ip6 filter", "nft delete table ip6 raw; nft delete table ip filter",
		"nft flush chain ip filter FORWARD; nft delete chain ip filter FORWARD"} {
		b.sh(script)
		if p := b.repair().String(); !strings.Contains(p, "missing") {
			t.Errorf("%s: repair:\n%s", script, p)
		}
	}
	for _, fam := range firewall.Families {
		fwStrangerGetsNothing(t, b.fwBed, fam)
	}
	b.reconcile()
	b.learn()
}

// Rules that still are right are not written again: a limit on connections
// counts those that came by its own rule since it was written.
func TestReflexKeepsRules(t *testing.T) {
	b := rxNew(t)
	handles := func() []string {
		var list []string
		for line := range strings.Lines(b.sh("nft -a list chain ip filter PGHARDEND-IN")) {
			if _, handle, ok := strings.Cut(line, "# handle "); ok {
				list = append(list, strings.TrimSpace(handle))
			}
		}
		return list[1:] // behind the chain's own
	}
	before := handles()
	b.sh("$I4 -D PGHARDEND-IN 5; $I4 -I PGHARDEND-IN 5 -j ACCEPT")
	b.repair()
	after := handles()
	if len(after) != len(before) {
		t.Fatalf("handles %s, then %s", before, after)
	}
	for i := range before {
		if (before[i] == after[i]) != (i != 4) {
			t.Errorf("rule %d: handle %s, then %s", i+1, before[i], after[i])
		}
	}
}

// What cannot be put back is left to the ordinary look, with the reason.
func TestReflexRefuses(t *testing.T) {
	b := rxNew(t)
	fails := func(script, want string, shut bool) {
		t.Helper()
		b.sh(script)
		if r, err := b.reflex.Repair(); err == nil || !strings.Contains(err.Error(), want) || r.Empty() == shut {
			t.Errorf("%s: error %v, repair:\n%s", script, err, r)
		}
	}
	fails("for C in IN OUT ICMP META; do $I4 -F PGHARDEND-$C; done; ipset destroy pgh4-pgpool; ipset create elsewhere hash:net; ipset create pgh4-pgpool hash:net",
		"the set pgh4-pgpool is not there any more", true)
	const comment = ` -m comment --comment "pghardend:interim"`
	in := b.sh("iptables-nft -S PGHARDEND-IN")
	if strings.Count(in, comment) != 3 {
		t.Errorf("who lists the rules is not told that they are for the time being:\n%s", in)
	}
	in = strings.ReplaceAll(in, comment, "")
	if !strings.HasSuffix(in, "-A PGHARDEND-IN -i lo -j ACCEPT\n-A PGHARDEND-IN -p tcp -m tcp --tcp-flags SYN NONE -j ACCEPT\n-A PGHARDEND-IN -j DROP\n") {
		t.Errorf("meanwhile nothing new is to be let in:\n%s", in)
	}
	b.reconcile()
	b.learn()
	fails("nft flush ruleset; nft add table ip filter; nft add chain ip filter INPUT '{ type filter hook input priority 300; }'", "INPUT of table filter is not hooked as iptables would", false)
	b.sh("nft flush ruleset")
	b.repair()
}

// An image is taken of rules that Diff has seen, and of no others.
func TestReflexLearns(t *testing.T) {
	b := rxNew(t)
	if _, err := b.fw.OpenReflex(); err != nil {
		t.Error(err)
	}
	got := b.observe()
	b.sh("$I4 -A INPUT -j ACCEPT")
	if !b.reflex.Changed() {
		t.Error("a foreign rule is no change")
	}
	if err := b.reflex.Learn(b.want, got); err == nil || !b.reflex.Learned() {
		t.Errorf("learned from what has changed since, or forgot what is still right: error %v", err)
	}
	other := fwRender(t, firewall.Spec{Role: "pgpool", Flows: b.spec.Flows, Members: b.spec.Members})
	if err := b.reflex.Learn(other, got); err == nil || b.reflex.Learned() {
		t.Errorf("an image of other rules was kept: error %v", err)
	}
	if _, err := b.reflex.Repair(); !errors.Is(err, firewall.ErrNoImage) {
		t.Errorf("repair without an image: %v", err)
	}
	b.learn()
	b.reflex.Forget(firewall.Plan{})
	if !b.reflex.Learned() {
		t.Error("forgotten for a plan that writes no rules")
	}
	b.reflex.Forget(firewall.Diff(other, b.observe()))
	if b.reflex.Learned() || !b.reflex.Changed() {
		t.Error("not forgotten")
	}
	b.reflex.Recall()
	if !b.reflex.Learned() || b.reflex.Changed() {
		t.Error("not taken up again, though nothing was written")
	}
	b.reflex.Forget(firewall.Diff(other, b.observe()))
	b.sh("$I4 -A INPUT -j ACCEPT")
	if b.reflex.Recall(); b.reflex.Learned() {
		t.Error("taken up again after somebody wrote")
	}
	b.sh("nft add table ip filter '{ flags dormant; }'")
	fwMust(t, b.reflex.Learn(b.want, b.observe()))
	if !b.reflex.Changed() {
		t.Error("a table asleep is taken for right")
	}
	if p := b.repair().String(); !strings.Contains(p, "table filter: dormant") {
		t.Errorf("repair: %s", p)
	}
	legacy, err := firewall.Open(t.Context(), firewall.BackendLegacy)
	fwMust(t, err)
	if _, err := legacy.OpenReflex(); !errors.Is(err, firewall.ErrNoReflex) {
		t.Errorf("legacy: %v", err)
	}
	fwMust(t, b.reflex.Close())
	fwMust(t, b.reflex.Close())
	if _, err := b.reflex.Repair(); !errors.Is(err, firewall.ErrNoReflex) || !b.reflex.Changed() {
		t.Errorf("closed: %v", err)
	}
}

// Others commit all the time: the kernel refuses what was made for older rules,
// and the reflex looks again.
func TestF10_ReflexWhileOthersCommit(t *testing.T) {
	b := rxNew(t)
	others := b.node.Command(t.Context(), "/bin/sh", "-ec", "for N in $(seq 100); do nft add rule ip filter DOCKER counter comment n$N; done")
	fwMust(t, others.Start())
	done := make(chan error, 1)
	go func() { done <- others.Wait() }()
	repaired := 0
	for running := true; running; {
		select {
		case err := <-done:
			fwMust(t, err)
			running = false
		default:
		}
		b.sh("$I4 -D INPUT 1; $I6 -F PGHARDEND-IN")
		r, err := b.reflex.Repair()
		if err == nil && !r.Empty() {
			repaired++
		}
	}
	b.sh("$I4 -F PGHARDEND-IN")
	b.repair()
	if n := strings.Count(b.sh("nft list chain ip filter DOCKER"), "comment"); n != 100 || repaired == 0 {
		t.Errorf("%d of 100 foreign rules are left; %d repairs", n, repaired)
	}
}

// toldOf repeats Repair until somebody else's command has ended, and returns what the repairs said.
func (b *rxBed) toldOf(command string) []string {
	b.t.Helper()
	others := b.node.Command(b.t.Context(), "/bin/sh", "-ec", command)
	fwMust(b.t, others.Start())
	done := make(chan error, 1)
	go func() { done <- others.Wait() }()
	var told []string
	for running := true; running; {
		select {
		case err := <-done:
			fwMust(b.t, err)
			running = false
		default:
		}
		if r, err := b.reflex.Repair(); !r.Empty() || err != nil {
			told = append(told, r.String())
			fwMust(b.t, err)
		}
	}
	return told
}

// What somebody changes while an earlier change is being put back is told as well, and our own interim rules never are.
func TestF06_ReflexTellsOfEachChange(t *testing.T) {
	b := rxNew(t)
	together := 0
	for range 60 {
		told := b.toldOf("iptables-nft -D PGHARDEND-IN 1; ip6tables-nft -F PGHARDEND-OUT")
		all := strings.Join(told, "")
		if !strings.Contains(all, "ipv4 chain PGHARDEND-IN: differs") || !strings.Contains(all, "ipv6 chain PGHARDEND-OUT: differs") ||
			strings.Contains(all, "not ours") || b.reflex.Changed() {
			t.Fatalf("told:\n%s", strings.Join(told, "and then\n"))
		}
		if len(told) == 1 {
			together++
		}
	}
	if p := b.plan(); !p.Empty() {
		t.Errorf("still to do:\n%s", p)
	}
	t.Logf("the second change came during a repair of the first in %d rounds", together)
}

// The comment of our interim rules hides nobody else's.
func TestF04_ReflexTellsOfAForgedInterimRule(t *testing.T) {
	b := rxNew(t)
	for range 100 {
		told := b.toldOf(`printf 'flush chain ip filter PGHARDEND-IN\ninsert rule ip filter PGHARDEND-IN accept comment "pghardend:interim"\n' | nft -i > /dev/null`)
		if all := strings.Join(told, ""); !strings.Contains(all, "- a rule that is not ours") || b.reflex.Changed() {
			t.Fatalf("told:\n%s", strings.Join(told, "and then\n"))
		}
	}
	if p := b.plan(); !p.Empty() {
		t.Errorf("still to do:\n%s", p)
	}
}

// A table full of foreign rules is read by chains.
func TestReflexAmongManyRules(t *testing.T) {
	b := rxNew(t)
	b.sh(`{ echo "*filter"; for N in $(seq 3000); do echo "-A DOCKER -d 10.9.$((N/250)).$((N%250)) -j ACCEPT"; done; echo COMMIT; } | $I4-restore --noflush`)
	b.learn()
	for _, script := range []string{"$I4 -F PGHARDEND-IN; $I4 -D FORWARD 1", "$I4 -F; $I4 -X", "nft flush ruleset"} {
		b.sh(script)
		start := time.Now()
		r, err := b.reflex.Repair()
		fwMust(t, err)
		t.Logf("%s: %v", script, time.Since(start))
		if p := b.plan(); r.Empty() || !p.Empty() {
			t.Errorf("%s: still to do:\n%s", script, p)
		}
	}
}

// A reflex's own commits are known as such.
func TestReflexCommitsAreOwn(t *testing.T) {
	b := rxNew(t)
	if c := (firewall.Commit{Port: b.reflex.Port(), At: time.Now()}); b.reflex.Port() == 0 || !b.fw.Own(c) {
		t.Errorf("a commit of the reflex is somebody else's: %+v", c)
	}
	fwMust(t, b.reflex.Close())
	if b.fw.Own(firewall.Commit{Port: b.reflex.Port(), At: time.Now()}) {
		t.Error("a closed reflex still commits")
	}
}

// BenchmarkReflex is what a repair takes, without the time until it is begun.
func BenchmarkReflex(b *testing.B) {
	bed := rxNew(b)
	drifts := append(rxDrifts(), fwDrift{name: "F07 flush ruleset", script: "nft flush ruleset"}, fwDrift{name: "F07 foreign rule", script: "$I4 -A INPUT -j ACCEPT"})
	for _, d := range drifts {
		b.Run(strings.ReplaceAll(d.name, " ", "_"), func(b *testing.B) {
			bed.t = b
			var took []time.Duration
			for b.Loop() {
				bed.sh("nft flush ruleset")
				_, err := bed.reflex.Repair()
				fwMust(b, err)
				bed.sh("$I4 -N f2b-sshd; $I4 -I INPUT -p tcp -m tcp --dport 22 -j f2b-sshd; " + d.script)
				start := time.Now()
				_, err = bed.reflex.Repair()
				took = append(took, time.Since(start))
				fwMust(b, err)
			}
			slices.Sort(took)
			b.ReportMetric(0, "ns/op") // most of which is the drift's making
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
		})
	}
	b.Run("Changed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			bed.reflex.Changed()
		}
	})
}
