package sandbox

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	seccomp "github.com/seccomp/libseccomp-golang"
)

// maxArgs is the number of arguments a system call can have.
const maxArgs = 6

// callArgs are the arguments of one call, as the kernel hands them to a filter:
// whole registers, of which the call itself may use the low 32 bits only.
type callArgs [maxArgs]uint64

var compareOps = map[specs.LinuxSeccompOperator]seccomp.ScmpCompareOp{
	specs.OpNotEqual:     seccomp.CompareNotEqual,
	specs.OpLessThan:     seccomp.CompareLess,
	specs.OpLessEqual:    seccomp.CompareLessOrEqual,
	specs.OpEqualTo:      seccomp.CompareEqual,
	specs.OpGreaterEqual: seccomp.CompareGreaterEqual,
	specs.OpGreaterThan:  seccomp.CompareGreater,
	specs.OpMaskedEqual:  seccomp.CompareMaskedEqual,
}

// parseArgs gives libseccomp's form of the conditions of one entry.
func parseArgs(args []specs.LinuxSeccompArg) ([]seccomp.ScmpCondition, error) {
	var conds []seccomp.ScmpCondition
	seen := map[uint]bool{}
	for i, a := range args {
		c, err := parseArg(a)
		if err != nil {
			return nil, fmt.Errorf("args[%d]: %w", i, err)
		}
		if seen[a.Index] {
			return nil, fmt.Errorf("args[%d]: a second condition on argument %d, which libseccomp cannot express: "+
				"use a mask, or an entry for each", i, a.Index)
		}
		seen[a.Index] = true
		conds = append(conds, c)
	}
	return conds, checkRanges(conds)
}

// checkRanges refuses ranges beside other conditions. libseccomp (2.5) reads
// entries that mix them wrongly and for some never returns from generating the
// program, so there would be nothing to prove.
func checkRanges(conds []seccomp.ScmpCondition) error {
	if len(conds) < 2 {
		return nil
	}
	for i, c := range conds {
		if c.Op != seccomp.CompareEqual && c.Op != seccomp.CompareMaskedEqual {
			return fmt.Errorf("args[%d]: beside other conditions libseccomp is safe with SCMP_CMP_EQ and "+
				"SCMP_CMP_MASKED_EQ only: use these", i)
		}
	}
	return nil
}

func parseArg(a specs.LinuxSeccompArg) (seccomp.ScmpCondition, error) {
	op, ok := compareOps[a.Op]
	switch {
	case !ok:
		return seccomp.ScmpCondition{}, fmt.Errorf("unknown op %q", a.Op)
	case a.Index >= maxArgs:
		return seccomp.ScmpCondition{}, fmt.Errorf("index %d is not within 0..%d", a.Index, maxArgs-1)
	case op != seccomp.CompareMaskedEqual && a.ValueTwo != 0:
		return seccomp.ScmpCondition{}, fmt.Errorf("valueTwo has no meaning with %s: remove it", a.Op)
	}
	c := seccomp.ScmpCondition{Argument: a.Index, Op: op, Operand1: a.Value, Operand2: a.ValueTwo}
	if !satisfiable(c) {
		return seccomp.ScmpCondition{}, errors.New("no argument can meet this condition")
	}
	if alwaysHolds(c) {
		return seccomp.ScmpCondition{}, errors.New("every argument meets this condition: remove it")
	}
	return c, nil
}

// holds tells whether the value v meets the condition.
func holds(c seccomp.ScmpCondition, v uint64) bool {
	switch c.Op {
	case seccomp.CompareNotEqual:
		return v != c.Operand1
	case seccomp.CompareLess:
		return v < c.Operand1
	case seccomp.CompareLessOrEqual:
		return v <= c.Operand1
	case seccomp.CompareEqual:
		return v == c.Operand1
	case seccomp.CompareGreaterEqual:
		return v >= c.Operand1
	case seccomp.CompareGreater:
		return v > c.Operand1
	case seccomp.CompareMaskedEqual:
		return v&c.Operand1 == c.Operand2
	default:
		return false
	}
}

// satisfiable tells whether some value meets the condition.
func satisfiable(c seccomp.ScmpCondition) bool {
	v := c.Operand1
	switch c.Op {
	case seccomp.CompareNotEqual:
		v ^= 1
	case seccomp.CompareLess:
		v--
	case seccomp.CompareGreater:
		v++
	case seccomp.CompareMaskedEqual:
		v = c.Operand2
	}
	return holds(c, v)
}

// alwaysHolds tells whether no value fails the condition.
func alwaysHolds(c seccomp.ScmpCondition) bool {
	switch c.Op {
	case seccomp.CompareGreaterEqual:
		return c.Operand1 == 0
	case seccomp.CompareLessOrEqual:
		return c.Operand1 == math.MaxUint64
	case seccomp.CompareMaskedEqual:
		return c.Operand1 == 0
	default:
		return false
	}
}

// checkOverlap refuses two rules on one system call that say different things
// about the same arguments. Which of them libseccomp would follow depends on how
// it happens to order them, and a rule without conditions silently takes the
// place of all others.
func (p Profile) checkOverlap() error {
	byName := map[string][]rule{}
	var errs []error
	for _, r := range p.rules {
		for _, other := range byName[r.syscall] {
			switch {
			case !shareArch(r, other):
			case len(r.conds) == 0 || len(other.conds) == 0:
				errs = append(errs, fmt.Errorf("%s: an entry without args beside another one%s: "+
					"the other one would have no effect", r.syscall, between(r, other)))
			case r.action != other.action && canMeet(r.conds, other.conds):
				errs = append(errs, fmt.Errorf("%s: two entries with different actions for the same arguments "+
					"(argument %d)%s: make their args exclude each other", r.syscall, r.conds[0].Argument, between(r, other)))
			}
		}
		byName[r.syscall] = append(byName[r.syscall], r)
	}
	return errors.Join(errs...)
}

// shareArch tells whether two rules are in force on one architecture.
func shareArch(a, b rule) bool {
	return len(a.arches) == 0 || len(b.arches) == 0 ||
		slices.ContainsFunc(a.arches, func(arch string) bool { return slices.Contains(b.arches, arch) })
}

// between names the files that two rules are from, if there are two.
func between(a, b rule) string {
	if slices.Equal(a.origins, b.origins) {
		return ""
	}
	return fmt.Sprintf(", of %s and of %s", strings.Join(b.origins, "+"), strings.Join(a.origins, "+"))
}

// canMeet tells whether some arguments meet all conditions of both lists, each
// of which has at most one condition on an argument.
func canMeet(a, b []seccomp.ScmpCondition) bool {
	for _, x := range a {
		for _, y := range b {
			if x.Argument == y.Argument && !canBothHold(x, y) {
				return false
			}
		}
	}
	return true
}

// canBothHold tells whether one value meets both conditions.
func canBothHold(x, y seccomp.ScmpCondition) bool {
	if x.Op == seccomp.CompareNotEqual || y.Op == seccomp.CompareNotEqual {
		return canHoldUnequal(x, y)
	}
	xMask, xVal, xLow, xHigh := bounds(x)
	yMask, yVal, yLow, yHigh := bounds(y)
	if xMask&yMask&(xVal^yVal) != 0 {
		return false
	}
	v, ok := lowestAtLeast(max(xLow, yLow), xMask|yMask, xVal|yVal)
	return ok && v <= min(xHigh, yHigh)
}

// canHoldUnequal is canBothHold where at least one condition is "not equal":
// such a condition excludes one value only.
func canHoldUnequal(x, y seccomp.ScmpCondition) bool {
	if x.Op != seccomp.CompareNotEqual {
		x, y = y, x
	}
	if y.Op == seccomp.CompareNotEqual {
		return true
	}
	mask, val, low, high := bounds(y)
	first, ok := lowestAtLeast(low, mask, val)
	if !ok || first > high {
		return false
	}
	if first != x.Operand1 {
		return true
	}
	if first == math.MaxUint64 {
		return false
	}
	next, ok := lowestAtLeast(first+1, mask, val)
	return ok && next <= high
}

// bounds describes all conditions but "not equal" in one form: v&mask == val and
// low <= v <= high. The condition can be met, parseArg has seen to it.
func bounds(c seccomp.ScmpCondition) (mask, val, low, high uint64) {
	high = math.MaxUint64
	switch c.Op {
	case seccomp.CompareLess:
		high = c.Operand1 - 1
	case seccomp.CompareLessOrEqual:
		high = c.Operand1
	case seccomp.CompareEqual:
		mask, val = math.MaxUint64, c.Operand1
	case seccomp.CompareGreaterEqual:
		low = c.Operand1
	case seccomp.CompareGreater:
		low = c.Operand1 + 1
	case seccomp.CompareMaskedEqual:
		mask, val = c.Operand1, c.Operand2
	}
	return mask, val, low, high
}

// lowestAtLeast returns the lowest v >= low with v&mask == val.
func lowestAtLeast(low, mask, val uint64) (uint64, bool) {
	if low&mask == val {
		return low, true
	}
	// A larger v agrees with low above some bit, has a 1 there where low has a
	// 0, and is as small as it can be below. The lower the bit, the smaller v.
	for bit := uint64(1); bit != 0; bit <<= 1 {
		above := ^(bit<<1 - 1)
		v := low&above | bit | val&(bit-1)
		if low&bit == 0 && v&mask == val {
			return v, true
		}
	}
	return 0, false
}
