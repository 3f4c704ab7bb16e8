package sysctl

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Calls on open files of /proc/sys. None of them waits for a disk or another
// process, so Go's runtime is not told of it: it would wake up the thread that
// watches over calls that wait.

func pread(fd int, buf []byte) (int, error) { return rawRead(unix.SYS_PREAD64, fd, buf) }

func getdents(fd int, buf []byte) (int, error) { return rawRead(unix.SYS_GETDENTS64, fd, buf) }

func rawRead(call uintptr, fd int, buf []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func rewind(fd int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_LSEEK, uintptr(fd), 0, unix.SEEK_SET); errno != 0 {
		return errno
	}
	return nil
}
