package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestRequestWaitsForItsOwnPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lookTime = 100 * time.Millisecond
		rules := &thing{name: "rules", want: "v1", have: "v1"}
		src := newSource(rules)
		b := start(t, src)
		rules.setLook(func(context.Context) { <-time.After(lookTime) })
		after(interval + lookTime/2) // a pass has begun

		rules.set("flushed")
		src.update(func(s *source) { s.desired.Generation = 7 })
		s, err := b.Request(t.Context(), Trigger{Reason: "apply", Force: true})
		if err != nil {
			t.Fatal(err)
		}
		if s.Generation != 7 || rules.get() != "v1" || !s.Clean() {
			t.Errorf("the answer is that of an earlier pass: %+v", s)
		}
		if loads := src.loads(); !loads[len(loads)-1] {
			t.Error("the pass was not forced")
		}
	})
}

func TestRequestGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		rules := &thing{name: "rules", want: "v1", look: func(context.Context) { <-gate }}
		b := start(t, newSource(rules)) // it hangs
		ctx, cancel := context.WithTimeout(t.Context(), interval)
		defer cancel()
		if _, err := b.Request(ctx, Trigger{Reason: "apply"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error: %v", err)
		}
		close(gate)
		if _, err := b.Request(t.Context(), Trigger{Reason: "apply"}); err != nil {
			t.Errorf("the one who gave up holds up the next: %v", err)
		}
	})
}

func TestShutdownAmidALookPublishesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := &thing{name: "rules", want: "v1"}
		later := &thing{name: "later", want: "v1"}
		b := start(t, newSource(rules, later))
		before := b.Snapshot()
		writes := later.written()
		later.set("flushed")
		rules.setLook(func(ctx context.Context) { <-ctx.Done() }) // hangs until it is killed

		failed := make(chan error, 1)
		go func() {
			_, err := b.Request(t.Context(), Trigger{Reason: "apply"})
			failed <- err
		}()
		synctest.Wait()
		b.stop()
		if err := <-failed; !errors.Is(err, errEnded) {
			t.Errorf("a pass that was cut short answers %v", err)
		}
		if s := b.Snapshot(); s.Passes != before.Passes || len(s.Problems) != 0 || len(s.Events) != len(before.Events) {
			t.Errorf("published: %+v", s)
		}
		if later.written() != writes {
			t.Error("a write began after the end was asked for")
		}
		if _, err := b.Request(t.Context(), Trigger{}); !errors.Is(err, errEnded) {
			t.Errorf("a loop that has ended answers %v", err)
		}
		b.Trigger(Trigger{Reason: "too late"})
	})
}

func TestShutdownAmidAWriteFinishesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const writeTime = 100 * time.Millisecond
		rules := &thing{name: "rules", want: "v1"}
		rules.write = func(ctx context.Context, _ int) (string, error) {
			select {
			case <-ctx.Done():
				return "half", ctx.Err()
			case <-time.After(writeTime):
				return "v1", nil
			}
		}
		b := start(t, newSource(rules))
		<-time.After(writeTime / 2)
		b.stop()
		if rules.get() != "v1" {
			t.Errorf("the write was left at %q", rules.get())
		}
		if s := b.Snapshot(); s.Passes != 0 {
			t.Errorf("published: %+v", s)
		}
	})
}

func TestRunWithACancelledContextWritesNothing(t *testing.T) {
	rules := &thing{name: "rules", want: "v1"}
	l := New(newSource(rules), Options{Interval: interval}, discard(), nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Error(err)
	}
	if rules.written() != 0 || l.Snapshot().Passes != 0 {
		t.Errorf("%d writes, %d passes", rules.written(), l.Snapshot().Passes)
	}
}
