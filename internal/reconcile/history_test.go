package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestLongFailureDoesNotFloodTheHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		broken.Store(true)
		rules := &thing{name: "rules", want: "v1"}
		rules.write = func(_ context.Context, writes int) (string, error) {
			if broken.Load() { // another tool changes between two states
				return fmt.Sprint("foreign ", writes%2), errors.New("no")
			}
			return "v1", nil
		}
		other := &thing{name: "other", want: "v1"}
		b := start(t, newSource(other, rules))
		first := time.Now()
		after(100 * interval)
		s := b.Snapshot()
		if s.Passes < 100 || len(s.Events) > 4 || s.Events[0].Resource != "other" {
			t.Fatalf("%d events after %d passes: %+v", len(s.Events), s.Passes, s.Events)
		}
		broken.Store(false)
		after(interval)
		for _, e := range b.Snapshot().Events {
			if e.Repaired.IsZero() {
				t.Errorf("open though all is well: %+v", e)
			}
		}
		if e := lastEvent(t, b.Snapshot()); e.Error != "" || e.Found.After(first.Add(interval)) || e.OpenMS < 99*1000 {
			t.Errorf("the repair of a failure that began at %v: %+v", first, e)
		}
	})
}

func TestFailureThatHealsWithoutUsIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := &thing{name: "rules", want: "v1", have: "v1"}
		rules.write = func(context.Context, int) (string, error) { return "flushed", errors.New("no") }
		b := start(t, newSource(rules))
		rules.set("flushed")
		after(5 * interval)
		rules.set("v1")
		after(interval)
		s := b.Snapshot()
		if e := lastEvent(t, s); len(s.Events) != 1 || e.Repaired.IsZero() || e.OpenMS < 4000 || e.Error == "" {
			t.Errorf("events: %+v", s.Events)
		}
		if !s.Clean() {
			t.Errorf("problems: %+v", s.Problems)
		}
	})
}

// What somebody else was asked to do is told as that, also when it has been done.
func TestWhoWasAskedIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("not permitted")
		mounts := &thing{name: "mounts", want: "noexec", have: "noexec"}
		mounts.write = func(context.Context, int) (string, error) {
			return "exec", fmt.Errorf("mounts: %w", &AskedError{Whom: "another", Err: refused})
		}
		b := start(t, newSource(mounts))
		mounts.set("exec")
		after(3 * interval)
		mounts.set("noexec")
		after(interval)
		if e := lastEvent(t, b.Snapshot()); e.Repaired.IsZero() || e.Asked != "another" || !strings.Contains(e.Error, refused.Error()) {
			t.Errorf("%+v", e)
		}
	})
}

func TestHistoryIsBounded(t *testing.T) {
	var events []Event
	for i := range 3 * maxEvents {
		now := time.Unix(int64(i), 0)
		older := events
		events = settle(record(events, Event{Resource: "rules", What: fmt.Sprint(i), Found: now}), "rules", "", now)
		if len(older) > 0 && older[len(older)-1].What != fmt.Sprint(i-1) {
			t.Fatal("a reader's history was changed")
		}
	}
	if len(events) != maxEvents || events[maxEvents-1].What != fmt.Sprint(3*maxEvents-1) {
		t.Errorf("%d events, the last is %+v", len(events), events[len(events)-1])
	}
}

func TestVeryLongPlansAreCut(t *testing.T) {
	line := strings.Repeat("x", 99) + "\n"
	for _, n := range []int{1, 327, 328, 10000} {
		got := text(diff{strings.Repeat(line, n), "y\n"})
		if n <= 327 && !strings.HasSuffix(got, " → y\n") {
			t.Errorf("%d lines were cut", n)
		}
		if n > 327 && (len(got) > maxText+100 || !strings.HasSuffix(got, fmt.Sprintf("x\n… and %d more lines\n", n+1-327))) {
			t.Errorf("%d lines end in %q", n, got[len(got)-60:])
		}
	}
}

// Somebody may still be reading the history that an older snapshot has.
func TestHistoryOfAnOlderSnapshotStays(t *testing.T) {
	at := time.Unix(1, 0)
	older := []Event{{Resource: "rules", What: "a", Error: "1"}, {Resource: "rules", What: "b", Error: "2"}, {Resource: "limits", What: "c", Repaired: at}}
	want := slices.Clone(older)
	newer := settle(record(older, Event{Resource: "rules", What: "a", Error: "3"}), "rules", "", at)
	if !slices.Equal(older, want) {
		t.Errorf("changed to %+v", older)
	}
	if len(newer) != 3 || newer[2].What != "a" || newer[2].Error != "3" || newer[0].Repaired != at {
		t.Errorf("newer: %+v", newer)
	}
}

func TestLogSaysWhatIsNewOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(&thing{name: "rules", want: "v1"})
		b := start(t, src)
		b.log.Reset()
		for _, text := range []string{"first", "first", "second", ""} {
			src.update(func(s *source) {
				s.err = nil
				if text != "" {
					s.err = errors.New(text)
				}
			})
			after(interval)
		}
		b.stop()
		var lines int
		for range strings.Lines(b.log.String()) {
			lines++
		}
		if lines != 3 {
			t.Errorf("want first, second and well again, got:\n%s", b.log)
		}
	})
}

// A service's user may change the mode of its directory for ever. That does not
// push out what happened to the rules.
func TestOneResourceDoesNotPushOutTheOthers(t *testing.T) {
	now := time.Now()
	var events []Event
	add := func(id uint64, resource string) {
		events = record(events, Event{ID: id, Resource: resource, Cause: CauseDrift, What: fmt.Sprint(id), Repaired: now})
	}
	add(1, "firewall")
	add(2, "sysctl")
	for i := range 10 * maxEvents {
		add(uint64(i+3), "files")
	}
	if len(events) != maxEvents || events[0].ID != 1 || events[1].ID != 2 || events[maxEvents-1].ID != 10*maxEvents+2 {
		t.Errorf("%d events, the first %d and %d", len(events), events[0].ID, events[1].ID)
	}
	for i := range 10 * maxEvents { // and a resource of its own is as bounded
		add(uint64(i+10_000), "firewall")
	}
	if len(events) != maxEvents || events[0].Resource != "sysctl" || events[maxEvents-1].ID != 10_000+10*maxEvents-1 {
		t.Errorf("%d events, the first of %s, the last %d", len(events), events[0].Resource, events[maxEvents-1].ID)
	}
}
