package launch

import (
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
