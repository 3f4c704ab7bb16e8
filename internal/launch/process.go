package launch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/limits"
)

// firstPassed is the first descriptor of socket activation, sd_listen_fds(3).
const firstPassed = 3

// lastSignal is SIGRTMAX; the kernel's signal set is 64 bits, signal(7).
const lastSignal = 64

// enter makes dir the working directory and checks what it really entered: the
// service's user may own a directory above it and exchange it after Check.
func enter(dir string, id Identity) error {
	if dir == "" {
		return os.Chdir("/")
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(".", &st); err != nil {
		return fmt.Errorf("cannot stat %s: %w", dir, err)
	}
	return dataDirFault(dir, st, id)
}

// setOOMScore sets /proc/self/oom_score_adj and reads it back, proc(5).
func setOOMScore(value *int) error {
	if value == nil {
		return nil
	}
	const file = "/proc/self/oom_score_adj"
	want := strconv.Itoa(*value)
	if err := os.WriteFile(file, []byte(want), 0); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("cannot set oom_score_adj to %s: %w: lowering it needs CAP_SYS_RESOURCE: use a higher value or give it to the caller", want, err)
		}
		return fmt.Errorf("cannot set oom_score_adj to %s: %w", want, err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("cannot read oom_score_adj back: %w", err)
	}
	if text := strings.TrimSpace(string(got)); text != want {
		return fmt.Errorf("oom_score_adj is %s after it was set to %s", text, want)
	}
	return nil
}

// setLimits sets the limits and compares them with what procfs shows of them.
func setLimits(ctx context.Context, want limits.Set) error {
	if err := restoreNofile(); err != nil {
		return err
	}
	if err := want.ApplySelf(); err != nil {
		return err
	}
	got, err := limits.Read(ctx, os.Getpid())
	if err != nil {
		return err
	}
	if lines := limits.Diff(want, got); len(lines) > 0 {
		return fmt.Errorf("limits are not as set: %s", strings.Join(lines, "; "))
	}
	return nil
}

// restoreNofile undoes what the Go runtime did to the soft limit of open files at
// start, which is of consequence where the Spec does not set one. syscall.Exec
// does that, but the last one comes after seccomp, whose filter may not let it,
// and it does not say so. There is no other way to the value than an Exec that
// fails: the empty path never exists, execve(2).
func restoreNofile() error {
	if err := syscall.Exec("", []string{""}, nil); !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot restore the inherited limit of open files: executing nothing gave %w", err)
	}
	return nil
}

// resetSignals lets all signals in and undoes "ignore", the two things about
// signals that survive execve. Handlers do not, signal(7).
//
// rt_sigaction(2) is called past os/signal, which has no way to ask for SIG_DFL
// where the runtime itself has no handler.
func resetSignals() error {
	for sig := 1; sig <= lastSignal; sig++ {
		if sig == int(unix.SIGKILL) || sig == int(unix.SIGSTOP) {
			continue
		}
		// struct sigaction starts with the handler on every architecture, and
		// all zero bytes are SIG_DFL without flags; the rest only needs room.
		var now, def [8]uint64
		if err := sigaction(sig, nil, &now); err != nil {
			return fmt.Errorf("cannot read the action of signal %d: %w", sig, err)
		}
		const ignored = 1 // SIG_IGN
		if now[0] != ignored {
			continue
		}
		if err := sigaction(sig, &def, nil); err != nil {
			return fmt.Errorf("cannot reset signal %d: %w", sig, err)
		}
	}
	var none unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil); err != nil {
		return fmt.Errorf("cannot clear the signal mask: %w", err)
	}
	return nil
}

func sigaction(sig int, set, old *[8]uint64) error {
	const setSize = 8 // bytes of the kernel's sigset_t
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), setSize, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// closeDescriptors makes execve close everything but standard input, output and
// error and the given number of activation sockets. Closing at execve and not
// now keeps the report file usable until the end.
func closeDescriptors(sockets int) error {
	for fd := firstPassed; fd < firstPassed+sockets; fd++ {
		if err := checkPassed(fd); err != nil {
			return err
		}
	}
	err := unix.CloseRange(uint(firstPassed+sockets), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("cannot mark inherited descriptors to be closed: %w: close_range with CLOSE_RANGE_CLOEXEC needs Linux 5.11 or newer", err)
	}
	if err != nil {
		return fmt.Errorf("cannot mark inherited descriptors to be closed: %w", err)
	}
	return nil
}

// checkPassed tells an inherited descriptor from one of this process: an
// inherited one has come through an execve, so it is not close-on-exec, while
// everything opened here is.
func checkPassed(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		return fmt.Errorf("LISTEN_FDS announces descriptor %d, which is not open: %w: correct the caller", fd, err)
	}
	if flags&unix.FD_CLOEXEC != 0 {
		return fmt.Errorf("LISTEN_FDS announces descriptor %d, which was not inherited: correct the caller", fd)
	}
	return nil
}
