package sandbox

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NoNewPrivs sets no_new_privs on the calling thread, for good: execve then
// gives no privileges that the thread does not have (setuid bits, file
// capabilities). Linux 3.5; PR_SET_NO_NEW_PRIVS(2const).
func NoNewPrivs() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot set no_new_privs: %w", err)
	}
	on, err := noNewPrivs()
	if err != nil {
		return err
	}
	if !on {
		return errors.New("cannot set no_new_privs: the kernel did not keep it")
	}
	return nil
}

func noNewPrivs() (bool, error) {
	on, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil {
		return false, fmt.Errorf("cannot read no_new_privs: %w", err)
	}
	return on == 1, nil
}

// Load puts the filter on the calling thread and on whatever it becomes by
// execve or starts by clone; it cannot be taken off again. Other threads of the
// process stay as they are, so that the Go runtime can do its work until the
// execve. NoNewPrivs comes first, even for root: with CAP_SYS_ADMIN instead the
// kernel would load the filter, and a setuid program could be run under it.
//
// The filter applies from the return of the system call on: the rest of the
// launch must do with what the profile allows. Linux 4.14 (SECCOMP_RET_KILL_PROCESS),
// with CONFIG_SECCOMP_FILTER; seccomp(2).
func (f *Filter) Load() error { return f.load(0) }

// LoadLogged is Load, and the kernel makes an audit record of each call that it
// denies (SECCOMP_FILTER_FLAG_LOG, Linux 4.14). Without auditd these are in the
// kernel's log, those included that the C library makes in vain each time.
func (f *Filter) LoadLogged() error { return f.load(unix.SECCOMP_FILTER_FLAG_LOG) }

func (f *Filter) load(flags uintptr) error {
	if f == nil || len(f.prog) == 0 {
		return fmt.Errorf("cannot load a seccomp filter: %w", errNoFilter)
	}
	on, err := noNewPrivs()
	if err != nil {
		return fmt.Errorf("cannot load seccomp filter %s: %w", f.name, err)
	}
	if !on {
		return fmt.Errorf("cannot load seccomp filter %s: no_new_privs is not set on this thread: call NoNewPrivs first", f.name)
	}
	prog := unix.SockFprog{Len: uint16(len(f.prog)), Filter: &f.prog[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(f)
	if errno != 0 {
		return fmt.Errorf("cannot load seccomp filter %s: %w: %s", f.name, errno, loadHint(errno))
	}
	return nil
}

func loadHint(errno unix.Errno) string {
	switch errno {
	case unix.ENOSYS:
		return "seccomp(2) needs Linux 3.17 with CONFIG_SECCOMP, and no outer filter that hides it (a container's)"
	case unix.EINVAL:
		return "the kernel needs CONFIG_SECCOMP_FILTER and Linux 4.14"
	case unix.EACCES:
		return "no_new_privs is not set"
	case unix.ENOMEM:
		return "too many or too long filters are on this thread already"
	default:
		return "an outer filter or security module may forbid it"
	}
}
