package sysctl

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxOpen bounds the descriptors that a Peeker keeps, and turn is how many of the
// other keys each Peek reads: a host of containers has hundreds of interfaces.
const (
	maxOpen = 256
	turn    = 32
)

// Peeker tells cheaply whether the kernel's values may differ from the wanted
// ones: it keeps the files open that Observe would look for. One goroutine at a
// time may use it.
type Peeker struct {
	tree tree
	want []Setting

	learned bool
	keys    int      // that were there
	open    []peeked // each is read by every Peek
	rest    []peeked // without a descriptor
	next    int      // of rest
	dirs    []peekedDir
	buf     []byte // for one value, or a part of a directory
	seed    maphash.Seed
}

type peeked struct {
	file string
	want string
	fd   int
}

// peekedDir is a directory in which a pattern was looked for.
type peekedDir struct {
	fd    int
	names uint64
}

// NewPeeker opens nothing yet: Peek is true until Learn was called.
func NewPeeker(want []Setting) *Peeker { return kernel.peeker(want) }

func (t tree) peeker(want []Setting) *Peeker {
	return &Peeker{tree: t, want: want, buf: make([]byte, 8<<10), seed: maphash.MakeSeed()}
}

// Learn opens the files of all keys that are there now, in the network namespace
// of the calling thread. It is for when Diff was empty. After an error Peek is
// true.
func (p *Peeker) Learn(ctx context.Context) error {
	err := errors.Join(p.Close(), p.learn(ctx))
	if err != nil {
		return errors.Join(fmt.Errorf("cannot watch sysctls: %w", err), p.Close())
	}
	p.learned = true
	return nil
}

func (p *Peeker) learn(ctx context.Context) error {
	// The directories first: an interface that comes in between is then seen as one
	// too many.
	if err := p.learnDirs(); err != nil {
		return err
	}
	got, err := p.tree.observe(ctx, p.want)
	if err != nil {
		return err
	}
	p.keys = len(got.Values)
	r := resolve(p.want)
	for _, key := range slices.Sorted(maps.Keys(got.Values)) {
		want, ok := r.value(key)
		if !ok {
			continue
		}
		k := peeked{file: p.tree.file(swap(key)), want: want}
		if len(p.open) == maxOpen {
			p.rest = append(p.rest, k)
			continue
		}
		k.fd, err = unix.Open(k.file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: k.file, Err: err}
		}
		p.open = append(p.open, k)
	}
	return nil
}

// learnDirs opens each directory that a pattern is looked for in. /proc/sys/net is
// another one for each network namespace; an open directory stays what it is.
func (p *Peeker) learnDirs() error {
	seen := map[string]bool{}
	for _, parent := range patternParents(p.want) {
		dirs, err := p.tree.expand(parent)
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			if seen[dir] {
				continue
			}
			seen[dir] = true
			if err := p.learnDir(p.tree.file(dir)); err != nil {
				return err
			}
		}
	}
	return nil
}

// patternParents are what stands before each pattern in a key, each once; it may
// be a pattern as well.
func patternParents(want []Setting) []string {
	var parents []string
	for _, s := range want {
		if s.Leave {
			continue
		}
		parts := strings.Split(swap(s.Key), "/")
		for i, part := range parts {
			if isPattern(part) {
				parents = append(parents, path.Join(parts[:i]...))
			}
		}
	}
	slices.Sort(parents)
	return slices.Compact(parents)
}

func (p *Peeker) learnDir(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if missing(err) {
		return nil // of an optional key
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	p.dirs = append(p.dirs, peekedDir{fd: fd})
	names, err := p.names(fd)
	if err != nil {
		return &os.PathError{Op: "read", Path: dir, Err: err}
	}
	p.dirs[len(p.dirs)-1].names = names
	return nil
}

// names is a digest of the names in a directory, in whatever order they come.
func (p *Peeker) names(fd int) (uint64, error) {
	if err := rewind(fd); err != nil {
		return 0, err
	}
	var sum uint64
	for {
		n, err := getdents(fd, p.buf)
		if err != nil {
			return 0, err
		}
		if n <= 0 {
			return sum, nil
		}
		for rest := p.buf[:n]; len(rest) > 0; {
			var name []byte
			name, rest = cutEntry(rest)
			sum += maphash.Bytes(p.seed, name)
		}
	}
}

// cutEntry takes the first entry off what getdents64(2) returned: two numbers of 8
// bytes, the length of all in 2 bytes, one byte of type, and the name, padded
// with at least one NUL byte.
func cutEntry(entries []byte) (name, rest []byte) {
	const lengthAt, nameAt = 16, 19
	if len(entries) < nameAt {
		return entries, nil
	}
	length := int(binary.NativeEndian.Uint16(entries[lengthAt:]))
	if length < nameAt || length > len(entries) {
		return entries, nil // the kernel makes none; it is a change in any case
	}
	name, _, _ = bytes.Cut(entries[nameAt:length], []byte{0})
	return name, entries[length:]
}

// Stale says whether Learn would find something else: Peek does not see a key that
// was not there. got has been observed just now.
func (p *Peeker) Stale(ctx context.Context, got Observed) bool {
	return p.Peek(ctx) || len(got.Values) != p.keys
}

// Peek says whether a value is not as wanted, or an interface came or went since
// Learn. Of a few hundred keys it reads each in every call, of more each in some.
func (p *Peeker) Peek(ctx context.Context) bool {
	if !p.learned || ctx.Err() != nil {
		return true
	}
	for _, d := range p.dirs {
		if names, err := p.names(d.fd); err != nil || names != d.names {
			return true
		}
	}
	for i := range p.open {
		if !p.asWanted(&p.open[i], p.open[i].fd) {
			return true
		}
	}
	for range min(turn, len(p.rest)) {
		p.next = (p.next + 1) % len(p.rest)
		k := &p.rest[p.next]
		fd, err := unix.Open(k.file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return true
		}
		same := p.asWanted(k, fd)
		_ = unix.Close(fd) // nothing was written
		if !same {
			return true
		}
	}
	return false
}

func (p *Peeker) asWanted(k *peeked, fd int) bool {
	n, err := pread(fd, p.buf)
	if err != nil || n <= 0 {
		return false
	}
	got := bytes.TrimSuffix(p.buf[:n], []byte("\n"))
	return string(got) == k.want || canonical(string(got)) == k.want
}

// Close closes the files. Learn opens them again.
func (p *Peeker) Close() error {
	var errs []error
	for _, k := range p.open {
		errs = append(errs, unix.Close(k.fd))
	}
	for _, d := range p.dirs {
		errs = append(errs, unix.Close(d.fd))
	}
	p.open, p.rest, p.dirs, p.learned = p.open[:0], p.rest[:0], p.dirs[:0], false
	return errors.Join(errs...)
}
