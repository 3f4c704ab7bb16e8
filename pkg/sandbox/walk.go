package sandbox

import (
	"fmt"
	"slices"

	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// argWords is the number of 32-bit words of a call's arguments: word 2i is the
// low half of argument i, 2i+1 the high one, as in struct seccomp_data on the
// little endian machines (linux/seccomp.h).
const argWords = 2 * maxArgs

// argsOffset is where they begin, behind number, architecture and instruction
// pointer; in bytes.
const argsOffset = 16

// A walk compares one call's way through a program with the profile's rules on
// the call. It tries all combinations of values around the edges of the
// conditions, each word for itself, since a program compares the halves of a
// register one after the other: this covers what a call of 32 bits does not see
// but a filter does, and edges of different conditions mixed up. Less would not
// do: libseccomp gets single rules right, and sometimes not what lies between
// several rules on several arguments.
//
// A word gets a value only when the program loads it, or when it takes it to
// tell what the rules say. What neither looks at need not be tried, which makes
// of some hundred thousand combinations a few thousand.
type walk struct {
	prog   []bpf.RawInstruction
	audit  uint32
	nr     uint32
	rules  []rule
	def    uint32             // SECCOMP_RET_* where no rule holds
	values [argWords][]uint32 // to try; none: no rule looks at the word
	words  [argWords]uint32
	known  [argWords]bool
	steps  int
}

// maxSteps bounds the work for one call: some hundredths of a second.
const maxSteps = 1 << 22

// from runs the program from one instruction on, with what its accumulator holds.
// It knows the instructions that libseccomp uses; see bpf(4), linux/filter.h.
func (w *walk) from(pc int, acc uint32) error {
	for ; pc < len(w.prog); pc++ {
		if w.steps++; w.steps > maxSteps {
			return fmt.Errorf("too many conditions on too many arguments to try their combinations: use fewer")
		}
		ins := w.prog[pc]
		switch ins.Op {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			word := (int(ins.K) - argsOffset) / 4
			switch {
			case ins.K == 0:
				acc = w.nr
			case ins.K == 4:
				acc = w.audit
			case ins.K%4 != 0 || ins.K < argsOffset || word >= argWords:
				return fmt.Errorf("the program loads from offset %d, which is no argument", ins.K)
			case w.known[word]:
				acc = w.words[word]
			default:
				return w.each(word, func() error { return w.from(pc, acc) })
			}
		case unix.BPF_RET | unix.BPF_K:
			return w.compare(ins.K)
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= ins.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(ins.K)
		default:
			yes, ok := jumps(ins, acc)
			if !ok {
				return fmt.Errorf("the program has instruction %#x, which libseccomp does not use", ins.Op)
			}
			if yes {
				pc += int(ins.Jt)
			} else {
				pc += int(ins.Jf)
			}
		}
	}
	return fmt.Errorf("the program ends without a verdict")
}

func jumps(ins bpf.RawInstruction, acc uint32) (yes, ok bool) {
	switch ins.Op {
	case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
		return acc == ins.K, true
	case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
		return acc >= ins.K, true
	case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
		return acc > ins.K, true
	case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
		return acc&ins.K != 0, true
	}
	return false, false
}

// each does something with every value of a word.
func (w *walk) each(word int, do func() error) error {
	values := w.values[word]
	if len(values) == 0 {
		return fmt.Errorf("the program looks at argument %d, at which no rule does", word/2)
	}
	w.known[word] = true
	defer func() { w.known[word] = false }()
	for _, v := range values {
		w.words[word] = v
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// compare tells whether a verdict is what the rules say about all arguments with
// the known words.
func (w *walk) compare(got uint32) error {
	if w.steps++; w.steps > maxSteps {
		return fmt.Errorf("too many conditions on too many arguments to try their combinations: use fewer")
	}
	want, open := w.wanted()
	if open >= 0 {
		return w.each(open, func() error { return w.compare(got) })
	}
	if got != want {
		return fmt.Errorf("the words %#x (known: %v) of the arguments give %#x, want %#x: libseccomp misread the profile: "+
			"write the conditions in another way", w.words, w.known, got, want)
	}
	return nil
}

// What is known of a condition.
type knowledge int

const (
	no knowledge = iota
	yes
	unknown // it depends on a word that is not known yet
)

// wanted is the action of the first rule that holds, else the default; or the
// word to look at first.
func (w *walk) wanted() (action uint32, open int) {
	var pending []uint32 // actions of rules before it that may hold
	open = -1
	for _, r := range w.rules {
		action := returnValue(r.action)
		switch state, word := w.meets(r); state {
		case yes:
			if !slices.ContainsFunc(pending, func(a uint32) bool { return a != action }) {
				open = -1
			}
			return action, open
		case unknown:
			if pending = append(pending, action); open < 0 {
				open = word
			}
		}
	}
	return w.def, open
}

// meets says whether all conditions of a rule hold, or which word to look at.
func (w *walk) meets(r rule) (knowledge, int) {
	state, open := yes, -1
	for _, c := range r.conds {
		switch s, word := w.holds(c); s {
		case no:
			return no, -1
		case unknown:
			if state != unknown {
				state, open = unknown, word
			}
		}
	}
	return state, open
}

// holds is the condition on what is known of its argument.
func (w *walk) holds(c seccomp.ScmpCondition) (knowledge, int) {
	low, high := 2*int(c.Argument), 2*int(c.Argument)+1
	if w.known[low] && w.known[high] {
		if holds(c, uint64(w.words[high])<<32|uint64(w.words[low])) {
			return yes, -1
		}
		return no, -1
	}
	mask, value := c.Operand1, c.Operand2
	switch c.Op {
	case seccomp.CompareEqual:
		mask, value = ^uint64(0), c.Operand1
	case seccomp.CompareMaskedEqual:
	default: // a range: its high half comes first
		if w.known[high] {
			return unknown, low
		}
		return unknown, high
	}
	open := -1
	for _, half := range []struct {
		word        int
		mask, value uint32
	}{{high, uint32(mask >> 32), uint32(value >> 32)}, {low, uint32(mask), uint32(value)}} {
		switch {
		case half.mask == 0:
		case !w.known[half.word]:
			open = half.word
		case w.words[half.word]&half.mask != half.value:
			return no, -1
		}
	}
	if open >= 0 {
		return unknown, open
	}
	return yes, -1
}

// candidates are the values to try for each word.
func candidates(rules []rule) (values [argWords][]uint32) {
	for _, r := range rules {
		for _, c := range r.conds {
			low := 2 * c.Argument
			values[low] = append(values[low], around(c, 0)...)
			values[low+1] = append(values[low+1], around(c, 32)...)
		}
	}
	for i := range values {
		slices.Sort(values[i])
		values[i] = slices.Compact(values[i])
	}
	return values
}
