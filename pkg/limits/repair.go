package limits

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is one process and no successor with its number.
type Process struct {
	PID   int
	Start uint64 // clock ticks since boot, field 22 of /proc/PID/stat
}

// Identify returns the process that has this number now. The error wraps
// os.ErrProcessDone if there is none.
func Identify(ctx context.Context, pid int) (Process, error) {
	start, err := startTime(ctx, pid)
	if err != nil {
		return Process{}, fmt.Errorf("cannot identify process %d: %w", pid, err)
	}
	return Process{PID: pid, Start: start}, nil
}

// Repair gives a live process those limits of want that it does not have, by
// prlimit(2), and reads them back. That needs CAP_SYS_RESOURCE if the process is
// another user's or a hard limit goes up; the error then wraps os.ErrPermission.
// It wraps os.ErrProcessDone if p has ended, whoever has its number by now.
func Repair(ctx context.Context, p Process, want Set) error {
	if err := want.Validate(); err != nil {
		return fmt.Errorf("cannot repair the limits of process %d: %w", p.PID, err)
	}
	return p.while(ctx, func() error {
		var errs []error
		for _, r := range resources {
			l, ok := want[r.name]
			if !ok {
				continue
			}
			if err := prlimit(p.PID, r, l); err != nil {
				errs = append(errs, fmt.Errorf("cannot set limit %s of process %d to %s: %w", r.name, p.PID, l, err))
			}
		}
		return errors.Join(errs...)
	})
}

// Match says whether a live process has the limits of want. It is made to be
// called often: one system call for each limit. Without CAP_SYS_RESOURCE the kernel
// does not tell of another user's process, which is os.ErrPermission; Read can.
func Match(ctx context.Context, pid int, want Set) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("cannot read the limits of process %d: %w", pid, err)
	}
	var got unix.Rlimit
	for i := range resources {
		l, ok := want[resources[i].name]
		if !ok {
			continue
		}
		if err := unix.Prlimit(pid, resources[i].id, nil, &got); err != nil {
			return false, fmt.Errorf("cannot read the limits of process %d: %w", pid, gone(err))
		}
		if got.Cur != l.Soft || got.Max != l.Hard {
			return false, nil
		}
	}
	return true, nil
}

// OOMScore reads the oom_score_adj of a live process, proc(5). The error wraps
// os.ErrProcessDone if there is no such process.
func OOMScore(ctx context.Context, pid int) (int, error) {
	data, err := readProc(ctx, pid, "oom_score_adj")
	if err != nil {
		return 0, fmt.Errorf("cannot read oom_score_adj of process %d: %w", pid, err)
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("oom_score_adj of process %d is %q, which is no number", pid, data)
	}
	return score, nil
}

// SetOOMScore sets the oom_score_adj of a live process and reads it back. To make
// it less than it was ever set by root needs CAP_SYS_RESOURCE, proc(5). Errors
// are those of Repair.
func SetOOMScore(ctx context.Context, p Process, score int) error {
	return p.while(ctx, func() error {
		fail := func(err error) error {
			return fmt.Errorf("cannot set oom_score_adj of process %d to %d: %w", p.PID, score, gone(err))
		}
		// Without O_CREATE, which procfs answers with a misleading EACCES.
		f, err := os.OpenFile(procFile(p.PID, "oom_score_adj"), os.O_WRONLY, 0)
		if err != nil {
			return fail(err)
		}
		_, err = f.WriteString(strconv.Itoa(score))
		if err = errors.Join(err, f.Close()); errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: lowering it needs CAP_SYS_RESOURCE: give it to the daemon (systemd: CapabilityBoundingSet=)", err)
		}
		if err != nil {
			return fail(err)
		}
		got, err := OOMScore(ctx, p.PID)
		if err == nil && got != score {
			err = fmt.Errorf("the kernel made it %d", got)
		}
		if err != nil {
			return fail(err)
		}
		return nil
	})
}

// while calls act if p lives. prlimit(2) knows processes by number only: the start
// time says beforehand that the number is still p's, and the pidfd afterwards
// that it was p's all the time.
func (p Process) while(ctx context.Context, act func() error) error {
	done := fmt.Errorf("cannot change process %d: %w", p.PID, os.ErrProcessDone)
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return done
	}
	if err != nil {
		return fmt.Errorf("cannot change process %d: %w", p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	start, err := startTime(ctx, p.PID)
	if err != nil {
		return fmt.Errorf("cannot change process %d: %w", p.PID, err)
	}
	if start != p.Start {
		return done
	}
	err = act()
	if ended(fd) {
		return done
	}
	return err
}

// ended tells whether the process of a pidfd has ended, pidfd_open(2).
func ended(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}

// prlimit sets one limit of another process if it differs, and reads it back.
func prlimit(pid int, r resource, want Limit) error {
	var got unix.Rlimit
	if err := unix.Prlimit(pid, r.id, nil, &got); err != nil {
		return prlimitError(r, err)
	}
	if got.Cur == want.Soft && got.Max == want.Hard {
		return nil
	}
	if err := unix.Prlimit(pid, r.id, &unix.Rlimit{Cur: want.Soft, Max: want.Hard}, nil); err != nil {
		return prlimitError(r, err)
	}
	if err := unix.Prlimit(pid, r.id, nil, &got); err != nil {
		return fmt.Errorf("cannot read it back: %w", prlimitError(r, err))
	}
	if l := (Limit{got.Cur, got.Max}); l != want {
		return fmt.Errorf("the kernel made it %s", l)
	}
	return nil
}

// prlimitError adds what to do about it. Root may do everything but raise nofile
// above nr_open, getrlimit(2).
func prlimitError(r resource, err error) error {
	switch {
	case errors.Is(err, unix.EPERM) && r.id == unix.RLIMIT_NOFILE:
		return fmt.Errorf("%w: this needs CAP_SYS_RESOURCE, and a value not above /proc/sys/fs/nr_open: "+
			"give it to the daemon (systemd: CapabilityBoundingSet=), or restart the service", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: this needs CAP_SYS_RESOURCE: give it to the daemon (systemd: CapabilityBoundingSet=), or restart the service", err)
	}
	return gone(err)
}

// gone makes one error of all that say that there is no such process.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

func procFile(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// readProc reads a file of a process. An empty one is that of a process that has
// ended since it was opened.
func readProc(ctx context.Context, pid int, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if pid <= 0 {
		return nil, errors.New("not a process id")
	}
	data, err := os.ReadFile(procFile(pid, name))
	if err == nil && len(data) == 0 {
		err = os.ErrProcessDone
	}
	return data, gone(err)
}

func startTime(ctx context.Context, pid int) (uint64, error) {
	data, err := readProc(ctx, pid, "stat")
	if err != nil {
		return 0, err
	}
	return parseStart(string(data))
}

// parseStart takes the start time from the text of /proc/PID/stat, proc(5): "pid
// (name) state …". The name is the process's own choice and may hold spaces,
// parentheses and line breaks; what follows it may not.
func parseStart(stat string) (uint64, error) {
	const after = 22 - 3 // the name is field 2, and start time field 22
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, errors.New("no name in parentheses: not the text of /proc/PID/stat")
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) <= after {
		return 0, errors.New("no start time: not the text of /proc/PID/stat")
	}
	start, err := strconv.ParseUint(fields[after], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a start time", fields[after])
	}
	return start, nil
}
