package mounts

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// keptFlags are the flags of an open file that a second open gives as well.
const keptFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK | unix.O_SYNC | unix.O_DIRECT | unix.O_NOATIME | unix.O_PATH

// Quiet makes an inherited descriptor of a file or directory one of a mount with
// noexec, and leaves all others alone. A log file is what it is for: it belongs
// to the host's mount, and who may read it could have it mapped as code by way
// of /proc/self/fd, whatever the mounts are that its path leads through.
//
// It works on the caller's own mounts, so it comes before Enter, and acts on the
// whole process. The file offset is taken along once and not shared any more.
func Quiet(fd int) error {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if errors.Is(err, unix.EBADF) {
		return nil // there is none
	}
	if err != nil {
		return err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return nil // nothing that can be mapped
	}
	if quiet, err := noexec(fd); quiet || err != nil {
		return err
	}
	again, err := reopen(fd)
	if err != nil {
		return fmt.Errorf("cannot open the file behind descriptor %d once more on a mount with noexec: %w: "+
			"hand over a pipe or the journal's socket instead, or a file of this mount namespace", fd, err)
	}
	defer func() { _ = unix.Close(again) }() // nothing was written
	return unix.Dup3(again, fd, 0)
}

// noexec says whether the mount of a descriptor is noexec, statfs(2).
func noexec(fd int) (bool, error) {
	var st unix.Statfs_t
	err := unix.Fstatfs(fd, &st)
	return st.Flags&unix.ST_NOEXEC != 0, err
}

// reopen opens the file of a descriptor by way of a copy of its mount.
func reopen(fd int) (int, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return -1, err
	}
	tree, err := cloneOf(fd, plain, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(tree) }() // the open file keeps the copy
	again, err := unix.Open(fmt.Sprintf("/proc/thread-self/fd/%d", tree), flags&keptFlags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, err
	}
	if quiet, err := noexec(again); err != nil || !quiet {
		_ = unix.Close(again)
		return -1, errors.Join(errors.New("the kernel does not show noexec on it"), err)
	}
	if offset, err := unix.Seek(fd, 0, unix.SEEK_CUR); err == nil && flags&unix.O_PATH == 0 {
		_, err = unix.Seek(again, offset, unix.SEEK_SET)
		return again, err
	}
	return again, nil
}
