package act

import "syscall"

// memory has a child take memory, since the kernel ends who takes too much of it.
func memory(a arguments) outcome {
	size := uintptr(a.number(0))
	return inChild(0, "memory", func() syscall.Errno { return take(size) })
}

// take has the kernel fill pages at once, and says whether they are there.
//
//go:norace
func take(size uintptr) syscall.Errno {
	const populate = 0x8000 // MAP_POPULATE
	_, _, errno := syscall.RawSyscall6(syscall.SYS_MMAP, 0, size, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON|populate, ^uintptr(0), 0)
	return errno
}

// bus does what every client of D-Bus begins with.
func bus(a arguments) outcome {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return stopped("socket", err)
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: a.word(0)}); err != nil {
		return stopped("connect", err)
	}
	if err := syscall.Sendto(fd, []byte("\x00AUTH EXTERNAL 30\r\n"), 0, nil); err != nil {
		return stopped("sendto", err)
	}
	if !ready(fd, readable) {
		return stopped("answer", syscall.ETIMEDOUT)
	}
	var buf [64]byte
	n, _, err := syscall.Recvfrom(fd, buf[:], 0)
	if err == nil && (n < 2 || string(buf[:2]) != "OK") {
		return outcome{kind: Stopped, step: "answer", note: "it was refused"}
	}
	return stopped("answer", err)
}
