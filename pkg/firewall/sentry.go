package firewall

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

const (
	// So many commits each second, after so many at once, are answered at once. A
	// tool that writes thousands of its own rules is not to be slowed down.
	sentryRate, sentryBurst = 10, 20
	// sentryPriority is the lowest of SCHED_FIFO, sched(7): above all that is not real time.
	sentryPriority = 1
	// maxHold is how long other CPUs are kept from fetching the committer.
	maxHold = 2 * time.Millisecond
	// maxSentries bounds the threads, of which each CPU has one.
	maxSentries = 16
)

// A Sentry answers a commit before the process that made it gets to do anything
// else.
//
// That is for a Repair, which would have to wait otherwise: the kernel closes a
// netfilter socket under the lock of commits, and waits there until what the
// commit removed is freed, for some 10 ms (nft_rcv_nl_event in
// net/netfilter/nf_tables_api.c). A command such as iptables closes its socket
// 50 µs after its commit. So each CPU has a thread of real-time priority that
// sleeps until there is a commit. On the CPU where it was made, the thread runs in
// place of the committer and answers. On the others it keeps the CPU for as long,
// two milliseconds at most: one that has nothing to do would fetch the committer
// and run it.
//
// Where that is not permitted, or there are too many CPUs, a Watcher hears of the
// commits all the same.
type Sentry struct {
	own     *ownCommits
	answer  func(Commit)
	fds     []int // for each CPU one for commits made there, and one for those of the others
	stop    int   // an eventfd, readable when all is over
	threads sync.WaitGroup
	promote func() error // nil: nobody else raises the threads
	waiting bool         // for that, when the threads started

	mu    sync.Mutex
	limit *rate.Limiter
	done  atomic.Uint32 // the generation that was dealt with last
}

// OpenSentry begins to answer commits, but not our Own, in the calling thread's
// network namespace. answer is called on several threads, which keep their CPUs
// meanwhile from everybody else: it may take a millisecond. Not each commit gets
// an answer; a Watcher tells of all.
//
// Needs CAP_NET_ADMIN and CAP_SYS_NICE. Without the latter promote, if it is not nil,
// is called to have another process call Promote for this one. Until that has been
// done nothing is answered.
func (f *Firewall) OpenSentry(answer func(Commit), promote func() error) (*Sentry, error) {
	s := &Sentry{own: f.own, answer: answer, promote: promote, limit: rate.NewLimiter(sentryRate, sentryBurst)}
	if err := s.open(f.backend); err != nil {
		return nil, fmt.Errorf("cannot answer rule changes before who made them goes on: %w", err)
	}
	return s, nil
}

func (s *Sentry) open(backend string) error {
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return err
	}
	switch n := cpus.Count(); {
	case backend != BackendNFT:
		return fmt.Errorf("the backend is %s", backend)
	case n > maxSentries:
		return fmt.Errorf("there are %d CPUs, more than %d", n, maxSentries)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	s.stop = stop
	started := make(chan error)
	for cpu := range len(cpus) * 64 {
		if !cpus.IsSet(cpu) {
			continue
		}
		for _, here := range []bool{true, false} {
			fd, err := openSentrySocket(cpu, here)
			if err != nil {
				return errors.Join(err, s.Close())
			}
			s.fds = append(s.fds, fd)
		}
		here, elsewhere := s.fds[len(s.fds)-2], s.fds[len(s.fds)-1]
		s.threads.Go(func() { s.watch(here, elsewhere, cpu, started) })
		if err := <-started; err != nil {
			return errors.Join(err, s.Close())
		}
	}
	if s.waiting {
		if err := s.promote(); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	return nil
}

func openSentrySocket(cpu int, here bool) (int, error) {
	filter, err := generationFilter(onCPU(uint32(cpu), here)...) //nolint:gosec // a number of a CPU
	if err != nil {
		return 0, err
	}
	program := make([]unix.SockFilter, len(filter))
	for i, in := range filter {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, eventGroup))
	if err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// Close ends the threads.
func (s *Sentry) Close() error {
	one := [8]byte{1}
	_, err := unix.Write(s.stop, one[:])
	s.threads.Wait()
	for _, fd := range s.fds {
		err = errors.Join(err, unix.Close(fd))
	}
	return errors.Join(err, unix.Close(s.stop))
}

// watch is one CPU's thread. It is never unlocked, so it ends with the function,
// and nobody inherits its priority and its CPU.
func (s *Sentry) watch(here, elsewhere, cpu int, started chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Go keeps the first thread of a process for good, which would stay of real time. Another one does it,
		// and while this goroutine waits nobody else gets the first.
		defer runtime.UnlockOSThread()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.watch(here, elsewhere, cpu, started)
		}()
		<-done
		return
	}
	err := raise(0, cpu)
	raised := err == nil
	if errors.Is(err, unix.EPERM) && s.promote != nil {
		s.waiting, err = true, nameThread(cpu)
	}
	started <- err
	if err != nil {
		return
	}
	var poll [3]unix.PollFd
	for i, fd := range []int{here, elsewhere, s.stop} {
		poll[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN} //nolint:gosec // descriptors fit
	}
	buf, firstPIDs := make([]byte, eventSize), inFirstPIDs()
	for {
		_, err := unix.Poll(poll[:], -1)
		if err != nil && !errors.Is(err, unix.EINTR) || poll[2].Revents != 0 {
			return
		}
		raised = raised || isRaised()
		if c, ok := receiveCommit(here, buf, firstPIDs); ok && raised {
			s.heard(c)
		} else if ok {
			_ = s.promote() // once more: whoever was asked has not done it yet
		}
		if c, ok := receiveCommit(elsewhere, buf, firstPIDs); ok && raised {
			s.hold(c, elsewhere)
		}
	}
}

// receiveCommit is false if there is none, or too many.
func receiveCommit(fd int, buf []byte, firstPIDs bool) (c Commit, ok bool) {
	at := time.Now()
	n, err := receiveFromKernel(fd, buf)
	if err != nil {
		return Commit{}, false
	}
	c, ok = parseCommit(buf[:n])
	c.At, c.firstPIDs = at, firstPIDs
	return c, ok
}

func (s *Sentry) heard(c Commit) {
	if !s.own.has(c) && s.allowed(c.At) {
		s.answer(c)
	}
	s.done.Store(c.Generation)
}

// hold keeps the CPU until the commit of another CPU has been dealt with, or the
// next one is there, which the first change of an answer is.
func (s *Sentry) hold(c Commit, fd int) {
	if s.own.has(c) {
		return
	}
	next := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor fits
	for s.done.Load() != c.Generation && time.Since(c.At) < maxHold {
		if n, _ := unix.Poll(next, 0); n > 0 {
			return
		}
	}
}

func (s *Sentry) allowed(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limit.AllowN(now, 1)
}
