package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killWait bounds how long removing a namespace waits for the processes in it to die.
const killWait = 10 * time.Second

// tool runs a system command in the machine's own namespaces and returns what it said in the error.
func tool(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot run %s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// addNetns makes a named network namespace. iproute2 does it, because it also makes /run/netns a shared mount, without
// which names made later could not be removed while another mount namespace has a copy.
func addNetns(ctx context.Context, name string) (*os.File, error) {
	if err := tool(ctx, "ip", "netns", "add", name); err != nil {
		return nil, err
	}
	return os.Open(filepath.Join(netnsDir, name))
}

// removeNamespaces kills what lives in the named namespaces and removes the names. Names that are gone are no error.
func removeNamespaces(ctx context.Context, dir string, names []string) error {
	var errs []error
	inodes := map[uint64]bool{}
	for _, name := range names {
		var st unix.Stat_t
		err := unix.Stat(filepath.Join(dir, name), &st)
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			errs = append(errs, fmt.Errorf("cannot inspect namespace %s: %w", name, err))
		default:
			inodes[st.Ino] = true
		}
	}
	if err := killAll(inodes); err != nil {
		return errors.Join(append(errs, err)...) // the names stay, so that a later sweep finds the processes
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		err := tool(ctx, "ip", "netns", "delete", name)
		if _, statErr := os.Lstat(path); err != nil && statErr == nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// killAll sends SIGKILL to every process whose network namespace is one of these, until a look finds none. A process may
// fork while it is being looked for, hence the repetition.
func killAll(inodes map[uint64]bool) error {
	if len(inodes) == 0 {
		return nil
	}
	deadline := time.Now().Add(killWait)
	for {
		pids, err := processesIn(inodes)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := kill(pid, inodes, deadline); err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cannot empty a namespace: processes %v do not die", pids)
		}
	}
}

// kill ends one process and waits for it. The pidfd is taken before the namespace is looked at again, so that a reused
// process id is never hit.
func kill(pid int, inodes map[uint64]bool, deadline time.Time) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot open process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	if !inodes[netnsOf(pid)] {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot kill process %d: %w", pid, err)
	}
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("cannot kill process %d: it did not end in %s", pid, killWait)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot wait for process %d: %w", pid, err)
		}
	}
}

// processesIn lists the processes in the namespaces, this one excepted. Zombies have no namespace and are not listed.
func processesIn(inodes map[uint64]bool) ([]int, error) {
	names, err := entries("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err == nil && pid != os.Getpid() && inodes[netnsOf(pid)] {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// netnsOf returns the inode of a process's network namespace, 0 if it is gone.
func netnsOf(pid int) uint64 {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return 0
	}
	text := strings.TrimSuffix(strings.TrimPrefix(link, "net:["), "]")
	inode, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return inode
}

// onThrowawayThread runs f on an OS thread that ends with it, so that f may change the thread's namespaces. The process's
// first thread is kept out of it: it cannot end, and /proc/PID/ns shows its namespaces as the whole process's.
func onThrowawayThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- onThrowawayThread(f)
			return
		}
		// No UnlockOSThread: the runtime ends the thread with the goroutine.
		err := errors.New("cannot finish: the function ended its goroutine (a test's Fatal inside Do?)")
		defer func() { done <- err }()
		err = f()
	}()
	return <-done
}

// vm is the namespaces of a host besides the network one. The files keep them alive.
type vm struct {
	mnt, ipc, uts *os.File
}

// newVM makes mount, IPC and UTS namespaces around a network namespace: dir/run becomes /run, /sys shows the namespace's
// interfaces, and the host name is set.
func newVM(netns *os.File, name, dir string) (vm, error) {
	var v vm
	for _, sub := range []string{"run", "cgroup"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return v, err
		}
	}
	err := onThrowawayThread(func() error {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("cannot enter the network namespace: %w", err)
		}
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("cannot make mount, IPC and UTS namespaces: %w", err)
		}
		if err := mountVM(dir); err != nil {
			return err
		}
		if err := unix.Sethostname([]byte(name)); err != nil {
			return fmt.Errorf("cannot set the host name: %w", err)
		}
		for kind, f := range map[string]**os.File{"mnt": &v.mnt, "ipc": &v.ipc, "uts": &v.uts} {
			var err error
			if *f, err = os.Open("/proc/thread-self/ns/" + kind); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return v, errors.Join(err, v.Close())
	}
	return v, nil
}

// mountVM arranges the mounts of the calling thread's new mount namespace.
func mountVM(dir string) error {
	type mount struct {
		what, where, kind string
		flags             uintptr
	}
	cgroup := filepath.Join(dir, "cgroup")
	// Slave, not private: what the machine unmounts later goes away here too, and nothing done here is seen there.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cannot detach the mounts from the machine's: %w", err)
	}
	// A copy of the names would keep every namespace of the machine alive for as long as this one.
	if err := unix.Unmount(netnsDir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("cannot unmount %s: %w", netnsDir, err)
	}
	for _, m := range []mount{
		{"/sys/fs/cgroup", cgroup, "", unix.MS_BIND | unix.MS_REC}, // the new sysfs would hide it
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{cgroup, "/sys/fs/cgroup", "", unix.MS_MOVE},
		{filepath.Join(dir, "run"), "/run", "", unix.MS_BIND},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := unix.Mount(m.what, m.where, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("cannot mount %s on %s: %w", m.what, m.where, err)
		}
	}
	return nil
}

// Close lets go of the namespaces; they end with the last process in them.
func (v vm) Close() error {
	var errs []error
	for _, f := range []*os.File{v.mnt, v.ipc, v.uts} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
