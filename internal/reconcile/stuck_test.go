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

// mended is a plan with a part that Apply can do and one that it cannot.
type mended struct {
	diff
	stuck string
	quiet bool // Empty does not count what is stuck
}

func (p mended) Empty() bool { return p.diff.Empty() && (p.stuck == "" || p.quiet) }

func (p mended) String() string {
	if p.diff.Empty() {
		return p.stuck + "\n"
	}
	return p.diff.String() + "\n" + p.stuck
}

func (p mended) Unrepairable() string { return p.stuck }

func (p mended) Repairable() bool { return !p.diff.Empty() }

func TestWhatNeedsARestartIsReportedAndNotWritten(t *testing.T) {
	for _, c := range []struct {
		name   string
		have   string
		quiet  bool
		writes int
	}{{"nothing else", "v1", false, 0}, {"nothing else, as an empty plan", "v1", true, 0}, {"and a limit that is repaired", "other", false, 1}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const text = "service postgres: process 7: seccomp mode is 0, not 2: restart needed"
				stuck := ""
				limits := &thing{name: "processes", want: "v1", have: "v1"}
				limits.plan = func(_ context.Context, have string) (Plan, error) {
					return mended{diff{have, "v1"}, stuck, c.quiet}, nil
				}
				told := map[uint64]int{}
				b := startWith(t, newSource(limits, &thing{name: "rules"}), Options{Interval: interval, Full: full, OnEvent: func(e Event) { told[e.ID]++ }})
				limits.mu.Lock()
				stuck, limits.have = text, c.have
				limits.mu.Unlock()
				b.Trigger(Trigger{Reason: "reload"})
				after(20 * interval)
				s := b.Snapshot()
				e := lastEvent(t, s)
				if limits.written() != c.writes || len(s.Events) != c.writes+1 || !e.Restart || e.What != text || !e.Repaired.IsZero() || e.Cause != CauseDrift {
					t.Errorf("%d writes, events: %+v", limits.written(), s.Events)
				}
				if len(s.Problems) != 1 || !s.Problems[0].Restart || s.Problems[0].Text != text || s.Clean() || s.Right("processes") {
					t.Errorf("problems: %+v", s.Problems)
				}
				b.Alarm(Alarm{Resource: "rules"})
				after(interval / 100)
				if b.Snapshot().Clean() || b.Snapshot().Passes == s.Passes {
					t.Error("a look at another resource made the problem go away")
				}
				if !s.Enforced() {
					t.Error("a service that needs a restart keeps others from being started")
				}
				limits.mu.Lock()
				stuck = ""
				limits.mu.Unlock()
				after(interval)
				if s = b.Snapshot(); !s.Clean() || lastEvent(t, s).Repaired.IsZero() {
					t.Errorf("after the restart: %+v", s)
				}
				if told[e.ID] != 2 || len(told) != c.writes+1 {
					t.Errorf("told: %v; once when it is new and once when it is over", told)
				}
			})
		})
	}
}

func TestStuckPartThatIsUnreadableStaysAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := &thing{name: "processes", plan: func(context.Context, string) (Plan, error) {
			return mended{stuck: "restart needed"}, errors.New("cannot read /proc/8/status")
		}}
		b := start(t, newSource(limits))
		if s := b.Snapshot(); s.Enforced() || len(s.Problems) != 1 || !strings.Contains(s.Problems[0].Text, "restart needed") || !strings.Contains(s.Problems[0].Text, "/proc/8") {
			t.Errorf("problems: %+v", s.Problems)
		}
	})
}

func TestWhatNeedsARestartKeepsItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := &thing{name: "processes", plan: func(context.Context, string) (Plan, error) {
			return mended{stuck: "restart needed"}, nil
		}}
		b := start(t, newSource(limits))
		at := time.Now()
		after(5 * interval)
		s := b.Snapshot()
		if e := lastEvent(t, s); len(s.Events) != 1 || e.Cause != CauseStart || !e.Found.Equal(at) || !isClosed(b.Enforced()) {
			t.Errorf("events: %+v", s.Events)
		}
	})
}

func TestEventsAreToldWhenNewAndWhenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := &thing{name: "rules", want: "v1", have: "v1"}
		var told []Event
		b := startWith(t, newSource(rules), Options{Interval: interval, Full: full, OnEvent: func(e Event) { told = append(told, e) }})
		rules.mu.Lock()
		rules.have, rules.write = "flushed", func(_ context.Context, n int) (string, error) { return "flushed", fmt.Errorf("try %d", n) }
		rules.mu.Unlock()
		b.Trigger(Trigger{Reason: "reload"})
		after(100 * interval)
		if len(told) != 1 || told[0].Error == "" || !told[0].Repaired.IsZero() || told[0].Trigger != "reload" {
			t.Fatalf("told of a failure of many tries: %+v", told)
		}
		rules.mu.Lock()
		rules.write = nil
		rules.mu.Unlock()
		after(interval)
		if len(told) != 2 || told[1].ID != told[0].ID || told[1].Repaired.IsZero() || told[1].OpenMS < 100_000 {
			t.Errorf("told of its end: %+v", told)
		}
	})
}

func TestHistoryKeepsDriftAndWhatIsOpen(t *testing.T) {
	at := time.Unix(1, 0)
	var events []Event
	put := func(cause string, n int, repaired time.Time) {
		for range n {
			events = record(events, Event{Resource: "rules", Cause: cause, What: cause + repaired.String(), Repaired: repaired})
		}
	}
	count := func(cause string) (n int) {
		for _, e := range events {
			if e.Cause == cause {
				n++
			}
		}
		return n
	}
	put(CauseDrift, 1, time.Time{})
	put(CauseDrift, 35, at)
	put(CauseChange, 1000, at)
	if count(CauseDrift) != maxEvents-maxOther || len(events) != maxEvents {
		t.Errorf("%d changes pushed out drift: %d are left of 36", 1000, count(CauseDrift))
	}
	put(CauseDrift, 1000, at)
	if count(CauseDrift) < maxOther || len(events) != maxEvents {
		t.Errorf("%d of %d events are drift", count(CauseDrift), len(events))
	}
	if !events[0].Repaired.IsZero() {
		t.Error("what is still open was forgotten")
	}
}

// What Options leaves aside is a problem, and tried again, but nobody waits for it.
func TestAsideHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := &thing{name: "files", want: "v1", write: func(context.Context, int) (string, error) { return "", errors.New("the disk hangs") }}
		rules := &thing{name: "rules", want: "v1"}
		b := startWith(t, newSource(rules, files), Options{Interval: interval, Full: full, Aside: []string{"files"}})
		if s := b.Snapshot(); s.Clean() || s.Right("files") || !s.Right("rules") || !s.Enforced() || !isClosed(b.Enforced()) {
			t.Errorf("problems: %+v", s.Problems)
		}
		looks := len(rules.looked())
		after(5 * interval)
		if files.written() < 5 {
			t.Errorf("%d writes in five intervals", files.written())
		}
		if n := len(rules.looked()) - looks; n != 0 { // they have no Peek, and a full look is not due
			t.Errorf("the rules were looked at %d times", n)
		}
	})
}
