package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// connectBatch is how many connections ConnectAll opens at once: below the usual limit of 1024 files.
const connectBatch = 256

// ConnectAll is Connect for many addresses at once: it takes as long as one that is not answered. The verdicts are in the
// order of the addresses.
func (h *Host) ConnectAll(ctx context.Context, to []netip.AddrPort) ([]Verdict, error) {
	verdicts := make([]Verdict, 0, len(to))
	for len(to) > 0 {
		n := min(len(to), connectBatch)
		var batch []Verdict
		err := h.Do(func() error {
			var err error
			batch, err = h.connectAll(ctx, to[:n])
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("cannot probe from %s: %w", h.name, err)
		}
		verdicts, to = append(verdicts, batch...), to[n:]
	}
	return verdicts, nil
}

// dial is one connection under way.
type dial struct {
	fd      int // -1 once it is decided
	verdict Verdict
}

func (h *Host) connectAll(ctx context.Context, to []netip.AddrPort) ([]Verdict, error) {
	ctx, cancel := withWait(ctx, connectWait)
	defer cancel()
	dials := make([]dial, len(to))
	for i := range dials {
		dials[i].fd = -1
	}
	defer func() {
		for _, d := range dials {
			if d.fd >= 0 {
				_ = unix.Close(d.fd) // nobody answered
			}
		}
	}()
	for i, at := range to {
		if err := dials[i].start(h, at); err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
	}
	if err := awaitDials(ctx, dials); err != nil {
		return nil, err
	}
	verdicts := make([]Verdict, len(to))
	for i, d := range dials {
		verdicts[i] = d.verdict
	}
	return verdicts, nil
}

func (d *dial) start(h *Host, at netip.AddrPort) error {
	d.verdict = NoAnswer
	family := unix.AF_INET
	if at.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	d.fd = fd
	sa, err := h.sockaddr(at.Addr())
	if err != nil {
		return err
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		sa.Port = int(at.Port())
	case *unix.SockaddrInet6:
		sa.Port = int(at.Port())
	}
	if err := unix.Connect(fd, sa); !errors.Is(err, unix.EINPROGRESS) {
		return d.decide(err)
	}
	return nil
}

// decide takes the result of connect and closes the socket.
func (d *dial) decide(result error) error {
	err := unix.Close(d.fd)
	d.fd = -1
	v, unknown := verdictOf(result)
	d.verdict = v
	return errors.Join(err, unknown)
}

// awaitDials waits until all are decided, or ctx is done: those left were not answered.
func awaitDials(ctx context.Context, dials []dial) error {
	deadline, _ := ctx.Deadline()
	for {
		var open []int
		var fds []unix.PollFd
		for i, d := range dials {
			if d.fd >= 0 {
				open = append(open, i)
				fds = append(fds, unix.PollFd{Fd: int32(d.fd), Events: unix.POLLOUT})
			}
		}
		left := time.Until(deadline)
		if len(fds) == 0 || left <= 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return ignoreDeadline(err)
		}
		// In short turns, so that an end of ctx is noticed.
		_, err := unix.Poll(fds, int(min(left, 100*time.Millisecond).Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for j, p := range fds {
			if p.Revents == 0 {
				continue
			}
			if err := dials[open[j]].finish(); err != nil {
				return err
			}
		}
	}
}

func (d *dial) finish() error {
	code, err := unix.GetsockoptInt(d.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if code == 0 {
		return d.decide(nil)
	}
	return d.decide(unix.Errno(code))
}

func ignoreDeadline(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}
