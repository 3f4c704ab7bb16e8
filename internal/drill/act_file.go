package drill

import (
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

func opened(fd int, err error) outcome {
	if err != nil {
		return stopped("open", err)
	}
	return stopped("close", unix.Close(fd))
}

// openOnly opens and closes, and neither reads nor writes.
func openOnly(arg argument) outcome {
	return opened(unix.Open(arg(0), unix.O_RDONLY|unix.O_CLOEXEC, 0))
}

// appendTo opens a file for writing and writes nothing.
func appendTo(arg argument) outcome {
	return opened(unix.Open(arg(0), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0))
}

// create makes a file and removes it again.
func create(arg argument) outcome {
	o := opened(unix.Open(arg(0), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600))
	if o.Reached {
		return stopped("unlink", unix.Unlink(arg(0)))
	}
	return o
}

// replace moves a file away and back, as one who puts another in its place does.
func replace(arg argument) outcome {
	away := arg(0) + ".away"
	if err := unix.Rename(arg(0), away); err != nil {
		return stopped("rename", err)
	}
	return stopped("rename back", unix.Rename(away, arg(0)))
}

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
	var now unix.Rlimit
	if err := unix.Getrlimit(resource, &now); err != nil {
		return "", err
	}
	if limitText(now.Max) != want || now.Max == unix.RLIM_INFINITY {
		now.Cur = now.Max
		return "the limit is the inherited one", unix.Setrlimit(resource, &now)
	}
	return "the limit " + want + " is in force, and was lowered for this", unix.Setrlimit(resource, &unix.Rlimit{Cur: min(loweredTo, now.Max), Max: now.Max})
}

func forkMany(arg argument) outcome {
	note, err := lowered(unix.RLIMIT_NPROC, arg(0))
	if err != nil {
		return stopped("setrlimit", err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return stopped("pipe2", err)
	}
	o, children := reached, 0
	for ; children < mostProcesses; children++ {
		if errno := forkWaiter(pipe); errno != 0 {
			o = stopped("clone", errno)
			break
		}
	}
	_ = unix.Close(pipe[1]) // which ends them
	for range children {
		_, _ = unix.Wait4(-1, nil, 0, nil) // how they end says nothing
	}
	o.Note = note
	return o
}

// forkWaiter starts a child that ends when the pipe does.
func forkWaiter(pipe [2]int) unix.Errno {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return errno
	}
	var buf [1]byte
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(pipe[1]), 0, 0)
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(pipe[0]), pointer(&buf), 1)
		if errno != unix.EINTR {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
}

func openMany(arg argument) outcome {
	note, err := lowered(unix.RLIMIT_NOFILE, arg(0))
	if err != nil {
		return stopped("setrlimit", err)
	}
	for range mostFiles {
		if _, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			o := stopped("open", err)
			o.Note = note
			return o
		}
	}
	return outcome{Reached: true, Note: note}
}

// tiocsti pushes a character into the terminal that is standard input.
func tiocsti(argument) outcome {
	char := [1]byte{'x'}
	return call("ioctl", unix.SYS_IOCTL, 0, unix.TIOCSTI, pointer(&char), 0, 0)
}

// core raises what a core dump may have. To dump would be for the host's handler.
func core(argument) outcome {
	const some = 1 << 20
	return stopped("setrlimit", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: some, Max: some}))
}

// patience is how long an answer from the network may take.
const patience = time.Second

func limitText(v uint64) string { return strconv.FormatUint(v, 10) }
