package testbed

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	netnsDir = "/run/netns" // where ip netns keeps names
	nsPrefix = "pgh-"
)

// runForm is a run id: the owner's process id, for people who read it, and a random part that makes it unique.
var runForm = regexp.MustCompile(`^[0-9]+-[0-9a-f]{8}$`)

// store is where runs are recorded: a locked file per live run, and its data.
type store struct {
	locks string // RUN.lock, flocked by the owner
	data  string // RUN/: clusters, agents, binaries; on a file system that allows exec
	netns string
}

var machine = store{locks: "/run/pghardend-testbed", data: "/var/lib/pghardend-testbed", netns: netnsDir}

// run is what one process owns. The lock dies with the process, however it dies.
type run struct {
	id    string
	store store
	lock  *os.File

	mu     sync.Mutex
	beds   map[string]*Bed
	closed bool
}

// current is the run of this process, made at first use.
var current = sync.OnceValues(func() (*run, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("cannot make a test bed: namespaces need root; run as root (for example with sudo)")
	}
	if err := machine.sweep(context.Background()); err != nil {
		return nil, err
	}
	return machine.open()
})

// Sweep removes what dead runs left behind: namespaces with the processes in them, and data. Live runs are not touched.
func Sweep(ctx context.Context) error { return machine.sweep(ctx) }

// Main runs f and then removes everything this process made, also when SIGINT or SIGTERM arrives; it returns f's result, or
// 130 after a signal. After a signal f's context is done and its beds are gone, and Main does not wait for f, because a
// test runner cannot be told to stop: exit with the result.
func Main(f func(ctx context.Context) int) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	done := make(chan int, 1)
	go func() { done <- f(ctx) }()
	code := 130
	select {
	case code = <-done:
	case <-ctx.Done():
	}
	if os.Geteuid() != 0 {
		return code
	}
	r, err := current()
	if err == nil {
		err = r.close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// open makes a new run and takes its lock.
func (s store) open() (*run, error) {
	for _, dir := range []string{s.locks, s.data} {
		if err := makeDir(dir); err != nil {
			return nil, fmt.Errorf("cannot make a test bed: %w", err)
		}
	}
	for {
		var random [4]byte
		if _, err := rand.Read(random[:]); err != nil {
			return nil, fmt.Errorf("cannot make a run id: %w", err)
		}
		r := &run{id: fmt.Sprintf("%d-%s", os.Getpid(), hex.EncodeToString(random[:])), store: s, beds: map[string]*Bed{}}
		ok, err := r.take()
		if err != nil {
			return nil, fmt.Errorf("cannot lock run %s: %w", r.id, err)
		}
		if ok {
			return r, makeDir(r.dir())
		}
	}
}

// take creates and locks the lock file. False means that a sweep found the file in the moment before it was locked.
func (r *run) take() (bool, error) {
	path := r.store.lockFile(r.id)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return false, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return false, errors.Join(err, f.Close())
	}
	mine, err1 := f.Stat()
	there, err2 := os.Stat(path)
	if err1 != nil || err2 != nil || !os.SameFile(mine, there) {
		return false, f.Close()
	}
	r.lock = f
	return true, nil
}

func (s store) lockFile(id string) string { return filepath.Join(s.locks, id+".lock") }

// dir holds the run's files: owned by root, writable by root alone, but passable, because PostgreSQL's user needs its part.
func (r *run) dir() string { return filepath.Join(r.store.data, r.id) }

// netnsName is the name in /run/netns of a host of a bed.
func (r *run) netnsName(bed, host string) string { return nsPrefix + r.id + "-" + bed + "-" + host }

// runOfNetns returns the run id in the name of a namespace, and whether it is one of ours. Pure.
func runOfNetns(name string) (string, bool) {
	rest, ok := strings.CutPrefix(name, nsPrefix)
	if !ok {
		return "", false
	}
	parts := strings.SplitN(rest, "-", 3)
	if len(parts) != 3 || parts[2] == "" {
		return "", false
	}
	id := parts[0] + "-" + parts[1]
	return id, runForm.MatchString(id)
}

// close closes all beds and removes the run.
func (r *run) close() error {
	r.mu.Lock()
	r.closed = true
	beds := make([]*Bed, 0, len(r.beds))
	for _, b := range r.beds {
		beds = append(beds, b)
	}
	r.mu.Unlock()
	var errs []error
	for _, b := range beds {
		errs = append(errs, b.Close())
	}
	errs = append(errs, os.RemoveAll(r.dir()), os.Remove(r.lock.Name()), r.lock.Close())
	return errors.Join(errs...)
}

// register makes the bed known to close, and refuses a second one of the name.
func (r *run) register(b *Bed) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("the process is shutting down")
	}
	if r.beds[b.name] != nil {
		return fmt.Errorf("a bed of the name %s is open in this process; close it or take another name", b.name)
	}
	r.beds[b.name] = b
	return nil
}

func (r *run) forget(b *Bed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.beds, b.name)
}

// sweep removes all dead runs. It reads names and data before it looks at locks: a run locks before it makes either, so
// whatever has no held lock afterwards is dead.
func (s store) sweep(ctx context.Context) error {
	namespaces, err := entries(s.netns)
	if err != nil {
		return err
	}
	data, err := entries(s.data)
	if err != nil {
		return err
	}
	locks, err := entries(s.locks)
	if err != nil {
		return err
	}
	ids := map[string][]string{}
	for _, name := range namespaces {
		if id, ok := runOfNetns(name); ok {
			ids[id] = append(ids[id], name)
		}
	}
	for _, name := range append(data, locks...) {
		if id := strings.TrimSuffix(name, ".lock"); runForm.MatchString(id) && ids[id] == nil {
			ids[id] = []string{}
		}
	}
	var errs []error
	for id, names := range ids {
		if err := s.sweepRun(ctx, id, names); err != nil {
			errs = append(errs, fmt.Errorf("cannot remove what the dead run %s left: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// sweepRun removes one run unless its owner lives.
func (s store) sweepRun(ctx context.Context, id string, namespaces []string) error {
	f, err := os.OpenFile(s.lockFile(id), os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		defer f.Close()
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	errs := []error{removeNamespaces(ctx, s.netns, namespaces), os.RemoveAll(filepath.Join(s.data, id))}
	if f != nil {
		errs = append(errs, ignoreMissing(os.Remove(f.Name())))
	}
	return errors.Join(errs...)
}

// entries lists a directory that may not exist.
func entries(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	names := make([]string, 0, len(list))
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names, nil
}

// makeDir makes a directory that everybody may pass, whatever the umask is.
func makeDir(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
