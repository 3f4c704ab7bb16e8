package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestFirstPassBringsTheDesiredState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules, limits := &thing{name: "rules", want: "v1"}, &thing{name: "limits", want: "v1", have: "v1"}
		b := start(t, newSource(rules, limits))
		s := b.Snapshot()
		if rules.get() != "v1" || rules.written() != 1 || limits.written() != 0 {
			t.Errorf("rules is %q after %d writes, limits had %d writes; want v1, 1, 0", rules.get(), rules.written(), limits.written())
		}
		if !s.Clean() || !s.Enforced() || !isClosed(b.Enforced()) || s.Passes != 1 || s.Generation != 1 || s.LastClean.IsZero() {
			t.Errorf("after the first pass: %+v, Enforced closed: %v", s, isClosed(b.Enforced()))
		}
		if len(s.Events) != 1 {
			t.Fatalf("a resource that was right is no event: %+v", s.Events)
		}
		if e := s.Events[0]; e.Resource != "rules" || e.Cause != CauseStart || e.What != " → v1" || !e.Since.IsZero() || e.Found.IsZero() || e.Repaired.IsZero() || e.Error != "" {
			t.Errorf("event of the first pass: %+v", e)
		}
	})
}

func TestDriftIsRepairedAndDated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lookTime = 30 * time.Millisecond // to read the kernel's state takes a while
		rules := &thing{name: "rules", want: "v1", have: "v1", lag: lookTime}
		b := start(t, newSource(rules))
		after(lookTime)

		after(interval + lookTime/2) // the second look has read, and has not answered yet
		drifted := time.Now()
		rules.set("flushed")
		after(interval * 2)
		e := lastEvent(t, b.Snapshot())
		if rules.get() != "v1" || e.Cause != CauseDrift || e.What != "flushed → v1" {
			t.Fatalf("the rules are %q, the event is %+v", rules.get(), e)
		}
		if e.Since.After(drifted) || e.Found.Before(drifted) || e.Repaired.Before(e.Found) {
			t.Errorf("drift at %v, but since %v, found %v, repaired %v", drifted, e.Since, e.Found, e.Repaired)
		}
		open := float64(e.Repaired.Sub(drifted).Milliseconds())
		if e.OpenMS < open || e.OpenMS > open+float64((interval+2*lookTime).Milliseconds()) {
			t.Errorf("open for %v ms, which must be an upper bound of %v", e.OpenMS, open)
		}
		if !strings.Contains(b.log.String(), "restored") || !strings.Contains(b.log.String(), "flushed") {
			t.Errorf("the log does not tell: %s", b.log)
		}
	})
}

func TestSecondDifferenceIsAnErrorNotALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := &thing{name: "rules", want: "v1", have: "other"}
		rules.write = func(context.Context, int) (string, error) { return "other", nil } // somebody puts it back at once
		b := start(t, newSource(rules))
		s := b.Snapshot()
		if rules.written() != 1 {
			t.Errorf("%d writes in one pass", rules.written())
		}
		if s.Clean() || s.Enforced() || isClosed(b.Enforced()) {
			t.Error("what still differs is not enforced")
		}
		if len(s.Problems) != 1 || s.Problems[0].What != "rules" || !strings.Contains(s.Problems[0].Text, "still differs after it was written:\nother → v1") {
			t.Errorf("problems: %+v", s.Problems)
		}
		if e := lastEvent(t, s); e.Error == "" || !e.Repaired.IsZero() || e.OpenMS != 0 {
			t.Errorf("event: %+v", e)
		}
	})
}

func TestFailedWriteIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := &thing{name: "rules", want: "v1"}
		rules.write = func(context.Context, int) (string, error) { return "", errors.New("xtables lock held") }
		b := start(t, newSource(rules))
		s := b.Snapshot()
		if len(s.Problems) != 1 || !strings.Contains(s.Problems[0].Text, "xtables lock held") {
			t.Errorf("problems: %+v", s.Problems)
		}
		since := s.Problems[0].Since
		after(5 * interval)
		if s = b.Snapshot(); !s.Problems[0].Since.Equal(since) {
			t.Errorf("the problem is as old as %v, not %v", s.Problems[0].Since, since)
		}
		if n := strings.Count(b.log.String(), "degraded"); n != 1 {
			t.Errorf("one problem was logged %d times:\n%s", n, b.log)
		}
	})
}

func TestRetryDelayGrowsUpToTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		broken.Store(true)
		rules := &thing{name: "rules", want: "v1"}
		rules.write = func(context.Context, int) (string, error) {
			if broken.Load() {
				return "", errors.New("no")
			}
			return "v1", nil
		}
		b := start(t, newSource(rules))
		after(20 * interval)
		b.stop()
		var gaps []time.Duration
		looks := rules.looked()
		for i := 2; i < len(looks); i += 2 { // a failing pass looks twice
			gaps = append(gaps, looks[i].Sub(looks[i-1]))
		}
		if len(gaps) < 20 || gaps[0] > 2*firstRetry {
			t.Fatalf("retries after %v", gaps)
		}
		for i, gap := range gaps {
			if gap <= 0 || gap > interval {
				t.Errorf("retry %d after %v, more than the interval of %v", i, gap, interval)
			}
		}
		if early, late := slices.Max(gaps[:3]), slices.Min(gaps[len(gaps)-5:]); late < 2*early {
			t.Errorf("the delay does not grow: %v", gaps)
		}
	})
}

func TestRetryDelayBeginsAnewAfterARepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		rules := &thing{name: "rules", want: "v1"}
		rules.write = func(_ context.Context, writes int) (string, error) {
			if writes < 10 || broken.Load() {
				return "", errors.New("no")
			}
			return "v1", nil
		}
		b := start(t, newSource(rules))
		after(20 * interval)
		if s := b.Snapshot(); !s.Clean() || !isClosed(b.Enforced()) {
			t.Fatalf("not repaired: %+v", s.Problems)
		}
		if !strings.Contains(b.log.String(), "well again") {
			t.Errorf("the log does not say that all is well again:\n%s", b.log)
		}
		looks := len(rules.looked())
		after(10 * interval)
		if n := len(rules.looked()) - looks; n != 10 {
			t.Errorf("%d looks in ten intervals when all is well", n)
		}

		broken.Store(true)
		rules.set("flushed")
		after(2 * interval)
		b.stop()
		all := rules.looked()[looks+10:]
		if gap := all[2].Sub(all[1]); gap > 2*firstRetry {
			t.Errorf("the first retry of a new failure after %v", gap)
		}
	})
}

func TestSourceErrorKeepsResourcesEnforced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := &thing{name: "rules", want: "v1"}
		src := newSource(rules)
		src.err = errors.New("peers.yaml:3: unknown key")
		b := start(t, src)
		s := b.Snapshot()
		if rules.get() != "v1" || !s.Enforced() || !isClosed(b.Enforced()) {
			t.Error("a bad input must not hold back what the last good one asks for")
		}
		if s.Clean() || !s.LastClean.IsZero() || len(s.Problems) != 1 || s.Problems[0].What != problemInput {
			t.Errorf("a bad input must be reported: %+v", s)
		}
		passes := s.Passes
		rules.set("flushed")
		after(10 * interval)
		if rules.get() != "v1" {
			t.Error("drift is not repaired while the input is bad")
		}
		if n := b.Snapshot().Passes - passes; n != 10 {
			t.Errorf("%d passes in ten intervals; retrying does not mend a file", n)
		}
		src.update(func(s *source) { s.err = nil })
		after(interval)
		if s := b.Snapshot(); !s.Clean() {
			t.Errorf("not well again: %+v", s.Problems)
		}
	})
}

func TestNothingDesiredIsNotEnforced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource()
		src.err = errors.New("no file at all")
		b := start(t, src)
		if s := b.Snapshot(); s.Enforced() || isClosed(b.Enforced()) || len(s.Problems) != 2 {
			t.Errorf("no resource at all passes for enforced: %+v", s)
		}
	})
}

func TestCauseOutlivesAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		failing := func(_ context.Context, _ int) (string, error) {
			if broken.Load() {
				return "", errors.New("no")
			}
			return "v1", nil
		}
		rules := &thing{name: "rules", want: "v1", write: failing}
		src := newSource(rules)
		broken.Store(true)
		b := start(t, src)
		after(3 * interval)
		broken.Store(false)
		after(interval)
		if e := lastEvent(t, b.Snapshot()); e.Cause != CauseStart || e.Repaired.IsZero() {
			t.Errorf("the first pass failed, its repair is no drift: %+v", e)
		}

		broken.Store(true)
		next := &thing{name: "rules", want: "v2", have: "v1"}
		next.write = func(_ context.Context, _ int) (string, error) {
			if broken.Load() {
				return "v1", errors.New("no")
			}
			return "v2", nil
		}
		src.update(func(s *source) { s.desired = Desired{Generation: 2, Resources: []Resource{next}} })
		after(3 * interval)
		broken.Store(false)
		after(interval)
		e := lastEvent(t, b.Snapshot())
		if e.Cause != CauseChange || e.Repaired.IsZero() || b.Snapshot().Generation != 2 {
			t.Errorf("the change failed first, its repair is no drift: %+v", e)
		}
		if open := time.Duration(e.OpenMS * float64(time.Millisecond)).Round(time.Microsecond); open < 2*interval || open != e.Repaired.Sub(e.Found).Truncate(time.Microsecond) {
			t.Errorf("open for %v, found %v, repaired %v", open, e.Found, e.Repaired)
		}

		next.set("flushed")
		after(interval)
		if e := lastEvent(t, b.Snapshot()); e.Cause != CauseDrift {
			t.Errorf("this is drift: %+v", e)
		}
	})
}

func TestTriggerNeverBlocksAndMerges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := &thing{name: "rules", want: "v1"}
		src := newSource(rules)
		gate := make(chan struct{})
		rules.look = func(context.Context) { <-gate }
		b := start(t, src) // it hangs in its first pass
		for i := range 1000 {
			b.Trigger(Trigger{Reason: "many", Force: i == 500})
		}
		close(gate)
		synctest.Wait()
		if loads := src.loads(); !slices.Equal(loads, []bool{false, true}) {
			t.Errorf("1000 triggers, one of them forced, during the first pass; passes after it (forced or not): %v", loads[1:])
		}
	})
}

func TestTriggerIsServedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := &thing{name: "rules", want: "v1"}
		b := start(t, newSource(rules))
		rules.set("flushed")
		b.Trigger(Trigger{Reason: "netlink"})
		synctest.Wait()
		if rules.get() != "v1" {
			t.Error("the trigger waits for the timer")
		}
		if !strings.Contains(b.log.String(), "trigger=netlink") {
			t.Errorf("the log does not say how it was found: %s", b.log)
		}
	})
}

func TestRecheckBringsTheNextPassForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(&thing{name: "rules", want: "v1"})
		src.desired.Recheck = interval / 10
		b := start(t, src)
		after(interval / 10)
		if n := b.Snapshot().Passes; n != 2 {
			t.Errorf("%d passes", n)
		}
		src.update(func(s *source) { s.desired.Recheck = 10 * interval }) // not later than usual
		after(interval / 10)
		after(interval)
		if n := b.Snapshot().Passes; n != 4 {
			t.Errorf("%d passes", n)
		}
	})
}

func TestNilPlans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unread := &thing{name: "unread", plan: func(context.Context, string) (Plan, error) { return nil, errors.New("cannot observe") }}
		none := &thing{name: "none", plan: func(context.Context, string) (Plan, error) { return nil, nil }}
		writes := 0
		vanishing := &thing{name: "vanishing"}
		vanishing.plan = func(context.Context, string) (Plan, error) {
			if writes++; writes == 1 {
				return diff{"a", "b"}, nil
			}
			return nil, errors.New("cannot observe any more")
		}
		b := start(t, newSource(unread, none, vanishing))
		s := b.Snapshot()
		if len(s.Problems) != 2 || s.Problems[0].What != "unread" || s.Problems[1].What != "vanishing" || s.Enforced() {
			t.Errorf("problems: %+v", s.Problems)
		}
		if unread.written() != 0 || vanishing.written() != 1 {
			t.Errorf("writes: %d and %d", unread.written(), vanishing.written())
		}
	})
}

// A resource that was not looked at is as right, or as wrong, as its last look has
// found it, and not since a moment ago.
func TestNoLookIsNoSightOfRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		due := true
		r := &thing{name: "connections", want: "v1", have: "v1"}
		r.plan = func(_ context.Context, have string) (Plan, error) {
			if !due {
				return nil, ErrNotDue
			}
			return diff{have, "v1"}, nil
		}
		turn := func(to bool) {
			r.mu.Lock()
			defer r.mu.Unlock()
			due = to
		}
		b := start(t, newSource(r))
		seen := r.looked()[0]
		turn(false)
		after(3 * interval)
		b.Trigger(Trigger{Reason: "files"})
		after(0)
		if s := b.Snapshot(); !s.Clean() || len(s.Events) != 0 || len(r.looked()) < 2 {
			t.Errorf("%d looks, %+v", len(r.looked()), s)
		}
		r.set("other")
		turn(true)
		b.Trigger(Trigger{Reason: "files"})
		after(0)
		if e := lastEvent(t, b.Snapshot()); !e.Since.Equal(seen) {
			t.Errorf("last seen to be right at %v, want %v", e.Since, seen)
		}
	})
}

// One family can be read, the other cannot.
func TestPartialPlanIsAppliedAndTheErrorReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := &thing{name: "rules", want: "v1"}
		rules.plan = func(_ context.Context, have string) (Plan, error) {
			return diff{have, "v1"}, errors.New("ip6tables is missing")
		}
		b := start(t, newSource(rules))
		s := b.Snapshot()
		if rules.get() != "v1" {
			t.Error("the part that could be read is not repaired")
		}
		if s.Enforced() || len(s.Problems) != 1 || !strings.Contains(s.Problems[0].Text, "ip6tables is missing") {
			t.Errorf("problems: %+v", s.Problems)
		}
	})
}

// A resource that cannot be written does not keep the others from being kept.
func TestResourcesAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []string
		last := &thing{name: "last", want: "v1"}
		var things []Resource
		for i := range 4 {
			r := &thing{name: fmt.Sprintf("r%d", i), want: "v1"}
			if i == 1 || i == 3 {
				r.write = func(context.Context, int) (string, error) { return "", errors.New("no") }
				names = append(names, r.name)
			}
			things = append(things, r)
		}
		b := start(t, newSource(append(things, last)...))
		var got []string
		for _, p := range b.Snapshot().Problems {
			got = append(got, p.What)
		}
		if !slices.Equal(got, names) {
			t.Errorf("problems of %v, want %v", got, names)
		}
		if last.get() != "v1" {
			t.Error("a resource behind a broken one is not kept")
		}
	})
}

func TestSnapshotWhileRunning(t *testing.T) {
	rules := &thing{name: "rules", want: "v1"}
	var passes sync.WaitGroup
	passes.Add(200)
	left := 200
	l := New(newSource(rules), Options{Interval: time.Millisecond}, discard(), func(s Snapshot) {
		rules.set(fmt.Sprint("drift ", s.Passes))
		if left--; left >= 0 {
			passes.Done()
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { _ = l.Run(ctx) })
	for range 4 {
		all.Go(func() {
			for last := uint64(0); ctx.Err() == nil; {
				s := l.Snapshot()
				if s.Passes < last {
					t.Errorf("pass %d after pass %d", s.Passes, last)
				}
				last = s.Passes
				for i, e := range s.Events {
					if e.Repaired.IsZero() || i > 0 && e.Found.Before(s.Events[i-1].Found) {
						t.Errorf("event %d of %d: %+v", i, len(s.Events), e)
					}
				}
				l.Trigger(Trigger{Reason: "test"})
			}
		})
	}
	passes.Wait()
	cancel()
	all.Wait()
}
