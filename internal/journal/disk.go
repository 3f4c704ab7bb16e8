package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// The files in state_dir.
const (
	fileName  = "events.jsonl"
	olderName = "events.1.jsonl"
)

// maxFile is when the file is rotated, in bytes. tailSize holds the last records
// of a file, enough to go on from there without reading all of it at each start.
const (
	maxFile  = 1 << 20
	tailSize = 32 << 10
)

// disk is what is written to, by one goroutine. No file stays open, since one that
// is open for writing keeps its file system from being made read-only.
type disk struct {
	dir   string
	dirty bool // written to since the last sync
}

// append writes lines at the end of the file, which it rotates where need be. It
// returns how many bytes of them the file has taken.
func (d *disk) append(lines []byte) (int, error) {
	path := filepath.Join(d.dir, fileName)
	f, size, err := openEnd(path)
	if err != nil {
		return 0, err
	}
	if size > 0 && size+int64(len(lines)) >= maxFile {
		f.Close()
		if f, size, err = d.rotate(path); err != nil {
			return 0, err
		}
	}
	defer f.Close()
	before := 0
	if torn(f, size) {
		lines, before = append([]byte("\n"), lines...), 1
	}
	n, err := f.Write(lines)
	d.dirty = d.dirty || n > 0
	return max(0, n-before), err
}

func (d *disk) rotate(path string) (*os.File, int64, error) {
	if err := d.sync(); err != nil {
		return nil, 0, err
	}
	if err := os.Rename(path, filepath.Join(d.dir, olderName)); err != nil {
		return nil, 0, err
	}
	return openEnd(path)
}

// openEnd opens the file for appending, and makes it if there is none.
func openEnd(path string) (*os.File, int64, error) {
	f, info, err := openFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE)
	if err != nil {
		return nil, 0, err
	}
	if info.Size() == 0 {
		reserve(f)
	}
	return f, info.Size(), nil
}

// reserve takes the file's space before others fill the disk, where there is so
// much that nobody misses it. A file without is as good until then.
func reserve(f *os.File) {
	var st unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &st) != nil || st.Bavail*uint64(st.Bsize) < 16*maxFile {
		return
	}
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, maxFile)
}

// torn says whether the last line has no end.
func torn(f *os.File, size int64) bool {
	if size == 0 {
		return false
	}
	var end [1]byte
	_, err := f.ReadAt(end[:], size-1)
	return err != nil || end[0] != '\n'
}

// sync waits until the disk has all that was written.
func (d *disk) sync() error {
	if !d.dirty {
		return nil
	}
	f, _, err := openFile(filepath.Join(d.dir, fileName), os.O_RDONLY) // fdatasync(2) asks not who wrote
	if errors.Is(err, fs.ErrNotExist) {
		d.dirty = false // removed by somebody
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return &fs.PathError{Op: "sync", Path: f.Name(), Err: err}
	}
	d.dirty = false
	return nil
}

// openFile opens a file that nobody else can have put there, or can write to.
func openFile(path string, flag int) (*os.File, fs.FileInfo, error) {
	// A FIFO in its place must not hold us up.
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return nil, nil, fmt.Errorf("%s is a symbolic link; remove it", path)
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = trusted(path, info)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

func trusted(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file; remove it", path)
	case !ok || int(st.Uid) != os.Geteuid() && st.Uid != 0:
		return fmt.Errorf("%s belongs to another user; remove it", path)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s is writable by its group or by everybody (mode %04o); remove it", path, info.Mode().Perm())
	}
	return nil
}

// Read lists the records on disk, oldest first.
func Read(ctx context.Context, dir string) ([]Record, error) { return read(ctx, dir, 2*maxFile) }

// tail lists the last records on disk, without a gap between them.
func tail(ctx context.Context, dir string) ([]Record, error) { return read(ctx, dir, tailSize) }

// read reads up to n bytes at the end of the files. The newer one is opened first:
// should it become the older one meanwhile, nothing is missed.
func read(ctx context.Context, dir string, n int64) ([]Record, error) {
	newer, info, err := readEnd(ctx, filepath.Join(dir, fileName), n)
	if err != nil {
		return nil, err
	}
	list := parse(newer)
	if info != nil && info.Size() > n {
		return list, nil
	}
	older, olderInfo, err := readEnd(ctx, filepath.Join(dir, olderName), n)
	if err != nil || info != nil && olderInfo != nil && os.SameFile(info, olderInfo) {
		return list, err
	}
	return append(parse(older), list...), nil
}

// readEnd reads the last n bytes of a file, from the beginning of a line. That
// there is no file is no error.
func readEnd(ctx context.Context, path string, n int64) ([]byte, fs.FileInfo, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	f, info, err := openFile(path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	from := max(0, info.Size()-n)
	data, err := io.ReadAll(io.NewSectionReader(f, from, n))
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	if from > 0 {
		_, data, _ = bytes.Cut(data, []byte("\n"))
	}
	return data, info, nil
}
