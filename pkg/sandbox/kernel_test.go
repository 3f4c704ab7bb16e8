package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attempt is one system call with arguments that do no harm: it is the error that
// tells whether the filter or the call itself answered.
type attempt struct {
	name string
	nr   uintptr
	args [6]uintptr
	// want is the error under the filter, 0 for success. Without the filter the
	// outcome is another one, unless same is set.
	want unix.Errno
	same bool
	// feature: a feature gives the call back what it is without the filter.
	feature bool
}

const (
	none = ^uintptr(0) // file descriptor -1, and flags that no call takes
	bit  = uintptr(1) << 32
)

// attempts covers what PostgreSQL needs and what an attacker would like. Calls
// that even root is refused for other reasons than the filter's are left to the
// tests in the virtual machine.
var nowhere = [...]byte{'/', 'x', 'x', 'x', 0}

var attempts = []attempt{
	{name: "socket unix", nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_UNIX, unix.SOCK_STREAM}, same: true},
	{name: "socket inet", nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_INET, unix.SOCK_STREAM}, same: true},
	{name: "socket inet udp", nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, want: unix.ENOSYS, feature: true},
	{name: "socket inet6 udp", nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_INET6, unix.SOCK_DGRAM}, want: unix.ENOSYS, feature: true},
	// No such path, in a page that can be read and in page 0, which cannot.
	{name: "execve", nr: unix.SYS_EXECVE, args: [6]uintptr{uintptr(unsafe.Pointer(&nowhere))}, want: unix.EPERM, feature: true},
	{name: "execve from page 0", nr: unix.SYS_EXECVE, args: [6]uintptr{16}, want: unix.EFAULT, same: true},
	{name: "socket netlink route", nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_NETLINK, unix.SOCK_RAW}, same: true},
	{name: "socket netlink kobject", nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT}, want: unix.EPERM},
	{name: "socket alg", nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET}, want: unix.EPERM},
	{name: "socket vsock", nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}, want: unix.EPERM},
	// An impossible type: without the filter the call does not get as far as the privilege check.
	{name: "socket packet", nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_PACKET, 15}, want: unix.EPERM},
	{name: "socket sctp", nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_INET, unix.SOCK_STREAM, 255}, want: unix.ENOSYS},
	{name: "clone3", nr: unix.SYS_CLONE3, want: unix.ENOSYS},
	{name: "clone newuser", nr: unix.SYS_CLONE, args: [6]uintptr{unix.CLONE_NEWUSER | unix.CLONE_FS}, want: unix.EPERM},
	{name: "clone invalid flags", nr: unix.SYS_CLONE, args: [6]uintptr{unix.CLONE_THREAD}, want: unix.EINVAL, same: true},
	{name: "unshare", nr: unix.SYS_UNSHARE, want: unix.EPERM},
	{name: "setns", nr: unix.SYS_SETNS, args: [6]uintptr{none}, want: unix.EPERM},
	{name: "mount", nr: unix.SYS_MOUNT, want: unix.EPERM},
	{name: "ptrace", nr: unix.SYS_PTRACE, args: [6]uintptr{unix.PTRACE_ATTACH, 1 << 30}, want: unix.EPERM},
	{name: "process_vm_readv", nr: unix.SYS_PROCESS_VM_READV, args: [6]uintptr{1 << 30, 0, 0, 0, 0, 1}, want: unix.EPERM},
	{name: "bpf", nr: unix.SYS_BPF, args: [6]uintptr{9999}, want: unix.EPERM},
	{name: "perf_event_open", nr: unix.SYS_PERF_EVENT_OPEN, args: [6]uintptr{0, 0, none, none, none}, want: unix.EPERM},
	{name: "io_uring_setup", nr: unix.SYS_IO_URING_SETUP, want: unix.EPERM, feature: true},
	// An impossible length or size: without the filter the call gets no further.
	{name: "mprotect exec", nr: unix.SYS_MPROTECT, args: [6]uintptr{1, 4096, unix.PROT_READ | unix.PROT_EXEC}, want: unix.EPERM, feature: true},
	{name: "huge pages", nr: unix.SYS_MMAP, args: [6]uintptr{0, 0, unix.PROT_READ, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_HUGETLB, none},
		want: unix.EPERM, feature: true},
	{name: "shmget huge pages", nr: unix.SYS_SHMGET, args: [6]uintptr{unix.IPC_PRIVATE, 0, 0o7600}, want: unix.EPERM, feature: true},
	{name: "userfaultfd", nr: unix.SYS_USERFAULTFD, args: [6]uintptr{3}, want: unix.EPERM},
	{name: "keyctl", nr: unix.SYS_KEYCTL, args: [6]uintptr{9999}, want: unix.EPERM},
	{name: "add_key", nr: unix.SYS_ADD_KEY, want: unix.EPERM},
	{name: "memfd_create", nr: unix.SYS_MEMFD_CREATE, args: [6]uintptr{0, none}, want: unix.EPERM},
	{name: "execveat", nr: unix.SYS_EXECVEAT, args: [6]uintptr{none}, want: unix.EPERM},
	{name: "setresuid", nr: unix.SYS_SETRESUID, args: [6]uintptr{none, none, none}, want: unix.EPERM},
	{name: "fchown", nr: unix.SYS_FCHOWN, args: [6]uintptr{none, none, none}, want: unix.EPERM},
	{name: "tiocsti", nr: unix.SYS_IOCTL, args: [6]uintptr{none, unix.TIOCSTI}, want: unix.EPERM},
	{name: "tiocsti, upper half set", nr: unix.SYS_IOCTL, args: [6]uintptr{none, unix.TIOCSTI | bit}, want: unix.EPERM},
	{name: "tcgets", nr: unix.SYS_IOCTL, args: [6]uintptr{none, unix.TCGETS}, want: unix.ENOSYS},
	{name: "personality query", nr: unix.SYS_PERSONALITY, args: [6]uintptr{0xffffffff}, want: unix.EPERM},
	{name: "personality no randomisation", nr: unix.SYS_PERSONALITY, args: [6]uintptr{0x0040000}, want: unix.EPERM},
	{name: "personality linux", nr: unix.SYS_PERSONALITY, want: unix.EPERM},
	{name: "own limits", nr: unix.SYS_PRLIMIT64, args: [6]uintptr{0, unix.RLIMIT_NOFILE}, same: true},
	{name: "limits of another process", nr: unix.SYS_PRLIMIT64, args: [6]uintptr{1 << 30, unix.RLIMIT_NOFILE}, want: unix.EPERM},
	{name: "mmap write and exec", nr: unix.SYS_MMAP, args: [6]uintptr{0, 4096, unix.PROT_WRITE | unix.PROT_EXEC,
		unix.MAP_PRIVATE | unix.MAP_ANONYMOUS, none}, want: unix.EPERM},
	{name: "mmap exec without a file", nr: unix.SYS_MMAP, args: [6]uintptr{0, 4096, unix.PROT_READ | unix.PROT_EXEC,
		unix.MAP_PRIVATE | unix.MAP_ANONYMOUS, none}, want: unix.EPERM},
	{name: "mmap exec of a file", nr: unix.SYS_MMAP, args: [6]uintptr{0, 4096, unix.PROT_READ | unix.PROT_EXEC,
		unix.MAP_PRIVATE, none}, want: unix.EBADF, same: true},
	{name: "fcntl set owner", nr: unix.SYS_FCNTL, args: [6]uintptr{none, unix.F_SETOWN}, want: unix.ENOSYS},
	{name: "mprotect write and exec", nr: unix.SYS_MPROTECT, args: [6]uintptr{1, 4096, unix.PROT_WRITE | unix.PROT_EXEC}, want: unix.EPERM},
	{name: "prctl set dumpable", nr: unix.SYS_PRCTL, args: [6]uintptr{unix.PR_SET_DUMPABLE, 99}, want: unix.ENOSYS},
	{name: "prctl parent death signal", nr: unix.SYS_PRCTL, args: [6]uintptr{unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL)}, same: true},
	{name: "statx", nr: unix.SYS_STATX, args: [6]uintptr{none}, want: unix.ENOSYS},
	{name: "seccomp", nr: unix.SYS_SECCOMP, args: [6]uintptr{none}, want: unix.ENOSYS},
}

// tryCalls makes the calls and returns the error numbers.
func tryCalls() (any, error) {
	results := make([]unix.Errno, 0, len(attempts))
	for _, a := range attempts {
		_, _, errno := unix.RawSyscall6(a.nr, a.args[0], a.args[1], a.args[2], a.args[3], a.args[4], a.args[5])
		results = append(results, errno)
	}
	return results, nil
}

// confinedThen confines the calling thread with the profile of postgres.
func confinedThen(then func() (any, error), features ...string) (any, error) {
	p, err := shipped("postgres", features...)
	if err != nil {
		return nil, err
	}
	f, err := Compile(p)
	if err != nil {
		return nil, err
	}
	if err := NoNewPrivs(); err != nil {
		return nil, err
	}
	if err := f.Load(); err != nil {
		return nil, err
	}
	return then()
}

func TestFilterInTheKernel(t *testing.T) {
	free := mustHelp[[]unix.Errno](t, "calls")
	confined := mustHelp[[]unix.Errno](t, "calls-filtered")
	featured := mustHelp[[]unix.Errno](t, "calls-featured")
	if len(free) != len(attempts) || len(confined) != len(attempts) || len(featured) != len(attempts) {
		t.Fatalf("%d, %d and %d results, want %d", len(free), len(confined), len(featured), len(attempts))
	}
	for i, a := range attempts {
		if confined[i] != a.want {
			t.Errorf("%s under the filter: %v, want %v", a.name, describe(confined[i]), describe(a.want))
		}
		if want := map[bool]unix.Errno{false: a.want, true: free[i]}[a.feature]; featured[i] != want {
			t.Errorf("%s with features: %v, want %v", a.name, describe(featured[i]), describe(want))
		}
		if same := free[i] == confined[i]; same != a.same {
			t.Errorf("%s: %v under the filter, %v without it", a.name, describe(confined[i]), describe(free[i]))
		}
	}
}

func describe(e unix.Errno) string {
	if e == 0 {
		return "success"
	}
	return unix.ErrnoName(e)
}

// becomeCat leaves the process to a shell that starts other programs.
func becomeCat() (any, error) {
	return nil, syscall.Exec("/bin/sh", []string{"sh", "-c", "(cat /proc/self/status)"}, os.Environ())
}

// execve, the dynamic loader, a shell and fork all pass the filter, and the
// kernel says that the grandchild is still under it.
func TestFilterStaysAcrossExecve(t *testing.T) {
	out, err := help(t, "become-filtered")
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseStatus(out)
	if err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	own, err := ReadStatus(t.Context(), os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "cat" || s.Seccomp != unix.SECCOMP_MODE_FILTER || s.Filters != own.Filters+1 || !s.NoNewPrivs {
		t.Errorf("%+v, want cat with seccomp mode 2, %d filters and no_new_privs", s, own.Filters+1)
	}
}

// loadWithoutNoNewPrivs must be refused whatever the user.
func loadWithoutNoNewPrivs() (any, error) {
	f := &Filter{name: "test", prog: []unix.SockFilter{{Code: unix.BPF_RET, K: allow}}}
	return nil, f.Load()
}

func TestLoadNeedsNoNewPrivs(t *testing.T) {
	_, err := help(t, "load-without-nnp")
	checkError(t, err, "cannot load seccomp filter test: no_new_privs is not set on this thread: call NoNewPrivs first")
}

// loadTwice shows that the kernel's own refusal is passed on with a hint: the
// first filter hides seccomp(2) from the second.
func loadTwice() (any, error) {
	return confinedThen(func() (any, error) {
		f := &Filter{name: "second", prog: []unix.SockFilter{{Code: unix.BPF_RET, K: allow}}}
		return nil, f.Load()
	})
}

func TestLoadNamesTheKernelsRefusal(t *testing.T) {
	_, err := help(t, "load-twice")
	checkError(t, err, "second", "function not implemented")
}

// tryThreads confines its thread and asks about the process's first one.
func tryThreads() (any, error) {
	return confinedThen(func() (any, error) {
		first, err := ReadStatus(context.Background(), os.Getpid())
		if err != nil {
			return nil, err
		}
		self, err := ReadStatus(context.Background(), 0)
		return []Status{first, self}, err
	})
}

func TestOnlyTheCallingThreadIsConfined(t *testing.T) {
	s := mustHelp[[]Status](t, "threads-untouched")
	first, self := s[0], s[1]
	if self.PID == first.PID || self.TGID != first.TGID {
		t.Fatalf("thread %d of process %d, first thread %d: the test is wrong", self.PID, self.TGID, first.PID)
	}
	if self.Seccomp != unix.SECCOMP_MODE_FILTER || !self.NoNewPrivs {
		t.Errorf("the calling thread is not confined: %+v", self)
	}
	if first.Filters != self.Filters-1 {
		t.Errorf("the first thread has %d filters, the calling one %d: the filter went to all threads", first.Filters, self.Filters)
	}
}

// tryForeign makes a call of the x32 ABI.
func tryForeign() (any, error) {
	_, _, errno := unix.RawSyscall(unix.SYS_GETPID|x32Bit, 0, 0, 0)
	return errno, nil
}

func TestForeignCallKillsTheProcess(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Log("x32 is there on x86-64 only: nothing to see here; the virtual machine's tests cover the others")
		return
	}
	if errno := mustHelp[unix.Errno](t, "foreign"); errno != 0 && errno != unix.ENOSYS {
		t.Errorf("an x32 call without the filter: %v, want success or ENOSYS", errno)
	}
	_, err := help(t, "foreign-filtered")
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("the process survived an x32 call: %v", err)
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != unix.SIGSYS {
		t.Errorf("an x32 call: %v, want the process killed by SIGSYS", err)
	}
	if strings.Contains(err.Error(), "cannot") {
		t.Error(err)
	}
}
