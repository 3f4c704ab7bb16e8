package mounts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Spec is what a process is to see of the file system. All paths are absolute; those
// that do not exist are passed over, so that one list fits many machines.
type Spec struct {
	Exec     []string // files, or directories with all below: may be executed and mapped as code, and are read-only; patterns as of filepath.Match
	ReadOnly []string // as well, and not executable
	Write    []string // stay writable, also below one of the above
	Devices  []string // device nodes that can be opened
	Hide     []string // directories that look empty
}

// Layout is a Spec of which all paths are places without symbolic links, sorted, none
// below another of the same kind.
type Layout struct {
	exec, readOnly, write, devices, hide []string

	unit bool // see OfUnit
}

// Resolve finds the places. Errors are paths that contradict each other; they name both.
func Resolve(ctx context.Context, spec Spec) (Layout, error) {
	var l Layout
	exec, err := expand(spec.Exec)
	if err != nil {
		return l, err
	}
	for _, kind := range []struct {
		into  *[]string
		paths []string
	}{
		{&l.exec, exec}, {&l.readOnly, spec.ReadOnly}, {&l.write, spec.Write}, {&l.devices, spec.Devices}, {&l.hide, spec.Hide},
	} {
		if *kind.into, err = places(ctx, kind.paths); err != nil {
			return Layout{}, err
		}
	}
	l.readOnly = slices.DeleteFunc(l.readOnly, func(p string) bool { return within(p, l.exec) })
	return l, errors.Join(l.fault(), l.linkFault(spec.Write))
}

// expand finds what patterns stand for.
func expand(paths []string) ([]string, error) {
	var out []string
	for _, path := range paths {
		if !strings.ContainsAny(path, "*?[") {
			out = append(out, path)
			continue
		}
		found, err := filepath.Glob(path)
		if err != nil {
			return nil, fmt.Errorf("cannot expand %s: %w", path, err)
		}
		out = append(out, found...)
	}
	return out, nil
}

// places are where paths lead to.
func places(ctx context.Context, paths []string) ([]string, error) {
	var found []string
	for _, path := range paths {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		place, err := resolve(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot learn where %s leads: %w", path, err)
		}
		if !filepath.IsAbs(place) || place == "/" {
			return nil, fmt.Errorf("%s leads to %s: name an absolute path other than /", path, place)
		}
		found = append(found, place)
	}
	return outermost(found), nil
}

// resolve is where a path leads. It asks nothing of what it leads to: a disk that
// hangs and is mounted there holds nobody up.
func resolve(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// outermost sorts paths and leaves out those below others.
func outermost(paths []string) []string {
	slices.Sort(paths)
	var out []string
	for _, p := range paths {
		if !within(p, out) {
			out = append(out, p)
		}
	}
	return out
}

// below says whether a path is a place or below it.
func below(path, place string) bool {
	return path == place || place == "/" || strings.HasPrefix(path, place+"/")
}

func within(path string, places []string) bool {
	return slices.ContainsFunc(places, func(p string) bool { return below(path, p) })
}

// sealed are the places that cannot be written to.
func (l Layout) sealed() []string { return append(slices.Clone(l.exec), l.readOnly...) }

// fault finds what cannot be had at once.
func (l Layout) fault() error {
	var errs []error
	for _, w := range l.write {
		for _, e := range l.exec {
			if below(e, w) {
				errs = append(errs, fmt.Errorf("%s is written to, and %s is to be executed: keep the two apart", w, e))
			}
		}
		for _, h := range l.hide {
			if below(w, h) {
				errs = append(errs, fmt.Errorf("%s is written to, and %s is hidden from the service: use another directory", w, h))
			}
		}
	}
	for _, e := range l.exec {
		for _, h := range l.hide {
			if below(e, h) {
				errs = append(errs, fmt.Errorf("%s is to be executed, and %s is hidden from the service: use another directory", e, h))
			}
		}
	}
	return errors.Join(errs...)
}

// linkFault refuses to make a sealed place writable because a link led there, which
// may be the service's own.
func (l Layout) linkFault(paths []string) error {
	var errs []error
	for _, path := range paths {
		place, err := resolve(path)
		if err == nil && place != filepath.Clean(path) && within(place, l.sealed()) {
			errs = append(errs, fmt.Errorf("%s is written to and leads by a symbolic link to %s, which is read-only: name that place if it is meant", path, place))
		}
	}
	return errors.Join(errs...)
}

// Exec are the places that may be executed from.
func (l Layout) Exec() []string { return slices.Clone(l.exec) }

// ExecText names the places that may be executed from.
func (l Layout) ExecText() string { return strings.Join(l.exec, ", ") }
