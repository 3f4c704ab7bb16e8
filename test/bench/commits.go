package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
)

// A commit is one change of a host's nf_tables rules.
type commit struct {
	at      time.Time
	command string // of the thread that committed
}

// ours says whether the daemon committed, or a command that it executed.
func (c commit) ours() bool {
	return c.command == "pghardend" || c.command == "iptables-nft-re" || c.command == "ip6tables-nft-r"
}

// commits are told by the kernel to a socket of the bench's own.
type commits struct {
	fd    int
	seen  chan commit
	lost  atomic.Uint64 // more than the socket's buffer held
	procs int           // GOMAXPROCS as it was before
}

const (
	groupNFTables = 7               // NFNLGRP_NFTABLES
	newGeneration = 10<<8 | 15      // NFT_MSG_NEWGEN of NFNL_SUBSYS_NFTABLES
	procName      = 3               // NFTA_GEN_PROC_NAME
	eventBuffer   = 8 << 20         // bytes
	receiveWait   = 100_000         // microseconds after which a closed watch is noticed
	headers       = 16 + 4          // of netlink and nfnetlink
	watchPriority = 10              // real time: the time stamp is taken when the event comes, not when there is a core
	watchProcs    = 16              // GOMAXPROCS, for the same: a goroutine that returns from the kernel waits until one is free
	quiet         = 5 * time.Second // after which a repair is not awaited any longer
)

// watchCommits begins to tell of commits on the host.
func watchCommits(h *testbed.Host) (*commits, error) {
	c := &commits{seen: make(chan commit, 4096)}
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		c.fd = fd
		return errors.Join(
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
			unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, groupNFTables),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: receiveWait}))
	})
	if err != nil {
		return nil, fmt.Errorf("cannot watch the commits of %s: %w", h.Name(), err)
	}
	c.procs = runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(max(c.procs, watchProcs))
	go c.receive()
	return c, nil
}

func (c *commits) receive() {
	runtime.LockOSThread() // and never unlocked: the thread ends with its priority
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: watchPriority}, 0)
	defer close(c.seen)
	buf := make([]byte, 1<<20)
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		at := time.Now()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			c.lost.Add(1)
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil:
			return
		default:
			c.tell(buf[:n], at)
		}
	}
}

func (c *commits) tell(data []byte, at time.Time) {
	for len(data) >= headers {
		size := int(binary.NativeEndian.Uint32(data))
		if size < headers || size > len(data) {
			return
		}
		if binary.NativeEndian.Uint16(data[4:]) == newGeneration {
			c.seen <- commit{at: at, command: nameOf(data[headers:size])}
		}
		data = data[min((size+3)&^3, len(data)):]
	}
}

// nameOf finds the committer's name among the attributes of a new generation.
func nameOf(attrs []byte) string {
	for len(attrs) >= 4 {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < 4 || size > len(attrs) {
			return ""
		}
		if binary.NativeEndian.Uint16(attrs[2:]) == procName {
			name, _, _ := bytes.Cut(attrs[4:size], []byte{0})
			return string(name)
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	return ""
}

// drop forgets what has been told so far.
func (c *commits) drop() {
	for {
		select {
		case <-c.seen:
		default:
			return
		}
	}
}

// window is the time from the next commit of somebody else to the daemon's next one.
func (c *commits) window() (time.Duration, error) {
	var foreign commit
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	for {
		select {
		case got, ok := <-c.seen:
			switch {
			case !ok:
				return 0, errors.New("the socket that tells of commits failed")
			case !got.ours():
				foreign = got
			case !foreign.at.IsZero():
				return got.at.Sub(foreign.at), nil
			}
		case <-timer.C:
			return 0, fmt.Errorf("the daemon did not commit within %s of the foreign change %+v", quiet, foreign)
		}
	}
}

// last is the newest commit of the daemon once there was none for the time given.
func (c *commits) last(after time.Duration) (commit, error) {
	var newest commit
	for {
		select {
		case got := <-c.seen:
			if got.ours() {
				newest = got
			}
		case <-time.After(after):
			if newest.at.IsZero() {
				return newest, errors.New("the daemon committed nothing")
			}
			return newest, nil
		}
	}
}

func (c *commits) close() error {
	runtime.GOMAXPROCS(c.procs)
	return unix.Close(c.fd)
}
