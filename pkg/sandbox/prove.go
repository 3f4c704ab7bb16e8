package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// x32Bit marks a call of the x32 ABI, which has the same audit architecture as
// x86-64; __X32_SYSCALL_BIT in asm/unistd.h.
const x32Bit = 0x40000000

// program is a filter that can be run without a kernel.
type program struct{ vm *bpf.VM }

func newProgram(prog []bpf.RawInstruction) (program, error) {
	decoded, ok := bpf.Disassemble(prog)
	if !ok {
		return program{}, errors.New("it has an instruction that is not BPF")
	}
	vm, err := bpf.NewVM(decoded)
	if err != nil {
		return program{}, err
	}
	return program{vm: vm}, nil
}

// verdict returns what the filter says about one call (SECCOMP_RET_*).
func (p program) verdict(audit, nr uint32, args callArgs) (uint32, error) {
	// struct seccomp_data (linux/seccomp.h): number, architecture, instruction
	// pointer, six arguments with the low half first. The filter loads 32-bit
	// words; the virtual machine reads them big endian, as from a packet.
	var data [16 + 8*maxArgs]byte
	binary.BigEndian.PutUint32(data[0:], nr)
	binary.BigEndian.PutUint32(data[4:], audit)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
	}
	v, err := p.vm.Run(data[:])
	if err != nil {
		return 0, err
	}
	return uint32(v), nil
}

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

// decide is the meaning of a profile, without libseccomp: the action of the rule
// all of whose conditions hold, else the default. checkOverlap has seen to it
// that no two rules with different actions hold at once.
func decide(rules []rule, def seccomp.ScmpAction, args callArgs) seccomp.ScmpAction {
	for _, r := range rules {
		if matches(r, args) {
			return r.action
		}
	}
	return def
}

func matches(r rule, args callArgs) bool {
	for _, c := range r.conds {
		if !holds(c, args[c.Argument]) {
			return false
		}
	}
	return true
}

// prove runs the program to see that libseccomp kept every rule, read every
// condition as the profile means it, and let no other architecture through.
func prove(p Profile, m machine, prog []bpf.RawInstruction) error {
	run, err := newProgram(prog)
	if err != nil {
		return err
	}
	byNumber, err := rulesByNumber(p, m)
	if err != nil {
		return err
	}
	if len(byNumber) == 0 {
		return errors.New("none of its system calls exists on this architecture")
	}
	for nr, rules := range byNumber {
		for _, args := range probes(rules) {
			got, err := run.verdict(m.audit, nr, args)
			if err != nil {
				return err
			}
			if want := returnValue(decide(rules, p.def, args)); got != want {
				return fmt.Errorf("%s with arguments %#x gives %#x, want %#x: libseccomp misread the profile",
					rules[0].syscall, args, got, want)
			}
		}
		if err := proveForeign(run, m, nr); err != nil {
			return fmt.Errorf("%s: %w", rules[0].syscall, err)
		}
	}
	return nil
}

// proveForeign checks one number as a call of the other architectures a kernel
// of this one may run.
func proveForeign(run program, m machine, nr uint32) error {
	type call struct{ audit, nr uint32 }
	foreign := []call{{unix.AUDIT_ARCH_I386, nr}, {unix.AUDIT_ARCH_ARM, nr}, {0, nr}}
	if m.audit == unix.AUDIT_ARCH_X86_64 {
		foreign = append(foreign, call{m.audit, nr | x32Bit})
	}
	for _, c := range foreign {
		got, err := run.verdict(c.audit, c.nr, callArgs{})
		if err != nil {
			return err
		}
		if got != unix.SECCOMP_RET_KILL_PROCESS {
			return fmt.Errorf("number %#x of architecture %#x gives %#x, want the process killed", c.nr, c.audit, got)
		}
	}
	return nil
}

func rulesByNumber(p Profile, m machine) (map[uint32][]rule, error) {
	byNumber := map[uint32][]rule{}
	for _, r := range p.rules {
		nr, ok, err := number(r.syscall, m)
		if err != nil {
			return nil, err
		}
		if ok {
			byNumber[uint32(nr)] = append(byNumber[uint32(nr)], r)
		}
	}
	return byNumber, nil
}

// probes returns arguments to try on the rules of one system call: for every
// rule arguments that meet all its conditions, and for every condition the same
// with values around its edge. Arguments without a condition are all zeros and
// all ones in turn.
func probes(rules []rule) []callArgs {
	var tries []callArgs
	for _, fill := range []uint64{0, math.MaxUint64} {
		for _, r := range rules {
			args := callArgs{fill, fill, fill, fill, fill, fill}
			for _, c := range r.conds {
				args[c.Argument], _ = example(c) // parseArg has seen to it that there is one
			}
			tries = append(tries, args)
			for _, c := range r.conds {
				for _, v := range near(c) {
					other := args
					other[c.Argument] = v
					tries = append(tries, other)
				}
			}
		}
	}
	return tries
}
