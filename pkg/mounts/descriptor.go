package mounts

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// keptFlags are the flags of an open file that a second open gives as well.
const keptFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK | unix.O_SYNC | unix.O_DIRECT | unix.O_NOATIME | unix.O_PATH

// ErrForeign is returned by Quiet for a descriptor of another mount namespace, whose
// mounts cannot be copied.
var ErrForeign = errors.New("it is a file of another mount namespace")

// Quiet makes an inherited descriptor of a file or directory one of a mount with
// noexec, and leaves all others alone. A log file is what it is for: it belongs
// to the host's mount, and who may read it could have it mapped as code by way
// of /proc/self/fd, whatever the mounts are that its path leads through.
//
// It works on the caller's own mounts, so it comes before Enter, and acts on the
// whole process. The file offset is taken along once and not shared any more. What
// is ErrForeign is for [QuietByPath].
func Quiet(fd int) error {
	loud, err := mappable(fd)
	if !loud || err != nil {
		return err
	}
	tree, err := cloneOf(fd, plain, 0)
	if errors.Is(err, unix.EINVAL) {
		return ErrForeign
	}
	if err != nil {
		return descriptorError(fd, err)
	}
	defer func() { _ = unix.Close(tree) }() // the open file keeps the copy
	return exchange(fd, tree)
}

// QuietByPath does the same after Enter, for a file that is still where it was opened.
func QuietByPath(fd int) error {
	loud, err := mappable(fd)
	if !loud || err != nil {
		return err
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", fd))
	if err != nil {
		return descriptorError(fd, err)
	}
	at, err := hold(path)
	if err != nil {
		return descriptorError(fd, err)
	}
	defer func() { _ = unix.Close(at) }() // nothing was written
	var want, got unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &want), unix.Fstat(at, &got)); err != nil {
		return descriptorError(fd, err)
	}
	if want.Dev != got.Dev || want.Ino != got.Ino {
		return descriptorError(fd, fmt.Errorf("%s is another file here", path))
	}
	return exchange(fd, at)
}

func descriptorError(fd int, err error) error {
	return fmt.Errorf("cannot open the file behind descriptor %d once more, on a mount with noexec: %w: "+
		"hand over a pipe or the journal's socket instead", fd, err)
}

// mappable says whether a descriptor is of something that can be mapped as code.
func mappable(fd int) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if errors.Is(err, unix.EBADF) {
		return false, nil // there is none
	}
	if kind := st.Mode & unix.S_IFMT; err != nil || kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return false, err
	}
	quiet, err := noexec(fd)
	return !quiet, err
}

// noexec says whether the mount of a descriptor is noexec, statfs(2).
func noexec(fd int) (bool, error) {
	var st unix.Statfs_t
	err := unix.Fstatfs(fd, &st)
	return st.Flags&unix.ST_NOEXEC != 0, err
}

// exchange opens what another descriptor is on, the way that fd is open, and puts it
// in the place of fd.
func exchange(fd, at int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return descriptorError(fd, err)
	}
	again, err := unix.Open(fmt.Sprintf("/proc/thread-self/fd/%d", at), flags&keptFlags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return descriptorError(fd, err)
	}
	defer func() { _ = unix.Close(again) }() // nothing was written
	if loud, err := mappable(again); err != nil || loud {
		return descriptorError(fd, errors.Join(errors.New("the kernel does not show noexec on it"), err))
	}
	if offset, err := unix.Seek(fd, 0, unix.SEEK_CUR); err == nil && flags&unix.O_PATH == 0 {
		if _, err := unix.Seek(again, offset, unix.SEEK_SET); err != nil {
			return descriptorError(fd, err)
		}
	}
	return unix.Dup3(again, fd, 0)
}
