package reconcile

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// beside makes ticks in a goroutine of their own, as the daemon does.
func beside(ctx context.Context, tick func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			tick()
		}
	}
}

func TestTickBesideOnlyPeeks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules, ticks := newSwift(), 0
		src := &peekSource{source: newSource(rules)}
		b := startWith(t, src, Options{Interval: interval, Full: full, Every: beside, OnTick: func() { ticks++ }})
		after(26*interval + interval/2)
		if ticks != 26 || rules.peeked != 26 || len(rules.looked()) != 1 {
			t.Errorf("%d ticks, %d peeks, %d looks in 26 intervals", ticks, rules.peeked, len(rules.looked()))
		}
		b.reins.Lock()
		if at := b.nextTime(); !at.IsZero() {
			t.Errorf("a timer wakes the loop in %v, with nothing to do", time.Until(at))
		}
		b.reins.Unlock()
		after(8 * interval)
		if len(rules.looked()) != 2 || len(src.loads()) != 2 {
			t.Errorf("after a full look, looks: %d, loads: %d", len(rules.looked()), len(src.loads()))
		}
	})
}

func TestTickBesideHandsOnWhatItSees(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		src := &peekSource{source: newSource(rules)}
		b := startWith(t, src, Options{Interval: interval, Full: full, Every: beside})
		after(interval*9 + interval/2)
		rules.set("other")
		after(interval)
		if e := lastEvent(t, b.Snapshot()); rules.get() != "v1" || e.Trigger != "tick" || e.OpenMS > 1000 {
			t.Errorf("the rules are %q, event %+v", rules.get(), e)
		}
		if rules.peeked != 10 {
			t.Errorf("%d peeks in 10 ticks", rules.peeked)
		}
		src.changed.Store(true)
		after(interval)
		if len(src.loads()) != 2 {
			t.Errorf("%d loads of what has changed", len(src.loads()))
		}
	})
}

// While the loop is busy, a tick waits for it.
func TestTickBesideABusyLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		b := startWith(t, newSource(rules), Options{Interval: interval, Full: full, Every: beside})
		slow := &thing{name: "slow", want: "v1", have: "v1", lag: 3*interval + interval/2}
		b.source.(*source).update(func(s *source) { s.desired.Resources = append(s.desired.Resources, slow) })
		b.Trigger(Trigger{Reason: "test"})
		after(2*interval + interval/2)
		if rules.peeked != 0 {
			t.Errorf("%d peeks beside a pass", rules.peeked)
		}
		rules.set("other")
		b.Alarm(Alarm{Resource: "rules"})
		synctest.Wait()
		if rules.get() != "v1" {
			t.Error("an alarm was not served meanwhile")
		}
		after(interval)
		if rules.peeked != 1 {
			t.Errorf("%d peeks right after the pass", rules.peeked)
		}
	})
}

// What could not be written is tried again sooner than the ticks come.
func TestRetriesBesideTicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := newSwift()
		fails := 3
		rules.write = func(context.Context, int) (string, error) {
			if fails--; fails > 0 {
				return "v0", errors.New("no")
			}
			return "v1", nil
		}
		rules.have = "v0"
		b := startWith(t, newSource(rules), Options{Interval: interval, Full: full, Every: beside})
		after(interval / 2)
		if !b.Snapshot().Enforced() {
			t.Errorf("after half an interval: %+v", b.Snapshot().Problems)
		}
		after(5 * interval)
		if n := len(rules.looked()); rules.peeked == 0 || n > 7 {
			t.Errorf("%d peeks and %d looks", rules.peeked, n)
		}
	})
}
