package agent

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Calls on what the kernel answers at once, such as a process's files in /proc,
// and never on a disk. Go's runtime is not told of them: it would wake up the
// thread that watches over calls that wait, in each tick.

func rawOpen(path string) (fd int, err error) {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return -1, err
	}
	at := unix.AT_FDCWD
	n, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(name)), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// rawRead reads from the beginning until there is no more, or no more room.
func rawRead(fd int, buf []byte) (int, error) {
	for n := 0; ; {
		rest := buf[n:]
		got, _, errno := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(rest))), uintptr(len(rest)), uintptr(n), 0, 0)
		if errno != 0 || got == 0 {
			return n, asError(errno)
		}
		n += int(got)
	}
}

func asError(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func rawClose(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) } // nothing was written
