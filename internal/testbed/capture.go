package testbed

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socketBuffer is how many bytes the kernel may queue for a probe's socket, so that bursts are counted whole.
const socketBuffer = 32 << 20

// Capture records the packets on a host's interface: arriving ones before netfilter sees them, leaving ones after.
// See packet(7).
type Capture struct {
	*recorder
	file *os.File
	only map[int]bool // interface indexes; nil: the socket is bound to the one

	closing sync.Once
	closed  error // what Close returns
}

// Capture starts recording the packets that keep accepts, all of them if keep is nil. On the router it records the bridges'
// own interfaces: what the router sends, gets and forwards, the last on its way in and on its way out. Close it.
func (h *Host) Capture(keep func(Packet) bool) (*Capture, error) { return h.capture(keep, false) }

// capture with arriving true records arriving packets alone, which is cheaper by half.
func (h *Host) capture(keep func(Packet) bool, arriving bool) (*Capture, error) {
	c := &Capture{recorder: newRecorder(h, keep)}
	err := h.Do(func() error {
		fd, err := c.socket(arriving)
		if err != nil {
			return fmt.Errorf("cannot capture on %s: %w", h.name, err)
		}
		c.file = os.NewFile(uintptr(fd), "capture-"+h.name)
		return nil
	})
	if err != nil {
		return nil, err
	}
	conn, err := c.file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, c.file.Close())
	}
	go c.read(conn)
	return c, nil
}

// socket opens the packet socket; it receives nothing before it is bound, so that no packet of another interface gets in.
func (c *Capture) socket(arriving bool) (int, error) {
	index, err := c.interfaces()
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
	if err == nil && arriving {
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian16(unix.ETH_P_ALL), Ifindex: index})
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// interfaces returns the interface to bind to, or 0 and fills in only.
func (c *Capture) interfaces() (int, error) {
	nl := c.host.netlink
	if c.host != c.host.bed.router {
		nic, err := nl.LinkByName(nicName)
		if err != nil {
			return 0, err
		}
		return nic.Attrs().Index, nil
	}
	links, err := nl.LinkList()
	if err != nil {
		return 0, err
	}
	c.only = map[int]bool{}
	for _, l := range links {
		if l.Type() == "bridge" {
			c.only[l.Attrs().Index] = true
		}
	}
	return 0, nil
}

func bigEndian16(v uint16) uint16 { return v<<8 | v>>8 }

// read takes packets until Close, and then what is still queued: a busy machine must not hide what has arrived.
func (c *Capture) read(conn syscall.RawConn) {
	defer close(c.done)
	var fatal error
	err := conn.Read(func(fd uintptr) bool {
		fatal = c.drain(int(fd))
		return fatal != nil
	})
	if errors.Is(err, os.ErrDeadlineExceeded) { // Close
		err = conn.Control(func(fd uintptr) { fatal = c.drain(int(fd)) })
	}
	c.fail(errors.Join(err, fatal))
}

// drain takes what is queued.
func (c *Capture) drain(fd int) error {
	buf := make([]byte, 2048)
	fresh := false
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENETDOWN):
			c.tell(fresh)
			return nil
		case err != nil:
			c.tell(fresh)
			return fmt.Errorf("cannot read packets on %s: %w", c.host.name, err)
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok || c.only != nil && !c.only[ll.Ifindex] {
			continue
		}
		if p, ok := parsePacket(buf[:n]); ok {
			p.Out = ll.Pkttype == unix.PACKET_OUTGOING
			fresh = c.add(p, buf[:n]) || fresh
		}
	}
}

// Close ends the capture. An error means that packets are missing from it; the recorded ones stay readable.
func (c *Capture) Close() error {
	c.closing.Do(func() { c.closed = c.end() })
	return c.closed
}

func (c *Capture) end() error {
	conn, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	if err := c.file.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return errors.Join(err, c.file.Close())
	}
	<-c.done
	var stats *unix.TpacketStats
	var statErr error
	err = conn.Control(func(fd uintptr) {
		stats, statErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err := errors.Join(err, statErr, c.file.Close(), c.err); err != nil {
		return err
	}
	if lost := c.lost + stats.Drops; lost > 0 {
		return fmt.Errorf("cannot trust the capture on %s: %d packets were lost; send fewer at a time", c.host.name, lost)
	}
	return nil
}
