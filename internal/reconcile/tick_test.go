package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const full = 30 * interval

func TestIdleTickOnlyPeeks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules, other := newSwift(), &thing{name: "cannot be peeked at", want: "v1", have: "v1"}
		src := &peekSource{source: newSource(rules, other)}
		ticks := 0
		b := startWith(t, src, Options{Interval: interval, Full: full, OnTick: func() { ticks++ }})
		published := b.snapshot.Load()
		after(26 * interval)
		if ticks != 26 || rules.peeked != 26 {
			t.Errorf("%d ticks, %d peeks in 26 intervals", ticks, rules.peeked)
		}
		if len(rules.looked()) != 1 || len(other.looked()) != 1 || len(src.loads()) != 1 {
			t.Errorf("looks: %d and %d, loads: %d", len(rules.looked()), len(other.looked()), len(src.loads()))
		}
		if b.snapshot.Load() != published {
			t.Error("a tick that saw nothing published a snapshot")
		}
		if age := time.Since(b.Snapshot().LastLook); age > interval {
			t.Errorf("the last look seems to be %v ago", age)
		}
		after(8 * interval)
		if len(rules.looked()) != 2 || len(other.looked()) != 2 || len(src.loads()) != 2 {
			t.Errorf("after a full look, looks: %d and %d, loads: %d", len(rules.looked()), len(other.looked()), len(src.loads()))
		}
	})
}

func TestTickLooksAtWhatSeemsToDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		limits := &swift{thing: thing{name: "limits", want: "v1", have: "v1"}}
		src := newSource(rules, limits)
		b := startWith(t, src, Options{Interval: interval, Full: full})
		after(interval*9 + interval/2)
		drifted := time.Now()
		limits.set("other")
		after(interval)
		e := lastEvent(t, b.Snapshot())
		if limits.get() != "v1" || e.Resource != "limits" || e.Cause != CauseDrift || e.Trigger != "tick" {
			t.Errorf("limits are %q, event %+v", limits.get(), e)
		}
		if e.Since.After(drifted) || e.OpenMS != 1000 {
			t.Errorf("drift at %v, since %v, open for %v ms: the last cheap look is the bound", drifted, e.Since, e.OpenMS)
		}
		if s := b.Snapshot(); time.Since(s.LastPass) > interval || time.Since(s.LastFull) < 10*interval {
			t.Errorf("a look at one of them passes for one at all: %v, %v", s.LastPass, s.LastFull)
		}
		if len(rules.looked()) != 1 || len(src.loads()) != 1 {
			t.Errorf("%d looks at what does not differ, %d loads", len(rules.looked()), len(src.loads()))
		}
	})
}

// What the cheap look does not see is found by the full one.
func TestFullLooksAreJittered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		rules.blind = true
		b := startWith(t, newSource(rules), Options{Interval: interval, Full: full})
		rules.set("flushed")
		after(full*11/10 + interval)
		if e := lastEvent(t, b.Snapshot()); rules.get() != "v1" || e.Trigger != "full" {
			t.Errorf("the rules are %q, event %+v", rules.get(), e)
		}
		after(100 * full)
		looks := rules.looked()[3:] // one at the start, two of the repair
		gaps := map[time.Duration]bool{}
		for i := 1; i < len(looks); i++ {
			gap := looks[i].Sub(looks[i-1])
			if gaps[gap] = true; gap < full*9/10 || gap > full*11/10+interval {
				t.Errorf("full look after %v", gap)
			}
		}
		if len(gaps) < 3 {
			t.Errorf("no jitter: %v", gaps)
		}
	})
}

func TestPeekOfTheSourceLoadsAndLooksAtWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules, limits := newSwift(), newSwift()
		limits.name = "limits"
		src := &peekSource{source: newSource(rules, limits)}
		b := startWith(t, src, Options{Interval: interval, Full: full})
		src.changed.Store(true)
		after(interval)
		if len(src.loads()) != 2 || len(rules.looked()) != 1 {
			t.Errorf("touched but not changed: %d loads, %d looks", len(src.loads()), len(rules.looked()))
		}
		fresh := &thing{name: "connections", want: "v1"}
		src.update(func(s *source) { s.desired.Resources = append(s.desired.Resources, fresh) })
		src.changed.Store(true)
		after(interval)
		if fresh.get() != "v1" || len(rules.looked()) != 1 {
			t.Errorf("a new resource is %q after a tick; %d looks at an old one", fresh.get(), len(rules.looked()))
		}
		src.update(func(s *source) { s.desired.Generation = 2 })
		src.changed.Store(true)
		after(interval)
		if len(rules.looked()) != 2 || len(limits.looked()) != 2 || b.Snapshot().Generation != 2 {
			t.Errorf("changed: %d and %d looks", len(rules.looked()), len(limits.looked()))
		}
	})
}

func TestBadInputIsReadAgainInEachTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		src := newSource(rules)
		src.err = errors.New("cannot write the last good configuration: no space left")
		b := startWith(t, src, Options{Interval: interval, Full: full})
		after(10 * interval)
		if len(src.loads()) != 11 || len(rules.looked()) != 1 {
			t.Errorf("%d loads, %d looks in 10 intervals", len(src.loads()), len(rules.looked()))
		}
		src.update(func(s *source) { s.err = nil })
		after(interval)
		if s := b.Snapshot(); !s.Clean() {
			t.Errorf("problems: %+v", s.Problems)
		}
	})
}

func TestIdleTickAllocatesNothing(t *testing.T) {
	l, ctx := idle()
	if n := testing.AllocsPerRun(1000, func() { idleTick(ctx, l) }); n != 0 {
		t.Errorf("%v allocations in a tick", n)
	}
	l.opts.Every = beside
	idleTick(ctx, l)
	if n := testing.AllocsPerRun(1000, func() { l.beside(ctx) }); n != 0 || !l.nextTime().IsZero() || len(l.ticks) != 0 {
		t.Errorf("%v allocations in a tick beside the loop, which is to do something at %v", n, l.nextTime())
	}
}

func BenchmarkIdleTick(b *testing.B) {
	l, ctx := idle()
	b.ReportAllocs()
	for b.Loop() {
		idleTick(ctx, l)
	}
}

// idle is a loop after its first pass, of which a test plays Run.
func idle() (*Loop, context.Context) {
	var resources []Resource
	for i := range 6 {
		resources = append(resources, &swift{thing: thing{name: fmt.Sprint("r", i), want: "v1", have: "v1"}})
	}
	l := New(&peekSource{source: newSource(resources...)}, Options{Interval: time.Second, Full: time.Hour}, discard(), nil)
	l.timer = time.NewTimer(time.Hour)
	ctx := context.Background()
	l.pass(ctx, fullRound(Trigger{Reason: reasonStart}))
	return l, ctx
}

func idleTick(ctx context.Context, l *Loop) {
	if r, ok := l.tick(ctx, time.Now()); ok {
		l.pass(ctx, r)
	}
	l.setTimer(l.nextTime())
}

// A wall clock that jumps is no matter where every time has a monotonic reading.
// Virtual time has none, so this runs in real time.
func TestF21_TimesAreMonotonic(t *testing.T) {
	l, ctx := idle()
	for _, r := range l.desired.Resources {
		r.(*swift).set("drift")
	}
	l.Alarm(Alarm{Resource: "r0"}) // without a time
	l.heed(ctx, <-l.alarms)
	idleTick(ctx, l)
	s, p := l.Snapshot(), l.part("r0")
	times := map[string]time.Time{
		"next tick": l.nextTick, "next full": l.nextFull, "epoch": l.epoch, "last pass": s.LastPass, "last clean": s.LastClean, "last look": s.LastLook,
		"right": p.right.at, "repaired": p.damper.last, "fight": p.fights.list[0].at,
	}
	if len(s.Events) != len(l.desired.Resources) {
		t.Fatalf("events: %+v", s.Events)
	}
	for _, e := range s.Events {
		times["since, "+e.Trigger], times["found, "+e.Trigger], times["repaired, "+e.Trigger] = e.Since, e.Found, e.Repaired
	}
	for name, at := range times {
		if !strings.Contains(at.String(), " m=") {
			t.Errorf("%s is %v, without a monotonic reading", name, at)
		}
	}
}
