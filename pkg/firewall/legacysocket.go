package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacyLayout is how a family's entries lie in memory: struct ipt_entry and
// struct ip6t_entry of include/uapi/linux/netfilter_ipv{4,6}/ip*_tables.h.
type legacyLayout struct {
	domain, level int
	namesFile     string // in /proc/PID/net with the tables there are
	targetOffset  int    // __u16, followed by next_offset
	counters      int    // packets and bytes, the last of the head
	head          int
}

var legacyLayouts = [...]legacyLayout{
	IPv4: {unix.AF_INET, unix.SOL_IP, "ip_tables_names", 88, 96, 112},
	IPv6: {unix.AF_INET6, unix.SOL_IPV6, "ip6_tables_names", 140, 152, 168},
}

// legacySocket reads the blobs of one family's tables.
type legacySocket struct {
	*legacyLayout
	fd    int
	names *os.File // nil until the kernel has the module
	list  []byte
	buf   []byte
}

// openLegacy returns nil for a family that the kernel does not have.
func openLegacy(fam Family) (*legacySocket, error) {
	layout := &legacyLayouts[fam]
	// Any socket of the family will do, and one for datagrams gets no packets.
	fd, err := unix.Socket(layout.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil //nolint:nilnil // a family that is not there has no tables
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open a socket: %w", err)
	}
	return &legacySocket{legacyLayout: layout, fd: fd, list: make([]byte, 1024)}, nil
}

func (s *legacySocket) close() error {
	err := unix.Close(s.fd)
	if s.names != nil {
		err = errors.Join(err, s.names.Close())
	}
	return err
}

// tables are the names of the family's tables, each with a newline. Only these
// may be asked for: the kernel would load and create any other at the question.
func (s *legacySocket) tables() ([]byte, error) {
	if s.names == nil {
		file, err := os.Open("/proc/thread-self/net/" + s.namesFile)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list the legacy tables: %w", err)
		}
		s.names = file
	}
	n, err := s.names.ReadAt(s.list, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot list the legacy tables: %w", err)
	}
	return s.list[:n], nil
}

// read gets a table's blob, which is valid until the next call.
func (s *legacySocket) read(table string) (legacyBlob, error) {
	var err error
	for range legacyTries {
		var b legacyBlob
		if b, err = s.readOnce(table); !errors.Is(err, unix.EAGAIN) {
			return b, err
		}
	}
	return legacyBlob{}, err
}

// legacyTries: a table whose size changes between the two questions is read again.
const legacyTries = 3

// Options of getsockopt, include/uapi/linux/netfilter_ipv{4,6}/ip*_tables.h.
const (
	legacyGetInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	legacyGetEntries = 65 // IPT_SO_GET_ENTRIES, IP6T_SO_GET_ENTRIES

	legacyInfoSize = 84 // struct ipt_getinfo
	legacyHeadSize = 40 // struct ipt_get_entries without its entries
	legacyNameSize = 32 // XT_TABLE_MAXNAMELEN
	legacyHooks    = unix.NF_INET_NUMHOOKS
)

func (s *legacySocket) readOnce(table string) (legacyBlob, error) {
	s.buf = append(s.buf[:0], make([]byte, legacyInfoSize)...)
	copy(s.buf[:legacyNameSize-1], table)
	if err := s.getsockopt(legacyGetInfo, s.buf); err != nil {
		return legacyBlob{}, fmt.Errorf("cannot ask for the legacy table %s: %w", table, err)
	}
	b, size := newLegacyBlob(s.legacyLayout, s.buf)
	s.buf = slices.Grow(s.buf[:0], legacyHeadSize+size)[:legacyHeadSize+size]
	clear(s.buf) // the kernel leaves out the padding between matches
	copy(s.buf[:legacyNameSize-1], table)
	binary.NativeEndian.PutUint32(s.buf[legacyNameSize:], uint32(size))
	if err := s.getsockopt(legacyGetEntries, s.buf); err != nil {
		return legacyBlob{}, fmt.Errorf("cannot read the legacy table %s: %w", table, err)
	}
	b.entries = s.buf[legacyHeadSize:]
	return b, nil
}

func (s *legacySocket) getsockopt(option uintptr, buf []byte) error {
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), uintptr(s.level), option,
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
