package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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
