package supervise

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

const (
	recordVersion = 1
	maxRecord     = 64 << 10 // bytes
)

// record is what a daemon leaves for its successor.
type record struct {
	Version int    `json:"version"`
	Service string `json:"service"`
	Boot    string `json:"boot_id"`
	PID     int    `json:"pid,omitempty"` // 0: nothing was started
	Start   uint64 `json:"start_ticks,omitempty"`
	Exe     exeID  `json:"exe"`
	DataDir string `json:"data_dir,omitempty"`
	Stopped bool   `json:"stopped,omitempty"` // not to be started, within this boot
	Reason  string `json:"reason,omitempty"`  // why it is stopped
}

// parseRecord is strict: a record that was tampered with or is of another version
// is none.
func parseRecord(data []byte) (record, error) {
	var r record
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return record{}, fmt.Errorf("it is not a record: %w", err)
	}
	switch {
	case dec.More():
		return record{}, errors.New("it has something after the record")
	case r.Version != recordVersion:
		return record{}, fmt.Errorf("it has version %d, not %d", r.Version, recordVersion)
	case r.PID < 0 || r.PID > maxPID:
		return record{}, fmt.Errorf("it has pid %d", r.PID)
	}
	return r, nil
}

// readRecord returns what the last daemon left, or a zero record if there is
// nothing that holds in this boot.
func readRecord(ctx context.Context, path string) (record, error) {
	data, err := readOwn(ctx, path, maxRecord)
	if errors.Is(err, os.ErrNotExist) {
		return record{}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("cannot read the record of the last daemon: %w", err)
	}
	r, err := parseRecord(data)
	if err != nil {
		return record{}, fmt.Errorf("cannot use the record %s of the last daemon: %w", path, err)
	}
	boot, err := bootID(ctx)
	if err != nil {
		return record{}, err
	}
	if r.Boot != boot {
		return record{}, nil
	}
	return r, nil
}

// writeRecord replaces the record in one step.
func writeRecord(ctx context.Context, path string, r record) error {
	boot, err := bootID(ctx)
	if err != nil {
		return err
	}
	r.Version, r.Boot = recordVersion, boot
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("cannot encode the record: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the directory of the records: %w", err)
	}
	if err := replaceFile(dir, path, append(data, '\n')); err != nil {
		return fmt.Errorf("cannot write the record %s (is its file system full or read-only?): %w", path, err)
	}
	return nil
}

// replaceFile keeps its temporary file beside the record, since /tmp is everybody's,
// and does not take over the mode of what it replaces.
func replaceFile(dir, path string, data []byte) error {
	f, err := renameio.TempFile(dir, path)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.CloseAtomicallyReplace()
	}
	return errors.Join(err, f.Cleanup())
}

// removeLeftovers removes the temporary files of daemons killed amid writeRecord.
func removeLeftovers(ctx context.Context, path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || ctx.Err() != nil {
		return
	}
	prefix := "." + filepath.Base(path)
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), prefix)
		if ours && rest != "" && strings.Trim(rest, "0123456789") == "" {
			_ = os.Remove(filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
}

func bootID(ctx context.Context) (string, error) {
	data, err := readPlain(ctx, "/proc/sys/kernel/random/boot_id", 64)
	if err != nil {
		return "", fmt.Errorf("cannot learn the boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// readOwn is readPlain for files that only this user may have written.
func readOwn(ctx context.Context, path string, limit int64) ([]byte, error) {
	f, err := openPlain(ctx, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("%s belongs to another user or may be written by others; remove it", path)
	}
	return readLimited(f, limit)
}

// readPlain reads a small regular file whose directory may be hostile: it follows
// no symlink at the end, does not block on a FIFO and stops at limit bytes.
func readPlain(ctx context.Context, path string, limit int64) ([]byte, error) {
	f, err := openPlain(ctx, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, limit)
}

func openPlain(ctx context.Context, path string) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func readLimited(f *os.File, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", f.Name(), limit)
	}
	return data, nil
}
