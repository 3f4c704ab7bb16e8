package agent

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

const (
	// wakeInterval is between two wake-ups: what happens in between stirs the watch,
	// and the next tick of the loop looks.
	wakeInterval = time.Second
	// maxHeard bounds the events that are read in one wakeInterval: others may write
	// to files in the same directory as fast as they can. The rest waits in the
	// kernel, which forgets what is too much and says so.
	maxHeard = 64
)

// A fileWatch hears of changes to some files and directories, and to whatever
// their paths lead through, by inotify(7). It is but a wake-up: whoever is woken
// looks for himself. What it vouches for need not be looked at in each tick, see
// stirred. All methods may be called from any goroutine.
type fileWatch struct {
	log  *slog.Logger
	wake func(input bool) // whether one of the first paths may have changed

	stirs  atomic.Uint64 // changes that were heard of
	breaks atomic.Uint64 // what may have cost a watch
	armed  atomic.Uint64 // breaks when all was watched; none: never
	deaf   atomic.Bool   // there is more to hear than is listened to
	mounts int           // a descriptor that tells of mounts, of which inotify says nothing; -1: none

	mu      sync.Mutex
	watcher *fsnotify.Watcher // nil: the kernel has none left for us
	asked   [2][]string       // for which paths
	covered coverage
	disk    patient
}

const never = math.MaxUint64

// coverage is what is watched for some paths.
type coverage struct {
	input, others []string // what they lead through
	watched       []string // to hear of these; a watch ends with what it is on
}

func newFileWatch(wake func(input bool), log *slog.Logger) *fileWatch {
	w := &fileWatch{log: log, wake: wake}
	w.armed.Store(never)
	var err error
	if w.watcher, err = fsnotify.NewWatcher(); err != nil {
		log.Warn("cannot be notified of changed files, which are looked at each second all the same; is fs.inotify.max_user_instances too low?", "error", err)
		w.watcher = nil
	}
	if w.mounts, err = unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		w.mounts = -1
		log.Debug("cannot be told of mounts, so files are looked at each second", "error", err)
	}
	return w
}

// stirred is another number whenever something may have changed of what is
// watched; 0 if only a look can tell. A look that was begun after a call is good
// for as long as the number stays.
func (w *fileWatch) stirred() uint64 {
	if w == nil || w.mounts < 0 || w.deaf.Load() {
		return 0
	}
	if mountsChanged(w.mounts) {
		w.breaks.Add(1)
	}
	if w.armed.Load() != w.breaks.Load() {
		return 0
	}
	return w.stirs.Load() + 1
}

// mountsChanged says whether something was mounted or unmounted since the last
// call, proc_pid_mounts(5). The runtime is not told of a call that never waits: it
// would wake up its monitor.
func mountsChanged(mounts int) bool {
	poll := unix.PollFd{Fd: int32(mounts), Events: unix.POLLPRI} //nolint:gosec // a descriptor fits
	var at unix.Timespec
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&at)), 0, 0, 0)
		if errno != unix.EINTR { // a signal of the runtime's
			return n != 0
		}
	}
}

// watch sets the paths to hear of, input apart from others. Directories are
// watched, since most files are replaced by rename. It watches anew after
// anything happened that may have ended a watch.
func (w *fileWatch) watch(ctx context.Context, input, others []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.breaks.Load()
	same := slices.Equal(input, w.asked[0]) && slices.Equal(others, w.asked[1])
	if w.watcher == nil || same && w.armed.Load() == before {
		return
	}
	w.armed.Store(never)
	w.asked = [2][]string{slices.Clone(input), slices.Clone(others)}
	old, c, whole := w.covered.watched, &coverage{}, false
	if !w.disk.do(func() { whole = w.turn(ctx, old, c, input, others) }, peekPatience) {
		return // it hangs, and a watch is but a wake-up
	}
	w.covered = *c
	w.stirs.Add(1) // what changed before is for a look
	if whole {
		w.armed.Store(before)
	}
}

// turn makes the kernel watch other directories, each from its root on: what is not
// there yet is heard of where it is made. It says whether nothing is left out.
func (w *fileWatch) turn(ctx context.Context, from []string, to *coverage, input, others []string) (whole bool) {
	read, kept := followTrail(ctx, input...), followTrail(ctx, others...)
	to.input, to.others = read.paths(), kept.paths()
	to.watched, whole = watchable(ctx, slices.Concat(read.steps, kept.steps))
	for _, path := range from {
		_ = w.watcher.Remove(path) // it may have gone
	}
	for _, path := range to.watched {
		err := w.watcher.Add(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			w.log.Debug("cannot be told of changes", "path", path, "error", err)
			whole = false
		}
	}
	// What was replaced meanwhile is not watched.
	return whole && slices.Equal(read.steps, followTrail(ctx, input...).steps) && slices.Equal(kept.steps, followTrail(ctx, others...).steps)
}

// wanted says whether a path counts.
func (w *fileWatch) wanted(path string) (wanted, input bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	input = slices.Contains(w.covered.input, path)
	return input || slices.Contains(w.covered.others, path), input
}

func (w *fileWatch) run(ctx context.Context) error {
	if w.watcher == nil {
		return nil
	}
	defer w.close()
	var woken, began time.Time
	for heard := 0; ; heard++ {
		if time.Since(began) >= wakeInterval {
			w.deaf.Store(heard >= maxHeard)
			began, heard = time.Now(), 0
		}
		if heard == maxHeard {
			w.deaf.Store(true)
			if !wait(ctx, wakeInterval-time.Since(began)) {
				return nil
			}
		}
		input := true
		select {
		case <-ctx.Done():
			return nil
		case event := <-w.watcher.Events:
			var wanted bool
			if wanted, input = w.wanted(event.Name); !wanted {
				continue
			}
			w.stirs.Add(1)
			if event.Has(fsnotify.Create | fsnotify.Remove | fsnotify.Rename) {
				w.breaks.Add(1) // its directory may be another one now
			}
		case err := <-w.watcher.Errors: // an overrun
			w.breaks.Add(1)
			w.log.Debug("notifications of changed files were lost", "error", err)
		}
		if time.Since(woken) >= wakeInterval {
			woken = time.Now()
			w.wake(input)
		}
	}
}

func (w *fileWatch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.disk.do(func() { _ = w.watcher.Close() }, peekPatience)
	if w.mounts >= 0 {
		_ = unix.Close(w.mounts) // it was only read
	}
	w.disk.close()
}
