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

// commandTimeout bounds one iptables or ipset command; a restore of 10,000
// members takes well under a second.
const commandTimeout = 10 * time.Second

var errSlow = fmt.Errorf("it was not done after %s: the host is overloaded, or something holds it up", commandTimeout)

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
	ctx, cancel := context.WithTimeoutCause(ctx, commandTimeout, errSlow)
	// Not CommandContext, whose goroutine for each command wakes up an idle daemon four times.
	cmd := exec.Command(path, args...)                                    //nolint:noctx // killed below
	cmd.Env = []string{"PATH=" + strings.Join(toolDirs, ":"), "LC_ALL=C"} // PATH: iptables calls modprobe
	begin := r.begin
	if begin == nil {
		begin = (*exec.Cmd).Start
	}
	files, err := newCommandFiles(stdin)
	if err == nil {
		files.give(cmd)
		err = begin(cmd)
	}
	stop := func() bool { return false }
	if err == nil {
		stop = context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	}
	return func() ([]byte, error) {
		defer cancel()
		defer stop()
		defer files.close()
		if err == nil {
			awaitExit(cmd.Process)
			err = cmd.Wait()
		}
		var stdout []byte
		if err == nil {
			stdout, err = contents(files.stdout)
		}
		if err == nil {
			return stdout, nil
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", err, ctx.Err())
		}
		if errors.Is(context.Cause(ctx), errSlow) {
			err = fmt.Errorf("%w: %w", err, errSlow)
		}
		if said, _ := contents(files.stderr); len(said) > 0 {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(said)))
		}
		return nil, fmt.Errorf("%s: %w", strings.Join(append([]string{path}, args...), " "), err)
	}
}

// commandFiles are what a command reads from and writes to: memory and not pipes, of
// whose every piece an idle daemon would be woken up to read it, which need somebody
// to write to them, and of which a child of the command may never let go.
type commandFiles struct{ stdin, stdout, stderr *os.File }

// newCommandFiles has no stdin if there is nothing to read.
func newCommandFiles(stdin string) (c commandFiles, err error) {
	files := []**os.File{&c.stdout, &c.stderr}
	if stdin != "" {
		files = append(files, &c.stdin)
	}
	for _, f := range files {
		fd, err := unix.MemfdCreate("command", unix.MFD_CLOEXEC)
		if err != nil {
			c.close()
			return commandFiles{}, fmt.Errorf("cannot make a file for a command: %w", err)
		}
		*f = os.NewFile(uintptr(fd), "command")
	}
	if c.stdin == nil {
		return c, nil
	}
	if _, err = c.stdin.WriteString(stdin); err == nil {
		_, err = c.stdin.Seek(0, io.SeekStart)
	}
	if err != nil {
		c.close()
		return commandFiles{}, fmt.Errorf("cannot write what a command is to read: %w", err)
	}
	return c, nil
}

func (c commandFiles) give(cmd *exec.Cmd) {
	cmd.Stdout, cmd.Stderr = c.stdout, c.stderr
	if c.stdin != nil { // an interface that holds nil is not nil
		cmd.Stdin = c.stdin
	}
}

func (c commandFiles) close() {
	for _, f := range []*os.File{c.stdin, c.stdout, c.stderr} {
		_ = f.Close() // what was written is not kept; nil says so and no more
	}
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
