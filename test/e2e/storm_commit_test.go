package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stormCommit is a change of the node's nf_tables rules.
type stormCommit struct {
	at      time.Time
	port    int // the committer's pid
	command string
}

// stormCommits hears of them in a process of its own, which does nothing else: there, a thread with real-time priority
// takes the time as soon as the kernel tells, however busy the test is.
type stormCommits struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
}

const (
	stormCommitType = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	stormHeaders    = unix.NLMSG_HDRLEN + 4 // of netlink and nfnetlink
	stormPriority   = 10
	stormListens    = "listens\n"

	// stormObserverEnv makes the test program such a process.
	stormObserverEnv = "PGHARDEND_STORM_OBSERVER"
)

func (s *storm) commits(t *testing.T) *stormCommits {
	t.Helper()
	c := &stormCommits{cmd: s.node.Command(s.ctx, fmt.Sprintf("/proc/%d/exe", os.Getpid()))}
	c.cmd.Env = append(c.cmd.Env, stormObserverEnv+"=1")
	in, err := c.cmd.StdinPipe()
	must(t, err)
	out, err := c.cmd.StdoutPipe()
	must(t, err)
	c.cmd.Stderr = os.Stderr
	must(t, c.cmd.Start())
	c.in, c.out = in, bufio.NewReader(out)
	if line, err := c.out.ReadString('\n'); err != nil || line != stormListens {
		t.Fatalf("the observer says %q: %v", line, err)
	}
	return c
}

// end returns what was heard.
func (c *stormCommits) end() ([]stormCommit, error) {
	if err := c.in.Close(); err != nil {
		return nil, err
	}
	var list []stormCommit
	for {
		line, err := c.out.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return list, c.cmd.Wait()
		}
		if err != nil {
			return nil, err
		}
		var at int64
		var e stormCommit
		if _, err := fmt.Sscanf(line, "%d %d %q\n", &at, &e.port, &e.command); err != nil {
			return nil, fmt.Errorf("the observer says %q: %w", line, err)
		}
		e.at = time.Unix(0, at)
		list = append(list, e)
	}
}

// observeStorm is the observer. It says what it heard when its standard input ends.
func observeStorm() int {
	if err := stormObserver(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot observe commits:", err)
		return 1
	}
	return 0
}

func stormObserver() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, 7), // NFNLGRP_NFTABLES
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
		unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: stormPriority}, 0))
	if err != nil {
		return err
	}
	fmt.Print(stormListens)
	var stop atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop.Store(true)
	}()
	var list []stormCommit
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		at := time.Now()
		switch {
		case errors.Is(err, unix.EAGAIN) && stop.Load():
			for _, e := range list {
				fmt.Printf("%d %d %q\n", e.at.UnixNano(), e.port, e.command)
			}
			return nil
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil: // ENOBUFS: notifications were lost
			return err
		default:
			list = append(list, stormParse(buf[:n], at)...)
		}
	}
}

func stormParse(data []byte, at time.Time) (list []stormCommit) {
	for len(data) >= stormHeaders {
		size := int(binary.NativeEndian.Uint32(data))
		if size < stormHeaders || size > len(data) {
			return list
		}
		if binary.NativeEndian.Uint16(data[4:]) == stormCommitType {
			list = append(list, stormCommit{at, int(binary.NativeEndian.Uint32(data[12:])), stormCommitter(data[stormHeaders:size])})
		}
		data = data[min((size+3)&^3, len(data)):]
	}
	return list
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
