package e2e

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
)

// The disk of a data directory that hangs for good holds up neither the repair of
// rules nor that of sets, and status says that it hangs.
func TestF22_HangingDataDirectory(t *testing.T) {
	s := startSlice(t, "nft")
	release := hang(t, s.agent.PID(), s.cluster.Data)
	defer release()
	s.awaitStatus("the disk to be named", func(st control.Status) error {
		if !strings.Contains(strings.Join(st.Reasons, "\n"), s.cluster.Data+": its disk does not answer") {
			return fmt.Errorf("reasons %q", st.Reasons)
		}
		return nil
	})
	for _, row := range []struct{ name, command, word string }{
		{"jump", "iptables-nft -D INPUT 1", "INPUT"},
		{"set", "ipset flush pgh4-control_plane", "pgh4-control_plane"},
	} {
		before := time.Now()
		_, err := s.node.Run(s.ctx, "sh", "-c", row.command)
		must(t, err)
		s.awaitStatus("a repair of the "+row.name, func(st control.Status) error { // `plan` would hang as well
			for _, d := range st.Drift {
				if d.Found.After(before) && !d.Repaired.IsZero() && strings.Contains(d.What, row.word) {
					return nil
				}
			}
			return errors.New("no such event yet")
		})
	}
	release()
	s.awaitOK()
	s.want(0, []string{"nothing to do"}, "plan")
}

// hang mounts a file system that never answers over a directory, in the mount
// namespace of a process alone.
func hang(t *testing.T, pid int, dir string) (release func()) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	must(t, inMounts(pid, func() error {
		return unix.Mount("hang", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
	}))
	open := true
	return func() {
		t.Helper()
		if open {
			open = false
			must(t, errors.Join(unix.Close(fd), // who waits gets an error now
				inMounts(pid, func() error { return unix.Unmount(dir, unix.MNT_DETACH) })))
		}
	}
}

// inMounts calls f in the mount namespace of a process, on a thread that ends with it.
func inMounts(pid int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(ns)
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}
