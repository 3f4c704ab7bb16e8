package launch

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// threadStatus is one line of this thread's status, read without pkg/sandbox.
func threadStatus(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s in the status", name)
	return ""
}

func TestF34_SignalsReset(t *testing.T) {
	const zero = "0000000000000000"
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread goes with its mask
		signal.Ignore(syscall.SIGUSR1)
		var set unix.Sigset_t
		set.Val[0] = 1 << (unix.SIGUSR2 - 1)
		if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
			t.Error(err)
			return
		}
		if threadStatus(t, "SigBlk") == zero || threadStatus(t, "SigIgn") == zero {
			t.Error("nothing to reset: the test is void")
		}
		if err := resetSignals(); err != nil {
			t.Error(err)
		}
		if got := threadStatus(t, "SigBlk"); got != zero {
			t.Errorf("blocked: %s", got)
		}
		if got := threadStatus(t, "SigIgn"); got != zero {
			t.Errorf("ignored: %s", got)
		}
	}()
	<-done
	signal.Reset()
}

func TestF34_PassedDescriptors(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	wantError(t, checkPassed(int(r.Fd())), "not inherited")

	inherited, err := unix.Dup(int(r.Fd())) // not close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	wantNone(t, checkPassed(inherited))
	if err := unix.Close(inherited); err != nil {
		t.Fatal(err)
	}
	wantError(t, checkPassed(1<<20), "not open")
}

func TestF34_DescriptorsClosedOnExec(t *testing.T) {
	fd, err := unix.Open("/", unix.O_RDONLY, 0) // not close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	wantNone(t, checkPassed(fd))
	wantNone(t, closeDescriptors(0))
	wantError(t, checkPassed(fd), "not inherited")
}

// The directory may have been exchanged since the check.
func TestF28_EnterChecksAgain(t *testing.T) {
	t.Chdir(t.TempDir()) // puts the directory back at the end
	dir := t.TempDir()
	self := Identity{User: "tester", UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	wantNone(t, enter(dir, self))
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	wantError(t, enter(dir, self), "chmod 0700")
	wantError(t, enter(dir+"/missing", self), "missing")
	wantNone(t, enter("", self))
	if now, err := os.Getwd(); err != nil || now != "/" {
		t.Errorf("now in %s: %v", now, err)
	}
}

// A process to which nothing was done must not pass for one that is confined.
func TestReadBackOfAnUnconfinedProcess(t *testing.T) {
	err := readBack(context.Background(), postgres, 0)
	wantError(t, err, "uid is", "bounding is", "no_new_privs is 0 after it was set to 1")
}

func TestOOMScoreLeftAlone(t *testing.T) {
	wantNone(t, setOOMScore(nil))
}

func TestExecHint(t *testing.T) {
	for errno, word := range map[syscall.Errno]string{
		unix.EAGAIN: "limits.nproc", unix.EACCES: "noexec", unix.ENOENT: "interpreter", unix.ENOEXEC: "architecture",
		unix.EPERM: "must allow execve", unix.ENOSYS: "must allow execve", unix.E2BIG: "limits.stack", unix.ENOMEM: "limits.as",
	} {
		if hint := execHint(errno, "postgres"); !strings.Contains(hint, word) {
			t.Errorf("%v: hint is %q", errno, hint)
		}
	}
	if hint := execHint(unix.EIO, "postgres"); hint != "" {
		t.Errorf("EIO: hint is %q", hint)
	}
}
