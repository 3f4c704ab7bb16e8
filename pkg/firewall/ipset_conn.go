package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// setAccessError: sets cannot be read and written this way, for a reason.
type setAccessError struct{ reason error }

func (e setAccessError) Error() string { return e.reason.Error() }
func (e setAccessError) Unwrap() error { return e.reason }

const (
	// ipsetTimeout bounds the wait for an answer. The kernel answers while it takes
	// the request; what it may wait for is another writer of sets.
	ipsetTimeout = 5 * time.Second
	// ipsetReceive holds more than the kernel puts into one answer: 32 KiB of a
	// dump, or a refused request as it was sent.
	ipsetReceive = 64 << 10
	// ipsetReceiveSmall is for dumps alone. The kernel makes its messages as large as
	// the buffer that it sees, which for small sets costs more than it saves.
	ipsetReceiveSmall = 8 << 10
	// ipsetBatch is up to which size entries are put into one message.
	ipsetBatch = 32 << 10
)

// ipsetConn speaks ipset's protocol on a socket of its own, for one goroutine.
// The socket is a file, so that one which is forgotten gets closed.
//
// A swift one is for looks in each tick: see rawSend. What its requests may have
// to wait for is another writer of sets, which is some 10 ms when a set is removed.
type ipsetConn struct {
	file     *os.File
	fd       int // of file
	swift    bool
	seq      uint32
	protocol byte
	out      ipsetMessage
	in       []byte
	revision map[string]byte // of types, by name and family
}

// openIpset opens a socket in the calling thread's network namespace and agrees
// on the version of the protocol. size is the buffer's, one of ipsetReceive….
func openIpset(size int) (*ipsetConn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, setAccessError{fmt.Errorf("cannot open a netlink socket: %w", err)}
	}
	c := &ipsetConn{file: os.NewFile(uintptr(fd), "netlink"), fd: fd, protocol: ipsetProtocolMin, in: make([]byte, size), revision: map[string]byte{}}
	tv := unix.NsecToTimeval(ipsetTimeout.Nanoseconds())
	// Connected to the kernel, it takes no message from anybody else.
	err = errors.Join(unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	if err == nil {
		err = c.negotiate()
	}
	if err != nil {
		c.close()
		return nil, setAccessError{fmt.Errorf("cannot reach ipset by netlink; is the module ip_set or CAP_NET_ADMIN missing? %w", err)}
	}
	return c, nil
}

// negotiate picks the highest version that both sides speak.
func (c *ipsetConn) negotiate() error {
	high, low := byte(ipsetProtocolMin), byte(0)
	c.begin(nl.IPSET_CMD_PROTOCOL, 0)
	err := c.request(func(payload []byte) error {
		var a ipsetAttrs
		err := a.read(payload)
		high = byte(a.number(nl.IPSET_ATTR_PROTOCOL))
		if low = high; a[nl.IPSET_ATTR_PROTOCOL_MIN] != nil {
			low = byte(a.number(nl.IPSET_ATTR_PROTOCOL_MIN))
		}
		return err
	})
	if err != nil {
		return err
	}
	if low > ipsetProtocolMax || high < ipsetProtocolMin {
		return fmt.Errorf("the kernel speaks versions %d to %d of ipset's protocol, pghardend %d and %d", low, high, ipsetProtocolMin, ipsetProtocolMax)
	}
	c.protocol = min(high, ipsetProtocolMax)
	return nil
}

func (c *ipsetConn) close() { c.file.Close() }

// begin starts the next message.
func (c *ipsetConn) begin(cmd int, flags uint16) {
	c.seq++
	c.out.begin(cmd, flags|unix.NLM_F_ACK, c.seq, c.protocol)
}

// request sends the message and hands on each answer's payload, which is good
// until each returns, up to the last. It allocates nothing of its own.
func (c *ipsetConn) request(each func(payload []byte) error) error {
	if err := c.send(c.out.end()); err != nil {
		return unwrapPath(err)
	}
	var failed error
	for {
		n, err := c.receive()
		if errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("no answer from the kernel within %v", ipsetTimeout)
		}
		if err != nil {
			return unwrapPath(err)
		}
		for rest := c.in[:n]; len(rest) > 0; {
			if len(rest) < unix.NLMSG_HDRLEN {
				return errIpsetMessage
			}
			size := int(binary.NativeEndian.Uint32(rest))
			if size < unix.NLMSG_HDRLEN || size > len(rest) {
				return errIpsetMessage
			}
			kind, seq := binary.NativeEndian.Uint16(rest[4:]), binary.NativeEndian.Uint32(rest[8:])
			msg := rest[:size]
			rest = rest[min(len(rest), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
			switch {
			case seq != c.seq: // of a request that was given up
			case kind == unix.NLMSG_ERROR || kind == unix.NLMSG_DONE:
				return errors.Join(failed, ipsetStatus(msg))
			case len(msg) >= ipsetHeaders && failed == nil && each != nil:
				failed = each(msg[ipsetHeaders:])
			}
		}
	}
}

func (c *ipsetConn) send(data []byte) error {
	if c.swift {
		return rawSend(c.fd, data)
	}
	_, err := c.file.Write(data)
	return err
}

func (c *ipsetConn) receive() (int, error) {
	if c.swift {
		if n, err := rawReceive(c.fd, c.in); !errors.Is(err, unix.EAGAIN) {
			return n, err
		}
	}
	return c.file.Read(c.in)
}

// ipsetStatus is the error in an answer that ends a request, nil if it is none.
func ipsetStatus(msg []byte) error {
	if len(msg) < unix.NLMSG_HDRLEN+4 {
		return errIpsetMessage
	}
	n := -int32(binary.NativeEndian.Uint32(msg[unix.NLMSG_HDRLEN:]))
	if n == 0 {
		return nil
	}
	err := setError{errno: int(n)}
	if at := unix.NLMSG_HDRLEN + 4 + ipsetHeaders; len(msg) > at { // what was refused
		var a ipsetAttrs
		if a.read(msg[at:]) == nil {
			err.line = int(a.number(nl.IPSET_ATTR_LINENO))
		}
	}
	return err
}

// unwrapPath is an error of the socket without the file's name.
func unwrapPath(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// setError is what the kernel says to a request.
type setError struct {
	errno int
	line  int // number of the entry that it is about, 0 if it is about none
}

func (e setError) Unwrap() error {
	if e.errno < nl.IPSET_ERR_PRIVATE {
		return unix.Errno(e.errno)
	}
	return nil
}

// The kernel's error numbers of hash types, which the library does not have.
const (
	ipsetErrHashFull = nl.IPSET_ERR_TYPE_SPECIFIC
	ipsetErrHashElem = nl.IPSET_ERR_TYPE_SPECIFIC + 1
)

// setErrors are causes and fixes.
var setErrors = map[int]string{
	int(unix.ENOENT):            "there is no such set; somebody has removed or renamed it",
	int(unix.EEXIST):            "there is a set of that name already; somebody else has made it",
	int(unix.ENOMEM):            "the kernel has no memory for it",
	nl.IPSET_ERR_PROTOCOL:       "the kernel does not understand the request; its version is not supported",
	nl.IPSET_ERR_FIND_TYPE:      "the kernel has no such type of set; install or allow its module ip_set_hash_net, and ip_set_hash_netport",
	nl.IPSET_ERR_MAX_SETS:       "the kernel holds no more sets; remove some that nobody uses, or raise max_sets of the module ip_set",
	nl.IPSET_ERR_BUSY:           "the set is in use",
	nl.IPSET_ERR_REFERENCED:     "the set is in use",
	nl.IPSET_ERR_EXIST_SETNAME2: "there is no second set; somebody has removed or renamed it", // in a swap
	nl.IPSET_ERR_EXIST:          "the member is there already, or is not there to be deleted; somebody else is changing the set",
	nl.IPSET_ERR_TYPE_MISMATCH:  "the two sets are of different types; somebody has replaced one",
	nl.IPSET_ERR_TIMEOUT:        "the set was made without times for its members; somebody has replaced it",
	ipsetErrHashFull:            fmt.Sprintf("the set is full; it was made for fewer than %d members", setMaxEntries),
	ipsetErrHashElem:            "the kernel does not take this member",
}

func (e setError) Error() string {
	if text, ok := setErrors[e.errno]; ok {
		return text
	}
	if e.errno < nl.IPSET_ERR_PRIVATE {
		return unix.Errno(e.errno).Error()
	}
	return fmt.Sprintf("the kernel's ipset says error %d; compare with ip_set.h", e.errno)
}
