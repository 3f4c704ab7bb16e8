package firewall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sentryThread begins the names of threads that wait to be promoted; the number of
// their CPU follows.
const sentryThread = "sentry-"

// raise gives a thread, 0 for the caller, its CPU and its priority. EPERM: without
// CAP_SYS_NICE, or by a system call filter.
func raise(tid, cpu int) error {
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(tid, &one); err != nil {
		return err
	}
	return unix.SchedSetAttr(tid, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: sentryPriority, Flags: unix.SCHED_FLAG_RESET_ON_FORK,
	}, 0)
}

// isRaised asks the kernel about the calling thread.
func isRaised() bool {
	attr, err := unix.SchedGetAttr(0, 0)
	return err == nil && attr.Policy == unix.SCHED_FIFO
}

// nameThread tells Promote which thread is to have which CPU, PR_SET_NAME(2const).
func nameThread(cpu int) error {
	name, err := unix.BytePtrFromString(sentryThread + strconv.Itoa(cpu))
	if err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0)
}

// Promote gives the threads of another process's Sentry their CPUs and priority. A
// process without such threads is left as it is. Needs CAP_SYS_NICE.
func Promote(ctx context.Context, pid int) error {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return fmt.Errorf("cannot list the threads of process %d: %w", pid, err)
	}
	var errs []error
	for _, task := range tasks {
		if err := ctx.Err(); err != nil {
			return err
		}
		name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "task", task.Name(), "comm"))
		number, found := strings.CutPrefix(strings.TrimSpace(string(name)), sentryThread)
		cpu, cpuErr := strconv.Atoi(number)
		tid, tidErr := strconv.Atoi(task.Name())
		if err != nil || !found || cpuErr != nil || tidErr != nil || cpu < 0 {
			continue // it has ended, or is no sentry's
		}
		if err := raise(tid, cpu); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("cannot give thread %d of process %d its priority: %w", tid, pid, err))
		}
	}
	return errors.Join(errs...)
}
