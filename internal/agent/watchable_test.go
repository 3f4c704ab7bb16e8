package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// mounting is for tests that mount something, which needs root.
func mounting(t *testing.T) (mount func(source, target, kind string, flags uintptr)) {
	t.Helper()
	if os.Getenv(envIsolated) == "" {
		t.Skip("root only: this mounts, in a namespace of its own")
	}
	return func(source, target, kind string, flags uintptr) {
		t.Helper()
		if err := unix.Mount(source, target, kind, flags, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
}

func tried(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// vouched is a watch for a path that is all that is to be known of it.
func vouched(t *testing.T, path string) (w *fileWatch, calm uint64) {
	t.Helper()
	w = heard(t, &fileSource{}, func(bool) {})
	awaitTrue(t, "the watch does not vouch for "+path, func() bool {
		w.watch(t.Context(), nil, []string{path})
		calm = w.stirred()
		return calm != 0
	})
	return w, calm
}

// inPlace writes to a file as it is, as many bytes as before.
func inPlace(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("b")
	return errors.Join(err, f.Close())
}

// What is watched may be changed by a name that nobody has asked for.
func TestWatchHearsOfOtherNames(t *testing.T) {
	for _, row := range []struct {
		name   string
		mounts bool
		make   func(t *testing.T, dir, path string) // of what is watched
		change func(dir, path string) error
	}{
		{"file by its other name", false, func(t *testing.T, dir, path string) {
			tried(t, os.WriteFile(path, []byte("a"), 0o600), os.Link(path, filepath.Join(dir, "other")))
		}, func(dir, _ string) error { return inPlace(filepath.Join(dir, "other")) }},
		{"mode by its other name", false, func(t *testing.T, dir, path string) {
			tried(t, os.WriteFile(path, []byte("a"), 0o600), os.Link(path, filepath.Join(dir, "other")))
		}, func(dir, _ string) error { return os.Chmod(filepath.Join(dir, "other"), 0o666) }},
		{"root of a mount", true, func(t *testing.T, _, path string) {
			tried(t, os.Mkdir(path, 0o700))
			mounting(t)("none", path, "tmpfs", 0)
		}, func(_, path string) error { return os.Chmod(path, 0o777) }},
		{"directory mounted from elsewhere", true, func(t *testing.T, dir, path string) {
			tried(t, os.Mkdir(path, 0o700), os.Mkdir(filepath.Join(dir, "other"), 0o700))
			mounting(t)(filepath.Join(dir, "other"), path, "", unix.MS_BIND)
		}, func(_, path string) error { return os.Chmod(path, 0o777) }},
		{"file mounted from elsewhere", true, func(t *testing.T, dir, path string) {
			tried(t, os.WriteFile(path, nil, 0o600), os.WriteFile(filepath.Join(dir, "other"), []byte("a"), 0o600))
			mounting(t)(filepath.Join(dir, "other"), path, "", unix.MS_BIND)
		}, func(dir, _ string) error { return inPlace(filepath.Join(dir, "other")) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.mounts {
				mounting(t)
			}
			dir, at := t.TempDir(), t.TempDir()
			path := filepath.Join(at, "watched")
			row.make(t, dir, path)
			w, calm := vouched(t, path)
			tried(t, row.change(dir, path))
			awaitTrue(t, "the change is not heard of", func() bool { return w.stirred() != calm })
		})
	}
}

// The kernel tells of one directory by one of its names.
func TestWatchVouchesForNoDirectoryOfTwoNames(t *testing.T) {
	mount := mounting(t)
	one, two := t.TempDir(), t.TempDir()
	mount(one, two, "", unix.MS_BIND)
	w := heard(t, &fileSource{}, func(bool) {})
	for range 3 {
		w.watch(t.Context(), []string{filepath.Join(one, "config")}, []string{filepath.Join(two, "peers")})
		if w.stirred() != 0 {
			t.Fatal("the watch vouches for both")
		}
	}
}

// inotify(7) does not tell of mounts.
func TestMountsChanged(t *testing.T) {
	mount := mounting(t)
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	tried(t, err)
	t.Cleanup(func() { tried(t, unix.Close(fd)) })
	mountsChanged(fd)
	if mountsChanged(fd) {
		t.Error("nothing was mounted")
	}
	dir := t.TempDir()
	mount("none", dir, "tmpfs", 0)
	if !mountsChanged(fd) {
		t.Error("a mount is not seen")
	}
	if mountsChanged(fd) {
		t.Error("a mount is seen twice")
	}
}
