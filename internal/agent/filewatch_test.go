package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// heard is a watch of a source's files that runs until the test ends.
func heard(t *testing.T, s *fileSource, wake func(bool)) *fileWatch {
	t.Helper()
	w := newFileWatch(wake, slog.New(slog.DiscardHandler))
	err := unix.Close(w.mounts) // what others mount meanwhile is not to be seen
	if err != nil {
		t.Fatal(err)
	}
	if w.mounts, err = unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	s.watch = w
	return w
}

// Where a watch vouches for the files, nobody looks at them; what happens to them
// is seen all the same.
func TestWatchSpeaksForTheFiles(t *testing.T) {
	for name, change := range fileChanges(t) {
		t.Run(name, func(t *testing.T) {
			f := newFiles(t)
			s := quiet(t, f)
			heard(t, s, func(bool) {})
			awaitTrue(t, "the watch does not vouch for the files", func() bool {
				if err := settled(t, s); err != nil {
					t.Fatal(err)
				}
				return !s.Peek(t.Context()) && s.calm != 0 && s.calm == s.watch.stirred()
			})
			f.t = t
			change(f)
			awaitTrue(t, "the change is not seen", func() bool { return s.Peek(t.Context()) })
		})
	}
}

// An event of what somebody moves away and back may have cost a watch.
func TestWatchIsMadeAnew(t *testing.T) {
	dir := t.TempDir()
	data, away := filepath.Join(dir, "a", "b", "data"), filepath.Join(dir, "away")
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	woken := make(chan bool, 16)
	w := heard(t, &fileSource{}, func(input bool) { woken <- input })
	var calm uint64
	watch := func() bool {
		w.watch(t.Context(), nil, []string{data})
		calm = w.stirred()
		return calm != 0
	}
	awaitTrue(t, "the watch does not vouch for a directory", watch)
	if err := errors.Join(os.Rename(filepath.Join(dir, "a"), away), os.Rename(away, filepath.Join(dir, "a"))); err != nil {
		t.Fatal(err)
	}
	select {
	case input := <-woken:
		if input {
			t.Error("woken to read what is only kept")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not woken")
	}
	awaitTrue(t, "the watch vouches for what was moved", func() bool { return w.stirred() == 0 })
	awaitTrue(t, "the watch is not made anew", watch)
	if err := os.Chmod(data, 0o755); err != nil {
		t.Fatal(err)
	}
	awaitTrue(t, "another mode is not heard of", func() bool { return w.stirred() != calm })
}
