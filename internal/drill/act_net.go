package drill

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

func pointer(b *[1]byte) uintptr { return uintptr(unsafe.Pointer(b)) }

// endpoint reads address and port; sa is nil if they are none.
func (arg argument) endpoint() (family int, sa unix.Sockaddr) {
	at, err := netip.ParseAddrPort(arg(0))
	if err != nil {
		return 0, nil
	}
	if at.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
}

// tcp connects.
func tcp(arg argument) outcome {
	family, sa := arg.endpoint()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return stopped("socket", err)
	}
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS { //nolint:errorlint // a bare errno
		return stopped("connect", err)
	}
	if !ready(fd, unix.POLLOUT) {
		return stopped("answer", unix.ETIMEDOUT)
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return stopped("getsockopt", err)
	}
	if code != 0 {
		return stopped("answer", unix.Errno(code))
	}
	return reached
}

// udp sends a datagram to where it is echoed.
func udp(arg argument) outcome {
	family, sa := arg.endpoint()
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return stopped("socket", err)
	}
	if err := unix.Sendto(fd, []byte("drill"), 0, sa); err != nil {
		return stopped("sendto", err)
	}
	if !ready(fd, unix.POLLIN) {
		return stopped("answer", unix.ETIMEDOUT)
	}
	var buf [16]byte
	_, _, err = unix.Recvfrom(fd, buf[:], 0)
	return stopped("answer", err)
}

// ready waits for an event, an error of the socket included.
func ready(fd int, events int16) bool {
	list := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(list, int(patience.Milliseconds()))
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		return n > 0 && err == nil
	}
}

func abstract(arg argument) outcome { return connectUnix("@" + arg(0)) }

func pathSocket(arg argument) outcome { return connectUnix(arg(0)) }

func connectUnix(name string) outcome {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return stopped("socket", err)
	}
	return stopped("connect", unix.Connect(fd, &unix.SockaddrUnix{Name: name}))
}
