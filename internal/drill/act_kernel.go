package drill

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call makes a system call that harms nobody if it succeeds.
func call(name string, number, a, b, c, d, e uintptr) outcome {
	fd, _, errno := unix.RawSyscall6(number, a, b, c, d, e, 0)
	if errno != 0 {
		return stopped(name, errno)
	}
	if int(fd) > 2 {
		_ = unix.Close(int(fd)) // nothing was done with it
	}
	return reached
}

// past takes errors that come after the check of permission for success.
func past(o outcome, errnos ...unix.Errno) outcome {
	for _, errno := range errnos {
		if o.Errno == errnoName(errno) {
			return outcome{Reached: true, Note: "permission was given; then " + o.Errno}
		}
	}
	return o
}

// inChild runs a system call in a child that shares nothing but the program's text
// and ends at once. The child's exit status is the error number.
func inChild(flags uintptr, name string, do func() unix.Errno) outcome {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return stopped("clone", errno)
	}
	if pid == 0 {
		// The only thread of a copy of this process: no allocation, no scheduling.
		code := do()
		for {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(code), 0, 0)
		}
	}
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(int(pid), &status, 0, nil)
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		if err != nil {
			return stopped("wait4", err)
		}
		break
	}
	if status.Signaled() {
		return outcome{Step: name, Note: "ended by " + status.Signal().String()}
	}
	if code := status.ExitStatus(); code != 0 {
		return stopped(name, unix.Errno(code))
	}
	return reached
}

// What is mounted, as the kernel takes it.
var (
	tmpfs = [...]byte{'t', 'm', 'p', 'f', 's', 0}
	onTmp = [...]byte{'/', 't', 'm', 'p', 0}
	root  = [...]byte{'/', 0}
)

func mountTmpfs() unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_MOUNT, uintptr(unsafe.Pointer(&root)), uintptr(unsafe.Pointer(&root)), 0,
		unix.MS_REC|unix.MS_PRIVATE, 0, 0)
	if errno == 0 {
		_, _, errno = unix.RawSyscall6(unix.SYS_MOUNT, uintptr(unsafe.Pointer(&tmpfs)), uintptr(unsafe.Pointer(&onTmp)),
			uintptr(unsafe.Pointer(&tmpfs)), 0, 0, 0)
	}
	return errno
}

// userns is how an ordinary user gets to the kernel's interfaces for root.
func userns(argument) outcome { return inChild(unix.CLONE_NEWUSER|unix.CLONE_NEWNS, "mount", mountTmpfs) }

func mount(argument) outcome {
	return inChild(0, "mount", func() unix.Errno {
		_, _, errno := unix.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWNS, 0, 0)
		if errno == 0 {
			errno = mountTmpfs()
		}
		return errno
	})
}

func setns(argument) outcome {
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return stopped("open", err)
	}
	return call("setns", unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWNET, 0, 0, 0)
}

func chroot(argument) outcome { return stopped("chroot", unix.Chroot("/")) }

func bpf(argument) outcome {
	attr := struct{ kind, key, value, entries uint32 }{2, 4, 4, 1} // BPF_MAP_TYPE_ARRAY
	return call("bpf", unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0, 0)
}

func perf(argument) outcome {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Bits: unix.PerfBitDisabled}
	attr.Size = uint32(unsafe.Sizeof(attr))
	const thisThread, anyCPU, noGroup = 0, ^uintptr(0), ^uintptr(0)
	o := call("perf_event_open", unix.SYS_PERF_EVENT_OPEN, uintptr(unsafe.Pointer(&attr)), thisThread, anyCPU, noGroup, 0)
	return withoutKernel(o)
}

func ioUring(argument) outcome {
	var params [120]byte // struct io_uring_params
	return withoutKernel(call("io_uring_setup", unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0, 0, 0))
}

func keyctl(argument) outcome {
	kind, name := [...]byte{'u', 's', 'e', 'r', 0}, [...]byte{'d', 0}
	const ownProcess = ^uintptr(1) // KEY_SPEC_PROCESS_KEYRING, -2
	return withoutKernel(call("add_key", unix.SYS_ADD_KEY, uintptr(unsafe.Pointer(&kind)), uintptr(unsafe.Pointer(&name)), uintptr(unsafe.Pointer(&name)), 1, ownProcess))
}

func userfaultfd(argument) outcome {
	return withoutKernel(call("userfaultfd", unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0, 0, 0))
}

// module: whether the caller may is checked before the descriptor, init_module(2).
func module(argument) outcome {
	empty := [1]byte{}
	return withoutKernel(past(call("finit_module", unix.SYS_FINIT_MODULE, ^uintptr(0), uintptr(unsafe.Pointer(&empty)), 0, 0, 0), unix.EBADF))
}

// kexec: whether the caller may is checked before the flags, kexec_load(2).
func kexec(argument) outcome {
	const unknownFlags = 0x8000
	return withoutKernel(past(call("kexec_load", unix.SYS_KEXEC_LOAD, 0, 0, 0, unknownFlags, 0), unix.EINVAL))
}

// withoutKernel notes a call that this kernel may not have. A seccomp profile answers the
// same for what it does not know, so this is for the control to judge.
func withoutKernel(o outcome) outcome {
	if o.Errno == errnoName(unix.ENOSYS) {
		o.Note = "not in this kernel, or not known to the filter"
	}
	return o
}

// sockets are families and types that no service of ours needs.
var sockets = []struct {
	name, does             string
	family, kind, protocol int
}{
	{"alg", "AF_ALG, the kernel's cryptography", unix.AF_ALG, unix.SOCK_SEQPACKET, 0},
	{"packet", "AF_PACKET, frames of the interface", unix.AF_PACKET, unix.SOCK_RAW, 0},
	{"raw", "raw IPv4 (GRE)", unix.AF_INET, unix.SOCK_RAW, 47},
	{"raw6", "raw IPv6 (ICMPv6)", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6},
	{"vsock", "AF_VSOCK, to the hypervisor", unix.AF_VSOCK, unix.SOCK_STREAM, 0},
	{"netfilter", "netlink, netfilter", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER},
	{"sctp", "SCTP", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP},
}

func socket(arg argument) outcome {
	for _, s := range sockets {
		if s.name == arg(0) {
			return call("socket", unix.SYS_SOCKET, uintptr(s.family), uintptr(s.kind|unix.SOCK_CLOEXEC), uintptr(s.protocol), 0, 0)
		}
	}
	return absent("no socket %q", arg(0))
}

func ptrace(arg argument) outcome {
	// SEIZE does not stop the process, and ends with this one.
	return call("ptrace", unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(arg.number(0)), 0, 0, 0)
}

// vmRead asks for what is at an address that is never mapped: EFAULT comes after
// the check of permission.
func vmRead(arg argument) outcome {
	var buf [1]byte
	local := unix.Iovec{Base: &buf[0]}
	local.SetLen(1)
	remote := unix.RemoteIovec{Base: 1, Len: 1}
	n, err := unix.ProcessVMReadv(arg.number(0), []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0)
	if n > 0 {
		return reached
	}
	return past(stopped("process_vm_readv", err), unix.EFAULT)
}

func procMem(arg argument) outcome {
	return opened(unix.Open("/proc/"+strconv.Itoa(arg.number(0))+"/mem", unix.O_RDWR|unix.O_CLOEXEC, 0))
}

func kill(arg argument) outcome { return stopped("kill", unix.Kill(arg.number(0), 0)) }
