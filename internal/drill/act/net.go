package act

import (
	"strconv"
	"syscall"
	"unsafe"
)

func pointer(b *[1]byte) uintptr { return uintptr(unsafe.Pointer(b)) }

// endpoint reads ADDRESS PORT, the address as a list of numbers: package net would
// be initialised too late.
func (a arguments) endpoint() (family int, sa syscall.Sockaddr) {
	var bytes []byte
	for rest := a.word(0); rest != ""; {
		at := 0
		for at < len(rest) && rest[at] != '.' {
			at++
		}
		n, err := strconv.ParseUint(rest[:at], 10, 8)
		if err != nil {
			return 0, nil
		}
		bytes = append(bytes, byte(n))
		rest = rest[min(at+1, len(rest)):]
	}
	if len(bytes) == 4 {
		return syscall.AF_INET, &syscall.SockaddrInet4{Addr: [4]byte(bytes), Port: a.number(1)}
	}
	if len(bytes) == 16 {
		return syscall.AF_INET6, &syscall.SockaddrInet6{Addr: [16]byte(bytes), Port: a.number(1)}
	}
	return 0, nil
}

// Events of poll(2).
const (
	readable = 0x1
	writable = 0x4
)

// tcp connects.
func tcp(a arguments) outcome {
	family, sa := a.endpoint()
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return stopped("socket", err)
	}
	if err := syscall.Connect(fd, sa); err != nil && err != syscall.EINPROGRESS {
		return stopped("connect", err)
	}
	if !ready(fd, writable) {
		return stopped("answer", syscall.ETIMEDOUT)
	}
	code, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ERROR)
	if err != nil {
		return stopped("getsockopt", err)
	}
	return stopped("answer", syscall.Errno(code))
}

// udp sends a datagram to where it is echoed.
func udp(a arguments) outcome {
	family, sa := a.endpoint()
	fd, err := syscall.Socket(family, syscall.SOCK_DGRAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return stopped("socket", err)
	}
	if err := syscall.Sendto(fd, []byte("drill"), 0, sa); err != nil {
		return stopped("sendto", err)
	}
	if !ready(fd, readable) {
		return stopped("answer", syscall.ETIMEDOUT)
	}
	var buf [16]byte
	_, _, err = syscall.Recvfrom(fd, buf[:], 0)
	return stopped("answer", err)
}

// patience is how long an answer from the network may take, in seconds.
const patience = 1

// ready waits for an event, an error of the socket included, ppoll(2).
func ready(fd int, events int16) bool {
	list := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: events}
	for {
		left := syscall.Timespec{Sec: patience}
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&list)), 1, uintptr(unsafe.Pointer(&left)), 0, 0, 0)
		if errno != syscall.EINTR {
			return errno == 0 && n > 0
		}
	}
}

// unixSocket connects to a path, or to an abstract socket after @.
func unixSocket(a arguments) outcome {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return stopped("socket", err)
	}
	return stopped("connect", syscall.Connect(fd, &syscall.SockaddrUnix{Name: a.word(0)}))
}
