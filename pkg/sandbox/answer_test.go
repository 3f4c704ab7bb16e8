package sandbox

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestAnswers(t *testing.T) {
	p := postgresProfile(t)
	for _, tt := range []struct {
		syscall string
		errno   unix.Errno
		want    bool
	}{
		{"clone3", unix.ENOSYS, true},  // by default
		{"clone", unix.EPERM, true},    // for some flags
		{"mprotect", unix.EPERM, true}, // writable and executable
		{"mprotect", unix.EACCES, false},
		{"read", unix.EPERM, false}, // allowed whatever its arguments: it is the kernel's answer
		{"read", unix.ENOSYS, false},
		{"read", 0, false},
		{"ptrace", unix.EPERM, true},
		{"", unix.ENOSYS, true},
		{"read", 1 << 20, false},
	} {
		if got := p.Answers(tt.syscall, tt.errno); got != tt.want {
			t.Errorf("%s, %v: %t", tt.syscall, tt.errno, got)
		}
	}
}

func TestSyscallName(t *testing.T) {
	if name, ok := SyscallName(unix.SYS_EXECVE); !ok || name != "execve" {
		t.Errorf("%q, %t", name, ok)
	}
	for _, n := range []int{-1, 1022} {
		if name, ok := SyscallName(n); ok {
			t.Errorf("%d is %q", n, name)
		}
	}
}
