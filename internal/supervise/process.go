package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// errGone says that no live process has the PID asked for.
var errGone = errors.New("no such process")

// process is a running process held by a pidfd, so that its PID cannot come to
// mean another one between a check and a signal.
type process struct {
	pid   int
	start uint64        // clock ticks since boot; with pid and boot id it is unique
	pidfd *os.File      // non-blocking, in the runtime's poller
	child *os.Process   // nil if it was not started by this daemon
	ended chan struct{} // closed when it has ended, reaped or not
}

// exit is how a process ended.
type exit struct {
	known  bool // false: adopted, and the kernel does not tell
	status syscall.WaitStatus
}

func (e exit) clean() bool {
	return e.known && e.status.Exited() && e.status.ExitStatus() == 0
}

func (e exit) String() string {
	switch {
	case !e.known:
		return "ended (exit status unknown: it was adopted)"
	case e.status.Signaled():
		return fmt.Sprintf("ended by signal %d (%s)", e.status.Signal(), e.status.Signal())
	default:
		return fmt.Sprintf("exit status %d", e.status.ExitStatus())
	}
}

// openProcess takes hold of a live process; errGone if there is none.
func openProcess(ctx context.Context, pid int) (*process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL) && pid > 0:
		// The latter two say, depending on the kernel, that it is a thread's.
		return nil, errGone
	case err != nil:
		return nil, fmt.Errorf("cannot open a pidfd for pid %d (Linux 5.10 or later is needed): %w", pid, err)
	}
	p := &process{pid: pid, pidfd: os.NewFile(uintptr(fd), "pidfd"), ended: make(chan struct{})}
	stat, err := readStat(pid)
	if err == nil && p.dead() {
		err = errGone
	}
	if err != nil {
		p.pidfd.Close()
		return nil, err
	}
	p.start = stat.Starttime
	return p, nil
}

func readStat(pid int) (procfs.ProcStat, error) {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return procfs.ProcStat{}, goneOr(err)
	}
	stat, err := proc.Stat()
	return stat, goneOr(err)
}

// goneOr turns the errors of a /proc/PID that has vanished into errGone.
func goneOr(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return errGone
	}
	return err
}

// dead reports whether the process has ended, reaped or not.
func (p *process) dead() bool {
	dead := false
	err := p.control(func(fd int) error {
		dead = readable(fd)
		return nil
	})
	return dead || err != nil
}

func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n == 1 && fds[0].Revents&(unix.POLLIN|unix.POLLHUP) != 0
	}
}

func (p *process) control(f func(fd int) error) error {
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = conn.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}

// signal sends sig to exactly this process. A process that has ended is no error:
// its end is on its way through ended.
func (p *process) signal(sig unix.Signal) error {
	err := p.control(func(fd int) error { return unix.PidfdSendSignal(fd, sig, nil, 0) })
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot send %s to pid %d (another user's process needs CAP_KILL): %w", sig, p.pid, err)
	}
	return nil
}

// mayStop says whether this daemon may signal the process.
func (p *process) mayStop() error {
	err := p.signal(0)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("this daemon may not signal pid %d, since its unit does not leave it CAP_KILL: `systemctl stop` the unit of the service: %w", p.pid, unix.EPERM)
	}
	return nil
}

// watch closes ended at the end of the process. It occupies no thread while it
// waits, and returns without a word when the process is closed.
func (p *process) watch(wg *sync.WaitGroup) {
	wg.Go(func() {
		conn, err := p.pidfd.SyscallConn()
		if err == nil && conn.Read(func(fd uintptr) bool { return readable(int(fd)) }) == nil {
			close(p.ended)
		}
	})
}

// status says how a process that has ended did so. It reaps a child (and only it:
// waitid by pidfd), or asks the pidfd of an adopted process, which knows once
// whoever is its parent has reaped it.
func (p *process) status(ctx context.Context) exit {
	if p.child != nil {
		state, err := p.child.Wait()
		if err != nil {
			return exit{}
		}
		status, ok := state.Sys().(syscall.WaitStatus)
		return exit{known: ok, status: status}
	}
	// A postmaster that nobody has reaped yet could not be replaced anyway: postgres
	// takes a zombie named in postmaster.pid for a living one.
	const patience, step = 5 * time.Second, 5 * time.Millisecond
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	for range patience / step {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		if p.control(func(fd int) error { return unix.IoctlPidfdInfo(fd, &info) }) != nil {
			return exit{} // before Linux 6.15
		}
		if info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			return exit{known: true, status: syscall.WaitStatus(info.Exit_code)}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return exit{}
		}
	}
	return exit{}
}

// close lets go of the process without touching it.
func (p *process) close() {
	p.pidfd.Close()
}

// exeID identifies an executable file.
type exeID struct {
	Path string `json:"path"`
	Dev  uint64 `json:"dev"`
	Ino  uint64 `json:"ino"`
}

// same says whether two are one file, or its successor at the same path.
func (e exeID) same(other exeID) bool {
	return e.Ino != 0 && e.Dev == other.Dev && e.Ino == other.Ino || e.Path != "" && e.Path == other.Path
}

// facts are what /proc says of a process.
type facts struct {
	exe exeID
	cwd os.FileInfo
	uid uint64 // effective
}

// facts reads what identifies the process; errGone if it ended meanwhile.
func (p *process) facts(ctx context.Context) (facts, error) {
	if err := ctx.Err(); err != nil {
		return facts{}, err
	}
	f, err := readFacts(p.pid)
	if p.dead() {
		return facts{}, errGone // what was read may be of a successor
	}
	if err != nil {
		return facts{}, fmt.Errorf("cannot see what pid %d is (another user's process needs CAP_SYS_PTRACE): %w", p.pid, err)
	}
	return f, nil
}

func readFacts(pid int) (facts, error) {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return facts{}, err
	}
	exe, err := statExe(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return facts{}, err
	}
	link, err := proc.Executable()
	if err != nil {
		return facts{}, err
	}
	exe.Path = strings.TrimSuffix(link, " (deleted)")
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return facts{}, err
	}
	uid, err := effectiveUID(pid)
	if err != nil {
		return facts{}, err
	}
	return facts{exe: exe, cwd: cwd, uid: uid}, nil
}

func effectiveUID(pid int) (uint64, error) {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	status, err := proc.NewStatus()
	return status.UIDs[1], err
}

// statExe identifies the file at path; Path is left as given.
func statExe(path string) (exeID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return exeID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return exeID{Path: path, Dev: st.Dev, Ino: st.Ino}, nil
}
