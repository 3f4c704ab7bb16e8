package drill

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// ActCommand is the hidden subcommand of what runs behind the confinement. The
// program must route "PROGRAM drill-act WORD…" to Act(WORD…) before anything else.
const ActCommand = "drill-act"

// Act does one thing that a compromised service might, prints its outcome as one
// line of JSON, and returns the exit code. It makes system calls itself: package
// os would ask for a poller, whose calls the seccomp profiles do not know, and the
// runtime would end the program.
func Act(argv []string) int {
	runtime.LockOSThread() // many acts are about this thread
	if len(argv) == 0 {
		return 2
	}
	act, ok := acts()[argv[0]]
	if !ok {
		return 2
	}
	args := argv[1:]
	line, err := json.Marshal(act(func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}))
	if err != nil {
		return 2
	}
	if _, err := unix.Write(1, append(line, '\n')); err != nil {
		return 1
	}
	return 0
}

// argument is the words of an act, "" beyond the last.
type argument func(i int) string

func (arg argument) number(i int) int {
	n, err := strconv.Atoi(arg(i))
	if err != nil {
		return -1
	}
	return n
}

func acts() map[string]func(argument) outcome {
	return map[string]func(argument) outcome{
		"wait": wait, "drop": drop, "loader": loader, "memfd": memfd, "become": become,
		"ptrace": ptrace, "vm-read": vmRead, "proc-mem": procMem, "kill": kill,
		"userns": userns, "mount": mount, "setns": setns, "chroot": chroot,
		"bpf": bpf, "perf": perf, "io_uring": ioUring, "keyctl": keyctl, "userfaultfd": userfaultfd,
		"module": module, "kexec": kexec,
		"socket": socket, "tcp": tcp, "udp": udp, "abstract": abstract, "unix": pathSocket,
		"open": openOnly, "append": appendTo, "create": create, "replace": replace,
		"fork": forkMany, "files": openMany, "tiocsti": tiocsti, "core": core,
	}
}

// wait is the bystander: it may be traced, and ends with its standard input.
func wait(argument) outcome {
	const anybody = ^uintptr(0) // PR_SET_PTRACER_ANY
	if err := unix.Prctl(unix.PR_SET_PTRACER, anybody, 0, 0, 0); err != nil && err != unix.EINVAL { //nolint:errorlint // a bare errno; EINVAL without Yama
		return stopped("prctl", err)
	}
	if _, err := unix.Write(1, []byte("ready\n")); err != nil {
		return stopped("write", err)
	}
	var buf [1]byte
	for {
		if _, err := unix.Read(0, buf[:]); err != unix.EINTR { //nolint:errorlint // a bare errno
			return reached
		}
	}
}

// copyTo writes a copy of a program; the file stays in the scratch area.
func copyTo(from, to string) (string, error) {
	in, err := unix.Open(from, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "read", err
	}
	out, err := unix.Open(to, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o700)
	if err != nil {
		return "write", err
	}
	step, err := pour(in, out)
	if err == nil {
		step, err = "close", unix.Close(out) // or it would be busy
	}
	return step, err
}

func pour(in, out int) (string, error) {
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(in, buf)
		if err != nil || n <= 0 {
			return "read", err
		}
		if _, err := unix.Write(out, buf[:n]); err != nil {
			return "write", err
		}
	}
}

// execute becomes a program; what that says or how it ends is then the outcome.
func execute(argv ...string) outcome {
	return stopped("execve", unix.Exec(argv[0], argv, []string{"PATH=/usr/bin:/bin"}))
}

func become(arg argument) outcome { return execute(arg(0), arg(1)) }

func drop(arg argument) outcome {
	if step, err := copyTo(arg(1), arg(0)); err != nil {
		return stopped(step, err)
	}
	return execute(arg(0))
}

func loader(arg argument) outcome {
	if step, err := copyTo(arg(1), arg(0)); err != nil {
		return stopped(step, err)
	}
	return execute(arg(2), arg(0))
}

func memfd(arg argument) outcome {
	fd, err := unix.MemfdCreate("drill", 0)
	if err != nil {
		return stopped("memfd_create", err)
	}
	in, err := unix.Open(arg(0), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return stopped("read", err)
	}
	if step, err := pour(in, fd); err != nil {
		return stopped(step, err)
	}
	return execute(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// selfPath is this program, for what starts it again.
const selfPath = "/proc/self/exe"

// self opens this very program, even if it was replaced on disk.
func self() (*os.File, error) { return os.Open(selfPath) }
