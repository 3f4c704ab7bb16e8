package sandbox

import (
	"encoding/binary"
	"errors"
	"slices"

	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/net/bpf"
)

// The tests' own way to a verdict: somebody else's virtual machine, and all
// combinations of arguments, where prove follows paths.

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
