package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/config"
)

// ErrLocked means that another process holds runtime_dir's lock.
var ErrLocked = errors.New("another pghardend is at work")

const lockName = "lock"

// lockFor makes the caller the only writer to the kernel until it calls
// release or ends. A runtime_dir that was changed in the file hides the lock of
// a daemon that still works with the old one, so that one has to be free too.
func lockFor(ctx context.Context, cfg config.Config) (release func(), err error) {
	held, err := lock(ctx, cfg.RuntimeDir)
	if err != nil {
		return nil, err
	}
	if old := formerRuntimeDir(ctx, cfg); old != cfg.RuntimeDir && isDir(ctx, old) {
		former, err := lock(ctx, old)
		if err != nil {
			held.Close()
			return nil, fmt.Errorf("%s: runtime_dir was %s until now: %w", cfg.Where("runtime_dir"), old, err)
		}
		former.Close()
	}
	return func() { held.Close() }, nil
}

// formerRuntimeDir is that of the last good configuration, or else the present one.
func formerRuntimeDir(ctx context.Context, cfg config.Config) string {
	in, err := readLastGood(ctx, cfg.StateDir, cfg.File)
	if err != nil {
		return cfg.RuntimeDir
	}
	good, err := parseConfig(ctx, cfg.File, in.config)
	if err != nil {
		return cfg.RuntimeDir
	}
	return good.RuntimeDir
}

func isDir(ctx context.Context, path string) bool {
	info, err := os.Stat(path)
	return ctx.Err() == nil && err == nil && info.IsDir()
}

// lock takes runtime_dir/lock for as long as the process lives or until it is
// closed. flock(2) ends with the process, however that ends.
func lock(ctx context.Context, runtimeDir string) (*os.File, error) {
	if err := ownDir(ctx, runtimeDir); err != nil {
		return nil, fmt.Errorf("cannot use runtime_dir: %w", err)
	}
	path := filepath.Join(runtimeDir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock: %w%s", err, rootHint(err))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: %s holds %s", ErrLocked, holder(f), path)
		}
		return nil, errors.Join(err, f.Close())
	}
	writeHolder(f)
	return f, nil
}

// ownDir makes a directory that nobody else can write to, or checks that it is
// one: who can replace what is in it can pass for the daemon.
func ownDir(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("%w%s", err, rootHint(err))
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || (int(st.Uid) != os.Geteuid() && st.Uid != 0):
		return fmt.Errorf("%s belongs to another user; `chown root: %s`", dir, dir)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s is writable by its group or by everybody (mode %04o); `chmod go-w %s`", dir, info.Mode().Perm(), dir)
	}
	return ctx.Err()
}

// rootHint is the fix for most of what may not be done.
func rootHint(err error) string {
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		return "; run this as root"
	}
	return ""
}

// The holder's pid is for people; the flock is what counts, and a full disk is
// no reason to do nothing.
func writeHolder(f *os.File) {
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
}

func holder(f *os.File) string {
	buf := make([]byte, 32)
	n, _ := f.ReadAt(buf, 0) // a short read is the rule
	if pid := strings.TrimSpace(string(buf[:n])); pid != "" {
		return "process " + pid
	}
	return "a process"
}
