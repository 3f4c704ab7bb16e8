package firewall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// commandTimeout bounds one iptables or ipset command; a restore of 10,000
	// members takes well under a second.
	commandTimeout = 10 * time.Second
	// inputWait bounds the wait for who writes to a command that has ended.
	inputWait = time.Second
)

// execRunner executes the real commands.
type execRunner struct {
	begin func(*exec.Cmd) error // starts a command; nil: (*exec.Cmd).Start
}

func (execRunner) find(name string) (string, error) {
	for _, dir := range toolDirs {
		path, err := exec.LookPath(filepath.Join(dir, name))
		if err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w in %s", name, exec.ErrNotFound, strings.Join(toolDirs, ":"))
}

func (r execRunner) run(ctx context.Context, stdin string, path string, args ...string) ([]byte, error) {
	return r.start(ctx, stdin, path, args...)()
}

func (r execRunner) start(ctx context.Context, stdin string, path string, args ...string) func() ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = inputWait
	if stdin != "" { // else it costs a pipe and somebody to write to it
		cmd.Stdin = strings.NewReader(stdin)
	}
	cmd.Env = []string{"PATH=" + strings.Join(toolDirs, ":"), "LC_ALL=C"} // PATH: iptables calls modprobe
	begin := r.begin
	if begin == nil {
		begin = (*exec.Cmd).Start
	}
	out, err := newCommandOutput()
	if err == nil {
		cmd.Stdout, cmd.Stderr = out.stdout, out.stderr
		err = begin(cmd)
	}
	return func() ([]byte, error) {
		defer cancel()
		defer out.close()
		if err == nil {
			awaitExit(cmd.Process)
			err = cmd.Wait()
		}
		var stdout []byte
		if err == nil {
			stdout, err = contents(out.stdout)
		}
		if err == nil {
			return stdout, nil
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", err, ctx.Err())
		}
		if said, _ := contents(out.stderr); len(said) > 0 {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(said)))
		}
		return nil, fmt.Errorf("%s: %w", strings.Join(append([]string{path}, args...), " "), err)
	}
}

// commandOutput is where a command writes to: memory and not pipes, of whose every
// piece an idle daemon would be woken up to read it, and of which a child of the
// command may never let go.
type commandOutput struct{ stdout, stderr *os.File }

func newCommandOutput() (o commandOutput, err error) {
	for _, f := range []**os.File{&o.stdout, &o.stderr} {
		fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC)
		if err != nil {
			o.close()
			return commandOutput{}, fmt.Errorf("cannot make a file for its output: %w", err)
		}
		*f = os.NewFile(uintptr(fd), "output")
	}
	return o, nil
}

func (o commandOutput) close() {
	_ = o.stdout.Close() // what was written is not kept
	_ = o.stderr.Close()
}

// contents is all that was written to a file.
func contents(f *os.File) ([]byte, error) {
	if f == nil {
		return nil, nil
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, info.Size())
	n, err := f.ReadAt(data, 0)
	if n == len(data) || errors.Is(err, io.EOF) {
		err = nil
	}
	return data[:n], err
}

// awaitExit returns when a process has ended, or if that cannot be told. Wait could
// do this alone, but in a call that the runtime's monitor watches over, which would
// wake up the daemon dozens of times.
func awaitExit(p *os.Process) {
	fd, err := unix.PidfdOpen(p.Pid, unix.PIDFD_NONBLOCK) // Linux 5.10
	if err != nil {
		return
	}
	file := os.NewFile(uintptr(fd), "process")
	defer file.Close()
	conn, err := file.SyscallConn()
	if err != nil {
		return
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor fits
	_ = conn.Read(func(uintptr) bool {                          // if it cannot be waited for here, Wait does
		for {
			n, err := unix.Poll(poll, 0)
			if !errors.Is(err, unix.EINTR) {
				return n != 0 || err != nil
			}
		}
	})
}
