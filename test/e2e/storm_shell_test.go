package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
)

// stormShell is a shell on the node that runs edits one after the other, which is cheaper than a new nsenter for each.
type stormShell struct {
	in  io.WriteCloser
	out *bufio.Reader
}

func (s *storm) shell(t *testing.T) *stormShell {
	t.Helper()
	cmd := s.node.Command(s.ctx, "sh")
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // of the last edit's result, which was seen
	})
	return &stormShell{in: in, out: bufio.NewReader(out)}
}

// run makes an edit to its end. Its process is known, since the kernel names it in the notification.
func (sh *stormShell) run(e *stormEdit) error {
	e.started = time.Now()
	if _, err := fmt.Fprintf(sh.in, "( %s\n) 2>&1 >/dev/null & echo \"pid $!\"; wait $!; echo \"code $?\"\n", e.script); err != nil {
		return err
	}
	for {
		line, err := sh.out.ReadString('\n')
		if err != nil {
			return fmt.Errorf("the shell ended during %q: %w", e.script, err)
		}
		if _, err := fmt.Sscanf(line, "pid %d\n", &e.pid); err == nil {
			continue
		}
		if _, err := fmt.Sscanf(line, "code %d\n", &e.code); err == nil {
			e.ended = time.Now()
			return nil
		}
		e.said += line
	}
}

// stormCommit is a change of the node's nf_tables rules.
type stormCommit struct {
	at      time.Time
	port    int // the committer's pid
	command string
}

// stormCommits hears of them. A thread with real-time priority takes the time, as soon as the kernel tells.
type stormCommits struct {
	stop atomic.Bool
	lost atomic.Int64
	done chan struct{}
	list []stormCommit // to be read when done is closed
}

const (
	stormCommitType = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	stormHeaders    = unix.NLMSG_HDRLEN + 4 // of netlink and nfnetlink
	stormPriority   = 10

	// stormProcs is GOMAXPROCS, more than the floods and what counts them keep busy: a goroutine that returns from the kernel
	// goes on, and takes the time, when one is free, whatever the priority of its thread.
	stormProcs = 16
)

func (s *storm) commits(t *testing.T) *stormCommits {
	t.Helper()
	procs := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(max(procs, stormProcs))
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	c := &stormCommits{done: make(chan struct{})}
	var fd int
	must(t, s.node.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
			unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, 7), // NFNLGRP_NFTABLES
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}))
	}))
	go c.receive(fd)
	return c
}

func (c *stormCommits) receive(fd int) {
	runtime.LockOSThread() // and never unlocked: the thread ends with its priority
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: stormPriority}, 0)
	defer close(c.done)
	defer unix.Close(fd)
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		at := time.Now()
		switch {
		case errors.Is(err, unix.EAGAIN) && c.stop.Load():
			return
		case errors.Is(err, unix.ENOBUFS):
			c.lost.Add(1)
		case err == nil:
			c.parse(buf[:n], at)
		}
	}
}

func (c *stormCommits) parse(data []byte, at time.Time) {
	for len(data) >= stormHeaders {
		size := int(binary.NativeEndian.Uint32(data))
		if size < stormHeaders || size > len(data) {
			return
		}
		if binary.NativeEndian.Uint16(data[4:]) == stormCommitType {
			c.list = append(c.list, stormCommit{at, int(binary.NativeEndian.Uint32(data[12:])), stormCommitter(data[stormHeaders:size])})
		}
		data = data[min((size+3)&^3, len(data)):]
	}
}

// stormCommitter is the attribute NFTA_GEN_PROC_NAME.
func stormCommitter(attrs []byte) string {
	for len(attrs) >= 4 {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < 4 || size > len(attrs) {
			return ""
		}
		if binary.NativeEndian.Uint16(attrs[2:]) == 3 {
			return strings.TrimRight(string(attrs[4:size]), "\x00")
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	return ""
}

// end returns what was heard.
func (c *stormCommits) end() ([]stormCommit, error) {
	c.stop.Store(true)
	<-c.done
	if n := c.lost.Load(); n > 0 {
		return nil, fmt.Errorf("notifications were lost %d times", n)
	}
	return c.list, nil
}

// stormArrivals records when packets of the floods that got past the node's rules had come to it: the kernel's time stamp
// is of the moment before the rules see them.
type stormArrivals struct {
	stop    atomic.Bool
	readers [4]*stormReader // of UDP and TCP, IPv4 and IPv6
}

type stormReader struct {
	proto, v6 int
	file      int
	done      chan struct{}
	at        []time.Time // to be read when done is closed
	err       error
}

func (s *storm) arrivals(t *testing.T) *stormArrivals {
	t.Helper()
	a := &stormArrivals{}
	for i := range a.readers {
		r := &stormReader{proto: [...]int{testbed.ProtoUDP, testbed.ProtoTCP}[i%2], v6: i / 2, done: make(chan struct{})}
		must(t, s.node.Do(func() (err error) {
			r.file, err = unix.Socket([...]int{unix.AF_INET, unix.AF_INET6}[r.v6], unix.SOCK_RAW|unix.SOCK_CLOEXEC, r.proto)
			if err != nil {
				return err
			}
			return errors.Join(
				unix.SetsockoptInt(r.file, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
				unix.SetsockoptInt(r.file, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
				unix.SetsockoptTimeval(r.file, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}))
		}))
		a.readers[i] = r
		go r.receive(a, s.sibling)
	}
	return a
}

func (r *stormReader) receive(a *stormArrivals, from *testbed.Host) {
	defer close(r.done)
	defer unix.Close(r.file)
	buf, oob := make([]byte, 2048), make([]byte, 256)
	for {
		n, oobn, _, sender, err := unix.Recvmsg(r.file, buf, oob, 0)
		switch {
		case errors.Is(err, unix.EAGAIN) && a.stop.Load():
			return
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil:
			r.err = err
			return
		case r.isFlood(buf[:n], sender, from):
			at, err := stormStamp(oob[:oobn])
			r.at, r.err = append(r.at, at), errors.Join(r.err, err)
		}
	}
}

// isFlood says whether a packet is one of the floods'.
func (r *stormReader) isFlood(data []byte, sender unix.Sockaddr, from *testbed.Host) bool {
	switch sa := sender.(type) {
	case *unix.SockaddrInet4:
		if sa.Addr != from.V4().As4() || len(data) < 20 {
			return false
		}
		data = data[min(len(data), int(data[0]&15)*4):]
	case *unix.SockaddrInet6:
		if sa.Addr != from.V6().As16() {
			return false
		}
	}
	if len(data) < 8 || binary.BigEndian.Uint16(data[2:]) != stormPort {
		return false
	}
	return r.proto == testbed.ProtoUDP || len(data) >= 20 && testbed.TCPFlags(data[13]) == testbed.SYN
}

func stormStamp(oob []byte) (time.Time, error) {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Time{}, err
	}
	for _, m := range list {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:]))), nil
		}
	}
	return time.Time{}, errors.New("a packet has no time stamp")
}

// end returns the times by family, and how many there are by reader.
func (a *stormArrivals) end() (times [2][]time.Time, counts [4]int, err error) {
	a.stop.Store(true)
	for i, r := range a.readers {
		<-r.done
		times[r.v6] = append(times[r.v6], r.at...)
		counts[i] = len(r.at)
		err = errors.Join(err, r.err)
	}
	return times, counts, err
}
