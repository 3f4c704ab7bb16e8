// Package act is what a drill runs behind the confinement: one act that a
// compromised service might try.
//
// It runs before main. The seccomp profiles of services do not know the calls of
// the Go runtime's network poller (eventfd2), without which the runtime ends the
// program as soon as package os opens any file, and other packages of this program
// do that when they are initialised. The specification of the language (Program
// initialization) has packages initialised in the order of their import paths as
// soon as what they import is. This one must therefore import nothing that those
// packages do not import as well, golang.org/x/sys included: the numbers of system
// calls come as arguments. If it ever ran too late, no outcome would be reported,
// and the drill fails.
//
// All acts make the system calls themselves, and harm nobody where they succeed.
package act

import (
	"os"
	"runtime"
	"strconv"
	"syscall"
)

// Command is the first argument of a process that is to act: PROGRAM drill-act
// ACT WORD…
const Command = "drill-act"

// The kinds of an outcome, the first word of the line that is printed:
// KIND <tab> step <tab> error number <tab> note.
const (
	Reached = "reached"
	Stopped = "stopped"
	Absent  = "absent"
	// Becoming is printed before the process becomes a program; how that ends is
	// the outcome unless another line follows.
	Becoming = "becoming"
)

func init() { //nolint:gochecknoinits // see the package comment
	if len(os.Args) > 2 && os.Args[1] == Command {
		runtime.LockOSThread() // many acts are about this thread
		syscall.Exit(run(os.Args[2], os.Args[3:]))
	}
}

// outcome is what became of an act.
type outcome struct {
	kind, step string
	errno      syscall.Errno
	note       string
}

var reached = outcome{kind: Reached}

// stopped is an outcome for an error of a system call.
func stopped(step string, err error) outcome {
	if err == nil {
		return reached
	}
	errno, ok := err.(syscall.Errno) //nolint:errorlint // system calls return them bare
	if !ok {
		return outcome{kind: Stopped, step: step, note: err.Error()}
	}
	if errno == 0 {
		return reached
	}
	return outcome{kind: Stopped, step: step, errno: errno}
}

func (o outcome) tell() bool {
	line := o.kind + "\t" + o.step + "\t" + strconv.Itoa(int(o.errno)) + "\t" + o.note + "\n"
	_, err := syscall.Write(1, []byte(line))
	return err == nil
}

// arguments are the words of an act, "" beyond the last.
type arguments []string

func (a arguments) word(i int) string {
	if i < len(a) {
		return a[i]
	}
	return ""
}

func (a arguments) number(i int) int {
	n, err := strconv.Atoi(a.word(i))
	if err != nil {
		return -1
	}
	return n
}

// call is the number of a system call, that is in the words.
func (a arguments) call(i int) uintptr { return uintptr(a.number(i)) }

func run(name string, args arguments) (code int) {
	f := find(name)
	if f == nil {
		return 2
	}
	if !f(args).tell() {
		return 1
	}
	return 0
}

func find(name string) func(arguments) outcome {
	return map[string]func(arguments) outcome{
		"wait":          wait,
		"drop":          drop,
		"loader":        loader,
		"memfd":         memfd,
		"page0":         page0,
		"become":        become,
		"ptrace":        ptrace,
		"vm-read":       vmRead,
		"proc-mem":      procMem,
		"proc-mem-read": procMemRead,
		"kill":          kill,
		"userns":        userns,
		"mount":         mount,
		"setns":         setns,
		"chroot":        chroot,
		"bpf":           bpf,
		"perf":          perf,
		"io_uring":      ioUring,
		"keyctl":        keyctl,
		"call":          plainCall,
		"socket":        socket,
		"netfilter":     netfilterDump,
		"tcp":           tcp,
		"udp":           udp,
		"unix":          unixSocket,
		"open":          openOnly,
		"append":        appendTo,
		"create":        create,
		"replace":       replace,
		"fork":          forkMany,
		"files":         openMany,
		"memory":        memory,
		"bus":           bus,
		"tiocsti":       tiocsti,
		"core":          core,
	}[name]
}

// wait is the bystander: it may be traced, and ends with its standard input.
func wait(arguments) outcome {
	const setTracer, anybody = 0x59616d61, ^uintptr(0) // PR_SET_PTRACER, PR_SET_PTRACER_ANY
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, setTracer, anybody, 0, 0, 0, 0)
	if errno != 0 && errno != syscall.EINVAL { // EINVAL without Yama
		return stopped("prctl", errno)
	}
	if _, err := syscall.Write(1, []byte("ready\n")); err != nil {
		return stopped("write", err)
	}
	var buf [1]byte
	for {
		if _, err := syscall.Read(0, buf[:]); err != syscall.EINTR {
			return reached
		}
	}
}

// copyTo writes a copy of a program; the file stays in the scratch area.
func copyTo(from, to string) (string, error) {
	out, err := syscall.Open(to, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_TRUNC|syscall.O_CLOEXEC, 0o700)
	if err != nil {
		return "write", err
	}
	step, err := pour(from, out)
	if err == nil {
		step, err = "close", syscall.Close(out) // or it would be busy
	}
	return step, err
}

func pour(from string, out int) (string, error) {
	in, err := syscall.Open(from, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return "read", err
	}
	buf := make([]byte, 1<<16)
	for {
		n, err := syscall.Read(in, buf)
		if err != nil || n <= 0 {
			return "read", err
		}
		if _, err := syscall.Write(out, buf[:n]); err != nil {
			return "write", err
		}
	}
}

// execute becomes a program; what that says or how it ends is then the outcome.
func execute(argv ...string) outcome {
	if !(outcome{kind: Becoming}).tell() {
		return outcome{kind: Absent, note: "cannot report"}
	}
	return stopped("execve", syscall.Exec(argv[0], argv, []string{"PATH=/usr/bin:/bin"}))
}

func become(a arguments) outcome { return execute(a...) }

func drop(a arguments) outcome {
	if step, err := copyTo(a.word(1), a.word(0)); err != nil {
		return stopped(step, err)
	}
	return execute(a.word(0))
}

func loader(a arguments) outcome {
	if step, err := copyTo(a.word(1), a.word(0)); err != nil {
		return stopped(step, err)
	}
	return execute(a.word(2), a.word(0))
}
