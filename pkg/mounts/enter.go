package mounts

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrUnsupported is returned by Supported.
var ErrUnsupported = errors.New("the kernel cannot change mounts as a whole: mount_setattr(2) needs Linux 5.12")

// Supported asks the kernel. It takes an attribute structure of size 0 for an invalid
// argument before it looks at anything else.
func Supported() error {
	_, _, errno := unix.RawSyscall6(unix.SYS_MOUNT_SETATTR, 0, 0, 0, 0, 0, 0)
	switch errno {
	case unix.EINVAL:
		return nil
	case unix.ENOSYS:
		return ErrUnsupported
	}
	return fmt.Errorf("mount_setattr(2) is not to be had: %w: lift the filter of the container that this runs in", errno)
}

// The flags of mounts. Nothing but these is ever added, and none is taken away.
const (
	sealedExec = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	plain      = unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	sealedOnly = plain | unix.MOUNT_ATTR_RDONLY
	device     = unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSUID
)

// piece is a copy of a place that belongs on top of it.
type piece struct {
	place string
	attrs uint64
	tree  int // descriptor of the detached copy
}

// Enter puts the calling thread into a new mount namespace with this layout. The
// thread must be root (CAP_SYS_ADMIN); its working directory has to be entered
// anew. After an error the thread is in no defined state.
func (l Layout) Enter() error {
	// This also parts the thread's root and working directory from the other threads'.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot make a mount namespace: %w", err)
	}
	// The first change of all: whatever follows would reach the host otherwise.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cannot part the mounts from the host's: %w", err)
	}
	pieces := l.pieces()
	defer func() {
		for _, p := range pieces {
			if p.tree >= 0 {
				_ = unix.Close(p.tree) // what was put in its place stays
			}
		}
	}()
	// Copies come first: they keep the flags that the host gave them.
	for i := range pieces {
		if err := pieces[i].copy(); err != nil {
			return fmt.Errorf("cannot copy the mount of %s: %w", pieces[i].place, err)
		}
	}
	all := unix.MountAttr{Attr_set: plain}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &all); err != nil {
		return fmt.Errorf("cannot make all mounts noexec, nosuid and nodev: %w", err)
	}
	for _, p := range pieces {
		if err := p.put(); err != nil {
			return fmt.Errorf("cannot put a mount on %s: %w", p.place, err)
		}
	}
	for _, place := range l.hide {
		if err := hide(place); err != nil {
			return fmt.Errorf("cannot hide %s: %w", place, err)
		}
	}
	return nil
}

// pieces are what needs mounts of its own, outer places before inner ones. What is
// written to needs one only where it would be read-only, as everything else is
// noexec anyway.
func (l Layout) pieces() []piece {
	var out []piece
	add := func(attrs uint64, places []string) {
		for _, p := range places {
			out = append(out, piece{place: p, attrs: attrs, tree: -1})
		}
	}
	add(sealedExec, l.exec)
	add(sealedOnly, l.readOnly)
	add(device, l.devices)
	for _, w := range l.write {
		if within(w, l.sealed()) {
			add(plain, []string{w})
		}
	}
	slices.SortStableFunc(out, func(a, b piece) int { return strings.Compare(a.place, b.place) })
	return out
}

// hold opens a place, which must not have become a link.
func hold(place string) (int, error) {
	return unix.Openat2(unix.AT_FDCWD, place, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
}

func (p *piece) copy() error {
	at, err := hold(p.place)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }() // nothing was written
	p.tree, err = cloneOf(at, p.attrs, unix.AT_RECURSIVE)
	return err
}

// cloneOf is a detached copy of what a descriptor is on, with flags added.
func cloneOf(fd int, attrs uint64, recursive uint) (int, error) {
	tree, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|recursive)
	if err != nil {
		return -1, err
	}
	attr := unix.MountAttr{Attr_set: attrs}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|recursive, &attr); err != nil {
		_ = unix.Close(tree)
		return -1, err
	}
	return tree, nil
}

func (p piece) put() error {
	at, err := hold(p.place)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }() // nothing was written
	return unix.MoveMount(p.tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// hiddenSource is what a table of mounts shows in front of a hidden directory.
const hiddenSource = "pghardend-hidden"

// hide puts an empty file system that nobody may enter on a directory.
func hide(place string) error {
	at, err := hold(place)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }() // nothing was written
	const flags = unix.MS_RDONLY | unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV
	return unix.Mount(hiddenSource, fmt.Sprintf("/proc/thread-self/fd/%d", at), "tmpfs", flags, "mode=000,size=4k,nr_inodes=2")
}
