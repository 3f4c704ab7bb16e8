package firewall

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawSend and rawReceive are send(2) and recv(2) on a netlink socket for what the
// kernel answers at once. Neither waits for the other end, so Go's runtime is not
// told of the call: it would wake up the thread that watches over calls that wait.
func rawSend(fd int, data []byte) error {
	_, err := raw(unix.SYS_SENDTO, fd, data)
	return err
}

func rawReceive(fd int, buf []byte) (int, error) { return raw(unix.SYS_RECVFROM, fd, buf) }

func raw(call uintptr, fd int, buf []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
