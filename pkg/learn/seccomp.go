package learn

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// alwaysAllowed is what a recording does not show: what the launch stage's own
// runtime may call between loading the filter and execve, what the kernel calls in
// a program's name, and what programs call only where there is no vDSO or
// when they die.
var alwaysAllowed = []string{
	"clock_gettime", "close", "epoll_pwait", "execve", "exit", "exit_group", "futex", "getpid", "gettid", "gettimeofday", "madvise",
	"munmap", "nanosleep", "read", "restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_yield",
	"sigaltstack", "tgkill", "write",
}

// neverAllowed is answered with ENOSYS, whatever was recorded: the flags of
// clone3 cannot be checked by a filter, and libraries fall back to clone.
const neverAllowed = "clone3"

const (
	newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
		unix.CLONE_NEWPID | unix.CLONE_NEWNET
	writeExec = unix.PROT_WRITE | unix.PROT_EXEC
	shmExec   = 0o100000 // SHM_EXEC, shmat(2)
)

// Seccomp writes what was recorded as a profile in the format of the OCI runtime
// specification: calls by name, with conditions where arguments matter. All else
// gets ENOSYS. Calls of which nobody knows the name are left out.
func (r Recording) Seccomp() ([]byte, error) {
	errno := uint(unix.ENOSYS)
	profile := specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &errno}
	names := slices.Clone(alwaysAllowed)
	byArgs := map[string][]specs.LinuxSeccompArg{}
	texts := map[string]string{}
	for _, c := range withFallback(r.All().Calls) {
		args := conditions(c)
		if len(args) == 0 {
			names = append(names, c.Name)
			continue
		}
		key := fmt.Sprintf("%s %v", c.Name, args)
		byArgs[key], texts[key] = args, c.Name
	}
	slices.Sort(names)
	names = slices.Compact(names)
	profile.Syscalls = append(profile.Syscalls, specs.LinuxSyscall{Names: names, Action: specs.ActAllow})
	keys := make([]string, 0, len(byArgs))
	for key := range byArgs {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		if !slices.Contains(names, texts[key]) {
			profile.Syscalls = append(profile.Syscalls, specs.LinuxSyscall{Names: []string{texts[key]}, Action: specs.ActAllow, Args: byArgs[key]})
		}
	}
	text, err := json.MarshalIndent(profile, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("cannot write a seccomp profile: %w", err)
	}
	return append(text, '\n'), nil
}

// withFallback replaces what is never allowed, and leaves out numbers. The launch
// stage maps memory of its own.
func withFallback(calls []Call) []Call {
	out := []Call{
		{Name: "mmap", Args: []uint64{0, 0, unix.PROT_NONE}}, {Name: "mmap", Args: []uint64{0, 0, unix.PROT_READ | unix.PROT_WRITE}},
	}
	for _, c := range calls {
		switch {
		case c.Name == neverAllowed:
			out = append(out, Call{Name: "clone", Args: []uint64{0}})
		case !strings.HasPrefix(c.Name, unnamed):
			out = append(out, c)
		}
	}
	return out
}

// conditions are those under which a call was recorded, and no more than matters.
func conditions(c Call) []specs.LinuxSeccompArg {
	if len(c.Args) == 0 {
		return nil
	}
	equal := func(i uint, v uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: i, Value: v, Op: specs.OpEqualTo}
	}
	masked := func(i uint, mask, v uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: i, Value: mask, ValueTwo: v & mask, Op: specs.OpMaskedEqual}
	}
	last := uint(len(c.Args) - 1)
	value := c.Args[last]
	switch c.Name {
	case "socket", "socketpair":
		if len(c.Args) < 3 {
			return []specs.LinuxSeccompArg{equal(0, c.Args[0])}
		}
		return []specs.LinuxSeccompArg{equal(0, c.Args[0]), masked(1, sockType, c.Args[1]), equal(2, c.Args[2])}
	case "clone":
		return []specs.LinuxSeccompArg{masked(0, newNamespaces, c.Args[0])}
	case "mmap", "mprotect", "pkey_mprotect":
		return []specs.LinuxSeccompArg{masked(last, writeExec, value)}
	case "shmat":
		return []specs.LinuxSeccompArg{masked(last, shmExec, value)}
	case "ioctl", "fcntl", "personality":
		return []specs.LinuxSeccompArg{masked(last, word, value)}
	case "prlimit64":
		if value != 0 {
			return []specs.LinuxSeccompArg{{Index: 0, Value: 1, Op: specs.OpGreaterEqual}}
		}
		return []specs.LinuxSeccompArg{equal(0, 0)}
	case "prctl":
		if len(c.Args) > 1 {
			return []specs.LinuxSeccompArg{equal(0, c.Args[0]), equal(1, c.Args[1])}
		}
	}
	return []specs.LinuxSeccompArg{equal(last, value)}
}
