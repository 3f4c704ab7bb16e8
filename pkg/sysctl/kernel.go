package sysctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tree is where the keys are files.
type tree string

const kernel tree = "/proc/sys"

// errUnknownValue is a name that means nothing to the kernel, for which it has the
// same ENOENT as for a file that is gone (tcp_set_default_congestion_control).
var errUnknownValue = errors.New("the kernel does not know this name")

// Observe reads the wanted keys of the calling thread's network namespace and
// expands the patterns. A key that is not there is no error: Diff knows whether
// it had to be.
func Observe(ctx context.Context, want []Setting) (Observed, error) {
	return kernel.observe(ctx, want)
}

// Apply sets what the plan says in the calling thread's network namespace and
// reads each value back. What fails does not keep the rest from being set; the
// error names each key. A key that was observed and is gone since, with its
// interface, is no error.
func Apply(ctx context.Context, p Plan) error { return kernel.apply(ctx, p) }

func (t tree) observe(ctx context.Context, want []Setting) (Observed, error) {
	got := Observed{Values: map[string]string{}}
	for _, s := range want {
		if s.Leave {
			continue
		}
		files, err := t.expand(swap(s.Key))
		if err != nil {
			return Observed{}, fmt.Errorf("cannot look for sysctl %s: %w", s.Key, err)
		}
		for _, file := range files {
			if err := ctx.Err(); err != nil {
				return Observed{}, fmt.Errorf("cannot read sysctl %s: %w", s.Key, err)
			}
			value, err := t.read(file)
			if missing(err) || isPattern(s.Key) && errors.Is(err, syscall.EISDIR) {
				continue
			}
			if err != nil {
				value = "" // is a difference to whatever is wanted, and Apply will say why
			}
			got.Values[swap(file)] = value
		}
	}
	return got, nil
}

// expand lists the files that a pattern matches. What is no pattern may not exist.
func (t tree) expand(pattern string) ([]string, error) {
	found := []string{""}
	for part := range strings.SplitSeq(pattern, "/") {
		var next []string
		for _, dir := range found {
			names, err := t.names(dir, part)
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				next = append(next, path.Join(dir, name))
			}
		}
		found = next
	}
	return found, nil
}

// names are the entries of a directory that part stands for.
func (t tree) names(dir, part string) ([]string, error) {
	if !isPattern(part) {
		return []string{part}, nil
	}
	entries, err := os.ReadDir(t.file(dir))
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if ok, err := path.Match(part, e.Name()); err == nil && ok {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (t tree) apply(ctx context.Context, p Plan) error {
	var errs []error
	for _, c := range p.Changes {
		if err := ctx.Err(); err != nil {
			errs = append(errs, fmt.Errorf("cannot set sysctl %s: %w", c.Key, err))
			break
		}
		err := t.set(swap(c.Key), c.Want)
		if missing(err) && c.Have != "" {
			continue // its interface is gone
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot set sysctl %s to %s: %w%s", c.Key, c.Want, err, hint(err, c.Key)))
		}
	}
	return errors.Join(errs...)
}

// set writes a value and reads it back. A * in the name is that of an interface:
// the kernel lets one be called so, and has no file for a pattern.
func (t tree) set(file, value string) error {
	putBack := t.keepInterfaces(file)
	if err := t.write(file, value); err != nil {
		return err
	}
	err := putBack()
	got, readErr := t.read(file)
	if readErr != nil {
		return errors.Join(err, fmt.Errorf("cannot read it back: %w", readErr))
	}
	if got != value {
		return errors.Join(err, fmt.Errorf("the kernel made it %s", got))
	}
	return err
}

// keepInterfaces returns a function that undoes what a write to conf/default did
// to interfaces. One that cannot be read now is not put back.
func (t tree) keepInterfaces(file string) func() error {
	conf, name := path.Split(file)
	conf, def := path.Split(strings.TrimSuffix(conf, "/"))
	if def != "default" {
		return func() error { return nil }
	}
	entries, err := os.ReadDir(t.file(conf))
	if err != nil {
		return func() error { return nil } // the write will fail as well
	}
	before := map[string]string{}
	for _, e := range entries {
		other := path.Join(conf, e.Name(), name)
		if v, err := t.read(other); err == nil && e.Name() != "all" && e.Name() != "default" {
			before[other] = v
		}
	}
	return func() error {
		var errs []error
		for other, v := range before {
			now, err := t.read(other)
			if err == nil && now != v {
				err = t.write(other, v)
			}
			if err != nil && !missing(err) {
				errs = append(errs, fmt.Errorf("%s changed with it and cannot be put back to %s: %w", swap(other), v, err))
			}
		}
		return errors.Join(errs...)
	}
}

// missing says whether an error means that there is no such key.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

func (t tree) file(name string) string { return filepath.Join(string(t), name) }

func (t tree) read(name string) (string, error) {
	path := t.file(name)
	data, err := contents(path)
	if err != nil {
		return "", &os.PathError{Op: "read", Path: path, Err: err}
	}
	return canonical(string(data)), nil
}

// contents is os.ReadFile in a third of the calls: that one asks for the size, which
// is 0 here, and shows each file to the runtime's poller.
func contents(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	var data []byte
	for {
		data = slices.Grow(data, 512)
		n, err := unix.Read(fd, data[len(data):cap(data)])
		if err != nil || n <= 0 {
			return data, err
		}
		data = data[:len(data)+n]
	}
}

// write opens without O_CREATE, which procfs answers with a misleading EACCES.
func (t tree) write(name, value string) error {
	f, err := os.OpenFile(t.file(name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value + "\n") // one call: the kernel takes each as a whole value
	if _, gone := os.Lstat(f.Name()); missing(err) && gone == nil {
		err = errUnknownValue
	}
	return errors.Join(err, f.Close())
}

// hint is what to do about an error of set.
func hint(err error, key string) string {
	switch {
	case missing(err):
		return fmt.Sprintf(": this kernel has no such key: correct it in sysctl.set, or list %s in sysctl.leave", key)
	case errors.Is(err, errUnknownValue), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ERANGE):
		return ": the kernel does not take this value: correct it in sysctl.set"
	case errors.Is(err, syscall.EISDIR):
		return ": it is a group of keys: name one in sysctl.set"
	case errors.Is(err, syscall.EROFS):
		return ": /proc/sys is mounted read-only, as in a container: set it outside, and sysctl.manage: false here"
	case errors.Is(err, fs.ErrPermission):
		return ": run as root with CAP_NET_ADMIN"
	}
	return ""
}
