package agent

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Bits of a mode.
const (
	modeBits        = 0o7777
	othersWrite     = 0o022
	modeData        = 0o700
	modeGroupData   = 0o750 // after initdb --allow-group-access
	permissionBits  = 0o777
	groupMayRead    = 0o040
	maxContentBytes = 8 << 20 // as config.ReadFile
)

// keptPath is one file or directory whose owner and mode are kept.
type keptPath struct {
	what string // for messages
	path string
	kind uint32 // S_IFDIR or S_IFREG
	pid  int    // of the service whose data directory it is, else 0
	uid  uint32 // the owner, set beforehand for a data directory

	// file is what was seen right. Nobody else can have its inode's number as
	// long as it is open.
	file     *os.File
	dev, ino uint64            // its identity
	content  [sha256.Size]byte // of a regular file when it was last right
	seen     fileState         // at the last look
}

// fileState is what a look compares. The zero value is that of nothing.
type fileState struct {
	dev, ino  uint64
	mode, uid uint32
	changed   unix.Timespec // of a regular file: a directory's is another with every entry
}

func stateOf(st unix.Stat_t) fileState {
	s := fileState{dev: st.Dev, ino: st.Ino, mode: st.Mode, uid: st.Uid}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		s.changed = st.Ctim
	}
	return s
}

// differs says whether the path leads to something else than at the last look.
func (k *keptPath) differs() bool {
	var st unix.Stat_t
	if err := unix.Stat(k.path, &st); err != nil {
		return k.seen != fileState{}
	}
	return stateOf(st) != k.seen
}

// drop forgets what was seen.
func (k *keptPath) drop() {
	if k.file != nil {
		k.file.Close()
	}
	k.file = nil
}

// look adds to the plan what differs.
func (k *keptPath) look(p *filePlan) error {
	f, st, err := openPath(k.path)
	if err != nil {
		return k.lost(p, err)
	}
	before := k.seen
	k.seen = stateOf(st)
	if k.file != nil && k.dev == st.Dev && k.ino == st.Ino {
		f.Close()
	} else if !k.adopt(p, f, st) {
		return nil
	}
	c := fileChange{kept: k, have: ownership{st.Uid, st.Mode & modeBits}, want: ownership{k.uid, k.wantMode(st)}}
	if k.kind == unix.S_IFREG {
		return k.compare(p, c, before)
	}
	if c.have != c.want {
		p.changes = append(p.changes, c)
	}
	return nil
}

// adopt keeps what the path leads to from now on if it is right, and says whether
// it did.
func (k *keptPath) adopt(p *filePlan, f *os.File, st unix.Stat_t) bool {
	switch {
	case k.pid != 0 && k.file != nil:
		p.faults = append(p.faults, fmt.Sprintf("%s %s: it is another directory than the one that the service was seen to run in: "+
			"put the right one back, or restart the service", k.what, k.path))
	case k.pid != 0 && st.Mode&unix.S_IFMT == k.kind && (k.uid == 0 || st.Uid != k.uid):
		p.faults = append(p.faults, fmt.Sprintf("%s %s: it belongs to uid %d and the service runs as uid %d, which was so when this daemon first saw it: "+
			"if it is the right one, chown it; if the service is the wrong one, stop it", k.what, k.path, st.Uid, k.uid))
	case k.pid != 0 && st.Mode&unix.S_IFMT != k.kind:
		p.faults = append(p.faults, fmt.Sprintf("%s %s: it is not a directory", k.what, k.path))
	case k.pid == 0 && !trusted(st, k.kind): // is refused by whoever reads it
		k.drop()
	default:
		k.drop()
		k.file, k.dev, k.ino = f, st.Dev, st.Ino
		if k.pid == 0 {
			k.uid = st.Uid
		}
		k.content = [sha256.Size]byte{}
		return true
	}
	f.Close()
	return false
}

// trusted is the rule of config.ReadFile.
func trusted(st unix.Stat_t, kind uint32) bool {
	return st.Mode&unix.S_IFMT == kind && (st.Uid == 0 || int(st.Uid) == os.Geteuid()) && st.Mode&othersWrite == 0
}

// lost is for a path that leads nowhere.
func (k *keptPath) lost(p *filePlan, err error) error {
	k.seen = fileState{}
	switch {
	case k.pid == 0 && (errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR)):
		k.drop() // is missed by whoever reads it
		return nil
	case k.pid != 0 && errors.Is(err, os.ErrNotExist):
		p.faults = append(p.faults, fmt.Sprintf("%s %s: it is gone: put it back", k.what, k.path))
		return nil
	}
	return fmt.Errorf("cannot look at %s %s: %w", k.what, k.path, err)
}

// wantMode is the mode that comes nearest to what is there. PostgreSQL takes 0700,
// and 0750 where its group is meant to read, which initdb makes visible in the
// modes of files.
func (k *keptPath) wantMode(st unix.Stat_t) uint32 {
	mode := st.Mode & modeBits
	if k.pid == 0 {
		return mode &^ othersWrite
	}
	group, known := k.groupAccess()
	switch perm := mode & permissionBits; {
	case perm == modeData, perm == modeGroupData && (group || !known):
		return mode
	case group:
		return mode&^permissionBits | modeGroupData
	}
	return mode&^permissionBits | modeData
}

// groupAccess says whether initdb has let the group in; not known where there is
// no PG_VERSION.
func (k *keptPath) groupAccess() (group, known bool) {
	var st unix.Stat_t
	err := unix.Fstatat(int(k.file.Fd()), "PG_VERSION", &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false, false
	}
	return st.Mode&groupMayRead != 0, true
}

// compare looks at a file's content as well: to give a file back its mode after
// others could write to it must not make what they wrote count.
func (k *keptPath) compare(p *filePlan, c fileChange, before fileState) error {
	if c.have == c.want && before == k.seen && k.content != [sha256.Size]byte{} {
		return nil
	}
	content, err := k.readContent()
	if err != nil {
		return err
	}
	switch {
	case c.have == c.want:
		k.content = content
	case k.content == content:
		p.changes = append(p.changes, c)
	default:
		p.faults = append(p.faults, fmt.Sprintf("%s %s: it belongs to uid %d and has mode %04o, and its content changed: "+
			"check it, then `chown %d %s && chmod %04o %s`", k.what, k.path, c.have.uid, c.have.mode, c.want.uid, k.path, c.want.mode, k.path))
	}
	return nil
}

// readContent reads the kept file, wherever the path leads by now.
func (k *keptPath) readContent() (sum [sha256.Size]byte, err error) {
	fail := func(err error) error { return fmt.Errorf("cannot read %s %s: %w", k.what, k.path, err) }
	f, err := os.Open(k.throughDescriptor())
	if err != nil {
		return sum, fail(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxContentBytes)); err != nil {
		return sum, fail(err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// throughDescriptor is a name that leads to the kept file without any path being
// walked, proc(5).
func (k *keptPath) throughDescriptor() string { return fmt.Sprintf("/proc/self/fd/%d", k.file.Fd()) }

// openPath opens what a path leads to, for its identity alone.
func openPath(path string) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, st, err
	}
	f := os.NewFile(uintptr(fd), path)
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, st, err
	}
	return f, st, nil
}

type ownership struct{ uid, mode uint32 }

// fileChange is one owner or mode to put back.
type fileChange struct {
	kept       *keptPath
	have, want ownership
}

// apply gives the owner back first: whoever was it could change the mode again.
func (c fileChange) apply() error {
	if c.kept.file == nil {
		return errors.New("it is gone")
	}
	fd := int(c.kept.file.Fd())
	if c.have.uid != c.want.uid {
		if err := unix.Fchownat(fd, "", int(c.want.uid), -1, unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("cannot make uid %d its owner: %w", c.want.uid, err)
		}
	}
	// fchmod(2) does not take an O_PATH descriptor, and fchmodat2(2) is Linux 6.6.
	if err := unix.Chmod(c.kept.throughDescriptor(), c.want.mode); err != nil {
		return fmt.Errorf("cannot set its mode to %04o: %w", c.want.mode, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if got := (ownership{st.Uid, st.Mode & modeBits}); got != c.want {
		return fmt.Errorf("the kernel made it uid %d, mode %04o", got.uid, got.mode)
	}
	return nil
}
