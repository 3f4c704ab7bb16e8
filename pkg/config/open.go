package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symlinks a path may lead through, as for the kernel,
// path_resolution(7).
const maxLinks = 40

// open opens a file for reading, one component of its path after the other, so
// that each symlink can be checked before it is followed; openat2(2) can only
// refuse all of them.
//
// A link is looked at and read through one descriptor, and the next component is
// looked up from the descriptor of its directory: whatever is renamed meanwhile,
// what was checked is what was followed.
func open(path string, euid int) (*os.File, error) {
	w := &pathWalk{path: path, euid: euid, dir: -1, rest: components(path)}
	defer w.leave()
	if path == "" {
		return nil, w.error(unix.ENOENT)
	}
	err := w.start(path)
	for err == nil {
		var file *os.File
		if file, err = w.step(); file != nil {
			return file, nil
		}
	}
	return nil, w.error(err)
}

// pathWalk is where a walk along a path has come to.
type pathWalk struct {
	path  string // all of it, for messages
	euid  int
	dir   int      // descriptor of the directory that it has come to, or -1
	at    string   // that directory, for messages
	rest  []string // what is still to go, never empty
	links []string // the symlinks on the way and what they say
}

// components splits a path. A / at its end means a directory, as . does.
func components(path string) []string {
	var list []string
	for c := range strings.SplitSeq(path, "/") {
		if c != "" {
			list = append(list, c)
		}
	}
	if strings.HasSuffix(path, "/") {
		list = append(list, ".")
	}
	return list
}

// start goes to where the lookup of a path begins.
func (w *pathWalk) start(path string) error {
	switch {
	case strings.HasPrefix(path, "/"):
		w.leave()
		w.at = "/"
	case w.dir >= 0: // a link's target, relative to where the link is
		return nil
	default:
		w.at = "."
	}
	fd, err := unix.Open(w.at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	w.dir = fd // -1 with an error
	return err
}

func (w *pathWalk) leave() {
	if w.dir >= 0 {
		_ = unix.Close(w.dir) // O_PATH: nothing can be lost
		w.dir = -1
	}
}

// step goes one component further. At the end of the path it returns the file.
func (w *pathWalk) step() (*os.File, error) {
	name := w.rest[0]
	fd, err := unix.Openat(w.dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var stat unix.Stat_t
	err = unix.Fstat(fd, &stat)
	isLink := stat.Mode&unix.S_IFMT == unix.S_IFLNK
	if err == nil && !isLink && len(w.rest) > 1 {
		w.leave()
		w.dir, w.at, w.rest = fd, filepath.Join(w.at, name), w.rest[1:]
		return nil, nil
	}
	defer func() { _ = unix.Close(fd) }()
	switch {
	case err != nil:
		return nil, err
	case isLink:
		return nil, w.follow(fd, name, int(stat.Uid))
	}
	return w.last(name)
}

// last opens the file at the end of the path.
func (w *pathWalk) last(name string) (*os.File, error) {
	// O_NONBLOCK, or opening a FIFO would wait for its writer, see open(2).
	fd, err := unix.Openat(w.dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) { // a symlink has taken its place just now: look again
		return nil, w.count(name, "?")
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), w.path), nil
}

// follow goes where a symlink leads, if nobody else can have put it there.
func (w *pathWalk) follow(fd int, name string, owner int) error {
	var dir unix.Stat_t
	if err := unix.Fstat(w.dir, &dir); err != nil {
		return err
	}
	if e := checkLink(filepath.Join(w.at, name), owner, dir, w.euid); e != nil {
		e.File = w.path
		return e
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", target)
	if err != nil {
		return err
	}
	if err := w.count(name, string(target[:n])); err != nil {
		return err
	}
	w.rest = append(components(string(target[:n])), w.rest[1:]...)
	return w.start(string(target[:n]))
}

func (w *pathWalk) count(name, target string) error {
	if len(w.links) == maxLinks {
		return unix.ELOOP
	}
	w.links = append(w.links, strconv.Quote(filepath.Join(w.at, name))+" -> "+strconv.Quote(target))
	return nil
}

// checkLink says why a symlink is not to be trusted, or returns nil. A sticky
// directory such as /tmp is no exception: whoever comes first puts the link there.
func checkLink(link string, owner int, dir unix.Stat_t, euid int) *Error {
	e := &Error{Fix: "put a regular file there, or keep the link in a directory that only root can write to"}
	link = strconv.Quote(link)
	switch {
	case owner != 0 && owner != euid:
		e.Problem = fmt.Sprintf("the symlink %s belongs to uid %d, who could let it lead anywhere", link, owner)
	case dir.Uid != 0 && int(dir.Uid) != euid:
		e.Problem = fmt.Sprintf("the symlink %s is in a directory of uid %d, who could put another one there", link, dir.Uid)
	case dir.Mode&0o022 != 0:
		e.Problem = fmt.Sprintf("the symlink %s is in a directory that its group or everybody can write to (mode %04o)", link, dir.Mode&0o7777)
	default:
		return nil
	}
	return e
}

// error adds the path, and the last of the links that led away from it.
func (w *pathWalk) error(err error) error {
	var refused *Error
	if err == nil || errors.As(err, &refused) {
		return err
	}
	cause := err
	if len(w.links) > 0 {
		cause = fmt.Errorf("%w (by the symlink %s)", err, w.links[len(w.links)-1])
	}
	fix := "check the path and the rights of the directories on it"
	if errors.Is(err, fs.ErrNotExist) {
		fix = "create the file or name another one"
	}
	return fmt.Errorf("cannot read %s: %w; %s", w.path, cause, fix)
}
