package agent

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// elsewhere runs the test in a user and a mount namespace, unless it can mount where
// it is, as TestMain has it for root.
func elsewhere(t *testing.T) bool {
	t.Helper()
	if os.Getenv(envIsolated) != "" {
		return false
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.count=1", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), envIsolated+"=1", "GOCOVERDIR="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("in namespaces of its own (without root this needs user.max_user_namespaces): %v\n%s", err, out)
	}
	return true
}

func mount(t *testing.T, source, target, kind string, flags uintptr) {
	t.Helper()
	tried(t, unix.Mount(source, target, kind, flags, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
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
	if elsewhere(t) {
		return
	}
	for _, row := range []struct {
		name   string
		make   func(t *testing.T, dir, path string) // of what is watched
		change func(dir, path string) error
	}{
		{"file by its other name", func(t *testing.T, dir, path string) {
			tried(t, os.WriteFile(path, []byte("a"), 0o600), os.Link(path, filepath.Join(dir, "other")))
		}, func(dir, _ string) error { return inPlace(filepath.Join(dir, "other")) }},
		{"mode by its other name", func(t *testing.T, dir, path string) {
			tried(t, os.WriteFile(path, []byte("a"), 0o600), os.Link(path, filepath.Join(dir, "other")))
		}, func(dir, _ string) error { return os.Chmod(filepath.Join(dir, "other"), 0o666) }},
		{"root of a mount", func(t *testing.T, _, path string) {
			tried(t, os.Mkdir(path, 0o700))
			mount(t, "none", path, "tmpfs", 0)
		}, func(_, path string) error { return os.Chmod(path, 0o777) }},
		{"directory mounted from elsewhere", func(t *testing.T, dir, path string) {
			tried(t, os.Mkdir(path, 0o700), os.Mkdir(filepath.Join(dir, "other"), 0o700))
			mount(t, filepath.Join(dir, "other"), path, "", unix.MS_BIND)
		}, func(_, path string) error { return os.Chmod(path, 0o777) }},
		{"file mounted from elsewhere", func(t *testing.T, dir, path string) {
			tried(t, os.WriteFile(path, nil, 0o600), os.WriteFile(filepath.Join(dir, "other"), []byte("a"), 0o600))
			mount(t, filepath.Join(dir, "other"), path, "", unix.MS_BIND)
		}, func(dir, _ string) error { return inPlace(filepath.Join(dir, "other")) }},
	} {
		t.Run(row.name, func(t *testing.T) {
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
	if elsewhere(t) {
		return
	}
	one, two := t.TempDir(), t.TempDir()
	mount(t, one, two, "", unix.MS_BIND)
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
	if elsewhere(t) {
		return
	}
	file, err := openUnpolled("/proc/self/mountinfo")
	tried(t, err)
	t.Cleanup(func() { tried(t, file.Close()) })
	fd := int(file.Fd())
	if err := file.SetDeadline(time.Now()); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("%v: Go polls it, and takes the news from us", err)
	}
	mountsChanged(fd)
	if mountsChanged(fd) {
		t.Error("nothing was mounted")
	}
	dir := t.TempDir()
	mount(t, "none", dir, "tmpfs", 0)
	if !mountsChanged(fd) {
		t.Error("a mount is not seen")
	}
	if mountsChanged(fd) {
		t.Error("a mount is seen twice")
	}
}
