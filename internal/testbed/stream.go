package testbed

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxStreamRate = 20_000  // a second
	maxStream     = 1 << 20 // datagrams
	streamTurn    = time.Millisecond
	streamQuiet   = 500 * time.Millisecond // nothing for that long after the last was sent: the rest is lost
)

var streamMagic = []byte("pgh-strm")

// StreamResult is what became of a stream's datagrams.
type StreamResult struct {
	Sent       int // what the sender's kernel took
	Denied     int // what it refused
	Received   int // different ones
	Lost       int // sent, not received
	Duplicates int
	OutOfOrder int           // received after one that was sent later
	LongestGap time.Duration // between two received ones
}

func (r StreamResult) String() string {
	return fmt.Sprintf("sent %d, denied %d, received %d, lost %d, duplicates %d, out of order %d, longest gap %s",
		r.Sent, r.Denied, r.Received, r.Lost, r.Duplicates, r.OutOfOrder, r.LongestGap.Round(time.Millisecond))
}

// Whole says whether all arrived, once and in order, and at least one was sent.
func (r StreamResult) Whole() bool {
	return r.Sent > 0 && r.Denied == 0 && r.Lost == 0 && r.Duplicates == 0 && r.OutOfOrder == 0
}

// Stream is numbered datagrams between ordinary sockets of two hosts. Stop it.
type Stream struct {
	from *Host
	at   netip.AddrPort
	tx   net.Conn
	rx   *net.UDPConn
	stop context.CancelFunc

	sending, receiving chan struct{} // closed at the end of either

	mu      sync.Mutex
	r       StreamResult
	seen    []uint64 // a bit for each datagram received
	highest int      // number received so far, -1 before the first
	arrived time.Time
	err     error

	stopping sync.Once
}

// Stream starts to send numbered datagrams to a port of another host, where it listens itself, at a rate of at most 20 000 a
// second: to show that nothing of a peer is lost while something happens. It ends with Stop, after a million, or with ctx
// or the bed.
func (h *Host) Stream(ctx context.Context, to *Host, at netip.AddrPort, rate int) (*Stream, error) {
	if rate < 1 || rate > maxStreamRate {
		return nil, fmt.Errorf("cannot stream %d datagrams a second: 1 to %d are possible", rate, maxStreamRate)
	}
	s := &Stream{from: h, at: at, sending: make(chan struct{}), receiving: make(chan struct{}), seen: make([]uint64, maxStream/64), highest: -1}
	fail := func(err error) (*Stream, error) {
		return nil, fmt.Errorf("cannot stream from %s to %s: %w", h.name, at, err)
	}
	err := to.Do(func() error {
		var err error
		s.rx, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return fail(err)
	}
	if err := forceBuffer(s.rx); err != nil {
		return fail(errors.Join(err, s.rx.Close()))
	}
	if s.tx, err = h.Dial(ctx, "udp", at); err != nil {
		return fail(errors.Join(err, s.rx.Close()))
	}
	ctx, s.stop = context.WithCancel(ctx)
	go func() {
		select {
		case <-h.bed.done:
			s.stop()
			_ = s.rx.Close() // Stop may have done it
		case <-s.receiving:
		}
	}()
	go s.receive()
	go s.send(ctx, rate)
	return s, nil
}

// forceBuffer lets the kernel queue bursts for a socket, beyond the limit for ordinary programs.
func forceBuffer(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
	})
	return errors.Join(err, optErr)
}

func (s *Stream) send(ctx context.Context, rate int) {
	defer close(s.sending)
	tick := time.NewTicker(streamTurn)
	defer tick.Stop()
	start := time.Now()
	for i := 0; i < maxStream; {
		due := min(maxStream, int(time.Since(start).Seconds()*float64(rate))+1, i+rate/50+1)
		for ; i < due; i++ {
			if !s.one(i) {
				return
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// one sends a datagram; false ends the stream.
func (s *Stream) one(i int) bool {
	_, err := s.tx.Write(binary.BigEndian.AppendUint64(bytes.Clone(streamMagic), uint64(i)))
	if errors.Is(err, unix.ECONNREFUSED) { // tells of an earlier one; this one was not sent
		_, err = s.tx.Write(binary.BigEndian.AppendUint64(bytes.Clone(streamMagic), uint64(i)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.r.Sent++
	case isDenied(err), isUnreachable(err), errors.Is(err, unix.ECONNREFUSED):
		s.r.Denied++
	default:
		s.err = err
		return false
	}
	return true
}

// receive counts until the socket is closed.
func (s *Stream) receive() {
	defer close(s.receiving)
	buf := make([]byte, 64)
	for {
		n, err := s.rx.Read(buf)
		if err != nil {
			return
		}
		if seq, ok := streamNumber(buf[:n]); ok {
			s.note(seq)
		}
	}
}

// streamNumber reads a datagram's number. Pure.
func streamNumber(b []byte) (int, bool) {
	rest, ok := bytes.CutPrefix(b, streamMagic)
	if !ok || len(rest) != 8 {
		return 0, false
	}
	seq := binary.BigEndian.Uint64(rest)
	return int(seq), seq < maxStream
}

func (s *Stream) note(seq int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !s.arrived.IsZero() {
		s.r.LongestGap = max(s.r.LongestGap, now.Sub(s.arrived))
	}
	s.arrived = now
	bit := uint64(1) << (seq % 64)
	switch {
	case s.seen[seq/64]&bit != 0:
		s.r.Duplicates++
		return
	case seq < s.highest:
		s.r.OutOfOrder++
	default:
		s.highest = seq
	}
	s.seen[seq/64] |= bit
	s.r.Received++
}

// Now returns the counts so far; what is on its way counts as lost.
func (s *Stream) Now() StreamResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.r
	r.Lost = max(0, r.Sent-r.Received)
	return r
}

// Stop ends the stream, waits until all has arrived or nothing more comes, and returns the counts.
func (s *Stream) Stop() (StreamResult, error) {
	s.stopping.Do(func() {
		s.stop()
		<-s.sending
		s.settle()
		err := errors.Join(s.tx.Close(), ignoreClosed(s.rx.Close()))
		<-s.receiving
		s.mu.Lock()
		defer s.mu.Unlock()
		s.err = errors.Join(s.err, err)
	})
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	if err != nil {
		return s.Now(), fmt.Errorf("cannot finish the stream from %s to %s: %w", s.from.name, s.at, err)
	}
	return s.Now(), nil
}

func (s *Stream) settle() {
	tick := time.NewTicker(awaitInterval)
	defer tick.Stop()
	last, since := s.Now(), time.Now()
	for last.Lost > 0 && time.Since(since) < streamQuiet {
		<-tick.C
		if now := s.Now(); now != last {
			last, since = now, time.Now()
		}
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
