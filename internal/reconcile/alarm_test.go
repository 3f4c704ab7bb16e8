package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// lazy looks at nothing by itself for as long as a test takes.
var lazy = Options{Interval: time.Hour, Full: 24 * time.Hour}

func newSwift() *swift { return &swift{thing: thing{name: "rules", want: "v1", have: "v1"}} }

func by(command string, pid int) func() *Culprit {
	return func() *Culprit { return &Culprit{PID: pid, Command: command, UID: 0} }
}

func TestAlarmIsServedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		var told []Event
		o := lazy
		o.OnEvent = func(e Event) { told = append(told, e) }
		b := startWith(t, newSource(rules), o)
		after(interval)

		rules.set("flushed")
		at := time.Now()
		b.Alarm(Alarm{Resource: "rules", At: at, Who: by("iptables", 7)})
		synctest.Wait()
		s := b.Snapshot()
		e := lastEvent(t, s)
		if rules.get() != "v1" || len(rules.looked()) != 1 || rules.written() != 0 {
			t.Fatalf("the rules are %q after %d looks and %d writes", rules.get(), len(rules.looked()), rules.written())
		}
		if e.Cause != CauseDrift || e.Trigger != "event" || e.What != "flushed → v1" || !e.Since.Equal(at) || e.Repaired.IsZero() || e.OpenMS != 0 ||
			e.Who == nil || e.Who.Command != "iptables" || e.ID == 0 {
			t.Errorf("event: %+v", e)
		}
		if len(told) != 1 || told[0].ID != e.ID || told[0].Repaired.IsZero() {
			t.Errorf("told of %+v", told)
		}
		if !s.Clean() || !strings.Contains(b.log.String(), "iptables (pid 7") {
			t.Errorf("problems %+v, log:\n%s", s.Problems, b.log)
		}
		after(interval)
		looks := rules.looked()
		if len(looks) != 2 || looks[1].Sub(at) != quiet {
			t.Errorf("the look that proves the repair came at %v, the alarm at %v", looks[1:], at)
		}
	})
}

// What takes long is a look, at whatever, or the input.
func TestLooksDoNotHoldUpAlarms(t *testing.T) {
	for _, slow := range []string{"the resource itself", "another resource", "the input"} {
		t.Run(slow, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rules, other := newSwift(), &thing{name: "other", want: "v1", have: "v1"}
				src := newSource(other, rules)
				b := startWith(t, src, lazy)
				gate := make(chan struct{})
				hang := func(context.Context) { <-gate }
				switch slow {
				case "the resource itself":
					rules.setLook(hang)
				case "another resource":
					other.setLook(hang)
				default:
					src.update(func(s *source) { s.hang = gate })
				}
				b.Trigger(Trigger{Reason: "reload"})
				synctest.Wait()
				rules.set("flushed")
				b.Alarm(Alarm{Resource: "rules"})
				synctest.Wait()
				if rules.get() != "v1" || len(b.Snapshot().Events) != 1 {
					t.Errorf("the rules are %q, events: %+v", rules.get(), b.Snapshot().Events)
				}
				close(gate)
				after(interval)
				if s := b.Snapshot(); rules.written() != 0 || len(s.Events) != 1 || !s.Clean() {
					t.Errorf("%d writes besides the reflex, %+v", rules.written(), s)
				}
			})
		})
	}
}

// What a look saw before the reflex is repaired already: writing it would be wrong.
func TestLookOvertakenByAReflexIsRepeated(t *testing.T) {
	for _, c := range []struct{ alarms, looks, writes int }{{1, 2, 0}, {2, 3, 0}, {3, 4, 0}, {100, 5, 1}} {
		synctest.Test(t, func(t *testing.T) {
			const lookTime = 30 * time.Millisecond
			rules := newSwift()
			b := startWith(t, newSource(rules), lazy)
			rules.lag = lookTime
			alarms := 0
			rules.setLook(func(context.Context) {
				if alarms++; alarms > c.alarms {
					return
				}
				rules.set("flushed")
				time.AfterFunc(lookTime/2, func() { b.Alarm(Alarm{Resource: "rules"}) })
			})
			if c.alarms == 100 { // the fourth look's outcome is used, so that there is an end
				rules.write = func(context.Context, int) (string, error) {
					rules.look = nil // held by Apply
					return "v1", nil
				}
			}
			b.Trigger(Trigger{Reason: "reload"})
			after(5 * lookTime)
			if n := len(rules.looked()) - 1; n != c.looks || rules.written() != c.writes {
				t.Errorf("%d alarms during looks: %d looks, %d writes; want %d and %d", c.alarms, n, rules.written(), c.looks, c.writes)
			}
		})
	}
}

func TestForeignChangesDoNotKeepUsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		b := startWith(t, newSource(rules), lazy)
		for range 1000 { // ten seconds of somebody else's rules
			b.Alarm(Alarm{Resource: "rules", Who: by("docker", 1)})
			after(10 * time.Millisecond)
		}
		after(2 * interval)
		if n := len(rules.looked()) - 1; n < 8 || n > 12 {
			t.Errorf("%d looks within 10 s", n)
		}
		if s := b.Snapshot(); len(s.Events) != 0 || !s.Clean() {
			t.Errorf("%+v", s)
		}
		reflexes := len(rules.reflexed())
		for range 10_000 { // one second
			b.Alarm(Alarm{Resource: "rules"})
			after(100 * time.Microsecond)
		}
		if n := len(rules.reflexed()) - reflexes; n > freeLooks+2*looksRate {
			t.Errorf("%d reflexes for 10000 foreign changes in a second", n)
		}
	})
}

func TestReflexThatFailsMakesALook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		rules.reflex = func(have string) (string, error) { return have, errors.New("no image") }
		b := startWith(t, newSource(rules), lazy)
		for i := range 3 {
			rules.set("flushed")
			b.Alarm(Alarm{Resource: "rules", Who: by("nft", i)})
			synctest.Wait()
			if e := lastEvent(t, b.Snapshot()); rules.get() != "v1" || e.Trigger != "event" || e.Who == nil || e.Who.PID != i || e.Error != "" {
				t.Errorf("the rules are %q, event %+v", rules.get(), e)
			}
			after(interval)
		}
		if n := strings.Count(b.log.String(), "no image"); n != 1 {
			t.Errorf("the same failure was logged %d times:\n%s", n, b.log)
		}
		rules.set("flushed")
		b.Trigger(Trigger{Reason: "reload"})
		synctest.Wait()
		if e := lastEvent(t, b.Snapshot()); e.Who != nil || e.Trigger != "reload" {
			t.Errorf("the culprit of an earlier drift is blamed: %+v", e)
		}
		looks := len(rules.looked())
		for range 1000 { // ten seconds of changes that are not ours
			b.Alarm(Alarm{Resource: "rules"})
			after(10 * time.Millisecond)
		}
		if n := len(rules.looked()) - looks; n < 10 || n > 45 {
			t.Errorf("%d looks within 10 s", n)
		}
	})
}

// A change that nothing of ours was part of is not blamed for what is found later.
func TestHarmlessAlarmIsNotBlamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		b := startWith(t, newSource(rules), lazy)
		rules.set("a set was emptied")
		rules.reflex = func(string) (string, error) { return "a set was emptied", nil }
		b.Alarm(Alarm{Resource: "rules", Who: by("docker", 1)})
		after(2 * interval)
		if e := lastEvent(t, b.Snapshot()); e.Who != nil || e.Trigger != "verify" || rules.get() != "v1" {
			t.Errorf("event: %+v", e)
		}
	})
}

// unannounced is what no alarm tells of.
type unannounced struct{ diff }

func (unannounced) Announced() bool { return false }

// A look that an alarm has called for finds what no alarm tells of.
func TestAlarmIsNotBlamedForOtherDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		b := startWith(t, newSource(rules), lazy)
		rules.set("a set was emptied")
		rules.plan = func(_ context.Context, have string) (Plan, error) { return unannounced{diff{have, rules.want}}, nil }
		rules.reflex = func(string) (string, error) { return "a set was emptied", errors.New("no image") }
		b.Alarm(Alarm{Resource: "rules", Who: by("docker", 1)})
		after(2 * interval)
		if e := lastEvent(t, b.Snapshot()); e.Who != nil || e.Trigger != "verify" || rules.get() != "v1" {
			t.Errorf("event: %+v", e)
		}
	})
}

func TestAlarmOfAResourceWithoutReflex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules, other := &thing{name: "rules", want: "v1", have: "v1"}, &thing{name: "other", want: "v1", have: "v1"}
		src := newSource(rules, other)
		src.err = errors.New("peers.yaml:3: unknown key")
		b := startWith(t, src, lazy)
		rules.set("flushed")
		b.Alarm(Alarm{Resource: "rules", Who: by("iptables", 7)})
		b.Alarm(Alarm{Resource: "of another version"})
		synctest.Wait()
		s := b.Snapshot()
		if e := lastEvent(t, s); rules.get() != "v1" || e.Trigger != "event" || e.Who == nil || e.Who.PID != 7 {
			t.Errorf("the rules are %q, event %+v", rules.get(), e)
		}
		if len(other.looked()) != 1 || len(src.loads()) != 1 {
			t.Errorf("%d looks at another resource, %d at the input", len(other.looked()), len(src.loads()))
		}
		if len(s.Problems) != 1 || s.Problems[0].What != problemInput {
			t.Errorf("what was not looked at is as wrong as before, but: %+v", s.Problems)
		}
	})
}

// A tick may see a change before its alarm is heard, which comes while it is put back.
func TestAlarmThatComesWithTheRepairIsBlamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mode := &thing{name: "mode", want: "enforcing", have: "enforcing"}
		b := start(t, newSource(mode))
		mode.write = func(context.Context, int) (string, error) {
			b.Alarm(Alarm{Resource: "mode", At: time.Now(), Who: by("setenforce", 7)})
			return "enforcing", nil
		}
		mode.set("permissive")
		after(2 * interval)
		s := b.Snapshot()
		if e := lastEvent(t, s); len(s.Events) != 1 || e.Who == nil || e.Who.Command != "setenforce" || e.Trigger == reasonEvent || e.Repaired.IsZero() {
			t.Errorf("events: %+v", s.Events)
		}
	})
}

func TestAlarmNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := &swift{thing: thing{name: "rules", want: "v1"}}
		src := newSource(rules)
		gate := make(chan struct{})
		rules.write = func(context.Context, int) (string, error) {
			<-gate
			return "v1", nil
		}
		b := startWith(t, src, lazy) // it hangs while it writes
		for range 10 * maxAlarms {
			b.Alarm(Alarm{Resource: "rules"})
		}
		<-time.After(interval)
		written := time.Now()
		close(gate)
		after(interval)
		if first := rules.reflexed()[0]; first.Before(written) {
			t.Error("two write at the same time")
		}
		if n := len(rules.reflexed()); n == 0 || n > 2 {
			t.Errorf("%d alarms made %d reflexes", 10*maxAlarms, n)
		}
		if n := len(src.loads()); n != 2 {
			t.Errorf("alarms were lost, so all has to be looked at once: %d passes of that kind", n-1)
		}
	})
}

// Between our write and the look that proves it somebody writes as well.
func TestF10_OverwrittenBetweenWriteAndLook(t *testing.T) {
	for _, c := range []struct{ foreign, writes, problems int }{{1, 2, 0}, {2, 3, 0}, {100, 3, 1}} {
		synctest.Test(t, func(t *testing.T) {
			rules := newSwift()
			rules.reflex = func(have string) (string, error) { return have, errors.New("no image while we write") }
			b := startWith(t, newSource(rules), lazy)
			rules.write = func(_ context.Context, writes int) (string, error) {
				if writes <= c.foreign {
					b.Alarm(Alarm{Resource: "rules", Who: by("nft", 1)})
					return "foreign", nil
				}
				return "v1", nil
			}
			rules.set("flushed")
			_, err := b.Request(t.Context(), Trigger{Reason: "apply"})
			if err != nil {
				t.Fatal(err)
			}
			if rules.written() != c.writes {
				t.Errorf("%d foreign writes after ours, %d writes of ours in the pass, want %d", c.foreign, rules.written(), c.writes)
			}
			s := b.Snapshot()
			if len(s.Problems) != c.problems || len(s.Events) != 1 {
				t.Fatalf("%+v", s)
			}
			if what := s.Events[0].What; !strings.Contains(what, "flushed → v1") || strings.Count(what, "foreign → v1") != 1 {
				t.Errorf("what was put back in one go is told as %q", what)
			}
		})
	}
}

// Who overwrites what is being put back is named beside who made us do so.
func TestF10_BothAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		rules.reflex = func(have string) (string, error) { return have, errors.New("no image while we write") }
		b := startWith(t, newSource(rules), lazy)
		rules.write = func(_ context.Context, writes int) (string, error) {
			if writes == 1 {
				b.Alarm(Alarm{Resource: "rules", Who: by("docker", 2)})
				return "by docker", nil
			}
			return "v1", nil
		}
		rules.set("by ufw")
		b.Alarm(Alarm{Resource: "rules", Who: by("ufw", 1)})
		after(2 * interval)
		e := lastEvent(t, b.Snapshot())
		if e.Who == nil || e.Who.Command != "ufw" || !strings.Contains(e.What, "by ufw → v1") || !strings.Contains(e.What, "by docker → v1") ||
			!strings.Contains(e.What, "docker (pid 2") {
			t.Errorf("event: %+v, who %+v", e, e.Who)
		}
	})
}

func TestAlarmsThatComeTogetherNameAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		b := startWith(t, newSource(rules), lazy)
		at := time.Now()
		rules.set("flushed")
		rules.mu.Lock() // somebody's reflex takes a while
		for i, who := range []func() *Culprit{func() *Culprit { return nil }, by("docker", 5), by("docker", 5), by("nft", 6), by("too many", 7)} {
			b.alarms <- Alarm{Resource: "rules", At: at.Add(time.Duration(i)), Who: who}
		}
		rules.mu.Unlock()
		synctest.Wait()
		e := b.Snapshot().Events[0]
		if !e.Since.Equal(at) || e.Who == nil || e.Who.PID != 5 || !strings.HasSuffix(e.What, "changes came at the same time from nft (pid 6, uid 0)\n") {
			t.Errorf("event: %+v", e)
		}
	})
}

// A look waits for the end of a burst, for a while after the look before, and not
// for ever.
func TestWhenALookFollowsAlarms(t *testing.T) {
	now := time.Unix(1000, 0)
	p := &part{served: now.Add(-900 * time.Millisecond)}
	steps := []struct {
		at, due time.Duration // due after now
	}{
		{0, 100 * time.Millisecond},
		{90 * time.Millisecond, 110 * time.Millisecond},
		{235 * time.Millisecond, 255 * time.Millisecond},
		{990 * time.Millisecond, 1000 * time.Millisecond}, // there is no end of them
		{995 * time.Millisecond, 1000 * time.Millisecond},
	}
	for _, s := range steps {
		p.wantSoon(now.Add(s.at))
		if got := p.due.Sub(now); got != s.due {
			t.Errorf("alarm after %v: the look is due after %v, want %v", s.at, got, s.due)
		}
	}
	p.wantNow(now.Add(999 * time.Millisecond))
	if p.isDue(now.Add(998*time.Millisecond)) || !p.isDue(now.Add(999*time.Millisecond)) || p.why != reasonEvent {
		t.Errorf("a look that is wanted now is due %v, for %q", p.due.Sub(now), p.why)
	}
	p.look(now.Add(time.Second))
	if p.isDue(now.Add(time.Hour)) {
		t.Error("a look that was made is still due")
	}
}

func TestSingleLooksDoNotPutOffTheTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := &thing{name: "rules", want: "v1", have: "v1"}
		ticks := 0
		b := startWith(t, newSource(rules), Options{Interval: interval, Full: full, OnTick: func() { ticks++ }})
		for range 100 {
			b.Alarm(Alarm{Resource: "rules"})
			after(interval / 10)
		}
		if ticks < 9 {
			t.Errorf("%d ticks in ten intervals", ticks)
		}
	})
}

func TestShutdownServesNoAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		b := startWith(t, newSource(rules), lazy)
		rules.setLook(func(ctx context.Context) {
			<-ctx.Done()
			rules.set("flushed")
			b.Alarm(Alarm{Resource: "rules"})
		})
		b.Trigger(Trigger{Reason: "reload"})
		synctest.Wait()
		b.stop()
		if n := len(rules.reflexed()); n != 0 {
			t.Errorf("%d writes began after the end was asked for", n)
		}
		b.Alarm(Alarm{Resource: "rules"})
	})
}

// For the race detector, and for what no order of events may break: in the end
// all is right, and each event has an end.
func TestAlarmsWhileEverythingElseHappens(t *testing.T) {
	rules, other := newSwift(), &swift{thing: thing{name: "other", want: "v1"}}
	src := &peekSource{source: newSource(rules, other)}
	var told []Event
	l := New(src, Options{Interval: time.Millisecond, Full: 3 * time.Millisecond, OnEvent: func(e Event) { told = append(told, e) }}, discard(), nil)
	ctx, cancel := context.WithCancel(t.Context())
	var run, all sync.WaitGroup
	run.Go(func() { _ = l.Run(ctx) })
	for i := range 4 {
		all.Go(func() {
			for n := range 300 {
				r := []*swift{rules, other}[n%2]
				r.set(fmt.Sprint("drift ", i, n))
				l.Alarm(Alarm{Resource: r.name, Who: by("nft", n)})
				switch n % 50 {
				case 0:
					src.changed.Store(true)
				case 25:
					_, _ = l.Request(ctx, Trigger{Reason: "apply"})
				}
				_ = l.Snapshot().Clean()
			}
		})
	}
	all.Wait()
	for _, r := range []*swift{rules, other} {
		l.Alarm(Alarm{Resource: r.name})
	}
	for r := range slices.Values([]*swift{rules, other}) {
		for r.get() != "v1" {
			if _, err := l.Request(ctx, Trigger{Reason: "apply"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	cancel()
	run.Wait()
	last := map[uint64]Event{}
	for _, e := range told {
		last[e.ID] = e
	}
	for _, e := range last {
		if e.Repaired.IsZero() {
			t.Errorf("open though all is well: %+v", e)
		}
	}
}

// Where alarms were lost nobody knows since when, so the last look is the bound.
func TestLostAlarmsDateNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		b := startWith(t, newSource(rules), lazy)
		seen := time.Now()
		after(interval / 2)
		rules.set("flushed")
		b.Alarm(Alarm{Resource: "rules"})
		after(0)
		if e := lastEvent(t, b.Snapshot()); !e.Since.Equal(seen) || e.OpenMS != float64((interval/2).Milliseconds()) {
			t.Errorf("event: %+v", e)
		}
	})
}
