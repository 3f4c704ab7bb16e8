package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// nftReceive is room for one datagram: the kernel's dumps come in pieces of
	// 32 KiB at most (netlink_dump in net/netlink/af_netlink.c).
	nftReceive = 40 << 10
	// nftFirst is room for what mostly comes: a short datagram, and the question
	// whether there is another.
	nftFirst = nftReceive + 8<<10
	// nftBuffers is room for the answers to one request and for the largest batch.
	nftBuffers = 4 << 20
)

// nftSocket speaks to nf_tables. The kernel works in the sender's time: when
// the send returns, the answers are there, so nothing here waits for one.
type nftSocket struct {
	fd     int
	port   uint32
	in     []byte // received and not yet given back; its memory is used again
	out    nftWriter
	unread bool // there may be answers left

	answer [512]byte // to the question for the generation, which each tick asks
}

func openNftSocket() (*nftSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("cannot open a netfilter socket: %w", err)
	}
	s := &nftSocket{fd: fd}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return s, nil
}

func (s *nftSocket) prepare() error {
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("cannot bind a netfilter socket: %w", err)
	}
	// Connected to the kernel, it takes no message from anybody else.
	if err := unix.Connect(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("cannot connect a netfilter socket: %w", err)
	}
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return fmt.Errorf("cannot read a netfilter socket's port: %w", err)
	}
	if nl, ok := name.(*unix.SockaddrNetlink); ok {
		s.port = nl.Pid
	}
	for _, o := range []struct{ level, option, value int }{
		{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, nftBuffers},
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, nftBuffers},
		{unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1}, // reasons in words
		{unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1}, // without our message in return
	} {
		if err := unix.SetsockoptInt(s.fd, o.level, o.option, o.value); err != nil {
			return fmt.Errorf("cannot set up a netfilter socket; it needs CAP_NET_ADMIN: %w", err)
		}
	}
	return nil
}

func (s *nftSocket) close() error {
	if err := unix.Close(s.fd); err != nil {
		return fmt.Errorf("cannot close the netfilter socket: %w", err)
	}
	return nil
}

// send sends what has been written. What an earlier request left unread, since
// it failed midway, is thrown away.
func (s *nftSocket) send(data []byte) error {
	if err := s.drain(); err != nil {
		return err
	}
	s.unread = true
	for {
		_, err := unix.Write(s.fd, data)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (s *nftSocket) drain() error {
	for s.unread {
		_, ok, err := s.receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		s.unread = ok || err != nil
	}
	return nil
}

// spare is free memory behind what has been received.
func (s *nftSocket) spare() []byte {
	if cap(s.in)-len(s.in) < nftReceive {
		grown := make([]byte, len(s.in), 2*cap(s.in)+nftFirst)
		copy(grown, s.in)
		s.in = grown // what was parsed keeps the old memory
	}
	return s.in[len(s.in) : len(s.in)+nftReceive]
}

// receive reads one datagram, which stays where it is until forget. False:
// there is none.
func (s *nftSocket) receive() ([]byte, bool, error) {
	for {
		n, err := unix.Read(s.fd, s.spare())
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			s.unread = false
			return nil, false, nil
		case err != nil:
			return nil, false, fmt.Errorf("cannot read the kernel's answer: %w", err)
		case n == nftReceive:
			return nil, false, errors.New("cannot read the kernel's answer: it is cut short")
		}
		start := len(s.in)
		s.in = s.in[:start+n]
		return s.in[start : start+n : start+n], true, nil
	}
}

// nftKept is how much memory is kept for the next answers: more than ours take.
const nftKept = 1 << 20

// forget gives the memory of all that has been received back.
func (s *nftSocket) forget() {
	s.in = s.in[:0]
	if cap(s.in) > nftKept { // somebody's thousands of rules
		s.in = nil
	}
}

// errNftAgain says that rules changed while they were being read.
var errNftAgain = errors.New("the rules changed meanwhile")

// request writes the request for a dump of all objects of a family.
func (s *nftSocket) request(command uint16, family uint8) {
	s.out.reset()
	s.out.end(s.out.command(command, unix.NLM_F_DUMP, family))
}

// dump sends the one request that has been written and calls each with every
// message of the answer.
func (s *nftSocket) dump(each func(nftMessage) error) error {
	if err := s.send(s.out.data); err != nil {
		return err
	}
	for {
		data, ok, err := s.receive()
		if err != nil {
			return err
		}
		if !ok {
			return errors.New("the kernel's answer is incomplete")
		}
		for len(data) > 0 {
			var m nftMessage
			if m, data, err = parseNftMessage(data); err != nil {
				return err
			}
			done, err := s.dumped(m, each)
			if done || err != nil {
				return err
			}
		}
	}
}

func (s *nftSocket) dumped(m nftMessage, each func(nftMessage) error) (done bool, err error) {
	if m.flags&unix.NLM_F_DUMP_INTR != 0 {
		return true, errNftAgain
	}
	if m.kind == unix.NLMSG_ERROR || m.kind == unix.NLMSG_DONE {
		s.unread = false
		if errno, _ := m.answer(); errno != 0 {
			return true, errno
		}
		return true, nil
	}
	return false, each(m)
}

// ask sends all the requests that have been written, none of them a dump, and
// calls each with every answer. A request for what is not there has none.
func (s *nftSocket) ask(each func(nftMessage) error) error {
	if err := s.send(s.out.data); err != nil {
		return err
	}
	for {
		data, ok, err := s.receive()
		if err != nil || !ok {
			return err
		}
		for len(data) > 0 {
			var m nftMessage
			if m, data, err = parseNftMessage(data); err != nil {
				return err
			}
			if m.kind != unix.NLMSG_ERROR {
				err = each(m)
			} else if errno, _ := m.answer(); errno != 0 && errno != unix.ENOENT {
				err = errno
			}
			if err != nil {
				return err
			}
		}
	}
}

// commit sends a batch. The last of its messages asks for an answer, which
// comes unless one has been refused before.
func (s *nftSocket) commit(batch []byte) error {
	if err := s.send(batch); err != nil {
		return err
	}
	var refused error
	answered := false
	for {
		data, ok, err := s.receive()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		for len(data) > 0 {
			var m nftMessage
			if m, data, err = parseNftMessage(data); err != nil {
				return err
			}
			if m.kind != unix.NLMSG_ERROR {
				continue
			}
			answered = true
			if errno, text := m.answer(); errno != 0 && refused == nil {
				refused = nftRefusal(errno, text)
			}
		}
	}
	if !answered {
		return errors.New("the kernel does not answer the batch")
	}
	return refused
}

func nftRefusal(errno unix.Errno, text string) error {
	switch {
	case errno == unix.ERESTART: // the rules are of another generation than the batch is for
		return errNftAgain
	case text != "":
		return fmt.Errorf("%w (%s)", errno, printable(text))
	}
	return errno
}

// generation asks for the number of the rules that are in force, for which the
// kernel takes no lock (NFNL_CB_RCU). It leaves what has been received alone.
func (s *nftSocket) generation() (uint32, error) {
	s.out.reset()
	s.out.end(s.out.command(unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC))
	err := s.drain()
	if err == nil {
		s.unread = true
		err = rawSend(s.fd, s.out.data)
	}
	n := 0
	if err == nil {
		n, err = rawReceive(s.fd, s.answer[:])
	}
	if err != nil {
		return 0, fmt.Errorf("cannot ask for the generation of the rules: %w", err)
	}
	s.unread = false // there is but one answer
	m, _, err := parseNftMessage(s.answer[:n])
	if err != nil {
		return 0, err
	}
	if m.kind == unix.NLMSG_ERROR {
		errno, _ := m.answer()
		return 0, fmt.Errorf("cannot ask for the generation of the rules: %w", errno)
	}
	return generationOf(m)
}

func generationOf(m nftMessage) (uint32, error) {
	value := nftAttr(m.body, unix.NFTA_GEN_ID)
	if m.kind != nftSubsystem<<8|unix.NFT_MSG_NEWGEN || len(value) != 4 {
		return 0, errors.New("the kernel's answer is not the generation of the rules")
	}
	return binary.BigEndian.Uint32(value), nil
}

// nftGeneration is the number of the rules that are in force in the calling
// thread's network namespace; each commit of anyone's raises it.
func nftGeneration() (uint32, error) {
	s, err := openNftSocket()
	if err != nil {
		return 0, err
	}
	generation, err := s.generation()
	return generation, errors.Join(err, s.close())
}
