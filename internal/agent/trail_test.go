package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
)

// awaitTrue asks until it is true; the deadline is far above what it takes.
func awaitTrue(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// quiet is a source that sees no reason to load again.
func quiet(t *testing.T, f *files) *fileSource {
	t.Helper()
	s := f.started()
	awaitTrue(t, "nothing changes, but a load is due again and again", func() bool {
		if err := settled(t, s); err != nil {
			t.Fatal(err)
		}
		return !s.Peek(t.Context())
	})
	return s
}

// fileChanges are ways to change what a source reads.
func fileChanges(t *testing.T) map[string]func(f *files) {
	t.Helper()
	sameSize := replace(t, goodPeers, "10.20.1.20", "10.20.1.29")
	try := func(f *files, errs ...error) {
		if err := errors.Join(errs...); err != nil {
			f.t.Fatal(err)
		}
	}
	return map[string]func(f *files){
		"atomic rename":                      func(f *files) { f.write(f.peers, sameSize) },
		"in-place write of as many bytes":    func(f *files) { f.writeInPlace(f.peers, sameSize) },
		"the config":                         func(f *files) { f.write(f.config, f.configText()+"# a comment\n") },
		"removal":                            func(f *files) { f.remove(f.peers) },
		"a mode that is refused":             func(f *files) { try(f, os.Chmod(f.peers, 0o666)) },
		"a directory that others can write":  func(f *files) { try(f, os.Chmod(f.dir, 0o777)) },
		"a symlink in place of the file":     func(f *files) { try(f, os.Rename(f.peers, f.peers+".1"), os.Symlink(f.peers+".1", f.peers)) },
		"another file of the same directory": func(f *files) { try(f, os.Rename(f.dir, f.dir+".1"), os.CopyFS(f.dir, os.DirFS(f.dir+".1"))) },
	}
}

// The files are read only when they can have changed, and then they are, however
// the change was made.
func TestPeekSeesEveryChangeOfFiles(t *testing.T) {
	for name, change := range fileChanges(t) {
		t.Run(name, func(t *testing.T) {
			f := newFiles(t)
			s := quiet(t, f)
			f.t = t
			change(f)
			if !s.Peek(t.Context()) {
				t.Error("the change is not seen")
			}
		})
	}
}

// below are the paths of a trail in a directory.
func below(dir string, tr trail) []string {
	return slices.DeleteFunc(tr.paths(), func(path string) bool { return !strings.HasPrefix(path, dir) })
}

func TestPeekFollowsLinks(t *testing.T) {
	f := newFiles(t)
	one, two, current := filepath.Join(f.dir, "1"), filepath.Join(f.dir, "2"), filepath.Join(f.dir, "current")
	if err := errors.Join(os.Mkdir(one, 0o700), os.Mkdir(two, 0o700), os.Symlink("1", current), os.Remove(f.peers), os.Symlink("current/list", f.peers)); err != nil {
		t.Fatal(err)
	}
	f.write(filepath.Join(one, "list"), goodPeers)
	f.write(filepath.Join(two, "list"), replace(t, goodPeers, "10.20.1.20", "10.20.1.29"))
	s := quiet(t, f)
	if want := []string{f.dir, f.config, f.peers, current, one, filepath.Join(one, "list")}; !slices.Equal(below(f.dir, s.trail), want) {
		t.Errorf("on the way: %q, want %q", below(f.dir, s.trail), want)
	}
	if err := errors.Join(os.Symlink("2", current+".new"), os.Rename(current+".new", current)); err != nil {
		t.Fatal(err)
	}
	if !s.Peek(t.Context()) {
		t.Error("the other target is not seen")
	}
}

// What changes beside the files makes a load due as well.
func TestPeekSeesWhatElseCounts(t *testing.T) {
	for name, change := range map[string]func(s *fileSource){
		"a service started": func(s *fileSource) { s.running = func() uint64 { return 1 } },
		"a service has answered": func(s *fileSource) {
			s.facts.look = make(chan Facts, 1)
			s.facts.look <- Facts{}
		},
		"an opening was made": func(s *fileSource) { s.openings.changes++ },
		"an opening has ended": func(s *fileSource) {
			s.openings.list = append(s.openings.list, control.Opening{ID: "a", Until: time.Now()})
		},
		"nobody has confirmed": func(s *fileSource) { s.conf.waits = &waiting{until: time.Now()} },
	} {
		t.Run(name, func(t *testing.T) {
			s := quiet(t, newFiles(t))
			change(s)
			if !s.Peek(t.Context()) {
				t.Error("it is not seen")
			}
		})
	}
}

// A link that leads to itself ends.
func TestTrailOfALoop(t *testing.T) {
	link := filepath.Join(t.TempDir(), "a")
	if err := os.Symlink("a/a", link); err != nil {
		t.Fatal(err)
	}
	if tr := followTrail(t.Context(), link); tr.paths()[len(tr.paths())-1] != link {
		t.Errorf("steps %+v", tr.steps)
	}
}

func TestFileWatchHearsOfItsFilesAlone(t *testing.T) {
	f := newFiles(t)
	woken := make(chan bool, 16)
	w := newFileWatch(func(input bool) { woken <- input }, slog.New(slog.DiscardHandler))
	w.watch(t.Context(), []string{f.config, f.peers, filepath.Join(f.dir, "nothing", "here")}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.run(ctx) }()
	f.write(filepath.Join(f.dir, "other"), "x")
	f.write(f.peers, goodPeers)
	f.write(f.config, f.configText()) // within the second: the tick's
	select {
	case input := <-woken:
		if !input {
			t.Error("woken by something else")
		}
	case <-time.After(10 * time.Second):
		t.Error("not woken")
	}
	cancel()
	if err := <-done; err != nil || len(woken) != 0 {
		t.Errorf("%v, and woken %d more times", err, len(woken))
	}
}

// Whoever writes a lot beside our files does not keep us busy.
func TestFileWatchIsNotKeptBusy(t *testing.T) {
	f := newFiles(t)
	w := newFileWatch(func(bool) { t.Error("woken") }, slog.New(slog.DiscardHandler))
	w.watch(t.Context(), []string{f.config}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.run(ctx) }()
	other, err := os.Create(filepath.Join(f.dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for began := time.Now(); time.Since(began) < 300*time.Millisecond; {
		if _, err := other.WriteString("x"); err != nil {
			t.Fatal(err)
		}
	}
	heard := 0
	for quiet := false; !quiet; { // what nobody took is still in the queue
		select {
		case <-w.watcher.Events:
			heard++
		case <-time.After(100 * time.Millisecond):
			quiet = true
		}
	}
	cancel()
	if w.stirred() != 0 {
		t.Error("it vouches for what it did not listen to")
	}
	if err := <-done; err != nil || heard == 0 {
		t.Errorf("%v; all events were taken", err)
	}
}

func BenchmarkPeekFiles(b *testing.B) {
	dir := b.TempDir()
	tr := followTrail(b.Context(), filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	tr.fresh = false
	for b.Loop() {
		if !tr.same(b.Context()) {
			b.Fatal("it has changed")
		}
	}
}
