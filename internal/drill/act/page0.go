package act

import (
	"syscall"
	"unsafe"
)

// page0 does what the launch stage does to get through the exec gate: a path in page
// 0. The words are a program and the lowest address that everybody can map.
func page0(a arguments) outcome {
	const path = 16 // the address, not 0
	step, errno := mapPage0(uintptr(a.number(1)))
	if errno != 0 {
		return stopped(step, errno)
	}
	// The page is written to by the kernel: Go takes such pointers for mistakes.
	if errno := writeTo(path, a.word(0)); errno != 0 {
		return stopped("write", errno)
	}
	argv := [2]uintptr{path, 0}
	if !(outcome{kind: Becoming}).tell() {
		return outcome{kind: Absent, note: "cannot report"}
	}
	_, _, errno = syscall.RawSyscall(syscall.SYS_EXECVE, path, uintptr(unsafe.Pointer(&argv)), uintptr(unsafe.Pointer(&argv[1])))
	return stopped("execve", errno)
}

const pageSize = 4096

// mapPage0 tries every way to get memory there that a program has.
func mapPage0(lowest uintptr) (step string, errno syscall.Errno) {
	const (
		readWrite     = syscall.PROT_READ | syscall.PROT_WRITE
		private       = syscall.MAP_PRIVATE | syscall.MAP_ANONYMOUS
		move          = 3                // MREMAP_MAYMOVE | MREMAP_FIXED
		remap, rounds = 0o40000, 0o20000 // SHM_REMAP, SHM_RND
	)
	none := ^uintptr(0)
	_, _, errno = syscall.RawSyscall6(syscall.SYS_MMAP, 0, pageSize, readWrite, private|syscall.MAP_FIXED, none, 0)
	if errno == 0 {
		return "", 0
	}
	from, _, e := syscall.RawSyscall6(syscall.SYS_MMAP, 0, pageSize, readWrite, private, none, 0)
	if e == 0 {
		if _, _, e = syscall.RawSyscall6(syscall.SYS_MREMAP, from, pageSize, pageSize, move, 0, 0); e == 0 {
			return "", 0
		}
	}
	if id, _, e := syscall.RawSyscall(syscall.SYS_SHMGET, 0, pageSize, 0o600); e == 0 {
		_, _, e = syscall.RawSyscall(syscall.SYS_SHMAT, id, 1, remap|rounds)
		_, _, _ = syscall.RawSyscall(syscall.SYS_SHMCTL, id, 0, 0) // IPC_RMID
		if e == 0 {
			return "", 0
		}
	}
	// A stack that grows down from the lowest address that can be had.
	if _, _, e = syscall.RawSyscall6(syscall.SYS_MMAP, lowest, pageSize, readWrite, private|syscall.MAP_FIXED|syscall.MAP_GROWSDOWN, none, 0); e == 0 {
		for at := lowest; at >= pageSize; at -= pageSize {
			if writeTo(at-pageSize, "x") != 0 {
				return "mmap", errno
			}
		}
		return "", 0
	}
	return "mmap", errno
}

// writeTo has the kernel copy a text to an address, through a pipe: a bad one is an
// error and no signal.
func writeTo(at uintptr, text string) syscall.Errno {
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC); err != nil {
		return syscall.EMFILE
	}
	defer syscall.Close(pipe[0]) //nolint:errcheck // a pipe of its own
	defer syscall.Close(pipe[1]) //nolint:errcheck // a pipe of its own
	if _, err := syscall.Write(pipe[1], append([]byte(text), 0)); err != nil {
		return syscall.EPIPE
	}
	_, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(pipe[0]), at, uintptr(len(text)+1))
	return errno
}
