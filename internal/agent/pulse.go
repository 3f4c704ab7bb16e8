package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A pulse is the clock of the loop's ticks. It is a timerfd_create(2) and not a
// timer of Go's: for the latter the runtime wakes up two or three threads, for a
// descriptor only the one that waits for all of them.
type pulse struct {
	interval time.Duration
	log      *slog.Logger
}

// run calls tick once in each interval, until ctx is done. Its clock is monotonic
// and stands still while the host sleeps.
func (p pulse) run(ctx context.Context, tick func()) {
	if err := p.beat(ctx, tick); err != nil && ctx.Err() == nil {
		p.log.Info("the daemon wakes up more often than it could", "because", err)
		p.fall(ctx, tick)
	}
}

func (p pulse) beat(ctx context.Context, tick func()) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cannot make a timer: %w", err)
	}
	file := os.NewFile(uintptr(fd), "timer")
	defer file.Close()
	each := unix.NsecToTimespec(p.interval.Nanoseconds())
	if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Interval: each, Value: each}, nil); err != nil {
		return fmt.Errorf("cannot set a timer: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })() // ends the wait
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	expired := func(fd uintptr) bool {
		failed = readTimer(fd)
		return !errors.Is(failed, unix.EAGAIN)
	}
	for ctx.Err() == nil {
		if err := errors.Join(conn.Read(expired), failed); err != nil {
			return fmt.Errorf("cannot read a timer: %w", err)
		}
		tick()
	}
	return nil
}

// readTimer takes note of what has expired. The runtime is not told of a call that
// never waits: it would wake up its monitor.
func readTimer(fd uintptr) error {
	var times [8]byte
	if _, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&times)), unsafe.Sizeof(times)); errno != 0 {
		return errno
	}
	return nil
}

// fall is beat with a timer of Go's.
func (p pulse) fall(ctx context.Context, tick func()) {
	ticker := time.NewTicker(p.interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			tick()
		}
	}
}
