package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrOverrun means that commits were lost: the kernel had more to say than the
// socket could hold. The rules have to be looked at; watching goes on.
var ErrOverrun = errors.New("notifications of rule changes were lost")

// Commit is one change of this network namespace's nf_tables rules, by anyone.
// Legacy iptables' changes are none: the kernel does not announce them.
type Commit struct {
	Generation uint32
	At         time.Time // when it was received
	PID        int       // of the committing thread as the kernel's first pid namespace counts; 0 if unknown
	Port       uint32    // the committer's netlink port: mostly its pid, as its own pid namespace counts
	Command    string    // its name, at most 15 bytes, of any content

	firstPIDs bool // we live in that first pid namespace
}

// Process is the committer's pid as this process counts, for a look at /proc;
// a guess in a pid namespace of our own, and 0 if unknown.
func (c Commit) Process() int {
	if c.firstPIDs || c.PID == 0 {
		return c.PID
	}
	return int(c.Port)
}

// Watcher hears of commits. Next has a single caller at a time; Close may be
// called from another goroutine.
type Watcher struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	buf  []byte

	firstPIDs bool
}

const (
	// eventGroup is NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h.
	eventGroup = 7
	// eventBuffer is the socket's: some 5,000 commits while nobody reads.
	eventBuffer = 2 << 20
	// maxDrain is more messages than the socket holds.
	maxDrain = 1 << 16
	// eventSize is enough for one message of the kind: some 60 bytes.
	eventSize = 4096
)

// WatchCommits begins to listen in the calling thread's network namespace.
// Needs CAP_NET_ADMIN; Linux 4.16 or later names the committer.
func WatchCommits() (*Watcher, error) {
	w, err := watchCommits(eventBuffer)
	if err != nil {
		return nil, fmt.Errorf("cannot listen for rule changes: %w", err)
	}
	return w, nil
}

func watchCommits(buffer int) (*Watcher, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	w := &Watcher{conn: conn, buf: make([]byte, eventSize), firstPIDs: inFirstPIDs()}
	if err := w.join(buffer); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return w, nil
}

// firstPIDNamespace is PROC_PID_INIT_INO of linux/proc_ns.h.
const firstPIDNamespace = "pid:[4026531836]"

func inFirstPIDs() bool {
	name, err := os.Readlink("/proc/self/ns/pid")
	return err == nil && name == firstPIDNamespace
}

// join sets the filter before it joins, so that no other message gets in.
func (w *Watcher) join(buffer int) (err error) {
	filter, err := generationFilter()
	if err != nil {
		return err
	}
	if err := w.conn.SetBPF(filter); err != nil {
		return fmt.Errorf("cannot filter messages: %w", err)
	}
	if err := w.conn.SetReadBuffer(buffer); err != nil {
		return fmt.Errorf("cannot size the socket: %w", err)
	}
	if err := w.conn.JoinGroup(eventGroup); err != nil {
		return fmt.Errorf("cannot join the group of nf_tables; is the kernel without it, or CAP_NET_ADMIN missing? %w", err)
	}
	w.raw, err = w.conn.SyscallConn()
	return err
}

// Next waits for the next commit. ErrOverrun is returned once for each overrun.
func (w *Watcher) Next(ctx context.Context) (Commit, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Commit{}, err
		}
		n, err := w.receive(ctx)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			w.drain()
			return Commit{}, ErrOverrun
		case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, unix.EINTR):
			continue // ctx, this one's or that of an earlier call
		case err != nil:
			return Commit{}, fmt.Errorf("cannot hear of rule changes: %w", err)
		}
		if c, ok := parseCommit(w.buf[:n]); ok {
			c.At, c.firstPIDs = time.Now(), w.firstPIDs
			return c, nil
		}
	}
}

// receive reads one message into the buffer; 0 bytes if it is not the kernel's.
func (w *Watcher) receive(ctx context.Context) (n int, err error) {
	if err := w.conn.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.conn.SetReadDeadline(time.Unix(1, 0)) }) // fails if it is closed, which ends the read too
	defer stop()
	readErr := w.raw.Read(func(fd uintptr) bool {
		n, err = receiveFromKernel(int(fd), w.buf)
		return !errors.Is(err, unix.EAGAIN)
	})
	if readErr != nil {
		return 0, readErr
	}
	return n, err
}

func receiveFromKernel(fd int, buf []byte) (int, error) {
	n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
	if err != nil {
		return 0, err
	}
	if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
		return 0, nil // another process' claim
	}
	return n, nil
}

// drain empties the socket after an overrun. Until it is empty the kernel
// drops what comes without another word, so a look that began before this would
// miss it.
func (w *Watcher) drain() {
	_ = w.raw.Read(func(fd uintptr) bool { // closed: the next call says so
		for range maxDrain {
			_, _, err := unix.Recvfrom(int(fd), w.buf, unix.MSG_DONTWAIT)
			if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
				break
			}
		}
		return true
	})
}

// Close ends the watch; a Next that waits returns an error.
func (w *Watcher) Close() error { return w.conn.Close() }

// Message types and attributes, linux/netfilter/nf_tables.h.
const (
	msgNewGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN

	attrGenID   = 1 // NFTA_GEN_ID, big-endian
	attrGenPID  = 2 // NFTA_GEN_PROC_PID, big-endian
	attrGenName = 3 // NFTA_GEN_PROC_NAME

	nfHeader = 4 // struct nfgenmsg
)

// parseCommit reads a datagram. ok is false if there is no commit in it.
func parseCommit(data []byte) (_ Commit, ok bool) {
	for len(data) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(data))
		if size < unix.NLMSG_HDRLEN || size > len(data) {
			return Commit{}, false
		}
		if binary.NativeEndian.Uint16(data[4:]) == msgNewGeneration && size >= unix.NLMSG_HDRLEN+nfHeader {
			c := Commit{Port: binary.NativeEndian.Uint32(data[12:])}
			if c.attributes(data[unix.NLMSG_HDRLEN+nfHeader : size]) {
				return c, true
			}
			return Commit{}, false
		}
		data = data[min(len(data), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return Commit{}, false
}

// attributes says whether they name a generation.
func (c *Commit) attributes(data []byte) (ok bool) {
	attrs, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return false
	}
	attrs.ByteOrder = binary.BigEndian
	for attrs.Next() {
		switch attrs.Type() {
		case attrGenID:
			c.Generation, ok = attrs.Uint32(), true
		case attrGenPID:
			c.PID = int(int32(attrs.Uint32())) //nolint:gosec // as the kernel has it
		case attrGenName:
			c.Command = attrs.String()
		}
	}
	return ok && attrs.Err() == nil
}

// Own says whether the commit was made by a command that f executed or by its
// Reflex. Several goroutines may ask.
func (f *Firewall) Own(c Commit) bool { return f.own.has(c) }
