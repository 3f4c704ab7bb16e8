package sandbox

import (
	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// Answers says whether the profile answers a system call with errno, for some
// arguments at least. What else fails so is not the filter's doing.
func (p Profile) Answers(syscall string, errno unix.Errno) bool {
	if errno == 0 || uint(errno) > maxErrno {
		return false
	}
	answer := seccomp.ActErrno.SetReturnCode(int16(errno))
	byDefault := p.def == answer
	for _, r := range p.rules {
		if r.syscall != syscall {
			continue
		}
		if r.action == answer {
			return true
		}
		if len(r.conds) == 0 {
			byDefault = false
		}
	}
	return byDefault
}

// SyscallName is the name of a system call of this architecture; false if libseccomp knows
// none.
func SyscallName(number int) (string, bool) {
	if number < 0 {
		return "", false
	}
	name, err := seccomp.ScmpSyscall(number).GetName()
	return name, err == nil
}
