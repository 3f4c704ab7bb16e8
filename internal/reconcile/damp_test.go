package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestDamperDelays(t *testing.T) {
	now := time.Unix(1000, 0)
	d := newDamper()
	var waits []time.Duration
	for range 60 { // somebody undoes each repair at once
		wait := d.wait(now)
		waits = append(waits, wait)
		now = now.Add(wait)
		d.repaired(now)
	}
	if free := waits[:freeRepairs]; slices.Max(free) != 0 {
		t.Errorf("the first %d repairs wait: %v", freeRepairs, free)
	}
	want := firstDelay
	for i, got := range waits[freeRepairs : freeRepairs+4] {
		if got != want {
			t.Errorf("repair %d waits %v, want %v", freeRepairs+i+1, got, want)
		}
		want *= 2
	}
	if most := slices.Max(waits); most != maxDelay {
		t.Errorf("the longest delay is %v, want %v", most, maxDelay)
	}
	end := now.Add(10 * time.Second)
	n := 0
	for ; now.Before(end); n++ {
		now = now.Add(d.wait(now))
		d.repaired(now)
	}
	if n < 50 || n > 120 { // never a surrender, and no busy loop
		t.Errorf("%d repairs in 10 s of a long fight", n)
	}
	now = now.Add(forgiveAfter)
	for i := range freeRepairs {
		if wait := d.wait(now); wait != 0 {
			t.Errorf("after %v of peace repair %d waits %v", forgiveAfter, i+1, wait)
		}
		d.repaired(now)
	}
	if wait := d.wait(now); wait != firstDelay {
		t.Errorf("the delay after peace begins with %v", wait)
	}
}

// A tool that undoes each repair of ours within a millisecond.
func TestFightIsDampedAndNeverGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		b := startWith(t, newSource(rules), lazy)
		undo := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); {
				if rules.get() == "v1" {
					rules.set("flushed")
					b.Alarm(Alarm{Resource: "rules", At: time.Now(), Who: by("fail2ban", 12)})
				}
				after(time.Millisecond)
			}
		}
		undo(10 * time.Second)
		n := len(rules.reflexed())
		if n < 50 || n > 200 {
			t.Errorf("%d repairs in 10 s", n)
		}
		if looks := len(rules.looked()); looks > 50 {
			t.Errorf("%d looks in 10 s", looks)
		}
		after(maxDelay)
		if rules.get() != "v1" {
			t.Error("given up")
		}
		for _, e := range b.Snapshot().Events {
			if e.Repaired.IsZero() || e.OpenMS > 1000 {
				t.Errorf("event: %+v", e)
			}
		}
		undo(time.Minute)
		after(maxDelay)
		if rules.get() != "v1" {
			t.Error("given up after a minute")
		}
		after(forgiveAfter)
		rules.set("flushed")
		b.Alarm(Alarm{Resource: "rules"})
		synctest.Wait()
		if rules.get() != "v1" {
			t.Error("one drift after peace is not repaired at once")
		}
	})
}

// Without a reflex the delay applies to the visits.
func TestFightOverPolledStateIsDamped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := &thing{name: "limits", want: "v1", have: "v1"}
		b := startWith(t, newSource(limits), lazy)
		for range 10_000 {
			limits.set("other")
			b.Trigger(Trigger{Reason: "files"})
			after(time.Millisecond)
		}
		if n := limits.written(); n < 50 || n > 200 {
			t.Errorf("%d writes in 10 s", n)
		}
		if s := b.Snapshot(); len(s.Problems) != 1 || s.Problems[0].What != ProblemConflict || !strings.Contains(s.Problems[0].Text, "something unknown changed limits") {
			t.Errorf("a fight that nobody is known for is a conflict as well: %+v", s.Problems)
		}
		limits.set("other")
		if s, err := b.Request(t.Context(), Trigger{Reason: "apply"}); err != nil || limits.get() != "v1" || !s.Enforced() {
			t.Errorf("who waits for an answer is held back: %v, %+v", err, s)
		}
		limits.set("other")
		b.source.(*source).update(func(s *source) { s.desired.Generation++ })
		b.Trigger(Trigger{Reason: "reload"})
		synctest.Wait()
		if limits.get() != "v1" {
			t.Error("a change of the desired state is held back")
		}
	})
}

func TestConflict(t *testing.T) {
	for _, c := range []struct {
		name string
		who  func(i int) *Culprit
		n    int
		want string // begin of the text
	}{
		{"one command, new processes", func(i int) *Culprit { return &Culprit{PID: i, Command: "iptables"} }, 11, "iptables (pid 10, uid 0) changed rules back 11 times"},
		{"few", func(i int) *Culprit { return &Culprit{PID: i, Command: "iptables"} }, 10, ""},
		{"unknown", func(int) *Culprit { return nil }, 11, "something unknown changed rules back 11 times"},
		{"some of them unknown", func(i int) *Culprit {
			if i%2 == 0 {
				return nil
			}
			return &Culprit{PID: i, Command: "nft", UID: -1}
		}, 12, "nft (pid 11) changed rules back 12 times"},
		{"many commands", func(i int) *Culprit { return &Culprit{Command: fmt.Sprint("tool", i)} }, 40, ""},
		{"one of several", func(i int) *Culprit { return &Culprit{PID: i, Command: []string{"nft", "ipset", "nft"}[i%3]} }, 17, "nft (pid 15, uid 0) changed rules back 11 times"},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Unix(1000, 0)
			var f fights
			for i := range c.n {
				now = now.Add(time.Second)
				f.add(now, c.who(i))
			}
			who, times, ok := f.conflict(now)
			got := ""
			if ok {
				got = conflictText("rules", who, times)
			}
			if !strings.HasPrefix(got, c.want) || c.want == "" && ok {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestConflictEndsAMinuteAfterTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		b := startWith(t, newSource(rules), Options{Interval: interval, Full: time.Hour})
		who := func() *Culprit {
			return &Culprit{PID: 123, Command: "iptables", Exe: "/usr/sbin/xtables-nft-multi", Parent: "fail2ban-server (812)"}
		}
		drift := func() {
			rules.set("flushed")
			b.Alarm(Alarm{Resource: "rules", At: time.Now(), Who: who})
			after(2 * time.Second)
		}
		for range conflictAbove {
			drift()
		}
		if s := b.Snapshot(); !s.Clean() {
			t.Fatalf("%d repairs are no conflict yet: %+v", conflictAbove, s.Problems)
		}
		rules.set("flushed")
		b.Alarm(Alarm{Resource: "rules", At: time.Now(), Who: who})
		synctest.Wait()
		if b.Snapshot().Clean() {
			t.Error("it is said by a later look only")
		}
		after(2 * time.Second)
		for range 3 {
			drift()
		}
		s := b.Snapshot()
		if s.Clean() || !s.Enforced() || !s.Right("rules") || len(s.Problems) != 1 {
			t.Fatalf("a conflict degrades, and what is put back is enforced: %+v", s.Problems)
		}
		p := s.Problems[0]
		if p.What != ProblemConflict || p.Resource != "rules" || !strings.Contains(p.Text, "iptables (pid 123, uid 0, /usr/sbin/xtables-nft-multi, by fail2ban-server (812)) changed rules back 14 times") {
			t.Errorf("problem: %+v", p)
		}
		if n := strings.Count(b.log.String(), "degraded"); n != 1 {
			t.Errorf("one conflict was logged %d times", n)
		}
		after(conflictSpan - 3*time.Second)
		b.Trigger(Trigger{Reason: "reload"})
		synctest.Wait()
		if b.Snapshot().Clean() || !b.Snapshot().Problems[0].Since.Equal(p.Since) {
			t.Errorf("over too early, or younger than it is: %+v", b.Snapshot().Problems)
		}
		after(3 * time.Second)
		if s := b.Snapshot(); !s.Clean() || !strings.Contains(b.log.String(), "well again") {
			t.Errorf("still there: %+v", s.Problems)
		}
	})
}

func TestFightsAreBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	var f fights
	for i := range 10 * maxFights {
		f.add(now, &Culprit{Command: fmt.Sprint(i)})
	}
	if len(f.list) != maxFights {
		t.Errorf("%d are kept", len(f.list))
	}
	if _, _, ok := f.conflict(now.Add(conflictSpan)); ok || f.list != nil {
		t.Errorf("%d are kept after a minute", len(f.list))
	}
}
