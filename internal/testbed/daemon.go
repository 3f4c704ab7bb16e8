package testbed

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// daemon is a long-running process of a fixture.
type daemon struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process is gone and reaped
}

// startDaemon starts the command with its output appended to a file: a pipe would end with this process, and keep Wait from
// returning while services that outlive the daemon have it open.
func startDaemon(cmd *exec.Cmd, logPath string) (*daemon, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &daemon{cmd: cmd, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // ProcessState has the result
		close(d.exited)
	}()
	return d, nil
}

// running is false for no daemon as well.
func (d *daemon) running() bool {
	if d == nil {
		return false
	}
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// end sends the signal and waits for the end; the exit code is -1 if a signal killed the process.
func (d *daemon) end(ctx context.Context, s unix.Signal) (int, error) {
	if err := d.cmd.Process.Signal(s); err != nil {
		return 0, err
	}
	ctx, cancel := withWait(ctx, awaitDefault)
	defer cancel()
	select {
	case <-d.exited:
		return d.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("it did not end after signal %d (%s): %w", int(s), unix.SignalName(s), ctx.Err())
	}
}

// await is Await that gives up at once when the daemon has ended.
func (d *daemon) await(ctx context.Context, what string, check func(context.Context) error) error {
	ctx, cancel := withWait(ctx, awaitDefault)
	defer cancel()
	return Await(ctx, what, func(ctx context.Context) error {
		alive := d.running() // before the check: what it did last counts
		err := check(ctx)
		if err != nil && d != nil && !alive {
			cancel()
			return fmt.Errorf("the daemon has ended; %w", err)
		}
		return err
	})
}
