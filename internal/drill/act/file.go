package act

import (
	"strconv"

	"syscall"
)

func opened(fd int, err error) outcome {
	if err != nil {
		return stopped("open", err)
	}
	return stopped("close", syscall.Close(fd))
}

// openOnly opens and closes, and neither reads nor writes.
func openOnly(a arguments) outcome {
	return opened(syscall.Open(a.word(0), syscall.O_RDONLY|syscall.O_CLOEXEC, 0))
}

// appendTo opens a file for writing and writes nothing.
func appendTo(a arguments) outcome {
	return opened(syscall.Open(a.word(0), syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CLOEXEC, 0))
}

// create makes a file and removes it again.
func create(a arguments) outcome {
	o := opened(syscall.Open(a.word(0), syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_CLOEXEC, 0o600))
	if o.kind == Reached {
		return stopped("unlink", syscall.Unlink(a.word(0)))
	}
	return o
}

// replace moves a file away and back, as one who puts another in its place does.
func replace(a arguments) outcome {
	away := a.word(0) + ".away"
	if err := syscall.Rename(a.word(0), away); err != nil {
		return stopped("rename", err)
	}
	return stopped("rename back", syscall.Rename(away, a.word(0)))
}

// nproc is RLIMIT_NPROC, which package syscall lacks.
const nproc = 6

// bounds of what is started or opened.
const (
	mostProcesses = 128
	mostFiles     = 4096
	loweredTo     = 64
)

// lowered makes a limit that is in force a small one, so that it can be reached
// without starting thousands of processes. A limit that cannot be told from the
// inherited one (want is what the service was asked to have) is left alone.
func lowered(resource int, want string) (text string, err error) {
	var now syscall.Rlimit
	if err := syscall.Getrlimit(resource, &now); err != nil {
		return "", err
	}
	if want == "" || strconv.FormatUint(now.Max, 10) != want {
		now.Cur = now.Max
		return "the limit is the inherited one", syscall.Setrlimit(resource, &now)
	}
	return "the limit " + want + " is in force, and was lowered for this", syscall.Setrlimit(resource, &syscall.Rlimit{Cur: min(loweredTo, now.Max), Max: now.Max})
}

func forkMany(a arguments) outcome {
	note, err := lowered(nproc, a.word(0))
	if err != nil {
		return stopped("setrlimit", err)
	}
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC); err != nil {
		return stopped("pipe2", err)
	}
	o, children := reached, 0
	for ; children < mostProcesses; children++ {
		if errno := forkWaiter(pipe); errno != 0 {
			o = stopped("clone", errno)
			break
		}
	}
	_ = syscall.Close(pipe[1]) // which ends them
	for range children {
		_, _ = syscall.Wait4(-1, nil, 0, nil) // how they end says nothing
	}
	o.note = note
	return o
}

// forkWaiter starts a child that ends when the pipe does.
//
//go:norace
func forkWaiter(pipe [2]int) syscall.Errno {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return errno
	}
	var buf [1]byte
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(pipe[1]), 0, 0)
	for {
		_, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(pipe[0]), pointer(&buf), 1)
		if errno != syscall.EINTR {
			_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
}

func openMany(a arguments) outcome {
	note, err := lowered(syscall.RLIMIT_NOFILE, a.word(0))
	if err != nil {
		return stopped("setrlimit", err)
	}
	for range mostFiles {
		if _, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0); err != nil {
			o := stopped("open", err)
			o.note = note
			return o
		}
	}
	return outcome{kind: Reached, note: note}
}

// tiocsti pushes a character into the terminal that is standard input.
func tiocsti(arguments) outcome {
	const pushChar = 0x5412 // TIOCSTI
	char := [1]byte{'x'}
	return call("ioctl", syscall.SYS_IOCTL, 0, pushChar, pointer(&char), 0, 0)
}

// core raises what a core dump may have. To dump would be for the host's handler.
func core(arguments) outcome {
	const some = 1 << 20
	return stopped("setrlimit", syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: some, Max: some}))
}
