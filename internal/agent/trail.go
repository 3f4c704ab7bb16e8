package agent

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxSteps = 256 // of one path, should its symlinks lead in a circle
	// coarse is more than the kernel's clock of file times goes on by in one
	// step: a file that is written twice in one may look the same.
	coarse = 20 * time.Millisecond
)

// A trail is what the paths of some files lead through, as it was at one time. It
// tells without reading the files whether they can have changed; whether they
// can be trusted is for who reads them.
type trail struct {
	steps []trailStep
	fresh bool // a file changed so shortly before that a later change may not show
}

// trailStep is one file, directory or symlink on the way. The zero stamp is that
// of something that is not there.
type trailStep struct {
	path string
	stamp
}

type stamp struct {
	dev, ino     uint64
	mode, uid    uint32
	size         int64
	mtime, ctime int64 // of directories none: their entries come and go
}

// followTrail goes along the paths as the kernel would.
func followTrail(ctx context.Context, paths ...string) trail {
	var t trail
	now := time.Now()
	for _, path := range paths {
		t.follow(ctx, path)
	}
	t.fresh = slices.ContainsFunc(t.steps, func(s trailStep) bool {
		age := now.Sub(time.Unix(0, s.ctime))
		return s.ctime != 0 && age < coarse && age > -coarse // not for ever, if the clock was set back
	})
	return t
}

func (t *trail) follow(ctx context.Context, path string) {
	at, rest := "/", components(path)
	for range maxSteps {
		if len(rest) == 0 {
			return
		}
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		st := stampOf(ctx, next)
		if step := (trailStep{path: next, stamp: st}); !slices.Contains(t.steps, step) {
			t.steps = append(t.steps, step)
		}
		if st.mode&unix.S_IFMT != unix.S_IFLNK {
			at = next
			continue
		}
		target, err := readLink(ctx, next)
		if err != nil {
			return // it is gone: the next look is another one
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(components(target), rest...)
	}
}

func components(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func readLink(ctx context.Context, path string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlink(path, target)
	return string(target[:max(n, 0)]), err
}

func stampOf(ctx context.Context, path string) stamp {
	var st unix.Stat_t
	if ctx.Err() != nil || unix.Lstat(path, &st) != nil {
		return stamp{}
	}
	s := stamp{dev: uint64(st.Dev), ino: st.Ino, mode: st.Mode, uid: st.Uid} //nolint:unconvert // it has another type on some architectures
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		s.size, s.mtime, s.ctime = st.Size, st.Mtim.Nano(), st.Ctim.Nano()
	}
	return s
}

// same says whether nothing has changed since.
func (t *trail) same(ctx context.Context) bool {
	if t.fresh || len(t.steps) == 0 {
		return false
	}
	for i := range t.steps {
		if stampOf(ctx, t.steps[i].path) != t.steps[i].stamp {
			return false
		}
	}
	return true
}

// paths are all that it leads through, missing ones included.
func (t trail) paths() []string {
	var list []string
	for _, s := range t.steps {
		if !slices.Contains(list, s.path) {
			list = append(list, s.path)
		}
	}
	return list
}
