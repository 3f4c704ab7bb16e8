package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
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

// The files are read only when they can have changed, and then they are, however
// the change was made.
func TestPeekSeesEveryChangeOfFiles(t *testing.T) {
	sameSize := replace(t, goodPeers, "10.20.1.20", "10.20.1.29")
	try := func(f *files, errs ...error) {
		if err := errors.Join(errs...); err != nil {
			f.t.Fatal(err)
		}
	}
	for name, change := range map[string]func(f *files){
		"atomic rename":                      func(f *files) { f.write(f.peers, sameSize) },
		"in-place write of as many bytes":    func(f *files) { f.writeInPlace(f.peers, sameSize) },
		"the config":                         func(f *files) { f.write(f.config, f.configText()+"# a comment\n") },
		"removal":                            func(f *files) { f.remove(f.peers) },
		"a mode that is refused":             func(f *files) { try(f, os.Chmod(f.peers, 0o666)) },
		"a directory that others can write":  func(f *files) { try(f, os.Chmod(f.dir, 0o777)) },
		"a symlink in place of the file":     func(f *files) { try(f, os.Rename(f.peers, f.peers+".1"), os.Symlink(f.peers+".1", f.peers)) },
		"another file of the same directory": func(f *files) { try(f, os.Rename(f.dir, f.dir+".1"), os.CopyFS(f.dir, os.DirFS(f.dir+".1"))) },
	} {
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

func TestPeekFollowsLinks(t *testing.T) {
	f := newFiles(t)
	one, two, current := filepath.Join(f.dir, "1"), filepath.Join(f.dir, "2"), filepath.Join(f.dir, "current")
	if err := errors.Join(os.Mkdir(one, 0o700), os.Mkdir(two, 0o700), os.Symlink("1", current), os.Remove(f.peers), os.Symlink("current/list", f.peers)); err != nil {
		t.Fatal(err)
	}
	f.write(filepath.Join(one, "list"), goodPeers)
	f.write(filepath.Join(two, "list"), replace(t, goodPeers, "10.20.1.20", "10.20.1.29"))
	s := quiet(t, f)
	if want := []string{f.config, f.peers, current, filepath.Join(one, "list")}; !slices.Equal(s.trail.files(), want) {
		t.Errorf("files on the way: %q, want %q", s.trail.files(), want)
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
	if tr := followTrail(t.Context(), link); len(tr.files()) != 1 || tr.files()[0] != link {
		t.Errorf("steps %+v", tr.steps)
	}
}

func TestFileWatchHearsOfItsFilesAlone(t *testing.T) {
	f := newFiles(t)
	woken := make(chan string, 16)
	w := newFileWatch(func(path string) { woken <- path }, slog.New(slog.DiscardHandler))
	w.watch([]string{f.config, f.peers, filepath.Join(f.dir, "nothing", "here")})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.run(ctx) }()
	f.write(filepath.Join(f.dir, "other"), "x")
	f.write(f.peers, goodPeers)
	f.write(f.config, f.configText()) // within the second: the tick's
	select {
	case path := <-woken:
		if path != f.peers {
			t.Errorf("woken by %s", path)
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
	w := newFileWatch(func(path string) { t.Errorf("woken by %q", path) }, slog.New(slog.DiscardHandler))
	w.watch([]string{f.config})
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
