package config

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// maxFileSize is far above a list of 10 000 nodes, in bytes.
const maxFileSize = 8 << 20

// ReadFile returns the content of a configuration file or peer list. It refuses
// (as an *Error) whatever somebody other than root or the caller could have
// written: a file with another owner, or writable by group or others (which
// includes ACLs, their mask is the group's mode); also what is not a regular
// file, and more than 8 MiB. The checks are made on the open file.
//
// Symlinks are followed where only root or the caller can make them, so that a
// file may be replaced by swapping a link to it or to its directory. One that
// somebody else owns, or that is in a directory that somebody else owns or can
// write to, is refused (as an *Error) wherever on the path it is.
func ReadFile(ctx context.Context, path string) ([]byte, error) {
	f, err := open(path, os.Geteuid())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("cannot read %s: the owner of the file is unknown", path)
	}
	if e := checkFile(path, info, int(stat.Uid), os.Geteuid()); e != nil {
		return nil, e
	}
	return readAll(ctx, path, f)
}

// checkFile says why a file is not to be trusted, or returns nil.
func checkFile(path string, info fs.FileInfo, owner, euid int) *Error {
	e := &Error{File: path}
	switch {
	case !info.Mode().IsRegular():
		e.Problem = "not a regular file but " + typeName(info.Mode())
		e.Fix = "put a regular file, or a symlink to one, there"
	case owner != 0 && owner != euid:
		e.Problem = fmt.Sprintf("the file belongs to uid %d, who could put anything into it", owner)
		e.Fix = fmt.Sprintf("check its content, then `chown root: %s && chmod go-w %s`", path, path)
	case info.Mode().Perm()&0o022 != 0:
		e.Problem = fmt.Sprintf("the file is writable by its group or by everybody (mode %04o)", info.Mode().Perm())
		e.Fix = fmt.Sprintf("check its content, then `chmod go-w %s`", path)
	default:
		return nil
	}
	return e
}

func typeName(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "something else"
}

// readAll reads in pieces so that ctx can end it, and no more than the limit
// even if the file grows meanwhile.
func readAll(ctx context.Context, path string, r io.Reader) ([]byte, error) {
	const piece = 64 << 10
	var content bytes.Buffer
	for {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", path, err)
		}
		n, err := io.CopyN(&content, r, piece)
		switch {
		case content.Len() > maxFileSize:
			return nil, &Error{File: path, Problem: fmt.Sprintf("the file is larger than %d MiB", maxFileSize>>20), Fix: "put the right file there"}
		case errors.Is(err, io.EOF):
			return content.Bytes(), nil
		case err != nil:
			return nil, fmt.Errorf("cannot read %s: %w", path, err)
		case n < piece:
			return content.Bytes(), nil
		}
	}
}
