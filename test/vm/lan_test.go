package vm

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/test/vm/testvm"
)

// Hosts beside the machine 10.20.1.10, all of them in the network's namespace: one of nobody's, one of the instance, one of the control plane.
const (
	stranger = "10.20.1.1"
	peer     = "10.20.1.20"
	operator = "10.20.1.33"
)

type lan struct{ network *testvm.Network }

func newLAN(ctx context.Context, t *testing.T) *lan {
	t.Helper()
	network, err := testvm.NewNetwork(ctx, stranger+"/24", peer+"/24", operator+"/24")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	return &lan{network}
}

// want asks whether a host is answered, be it by a refusal, at each of the addresses. An answer is awaited; the lack of one is tried three times.
func (l *lan) want(ctx context.Context, t *testing.T, answered map[string]bool, addresses ...string) {
	t.Helper()
	for host, want := range answered {
		for _, address := range addresses {
			var got atomic.Int64
			tries, cancel := context.WithTimeout(ctx, map[bool]time.Duration{true: time.Minute, false: 3 * time.Second}[want])
			err := l.dial(tries, host, address, func() { got.Add(1); cancel() })
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			if (got.Load() > 0) != want {
				t.Errorf("%s is answered at %s: %t, want %t", host, address, !want, want)
			}
		}
	}
}

// knocks is somebody who goes on connecting.
type knocks struct {
	answers atomic.Int64
	cancel  context.CancelFunc
	done    chan error
}

func (l *lan) knock(t *testing.T, host, address string) *knocks {
	ctx, cancel := context.WithCancel(t.Context())
	k := &knocks{cancel: cancel, done: make(chan error, 1)}
	t.Cleanup(cancel)
	go func() { k.done <- l.dial(ctx, host, address, func() { k.answers.Add(1) }) }()
	return k
}

// stop returns how many answers there were.
func (k *knocks) stop(t *testing.T) int64 {
	t.Helper()
	k.cancel()
	if err := <-k.done; err != nil {
		t.Fatal(err)
	}
	return k.answers.Load()
}

// dial connects from a host's address until ctx is done, and tells of each answer.
func (l *lan) dial(ctx context.Context, host, address string, answer func()) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread stays in the namespace and ends with the goroutine.
		runtime.LockOSThread()
		result <- l.dialHere(ctx, host, address, answer)
	}()
	return <-result
}

func (l *lan) dialHere(ctx context.Context, host, address string, answer func()) error {
	ns, err := os.Open(filepath.Join("/run/netns", l.network.Namespace))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	d := net.Dialer{Timeout: 200 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}
	tell := func() {
		answer()
		select { // one that is answered at once is not to keep the machine busy
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	for ctx.Err() == nil {
		conn, err := d.DialContext(ctx, "tcp", address)
		switch {
		case err == nil:
			conn.Close()
			tell()
		case errors.Is(err, syscall.ECONNREFUSED):
			tell()
		case !errors.Is(err, syscall.EHOSTUNREACH) && !isTimeout(err) && ctx.Err() == nil:
			return err
		}
	}
	return nil
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
