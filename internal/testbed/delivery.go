package testbed

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Deliveries records what got past a host's netfilter, its INPUT chain included, to where sockets are: whether or not
// anybody listens. The kernel hands packets to raw sockets right after that chain; see raw(7), raw_local_deliver in
// net/ipv4/ip_input.c and raw6_local_deliver in net/ipv6/ip6_input.c. What the host sends to itself is recorded as well.
type Deliveries struct {
	*recorder
	sockets []*deliverySocket

	closing sync.Once
	closed  error // what Close returns
}

// deliverySocket is the raw socket of one protocol.
type deliverySocket struct {
	proto uint8
	v6    bool
	file  *os.File
	done  chan struct{}
}

// protocol is an IP protocol of one family.
type protocol struct {
	number uint8
	v6     bool
}

// deliverable are the protocols of Host.Deliveries.
var deliverable = []protocol{
	{ProtoTCP, false}, {ProtoUDP, false}, {ProtoICMP, false}, {ProtoSCTP, false}, {ProtoGRE, false},
	{ProtoTCP, true}, {ProtoUDP, true}, {ProtoICMPv6, true}, {ProtoSCTP, true}, {ProtoGRE, true},
}

// Deliveries starts recording the packets that keep accepts, all of them if keep is nil, but never neighbour discovery.
// TCP, UDP, ICMP, SCTP and GRE are seen. As long as it is open the host does not answer SCTP and GRE with "unknown
// protocol", because there is a socket of the protocol. Close it.
func (h *Host) Deliveries(keep func(Packet) bool) (*Deliveries, error) {
	return h.deliveries(keep, deliverable)
}

func (h *Host) deliveries(keep func(Packet) bool, protocols []protocol) (*Deliveries, error) {
	d := &Deliveries{recorder: newRecorder(h, keep)}
	for _, p := range protocols {
		if err := d.open(p); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot record deliveries on %s: %w", h.name, err), d.Close())
		}
	}
	return d, nil
}

// open adds the socket of one protocol and starts to read it.
func (d *Deliveries) open(p protocol) error {
	s := &deliverySocket{proto: p.number, v6: p.v6, done: make(chan struct{})}
	err := d.host.Do(func() error {
		fd, err := rawSocket(p)
		if err == nil {
			s.file = os.NewFile(uintptr(fd), "deliveries-"+d.host.name)
		}
		return err
	})
	if err != nil {
		return err
	}
	conn, err := s.file.SyscallConn()
	if err != nil {
		return errors.Join(err, s.file.Close())
	}
	d.sockets = append(d.sockets, s)
	go d.read(s, conn)
	return nil
}

func rawSocket(p protocol) (int, error) {
	family := unix.AF_INET
	if p.v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(p.number))
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
	if err == nil && p.v6 { // IPv6 raw sockets give no header: the destination comes beside the packet
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// read takes packets until Close, and then what is still queued.
func (d *Deliveries) read(s *deliverySocket, conn syscall.RawConn) {
	defer close(s.done)
	var fatal error
	err := conn.Read(func(fd uintptr) bool {
		fatal = d.drain(s, int(fd))
		return fatal != nil
	})
	if errors.Is(err, os.ErrDeadlineExceeded) { // Close
		err = conn.Control(func(fd uintptr) { fatal = d.drain(s, int(fd)) })
	}
	d.fail(errors.Join(err, fatal))
}

// drain takes what is queued.
func (d *Deliveries) drain(s *deliverySocket, fd int) error {
	buf, oob := make([]byte, 2048), make([]byte, 128)
	fresh := false
	defer func() { d.tell(fresh) }()
	for {
		n, oobn, _, from, err := unix.Recvmsg(fd, buf, oob, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return fmt.Errorf("cannot read deliveries on %s: %w", d.host.name, err)
		}
		p, ok := s.packet(buf[:n], oob[:oobn], from)
		if ok && !p.neighbour() {
			fresh = d.add(p, buf[:n]) || fresh
		}
	}
}

// packet makes a Packet of what the socket gave. Pure.
func (s *deliverySocket) packet(b, oob []byte, from unix.Sockaddr) (Packet, bool) {
	if !s.v6 {
		return parsePacket(b)
	}
	sa, ok := from.(*unix.SockaddrInet6)
	dst, known := destination(oob)
	if !ok || !known {
		return Packet{}, false
	}
	p := Packet{Src: netip.AddrFrom16(sa.Addr), Dst: dst, Proto: s.proto}
	p.transport(b, len(b), true)
	return p, true
}

// destination finds the address a packet was for in its control messages (struct in6_pktinfo, ipv6(7)). Pure.
func destination(oob []byte) (netip.Addr, bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16 {
			return netip.AddrFrom16([16]byte(m.Data)), true
		}
	}
	return netip.Addr{}, false
}

// Close ends the recording. An error means that packets are missing from it; the recorded ones stay readable.
func (d *Deliveries) Close() error {
	d.closing.Do(func() {
		var errs []error
		for _, s := range d.sockets {
			errs = append(errs, d.end(s))
		}
		close(d.done)
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.lost > 0 {
			errs = append(errs, fmt.Errorf("cannot trust the deliveries on %s: %d packets were lost; send fewer at a time", d.host.name, d.lost))
		}
		d.closed = errors.Join(append(errs, d.err)...)
	})
	return d.closed
}

// end ends one socket and adds what the kernel had no room for to what was lost.
func (d *Deliveries) end(s *deliverySocket) error {
	conn, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	if err := s.file.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return errors.Join(err, s.file.Close())
	}
	<-s.done
	var drops uint32
	var statErr error
	err = conn.Control(func(fd uintptr) { drops, statErr = socketDrops(int(fd)) })
	d.mu.Lock()
	d.lost += drops
	d.mu.Unlock()
	return errors.Join(err, statErr, s.file.Close())
}

// socketDrops asks how many packets did not fit into a socket's queue: SK_MEMINFO_DROPS of SO_MEMINFO, see
// include/uapi/linux/sock_diag.h.
func socketDrops(fd int) (uint32, error) {
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("cannot ask a socket for its losses: %w", errno)
	}
	return info[8], nil
}

// protocolsOf lists the protocols of the probes whose deliveries can be recorded without a change of what the host answers:
// those that it has a handler for.
func protocolsOf(probes []Probe) []protocol {
	var list []protocol
	for _, p := range probes {
		has := p.Proto == ProtoTCP || p.Proto == ProtoUDP || p.Proto == ProtoICMP || p.Proto == ProtoICMPv6
		if q := (protocol{p.Proto, p.To.Is6()}); has && !slices.Contains(list, q) {
			list = append(list, q)
		}
	}
	return list
}
