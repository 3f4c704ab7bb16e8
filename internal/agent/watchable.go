package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// watchable are the paths to watch in order to hear of all changes to some steps of
// trails. Not whole: there are changes of which inotify(7) does not tell, or not by
// these paths.
//
// A directory's watch tells of what is in it, by the names that are there. Files are
// watched as well, since they may have other names, and so are the roots of mounts,
// which are in no directory.
func watchable(ctx context.Context, steps []trailStep) (paths []string, whole bool) {
	whole = true
	add := func(path string) {
		if !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	for i, s := range steps {
		add(filepath.Dir(s.path))
		switch s.mode & unix.S_IFMT {
		case unix.S_IFREG:
			add(s.path)
			whole = whole && isLocal(ctx, s.path)
		case unix.S_IFDIR:
			root, known := mountRoot(ctx, s.path)
			if root {
				add(s.path)
			}
			// Of a directory that has two names the kernel tells by one of them.
			twice := slices.ContainsFunc(steps[:i], func(o trailStep) bool {
				return o.path != s.path && o.dev == s.dev && o.ino == s.ino
			})
			whole = whole && known && !twice && isLocal(ctx, s.path)
		}
	}
	return paths, whole
}

// mountRoot says whether something is mounted at a path, which is known from Linux
// 5.8 on, statx(2).
func mountRoot(ctx context.Context, path string) (root, known bool) {
	if ctx.Err() != nil {
		return false, false
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return false, os.IsNotExist(err)
	}
	const attr = unix.STATX_ATTR_MOUNT_ROOT
	return st.Attributes&attr != 0, st.Attributes_mask&attr != 0
}

// remote are file systems that others may change, of which nobody tells us.
var remote = []int64{unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.V9FS_MAGIC,
	unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.CODA_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC}

func isLocal(ctx context.Context, path string) bool {
	if ctx.Err() != nil {
		return false
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return os.IsNotExist(err)
	}
	return !slices.Contains(remote, st.Type)
}
