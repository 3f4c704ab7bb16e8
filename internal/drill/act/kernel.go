package act

import (
	"strconv"
	"syscall"
	"unsafe"
)

// call makes a system call that harms nobody if it succeeds.
func call(name string, number, a, b, c, d, e uintptr) outcome {
	fd, _, errno := syscall.RawSyscall6(number, a, b, c, d, e, 0)
	if errno != 0 {
		return stopped(name, errno)
	}
	if int(fd) > 2 {
		_ = syscall.Close(int(fd)) // nothing was done with it
	}
	return reached
}

// past takes an error that comes after the check of permission for success.
func past(o outcome, after syscall.Errno) outcome {
	if o.errno == after {
		return outcome{kind: Reached, note: "permission was given; then " + after.Error()}
	}
	return o
}

// inChild runs system calls in a child that shares nothing but the program's text
// and ends at once. The child's exit status is the error number. What do calls is
// nosplit: where a function asks for stack, the child may instead obey a preemption
// that was meant for its parent, and wait for ever for a thread that it does not have.
//
//go:norace
func inChild(flags uintptr, name string, do func() syscall.Errno) outcome {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, flags|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return stopped("clone", errno)
	}
	if pid == 0 {
		// The only thread of a copy of this process: no allocation, no scheduling.
		code := do()
		for {
			_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, uintptr(code), 0, 0)
		}
	}
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(int(pid), &status, 0, nil)
		if err == nil {
			break
		}
		if err != syscall.EINTR {
			return stopped("wait4", err)
		}
	}
	if status.Signaled() {
		return outcome{kind: Stopped, step: name, note: "ended by " + status.Signal().String()}
	}
	return stopped(name, syscall.Errno(status.ExitStatus()))
}

// What is mounted where, as the kernel takes it.
var (
	tmpfs = [...]byte{'t', 'm', 'p', 'f', 's', 0}
	onTmp = [...]byte{'/', 't', 'm', 'p', 0}
	root  = [...]byte{'/', 0}
)

//go:norace
//go:nosplit
func mountTmpfs() syscall.Errno {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_MOUNT, uintptr(unsafe.Pointer(&root)), uintptr(unsafe.Pointer(&root)), 0,
		syscall.MS_REC|syscall.MS_PRIVATE, 0, 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall6(syscall.SYS_MOUNT, uintptr(unsafe.Pointer(&tmpfs)), uintptr(unsafe.Pointer(&onTmp)),
			uintptr(unsafe.Pointer(&tmpfs)), 0, 0, 0)
	}
	return errno
}

// userns is how an ordinary user gets to the kernel's interfaces for root.
func userns(arguments) outcome {
	return inChild(syscall.CLONE_NEWUSER|syscall.CLONE_NEWNS, "mount", mountTmpfs)
}

//go:norace
//go:nosplit
func unshareAndMount() syscall.Errno {
	_, _, errno := syscall.RawSyscall(syscall.SYS_UNSHARE, syscall.CLONE_NEWNS, 0, 0)
	if errno == 0 {
		errno = mountTmpfs()
	}
	return errno
}

func mount(arguments) outcome { return inChild(0, "mount", unshareAndMount) }

func setns(a arguments) outcome {
	fd, err := syscall.Open("/proc/self/ns/net", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return stopped("open", err)
	}
	return call("setns", a.call(0), uintptr(fd), syscall.CLONE_NEWNET, 0, 0, 0)
}

func chroot(arguments) outcome { return stopped("chroot", syscall.Chroot("/")) }

func bpf(a arguments) outcome {
	const mapCreate, array = 0, 2
	attr := struct{ kind, key, value, entries uint32 }{array, 4, 4, 1}
	return call("bpf", a.call(0), mapCreate, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0, 0)
}

// perf opens a clock of software for this thread, the kernel's part included.
func perf(a arguments) outcome {
	const software, disabled = 1, 1
	attr := struct {
		kind, size           uint32
		config, period       uint64
		sample, format, bits uint64
		rest                 [16]byte
	}{kind: software, bits: disabled}
	attr.size = uint32(unsafe.Sizeof(attr)) // PERF_ATTR_SIZE_VER0
	const thisThread, anyCPU, noGroup = 0, ^uintptr(0), ^uintptr(0)
	return call("perf_event_open", a.call(0), uintptr(unsafe.Pointer(&attr)), thisThread, anyCPU, noGroup, 0)
}

func ioUring(a arguments) outcome {
	var params [120]byte // struct io_uring_params
	return call("io_uring_setup", a.call(0), 1, uintptr(unsafe.Pointer(&params)), 0, 0, 0)
}

func keyctl(a arguments) outcome {
	kind, name := [...]byte{'u', 's', 'e', 'r', 0}, [...]byte{'d', 0}
	const ownProcess = ^uintptr(1) // KEY_SPEC_PROCESS_KEYRING, -2
	return call("add_key", a.call(0), uintptr(unsafe.Pointer(&kind)), uintptr(unsafe.Pointer(&name)), uintptr(unsafe.Pointer(&name)), 1, ownProcess)
}

// plainCall is NAME NUMBER AFTER ARG…: a call with numbers as arguments. AFTER is
// the error that comes after the check of permission, 0 for none.
func plainCall(a arguments) outcome {
	var arg [4]uintptr
	for i := range arg {
		if n, err := strconv.ParseInt(a.word(3+i), 0, 64); err == nil {
			arg[i] = uintptr(n)
		}
	}
	o := call(a.word(0), a.call(1), arg[0], arg[1], arg[2], arg[3], 0)
	if after := syscall.Errno(a.number(2)); after > 0 {
		return past(o, after)
	}
	return o
}

func socket(a arguments) outcome {
	fd, err := syscall.Socket(a.number(0), a.number(1)|syscall.SOCK_CLOEXEC, a.number(2))
	if err != nil {
		return stopped("socket", err)
	}
	return stopped("close", syscall.Close(fd))
}

func ptrace(a arguments) outcome {
	const seize = 0x4206 // does not stop the process, and ends with this one
	return call("ptrace", syscall.SYS_PTRACE, seize, a.call(0), 0, 0, 0)
}

// vmRead asks for what is at an address that is never mapped: EFAULT comes after
// the check of permission.
func vmRead(a arguments) outcome {
	var buf [1]byte
	local := struct{ base, length uintptr }{pointer(&buf), 1}
	remote := struct{ base, length uintptr }{1, 1}
	return past(call("process_vm_readv", a.call(1), a.call(0), uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1), syscall.EFAULT)
}

func procMem(a arguments) outcome { return openMem(a, syscall.O_RDWR) }

func procMemRead(a arguments) outcome { return openMem(a, syscall.O_RDONLY) }

func openMem(a arguments, how int) outcome {
	return opened(syscall.Open("/proc/"+strconv.Itoa(a.number(0))+"/mem", how|syscall.O_CLOEXEC, 0))
}

func kill(a arguments) outcome { return stopped("kill", syscall.Kill(a.number(0), 0)) }

// memfd is SOURCE NUMBER: a program in anonymous memory, and its execution.
func memfd(a arguments) outcome {
	name := [...]byte{'d', 0}
	fd, _, errno := syscall.RawSyscall(a.call(1), uintptr(unsafe.Pointer(&name)), 0, 0)
	if errno != 0 {
		return stopped("memfd_create", errno)
	}
	if step, err := pour(a.word(0), int(fd)); err != nil {
		return stopped(step, err)
	}
	return execute("/proc/self/fd/" + strconv.Itoa(int(fd)))
}
