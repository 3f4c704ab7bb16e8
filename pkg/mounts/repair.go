package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Repair gives the mounts of a live process the flags that they lack, those that have
// come from the host since its start above all. What it cannot put back is an
// error; flags are added and never taken away. Root is needed, with CAP_SYS_ADMIN
// and CAP_SYS_CHROOT. Of a process that has ended the error is os.ErrNotExist.
func (l Layout) Repair(ctx context.Context, pid int) error {
	if own, err := Own(ctx, pid); err != nil || !own {
		return errors.Join(err, errors.New("it has no mounts of its own: restart it")) // never the host's
	}
	done := make(chan error)
	go func() { done <- onThread(func() error { return l.repairIn(ctx, pid) }) }()
	return <-done
}

// onThread runs f on a thread that ends with it. The first thread of a process cannot
// end, and /proc/self shows its mounts for all others', so it is kept out.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := onThread(f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f() // still locked: the thread ends here
	}()
	return <-done
}

// repairIn moves the calling thread into the mounts of a process.
func (l Layout) repairIn(ctx context.Context, pid int) error {
	namespace, err := os.Open(procFile(pid, "ns/mnt"))
	if err != nil {
		return err
	}
	defer namespace.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns(2) wants root and working directory to be nobody else's
		return fmt.Errorf("cannot part the thread's directories: %w", err)
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot enter the mounts of process %d: %w", pid, err)
	}
	table, err := ReadTable(ctx, 0)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range table {
		if flags := l.lacks(m); flags != 0 && table.reachable(m) {
			if place := l.codeOn(table, m); flags&unix.MOUNT_ATTR_NOEXEC != 0 && place != "" {
				errs = append(errs, fmt.Errorf("cannot make the mount %s of process %d noexec: %s is on it: restart the service", m.text(), pid, place))
				continue
			}
			if err := m.add(flags); err != nil {
				errs = append(errs, fmt.Errorf("cannot change the mount %s of process %d: %w", m.text(), pid, err))
			}
		}
	}
	if table, err = ReadTable(ctx, 0); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, r := range l.Check(table) {
		if !r.OK {
			errs = append(errs, fmt.Errorf("mounts of process %d: %s: %s, not %s: restart the service", pid, r.Check, r.Got, r.Want))
		}
	}
	return errors.Join(errs...)
}

// codeOn is a place that is executed from and is on a mount that should not be: what runs
// would lose its libraries. So it is with mounts that another version has made.
func (l Layout) codeOn(t Table, m Mount) string {
	for _, place := range l.exec {
		if on, ok := t.At(place); ok && on.ID == m.ID {
			return place
		}
	}
	return ""
}

// add sets flags of a mount, if it is still the one that its path leads to.
func (m Mount) add(flags uint64) error {
	at, err := hold(m.Point)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }() // nothing was written
	info, err := os.ReadFile(fmt.Sprintf("/proc/thread-self/fdinfo/%d", at))
	if err != nil {
		return err
	}
	if !strings.Contains(string(info), fmt.Sprintf("mnt_id:\t%d\n", m.ID)) {
		return errors.New("it is another one by now")
	}
	return unix.MountSetattr(at, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: flags})
}
