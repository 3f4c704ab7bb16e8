package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

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
	if err := proveDefault(run, p, m, byNumber); err != nil {
		return err
	}
	for nr, rules := range byNumber {
		tries, err := probes(rules)
		if err != nil {
			return fmt.Errorf("%s: %w", rules[0].syscall, err)
		}
		for _, args := range tries {
			got, err := run.verdict(m.audit, nr, args)
			if err != nil {
				return err
			}
			if want := returnValue(decide(rules, p.def, args)); got != want {
				return fmt.Errorf("%s with arguments %#x gives %#x, want %#x: libseccomp misread the profile: "+
					"write the conditions on %s in another way", rules[0].syscall, args, got, want, rules[0].syscall)
			}
		}
		if err := proveForeign(run, m, nr); err != nil {
			return fmt.Errorf("%s: %w", rules[0].syscall, err)
		}
	}
	return nil
}

// allNumbers is beyond the highest number of a system call, with room to grow.
const allNumbers = 1024

// proveDefault checks the calls that the profile does not name.
func proveDefault(run program, p Profile, m machine, named map[uint32][]rule) error {
	for nr := range uint32(allNumbers) {
		if _, ok := named[nr]; ok {
			continue
		}
		got, err := run.verdict(m.audit, nr, callArgs{unchecked, unchecked, unchecked, unchecked, unchecked, unchecked})
		if err != nil {
			return err
		}
		if want := returnValue(p.def); got != want {
			return fmt.Errorf("system call number %d, which is not in the profile, gives %#x, want %#x", nr, got, want)
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

// maxProbes bounds the arguments tried on one system call: some tenths of a
// second of work.
const maxProbes = 1 << 18

// unchecked is the value tried for an argument that no rule looks at.
const unchecked = 0x5a5a5a5a_5a5a5a5a

// probes returns arguments to try on the rules of one system call: every
// combination of values around the edges of the conditions on each argument.
// Less would not do: libseccomp gets single rules right, and sometimes not what
// lies between several rules on several arguments.
func probes(rules []rule) ([]callArgs, error) {
	tries := []callArgs{{}}
	for i := range uint(maxArgs) {
		values := edges(rules, i)
		if len(tries)*len(values) > maxProbes {
			return nil, errors.New("too many conditions on too many arguments to try their combinations: use fewer")
		}
		next := make([]callArgs, 0, len(tries)*len(values))
		for _, args := range tries {
			for _, v := range values {
				args[i] = v
				next = append(next, args)
			}
		}
		tries = next
	}
	return tries, nil
}

// edges returns the values to try for one argument. A program compares the two
// halves of a register one after the other, so values around the edges of the
// halves are combined: this covers what a call of 32 bits does not see but a
// filter does, and edges of different conditions mixed up.
func edges(rules []rule, index uint) []uint64 {
	var low, high []uint32
	for _, r := range rules {
		for _, c := range r.conds {
			if c.Argument == index {
				low = append(low, around(c, 0)...)
				high = append(high, around(c, 32)...)
			}
		}
	}
	if low == nil {
		return []uint64{unchecked}
	}
	slices.Sort(low)
	slices.Sort(high)
	var values []uint64
	for _, h := range slices.Compact(high) {
		for _, l := range slices.Compact(low) {
			values = append(values, uint64(h)<<32|uint64(l))
		}
	}
	return values
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
