package mac

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is where the kernel gives up as well, path_resolution(7).
const maxLinks = 40

// writableByOthers are the bits that let anyone but the owner write.
const writableByOthers = 0o022

// opened is a path as it was found.
type opened struct {
	fd   int
	path string // where it is, without links
	dir  bool
}

// openPath walks to a path and holds what is there (O_PATH). The service may own
// directories on the way, its data directory's parent say, so a symbolic link
// counts only if it is root's and no directory before it is anybody else's.
func openPath(path string) (opened, error) {
	w := walk{rest: strings.Split(path, "/")}
	err := w.toRoot()
	for err == nil && len(w.rest) > 0 {
		err = w.next()
	}
	if err != nil {
		w.close()
		return opened{}, fmt.Errorf("cannot open %s: %w", path, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(w.at, &st)
	place := ""
	if err == nil {
		place, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", w.at))
	}
	if err != nil {
		w.close()
		return opened{}, fmt.Errorf("cannot learn where %s leads: %w", path, err)
	}
	return opened{fd: w.at, path: place, dir: st.Mode&unix.S_IFMT == unix.S_IFDIR}, nil
}

// walk is a path on its way.
type walk struct {
	at     int // the directory that was reached; -1 for none
	rest   []string
	links  int
	others bool // somebody other than root could have made an entry on the way
}

const holdOnly = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC

func (w *walk) toRoot() error {
	w.others = false
	fd, err := unix.Open("/", holdOnly|unix.O_DIRECTORY, 0)
	w.at = -1
	if err != nil {
		return err
	}
	return w.enter(fd)
}

// enter makes a file the place reached.
func (w *walk) enter(fd int) error {
	w.close()
	w.at = fd
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid != 0 || st.Mode&writableByOthers != 0 {
		w.others = true
	}
	return nil
}

func (w *walk) close() {
	if w.at >= 0 {
		_ = unix.Close(w.at) // nothing was written
		w.at = -1
	}
}

func (w *walk) next() error {
	part := w.rest[0]
	w.rest = w.rest[1:]
	if part == "" || part == "." {
		return nil
	}
	fd, err := unix.Openat(w.at, part, holdOnly, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return w.enter(fd)
	}
	if err == nil {
		err = w.follow(fd, part, st)
	}
	_ = unix.Close(fd)
	return err
}

func (w *walk) follow(fd int, part string, st unix.Stat_t) error {
	if w.others || st.Uid != 0 {
		return fmt.Errorf("%s is a symbolic link that somebody other than root could have made: name the place that is meant", part)
	}
	if w.links++; w.links > maxLinks {
		return unix.ELOOP
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return err
	}
	target := string(buf[:n])
	w.rest = append(strings.Split(target, "/"), w.rest...)
	if strings.HasPrefix(target, "/") {
		w.close()
		return w.toRoot()
	}
	return nil
}

// missing says whether an error of openPath means that there is no such path.
func missing(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }
