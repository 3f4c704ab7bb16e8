package agent

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// wakeInterval is between two wake-ups: what happens in between, the next tick
	// of the loop sees.
	wakeInterval = time.Second
	// maxHeard bounds the events that are read in one wakeInterval: others may write
	// to files in the same directory as fast as they can. The rest waits in the
	// kernel, which forgets what is too much and says so.
	maxHeard = 64
)

// A fileWatch hears of changes to some files by inotify(7). It is but a wake-up:
// whoever is woken looks for himself, and looks once a second without it. All
// methods may be called from any goroutine.
type fileWatch struct {
	log  *slog.Logger
	wake func(path string) // empty: unknown

	mu      sync.Mutex
	watcher *fsnotify.Watcher // nil: the kernel has none left for us
	paths   []string
	dirs    []string // that are watched; a watch ends with its directory
	disk    patient
}

func newFileWatch(wake func(path string), log *slog.Logger) *fileWatch {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("cannot be notified of changed files, which are looked at each second all the same; is fs.inotify.max_user_instances too low?", "error", err)
		watcher = nil
	}
	return &fileWatch{log: log, wake: wake, watcher: watcher}
}

// watch sets the files to hear of. Their directories are watched, since most
// files are replaced by rename.
func (w *fileWatch) watch(paths []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watcher == nil || slices.Equal(paths, w.paths) {
		return
	}
	w.paths = slices.Clone(paths)
	var dirs []string
	for _, path := range paths {
		if dir := filepath.Dir(path); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	left := slices.DeleteFunc(w.dirs, func(dir string) bool { return slices.Contains(dirs, dir) })
	w.dirs = dirs
	if !w.disk.do(func() { w.turn(left, dirs) }, peekPatience) { // it hangs, and a watch is but a wake-up
		w.paths = nil // so that the next call tries again
	}
}

// turn makes the kernel watch other directories.
func (w *fileWatch) turn(from, to []string) {
	for _, dir := range from {
		_ = w.watcher.Remove(dir) // it may have gone
	}
	for _, dir := range to {
		if err := w.watcher.Add(dir); err != nil {
			w.log.Debug("cannot watch a directory", "path", dir, "error", err)
		}
	}
}

func (w *fileWatch) wanted(path string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.paths, path)
}

func (w *fileWatch) run(ctx context.Context) error {
	if w.watcher == nil {
		return nil
	}
	defer w.close()
	var woken, began time.Time
	for heard := 0; ; heard++ {
		if time.Since(began) >= wakeInterval {
			began, heard = time.Now(), 0
		}
		if heard == maxHeard && !wait(ctx, wakeInterval-time.Since(began)) {
			return nil
		}
		var path string
		select {
		case <-ctx.Done():
			return nil
		case event := <-w.watcher.Events:
			path = event.Name
			if !w.wanted(path) || time.Since(woken) < wakeInterval {
				continue
			}
		case err := <-w.watcher.Errors: // an overrun
			w.log.Debug("notifications of changed files were lost", "error", err)
		}
		woken = time.Now()
		w.wake(path)
	}
}

func (w *fileWatch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.disk.do(func() { _ = w.watcher.Close() }, peekPatience)
	w.disk.close()
}
