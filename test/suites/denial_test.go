package suites

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// tracefs is where Linux 4.1 and later have it; a private instance of the tracer disturbs nobody (Documentation/trace/ftrace.rst).
var tracefs = "/sys/kernel/tracing"

// mountTracefs makes one of its own for as long as the tests run where there is none: systemd mounts it, but not every machine has a systemd.
func mountTracefs() (unmount func() error, err error) {
	if _, err := os.Stat(filepath.Join(tracefs, "instances")); err == nil {
		return func() error { return nil }, nil
	}
	dir, err := os.MkdirTemp("", traceName)
	if err != nil {
		return nil, err
	}
	if err := unix.Mount("tracefs", dir, "tracefs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, fmt.Errorf("cannot mount tracefs, which says what was denied: %w", errors.Join(err, os.Remove(dir)))
	}
	tracefs = dir
	return func() error { return errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)) }, nil
}

const traceName = "pghardend-suites-"

var traceNumber atomic.Int32

// failure is a system call of a server that failed as it would if a filter or Landlock had denied it.
type failure struct {
	call  int
	errno unix.Errno
}

// deniedByDesign are calls that the filter answers so that the C library takes another way; policies/seccomp/README.md.
var deniedByDesign = map[string]string{
	"clone3 ENOSYS": "the C library takes clone, whose flags can be filtered",
	"socket ENOSYS": "the C library sorts addresses of a name by the source that UDP would have, and leaves them as they are without",
}

// deniedToPerl is, besides, what libperl asks of standard input when it starts. It is /dev/null, and Landlock lets nobody
// control a device; to perl any error means that it is no terminal.
var deniedToPerl = map[string]string{
	"ioctl EACCES": "no device can be controlled",
}

// trace records failures of processes and of all that they start from then on.
type trace struct{ dir string }

// watch begins with a process, in all its threads, and records what they and their descendants do under a program's name:
// the agent is watched from its start on, and only what its launcher becomes counts.
func watch(t *testing.T, pid int, programs ...string) *trace {
	t.Helper()
	w := &trace{filepath.Join(tracefs, "instances", fmt.Sprintf("%s%d-%d", traceName, os.Getpid(), traceNumber.Add(1)))}
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		t.Fatalf("cannot watch system calls: %v: the kernel needs CONFIG_FTRACE_SYSCALLS", err)
	}
	t.Cleanup(func() { must(t, os.Remove(w.dir)) })
	w.set(t, "buffer_size_kb", "8192") // for each CPU
	w.set(t, "options/event-fork", "1")
	w.set(t, "options/userstacktrace", "0") // a new instance takes over what somebody has set
	w.set(t, "options/stacktrace", "0")
	w.set(t, "events/raw_syscalls/sys_exit/filter", fmt.Sprintf(`(ret == -%d || ret == -%d || ret == -%d) && (comm == "%s")`,
		unix.EPERM, unix.EACCES, unix.ENOSYS, strings.Join(programs, `" || comm == "`)))
	w.follow(t, pid)
	w.set(t, "events/raw_syscalls/sys_exit/enable", "1")
	return w
}

func (w *trace) set(t *testing.T, file, value string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(w.dir, file), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString(value)
	must(t, errors.Join(err, f.Close()))
}

// follow adds a process with its threads and all that descend from it. What these make from then on follows its maker; what
// they made while they were being looked at is found by looking until there is nothing new.
func (w *trace) follow(t *testing.T, pid int) {
	t.Helper()
	for seen, grown := map[string]bool{}, true; grown; {
		grown = false
		for _, task := range tasks(strconv.Itoa(pid)) {
			if !seen[task] {
				seen[task], grown = true, true
				w.set(t, "set_event_pid", task)
			}
		}
	}
}

// tasks lists the threads of a process and of its descendants. What ends meanwhile is passed over.
func tasks(pid string) []string {
	dirs, _ := filepath.Glob("/proc/" + pid + "/task/*") // the pattern is right
	var list []string
	for _, dir := range dirs {
		list = append(list, filepath.Base(dir))
		children, _ := os.ReadFile(filepath.Join(dir, "children")) // gone if it cannot be read
		for _, child := range strings.Fields(string(children)) {
			list = append(list, tasks(child)...)
		}
	}
	return list
}

// The name at the start of a line is a guess that the kernel makes when the file is read.
var traceLine = regexp.MustCompile(`^\s*.+-\d+ .*\[\d+\].* sys_exit: NR (-?\d+) = -(\d+)$`)

// noCall is the number at the end of rt_sigreturn, and the result is what the interrupted program had in the register
// (arch/x86/kernel/signal_64.c): nothing was called.
const noCall = -1

// failures counts what was recorded so far.
func (w *trace) failures(t *testing.T) map[failure]int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, "trace"))
	must(t, err)
	lost, err := filepath.Glob(filepath.Join(w.dir, "per_cpu/*/stats"))
	must(t, err)
	for _, file := range lost {
		stats, err := os.ReadFile(file)
		must(t, err)
		if !strings.Contains(string(stats), "\noverrun: 0\n") {
			t.Errorf("failed system calls were lost: make the buffer larger: %s", stats)
		}
	}
	counts := map[failure]int{}
	for line := range strings.Lines(string(text)) {
		m := traceLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		switch {
		case m != nil:
			call, err1 := strconv.Atoi(m[1])
			errno, err2 := strconv.Atoi(m[2])
			must(t, errors.Join(err1, err2))
			if call == noCall {
				continue
			}
			counts[failure{call, unix.Errno(errno)}]++
		case !strings.HasPrefix(line, "#") && strings.TrimSpace(line) != "":
			t.Errorf("cannot read what the kernel says of a failed system call: %q", line)
		}
	}
	return counts
}

// less is what a count has grown by.
func less(now, before map[failure]int) map[failure]int {
	d := map[failure]int{}
	for f, n := range now {
		if n > before[f] {
			d[f] = n - before[f]
		}
	}
	return d
}

// removeTraces removes what tests of this process, and of earlier ones that are dead, have left.
func removeTraces() {
	dirs, _ := filepath.Glob(filepath.Join(tracefs, "instances", traceName+"*")) // the pattern is right
	for _, dir := range dirs {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), traceName), "-")
		if _, err := os.Stat("/proc/" + owner); err != nil || owner == strconv.Itoa(os.Getpid()) {
			_ = os.Remove(dir) // somebody may look into it
		}
	}
}

// unexpected says which failures of a confined server an unconfined one, doing the same, did not have, and are not by
// design; "none" if there are none. They fail the test.
func unexpected(t *testing.T, confined, bare map[failure]int, designs ...map[string]string) string {
	t.Helper()
	var list []string
	for _, f := range slices.SortedFunc(maps.Keys(confined), func(a, b failure) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }) {
		call := fmt.Sprintf("%s %s", nameOf(f.call), unix.ErrnoName(f.errno))
		t.Logf("%s: %d times confined, %d times not", call, confined[f], bare[f])
		byDesign := bare[f] > 0
		for _, design := range append(designs, deniedByDesign) {
			byDesign = byDesign || design[call] != ""
		}
		if !byDesign {
			list = append(list, fmt.Sprintf("%s (%d)", call, confined[f]))
		}
	}
	if len(list) == 0 {
		return "none"
	}
	t.Errorf("denied, and not by design: %s", strings.Join(list, ", "))
	return strings.Join(list, ", ")
}

func nameOf(call int) string {
	if name, ok := sandbox.SyscallName(call); ok {
		return name
	}
	return fmt.Sprintf("call %d", call)
}

// The recording sees a failed call of a child that was forked since, here one that no kernel knows.
func TestWatchSeesFailures(t *testing.T) {
	cmd := exec.Command("perl", "-e", `<STDIN>; if (!fork) { syscall(4095) } wait`)
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	w := watch(t, cmd.Process.Pid, "perl")
	must(t, in.Close())
	must(t, cmd.Wait())
	if got := w.failures(t); got[failure{4095, unix.ENOSYS}] != 1 {
		t.Errorf("the call is not among the failures: %v", got)
	}
}
