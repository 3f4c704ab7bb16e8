package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// connectWait bounds Connect and UDPEcho, unless ctx ends sooner: longer than the first retransmission of a SYN (1 s).
const connectWait = 1500 * time.Millisecond

// Verdict is what a program experiences when it connects.
type Verdict string

// The verdicts.
const (
	Open        Verdict = "open"
	Refused     Verdict = "refused"     // a reset, or port unreachable: somebody answered no
	NoAnswer    Verdict = "no answer"   // dropped on the way there or back
	Unreachable Verdict = "unreachable" // an ICMP error, or no route, or no neighbour of that address
	Denied      Verdict = "denied"      // the host's own kernel refused to send
)

// verdictOf sorts the error of a connect, write or read. Anything else is an error of the probe. Pure.
func verdictOf(err error) (Verdict, error) {
	var timeout net.Error
	switch {
	case err == nil:
		return Open, nil
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET):
		return Refused, nil
	case errors.Is(err, unix.EPERM):
		return Denied, nil
	case isUnreachable(err), errors.Is(err, unix.EACCES): // EACCES: administratively prohibited, IPv6
		return Unreachable, nil
	case errors.As(err, &timeout) && timeout.Timeout():
		return NoAnswer, nil
	}
	return "", err
}

// Connect opens a TCP connection and closes it again.
func (h *Host) Connect(ctx context.Context, to netip.AddrPort) (Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	conn, err := h.Dial(ctx, "tcp", to)
	if err == nil {
		return Open, conn.Close()
	}
	v, err := verdictOf(err)
	if err != nil {
		return "", fmt.Errorf("cannot probe %s from %s: %w", to, h.name, err)
	}
	return v, nil
}

// UDPEcho sends one datagram, which the other side should send back.
func (h *Host) UDPEcho(ctx context.Context, to netip.AddrPort) (Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	v, err := verdictOf(h.udpEcho(ctx, to))
	if err != nil {
		return "", fmt.Errorf("cannot probe %s/udp from %s: %w", to, h.name, err)
	}
	return v, nil
}

func (h *Host) udpEcho(ctx context.Context, to netip.AddrPort) error {
	conn, err := h.Dial(ctx, "udp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	token := []byte("pghardend testbed " + h.name)
	if _, err := conn.Write(token); err != nil {
		return err
	}
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	if err == nil && !bytes.Equal(buf[:n], token) {
		return fmt.Errorf("got %q back instead of %q", buf[:n], token)
	}
	return err
}

func withWait(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

// Dial connects from inside the host. network is tcp or udp.
func (h *Host) Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	var conn net.Conn
	err := h.Do(func() error {
		var d net.Dialer // with a literal address it stays on this thread
		d.SetMultipathTCP(false)
		var err error
		conn, err = d.DialContext(ctx, network, to.String())
		return err
	})
	return conn, err
}

// Listen opens a TCP listener inside the host. The caller closes it.
func (h *Host) Listen(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	// A child that is forked now and has not yet executed its program may still have a listener that was closed here.
	syscall.ForkLock.RLock()
	syscall.ForkLock.RUnlock() //nolint:staticcheck // to wait is all

	var l net.Listener
	err := h.Do(func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // the hosts speak plain TCP
		var err error
		l, err = lc.Listen(ctx, "tcp", at.String())
		return err
	})
	return l, err
}

// Server is an echo server that counts what got through to its socket, that is: past netfilter.
type Server struct {
	closer io.Closer
	count  atomic.Int64
	wg     sync.WaitGroup
}

// Received returns the number of connections accepted, or of datagrams received.
func (s *Server) Received() int { return int(s.count.Load()) }

// Close stops the server.
func (s *Server) Close() error {
	err := s.closer.Close()
	s.wg.Wait()
	return err
}

// ServeTCP starts a server that accepts, counts and sends back what it gets until the other side ends. It runs until Close,
// or until the bed is closed.
func (h *Host) ServeTCP(ctx context.Context, at netip.AddrPort) (*Server, error) {
	l, err := h.Listen(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("cannot serve on %s at %s: %w", h.name, at, err)
	}
	s := &Server{closer: l}
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.count.Add(1)
			stop := h.bed.closeAtEnd(conn)
			go func() {
				defer stop()
				_, _ = io.Copy(conn, conn) // the other side may end it as it likes
			}()
		}
	})
	h.bed.closeAtEnd(l)
	return s, nil
}

// ServeUDP starts a server that counts datagrams and sends them back. It runs until Close, or until the bed is closed.
func (h *Host) ServeUDP(ctx context.Context, at netip.AddrPort) (*Server, error) {
	var conn net.PacketConn
	err := h.Do(func() error {
		var lc net.ListenConfig
		var err error
		conn, err = lc.ListenPacket(ctx, "udp", at.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot serve on %s at %s/udp: %w", h.name, at, err)
	}
	s := &Server{closer: conn}
	s.wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			s.count.Add(1)
			_, _ = conn.WriteTo(buf[:n], from)
		}
	})
	h.bed.closeAtEnd(conn)
	return s, nil
}

// closeAtEnd closes c when the bed is closed, or when the returned function is called.
func (b *Bed) closeAtEnd(c io.Closer) (now func()) {
	stop := make(chan struct{})
	go func() {
		select {
		case <-b.done:
		case <-stop:
		}
		_ = c.Close() // it may be closed already
	}()
	return sync.OnceFunc(func() { close(stop) })
}
