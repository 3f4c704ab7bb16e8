package journal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
)

func next(t *testing.T, ch <-chan Record, want uint64) {
	t.Helper()
	r, ok := <-ch
	if !ok || r.Seq != want {
		t.Fatalf("got record %d (%v), want %d", r.Seq, ok, want)
	}
}

func TestSubscriberGetsWhatIsKnownAndWhatComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		j := Open(ctx, t.TempDir(), discard())
		for i := range 5 {
			j.Append(numbered(i))
		}
		all, err := j.Subscribe(ctx, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		newer, err := j.Subscribe(ctx, 4, 0)
		if err != nil {
			t.Fatal(err)
		}
		two, err := j.Subscribe(ctx, 0, 2)
		if err != nil {
			t.Fatal(err)
		}
		future, err := j.Subscribe(ctx, 6, 0)
		if err != nil {
			t.Fatal(err)
		}
		j.Append(numbered(5))
		j.Append(numbered(6))
		for seq := range uint64(7) {
			next(t, all, seq+1)
		}
		for _, seq := range []uint64{5, 6, 7} {
			next(t, newer, seq)
		}
		for _, seq := range []uint64{4, 5, 6, 7} {
			next(t, two, seq)
		}
		next(t, future, 7)
		cancel()
		for _, ch := range []<-chan Record{all, newer, two, future} {
			if r, ok := <-ch; ok {
				t.Errorf("record %d after the end", r.Seq)
			}
		}
		synctest.Wait()
		if len(j.readers) != 0 {
			t.Errorf("%d subscriptions are left", len(j.readers))
		}
	})
}

// F25: a reader that does not read loses its subscription, and what it gets before
// that has no gap.
func TestF25_SlowSubscriberIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := Open(t.Context(), t.TempDir(), discard())
		ch, err := j.Subscribe(t.Context(), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 * maxKept {
			j.Append(numbered(i))
		}
		synctest.Wait()
		var seen uint64
		for r := range ch {
			if seen++; r.Seq != seen {
				t.Fatalf("record %d after %d", r.Seq, seen-1)
			}
		}
		if seen < maxKept || seen > maxKept+1 {
			t.Errorf("%d records before the end", seen)
		}
	})
}

func TestSubscribersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		j := Open(ctx, t.TempDir(), discard())
		for range maxSubscribers {
			if _, err := j.Subscribe(ctx, 0, 0); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := j.Subscribe(t.Context(), 0, 0); !errors.Is(err, ErrTooMany) {
			t.Errorf("error %v", err)
		}
		cancel()
		synctest.Wait()
		if _, err := j.Subscribe(t.Context(), 0, 0); err != nil {
			t.Errorf("nobody follows any more, and yet %v", err)
		}
	})
}

// The last records are in memory: to ask for them reads no file.
func TestFewEventsAreListedFromMemory(t *testing.T) {
	dir := t.TempDir()
	j := Open(t.Context(), dir, discard())
	for i := range 2 * maxKept {
		j.Append(numbered(i))
	}
	if err := os.Mkdir(filepath.Join(dir, fileName), 0o700); err != nil { // cannot be read
		t.Fatal(err)
	}
	for _, tt := range []struct {
		after uint64
		limit int
		want  string
	}{
		{0, 2, "[511 512]"},
		{509, 0, "[510 511 512]"},
		{512, 0, "[]"},
		{1 << 63, 5, "[]"},
	} {
		if got := seqs(j.Since(t.Context(), tt.after, tt.limit)); got != tt.want {
			t.Errorf("after %d, %d: %s, want %s", tt.after, tt.limit, got, tt.want)
		}
	}
	if n := len(j.Since(t.Context(), 0, 0)); n != maxKept {
		t.Errorf("%d records where the files cannot be read", n)
	}
}
