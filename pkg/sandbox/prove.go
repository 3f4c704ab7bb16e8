package sandbox

import (
	"errors"
	"fmt"

	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// x32Bit marks a call of the x32 ABI, which has the same audit architecture as
// x86-64; __X32_SYSCALL_BIT in asm/unistd.h.
const x32Bit = 0x40000000

// returnValue is the kernel's form of an action.
func returnValue(a seccomp.ScmpAction) uint32 {
	switch a & 0xffff {
	case seccomp.ActAllow:
		return unix.SECCOMP_RET_ALLOW
	case seccomp.ActLog:
		return unix.SECCOMP_RET_LOG
	case seccomp.ActTrap:
		return unix.SECCOMP_RET_TRAP
	case seccomp.ActErrno:
		return unix.SECCOMP_RET_ERRNO | uint32(uint16(a.GetReturnCode()))
	case seccomp.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD
	default:
		return unix.SECCOMP_RET_KILL_PROCESS
	}
}

// prove follows the program to see that libseccomp kept every rule, read every
// condition as the profile means it, and let no other architecture through.
func prove(p Profile, m machine, prog []bpf.RawInstruction) error {
	byNumber, err := rulesByNumber(p, m)
	if err != nil {
		return err
	}
	if len(byNumber) == 0 {
		return errors.New("none of its system calls exists on this architecture")
	}
	if err := proveDefault(prog, p, m, byNumber); err != nil {
		return err
	}
	for nr, rules := range byNumber {
		w := walk{prog: prog, audit: m.audit, nr: nr, rules: rules, def: returnValue(p.def), values: candidates(rules)}
		err := w.from(0, 0)
		if err == nil {
			err = proveForeign(prog, m, nr)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", rules[0].syscall, err)
		}
	}
	return nil
}

// allNumbers is beyond the highest number of a system call, with room to grow.
const allNumbers = 1024

// proveDefault checks the calls that the profile does not name: whatever their
// arguments, since a walk without candidates fails where the program looks at one.
func proveDefault(prog []bpf.RawInstruction, p Profile, m machine, named map[uint32][]rule) error {
	for nr := range uint32(allNumbers) {
		if _, ok := named[nr]; ok {
			continue
		}
		w := walk{prog: prog, audit: m.audit, nr: nr, def: returnValue(p.def)}
		if err := w.from(0, 0); err != nil {
			return fmt.Errorf("system call number %d, which is not in the profile: %w", nr, err)
		}
	}
	return nil
}

// proveForeign checks one number as a call of the other architectures a kernel
// of this one may run.
func proveForeign(prog []bpf.RawInstruction, m machine, nr uint32) error {
	type call struct{ audit, nr uint32 }
	foreign := []call{{unix.AUDIT_ARCH_I386, nr}, {unix.AUDIT_ARCH_ARM, nr}, {0, nr}}
	if m.audit == unix.AUDIT_ARCH_X86_64 {
		foreign = append(foreign, call{m.audit, nr | x32Bit})
	}
	for _, c := range foreign {
		w := walk{prog: prog, audit: c.audit, nr: c.nr, def: unix.SECCOMP_RET_KILL_PROCESS}
		if err := w.from(0, 0); err != nil {
			return fmt.Errorf("number %#x of architecture %#x, want the process killed: %w", c.nr, c.audit, err)
		}
	}
	return nil
}

func rulesByNumber(p Profile, m machine) (map[uint32][]rule, error) {
	byNumber := map[uint32][]rule{}
	for _, r := range p.rules {
		nr, ok, err := r.number(m)
		if err != nil {
			return nil, err
		}
		if ok {
			byNumber[uint32(nr)] = append(byNumber[uint32(nr)], r)
		}
	}
	return byNumber, nil
}

// around returns values at and next to the edge of a condition on one half of a
// register: shift is 0 for the low half, 32 for the high one.
func around(c seccomp.ScmpCondition, shift uint) []uint32 {
	edge := uint32(c.Operand1 >> shift)
	if c.Op != seccomp.CompareMaskedEqual {
		return []uint32{edge - 1, edge, edge + 1}
	}
	mask, value := edge, uint32(c.Operand2>>shift)
	lowest := mask & -mask
	return []uint32{value, value ^ lowest, value | ^mask, ^value}
}
