package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/elastic/go-libaudit/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

var (
	// ErrOff means that the kernel makes no records of netfilter changes now:
	// auditing is not enabled. It may be enabled later, and denied syscalls are
	// recorded without it.
	ErrOff = errors.New("auditing is not enabled in the kernel (auditctl -e 1 enables it)")
	// ErrElsewhere means that nothing will be heard here, not even of denied
	// syscalls.
	ErrElsewhere = errors.New("the kernel sends audit records to the first network namespace alone, and this is another")
	// ErrOverrun means that records were lost; watching goes on.
	ErrOverrun = errors.New("audit records were lost")
)

// Watcher hears of records. Next has a single caller at a time; Close may be
// called from another goroutine.
type Watcher struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	buf  []byte
}

const (
	socketBuffer = 1 << 20
	maxDrain     = 1 << 16 // messages at once, more than the socket holds
	maxRecord    = unix.NLMSG_HDRLEN + libaudit.AuditMessageMaxLength
)

// Watch joins the kernel's stream of audit records in the calling thread's
// network namespace. If it is not sure that changes of netfilter will be heard
// of, the error says why, and the Watcher is there all the same; ErrOff and
// ErrElsewhere tell that they will not. Needs CAP_AUDIT_READ and, to ask for the
// state, CAP_AUDIT_CONTROL, both in the first user namespace; Linux 3.16 or later.
func Watch() (*Watcher, error) {
	conn, err := netlink.Dial(unix.NETLINK_AUDIT, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot listen for audit records: %w", err)
	}
	w := &Watcher{conn: conn, buf: make([]byte, maxRecord)}
	if err := w.join(); err != nil {
		return nil, fmt.Errorf("cannot listen for audit records: %w", errors.Join(err, conn.Close()))
	}
	return w, enabled()
}

// join sets the filter before it joins, so that no other record gets in.
func (w *Watcher) join() (err error) {
	filter, err := recordFilter()
	if err != nil {
		return err
	}
	if err := w.conn.SetBPF(filter); err != nil {
		return fmt.Errorf("cannot filter records: %w", err)
	}
	if err := w.conn.SetReadBuffer(socketBuffer); err != nil {
		return fmt.Errorf("cannot size the socket: %w", err)
	}
	if err := w.conn.JoinGroup(unix.AUDIT_NLGRP_READLOG); err != nil {
		return fmt.Errorf("cannot join the group of readers; is CAP_AUDIT_READ missing? %w", err)
	}
	w.raw, err = w.conn.SyscallConn()
	return err
}

// recordFilter lets the three types through.
func recordFilter() ([]bpf.RawInstruction, error) {
	return bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 4, Size: 2}, // nlmsg_type
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: wire(TypeNetfilter), SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: wire(TypeSeccomp), SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: wire(TypeAVC), SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	})
}

// wire is a number in the host's byte order as the filter loads it, which is in
// the network's.
func wire(n uint16) uint32 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], n)
	return uint32(binary.BigEndian.Uint16(b[:]))
}

// firstNetworkOnly is a sysctl that no other network namespace has,
// net/core/sysctl_net_core.c.
const firstNetworkOnly = "/proc/sys/net/core/netdev_budget"

// enabled is nil if auditing is on, and here.
func enabled() error {
	if _, err := os.Stat(firstNetworkOnly); errors.Is(err, os.ErrNotExist) {
		return ErrElsewhere
	}
	client, err := libaudit.NewAuditClient(nil)
	if err != nil {
		return fmt.Errorf("cannot ask whether auditing is enabled: %w", err)
	}
	defer func() { _ = client.Close() }() // nothing was set
	status, err := client.GetStatus()
	if err != nil {
		return fmt.Errorf("cannot ask whether auditing is enabled; is CAP_AUDIT_CONTROL missing? %w", err)
	}
	if status.Enabled == 0 {
		return ErrOff
	}
	return nil
}

// Next waits for the next record. ErrOverrun is returned once for each overrun,
// and for a record that cannot be read.
func (w *Watcher) Next(ctx context.Context) (Record, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Record{}, err
		}
		n, err := w.receive(ctx)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			w.drain()
			return Record{}, ErrOverrun
		case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, unix.EINTR):
			continue // ctx, this one's or that of an earlier call
		case err != nil:
			return Record{}, fmt.Errorf("cannot hear of audit records: %w", err)
		case n < unix.NLMSG_HDRLEN:
			continue
		}
		// The header's length is not looked at: for a long time the kernel left itself out of it.
		r, ok, err := Parse(binary.NativeEndian.Uint16(w.buf[4:]), w.buf[unix.NLMSG_HDRLEN:n])
		switch {
		case err != nil:
			return Record{}, fmt.Errorf("%w: %w", ErrOverrun, err)
		case ok:
			r.receivedAt(time.Now())
			return r, nil
		}
	}
}

// receivedAt: only this clock is steady, and can be compared with other events.
func (r Record) receivedAt(now time.Time) {
	if r.Change != nil {
		r.Change.At = now
	}
	if r.Denial != nil {
		r.Denial.At = now
	}
	if r.AVC != nil {
		r.AVC.At = now
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
		var from unix.Sockaddr
		n, from, err = unix.Recvfrom(int(fd), w.buf, unix.MSG_DONTWAIT)
		if sender, ok := from.(*unix.SockaddrNetlink); err == nil && (!ok || sender.Pid != 0) {
			n = 0 // another process' claim
		}
		return !errors.Is(err, unix.EAGAIN)
	})
	if readErr != nil {
		return 0, readErr
	}
	return n, err
}

// drain empties the socket after an overrun: until it is empty the kernel drops
// what comes without another word.
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
