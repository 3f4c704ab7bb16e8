package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Loaded is a seccomp filter of a live thread, as it was given to the kernel.
type Loaded struct {
	Digest       string // see Filter.Digest
	Instructions int
}

// Digest names the program of a filter: "sha256:" and the hash of its
// instructions, each as struct sock_filter in little-endian order, whatever the
// machine's is. Two builds of libseccomp may compile one profile differently.
func (f *Filter) Digest() string {
	if f == nil {
		return digest(nil)
	}
	return digest(f.prog)
}

func digest(prog []unix.SockFilter) string {
	text := make([]byte, 0, 8*len(prog))
	for _, ins := range prog {
		text = binary.LittleEndian.AppendUint16(text, ins.Code)
		text = append(text, ins.Jt, ins.Jf)
		text = binary.LittleEndian.AppendUint32(text, ins.K)
	}
	sum := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// stopPatience is how long a thread may take to stop. A runnable one takes some
// 20 µs; one that waits for a disk that hangs does not stop at all.
const stopPatience = time.Second

// LoadedFilters reads the seccomp filters of one thread of a process, the one
// that was loaded first at the beginning. pidfd has to be the process's, and is
// what tells it from another with its number.
//
// The thread is stopped for some 50 µs by ptrace(2). It loses no signal, and
// system calls go on, but those that signal(7) lists as interrupted by a stop
// (epoll_wait, semop) return EINTR to it. It is let go on every path: should
// this program die, or the thread not stop in time, the kernel does it.
//
// Linux 4.4 with CONFIG_CHECKPOINT_RESTORE, CAP_SYS_ADMIN, CAP_SYS_PTRACE, and a
// caller without a filter of its own (PTRACE_SECCOMP_GET_FILTER). An error says
// why the filters cannot be read and wraps os.ErrProcessDone if the thread is gone.
func LoadedFilters(ctx context.Context, pidfd, pid, tid int) ([]Loaded, error) {
	type answer struct {
		filters []Loaded
		err     error
	}
	done := make(chan answer, 1)
	onOwnThread(func() {
		t := tracee{pidfd: pidfd, pid: pid, tid: tid}
		filters, err := t.filters(ctx)
		done <- answer{filters, err}
	})
	a := <-done
	if a.err != nil {
		return nil, fmt.Errorf("cannot read the seccomp filters of thread %d of process %d: %w", tid, pid, a.err)
	}
	return a.filters, nil
}

// onOwnThread runs f on a thread that ends with it, which is what makes the
// kernel let go of everything that the thread traces. The first thread of a Go
// program does not end, so it is kept busy until f has another.
func onOwnThread(f func()) {
	started := make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(f)
			runtime.UnlockOSThread()
			close(started)
			return
		}
		close(started)
		f()
	}()
	<-started
}

// tracee is a thread that the calling thread looks at.
type tracee struct{ pidfd, pid, tid int }

func (t tracee) filters(ctx context.Context) (filters []Loaded, err error) {
	if err := t.attach(ctx); err != nil {
		return nil, err
	}
	signal, err := t.stop(ctx)
	if err != nil {
		return nil, err // the end of this thread detaches
	}
	// The signal it was about to get when it stopped is given to it now.
	defer func() {
		if e := ptrace(unix.PTRACE_DETACH, t.tid, 0, uintptr(signal)); e != nil && err == nil && !errors.Is(e, unix.ESRCH) {
			err = fmt.Errorf("cannot let go of it: %w", e)
		}
	}()
	for i := 0; ; i++ {
		f, err := t.filter(i)
		if errors.Is(err, unix.ENOENT) && i > 0 {
			return filters, nil
		}
		if err != nil {
			return nil, readError(err)
		}
		filters = append(filters, f)
	}
}

// attach does not stop the thread yet: it may turn out to be another's.
func (t tracee) attach(ctx context.Context) error {
	for end := time.Now().Add(stopPatience); ; {
		err := unix.PtraceSeize(t.tid)
		if err == nil {
			break
		}
		if errors.Is(err, unix.ESRCH) {
			return os.ErrProcessDone
		}
		if !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("cannot attach: %w", err)
		}
		tracer, err := t.tracer(ctx)
		if err != nil {
			return err
		}
		// Another verify lets go soon.
		if !sameProgram(tracer) || time.Now().After(end) || ctx.Err() != nil {
			return attachError(ctx, tracer)
		}
		nap(ctx, time.Millisecond)
	}
	// From here on the number cannot go to another thread.
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", t.pid, t.tid)); err != nil || hasEnded(t.pidfd) {
		return os.ErrProcessDone
	}
	return nil
}

// tracer is the process that traces the thread; 0 if there is none or it has
// ended. The error is os.ErrProcessDone for a thread that has ended.
func (t tracee) tracer(ctx context.Context) (int, error) {
	s, err := ReadThreadStatus(ctx, t.pid, t.tid)
	if err != nil || s.TracerPID == 0 {
		return 0, err
	}
	s, err = ReadStatus(ctx, s.TracerPID) // a thread's number will do
	if errors.Is(err, os.ErrProcessDone) {
		return 0, nil
	}
	return s.TGID, err
}

// sameProgram says whether root runs this program as that process, too.
func sameProgram(pid int) bool {
	var own, other unix.Stat_t
	if pid == 0 || unix.Stat("/proc/self/exe", &own) != nil || unix.Stat(fmt.Sprintf("/proc/%d/exe", pid), &other) != nil {
		return false
	}
	return own.Dev == other.Dev && own.Ino == other.Ino
}

// stop waits for the thread to stop, and returns the signal that it was stopped
// by on the way to it, if any. Nothing tells of a stop with a deadline, so it
// is asked for; mostly it is there the first or second time.
func (t tracee) stop(ctx context.Context) (unix.Signal, error) {
	if err := unix.PtraceInterrupt(t.tid); errors.Is(err, unix.ESRCH) {
		return 0, os.ErrProcessDone
	} else if err != nil {
		return 0, fmt.Errorf("cannot stop it: %w", err)
	}
	pause := 20 * time.Microsecond
	for end := time.Now().Add(stopPatience); ; {
		var status unix.WaitStatus
		got, err := unix.Wait4(t.tid, &status, unix.WALL|unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD), got == t.tid && !status.Stopped():
			return 0, os.ErrProcessDone
		case err != nil:
			return 0, fmt.Errorf("cannot wait for it: %w", err)
		case got == t.tid && int(status)>>16 == 0: // no event: a signal is about to be delivered
			return status.StopSignal(), nil
		case got == t.tid:
			return 0, nil
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case time.Now().After(end):
			return 0, fmt.Errorf("it did not stop within %s; it may wait for a disk", stopPatience)
		default:
			nap(ctx, pause)
			pause = min(2*pause, 5*time.Millisecond)
		}
	}
}

func nap(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// filter reads the filter of an index; the first that was loaded has index 0.
// (ptrace(2) says it the other way round; get_nth_filter in kernel/seccomp.c and
// TestLoadedFiltersAreInOrder do not.)
func (t tracee) filter(index int) (Loaded, error) {
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(t.tid), uintptr(index), 0, 0, 0)
	if errno != 0 {
		return Loaded{}, errno
	}
	if n == 0 || n > unix.BPF_MAXINSNS {
		return Loaded{}, fmt.Errorf("the kernel tells of %d instructions", n)
	}
	prog := make([]unix.SockFilter, n)
	m, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(t.tid), uintptr(index), uintptr(unsafe.Pointer(&prog[0])), 0, 0)
	if errno != 0 {
		return Loaded{}, errno
	}
	if m != n {
		return Loaded{}, fmt.Errorf("the kernel tells of %d instructions, then of %d", n, m)
	}
	return Loaded{Digest: digest(prog), Instructions: len(prog)}, nil
}

func attachError(ctx context.Context, tracer int) error {
	if tracer == 0 {
		return fmt.Errorf("%w: it needs CAP_SYS_PTRACE, and kernel.yama.ptrace_scope below 3", unix.EPERM)
	}
	name := ""
	if s, err := ReadStatus(ctx, tracer); err == nil {
		name = fmt.Sprintf(" (%q)", s.Name) // its own choice
	}
	return fmt.Errorf("process %d%s traces it already: end that one", tracer, name)
}

func readError(err error) error {
	switch {
	case errors.Is(err, unix.ESRCH):
		return os.ErrProcessDone
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: this needs CAP_SYS_ADMIN, and a caller without a seccomp filter of its own (a container's, or SystemCallFilter= of a unit)", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EIO):
		return fmt.Errorf("%w: it has none, or the kernel is older than 4.4 or without CONFIG_CHECKPOINT_RESTORE", err)
	case errors.Is(err, unix.EMEDIUMTYPE):
		return fmt.Errorf("%w: it is not a classic BPF program", err)
	}
	return err
}

func ptrace(request, tid int, addr, data uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// hasEnded tells whether the process of a pidfd has ended, pidfd_open(2).
func hasEnded(pidfd int) bool {
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || n > 0
		}
	}
}
