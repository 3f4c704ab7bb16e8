package sandbox

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	seccomp "github.com/seccomp/libseccomp-golang"
)

var allOps = []seccomp.ScmpCompareOp{
	seccomp.CompareNotEqual, seccomp.CompareLess, seccomp.CompareLessOrEqual, seccomp.CompareEqual,
	seccomp.CompareGreaterEqual, seccomp.CompareGreater, seccomp.CompareMaskedEqual,
}

// smallConditions has every condition on values of four bits that can be met.
// The masks are over all 64 bits: those above the fourth are fixed to 0.
func smallConditions() []seccomp.ScmpCondition {
	var conds []seccomp.ScmpCondition
	for _, op := range allOps {
		for a := range uint64(16) {
			if op != seccomp.CompareMaskedEqual {
				conds = append(conds, seccomp.ScmpCondition{Op: op, Operand1: a})
				continue
			}
			for b := range uint64(16) {
				conds = append(conds, seccomp.ScmpCondition{Op: op, Operand1: a | ^uint64(15), Operand2: b})
			}
		}
	}
	return slices.DeleteFunc(conds, func(c seccomp.ScmpCondition) bool { return !satisfiable(c) })
}

// Every pair of small conditions, against all values they can tell apart: the
// small ones, and one above for those without an upper bound.
func TestCanBothHold(t *testing.T) {
	conds := smallConditions()
	values := []uint64{16, 17, math.MaxUint64}
	for v := range uint64(16) {
		values = append(values, v)
	}
	for _, x := range conds {
		for _, y := range conds {
			want := false
			for _, v := range values {
				want = want || holds(x, v) && holds(y, v)
			}
			if got := canBothHold(x, y); got != want {
				t.Fatalf("canBothHold(%+v, %+v) = %v, want %v", x, y, got, want)
			}
		}
	}
}

func TestLowestAtLeast(t *testing.T) {
	for low := range uint64(16) {
		for mask := range uint64(16) {
			for val := range uint64(16) {
				if val&^mask != 0 {
					continue
				}
				want := low
				for want&mask != val {
					want++
				}
				if got, ok := lowestAtLeast(low, mask, val); !ok || got != want {
					t.Fatalf("lowestAtLeast(%d, %#x, %#x) = %d, %v, want %d", low, mask, val, got, ok, want)
				}
			}
		}
	}
	if v, ok := lowestAtLeast(math.MaxUint64, 1, 0); ok {
		t.Errorf("there is an even number from the largest on: %d", v)
	}
}

// Random profiles over few calls, arguments and values, so that rules touch each
// other. libseccomp misreads some of them: Compile is to refuse those, and what
// it returns is to mean the same as the profile for arguments it did not try.
func TestCompiledMeansTheSameAsTheProfile(t *testing.T) {
	const seed = 20240229
	rnd := rand.New(rand.NewPCG(seed, seed))
	actions := []seccomp.ScmpAction{
		seccomp.ActAllow, seccomp.ActErrno.SetReturnCode(1), seccomp.ActErrno.SetReturnCode(13), seccomp.ActKillProcess,
	}
	compiled, refused := 0, 0
	for range 6000 {
		p := randomProfile(rnd, actions)
		if p.checkOverlap() != nil || slices.ContainsFunc(p.rules, func(r rule) bool { return checkRanges(r.conds) != nil }) {
			continue
		}
		f, err := Compile(p)
		if err != nil {
			checkError(t, err, "libseccomp misread the profile")
			refused++
			continue
		}
		compiled++
		checkRandomCalls(t, rnd, p, f)
	}
	t.Logf("%d compiled, %d refused", compiled, refused)
	if compiled < 500 {
		t.Errorf("only %d random profiles were compiled, %d refused: the test tests little", compiled, refused)
	}
}

func randomProfile(rnd *rand.Rand, actions []seccomp.ScmpAction) Profile {
	p := Profile{name: "random", def: seccomp.ActErrno.SetReturnCode(38)}
	for range 1 + rnd.IntN(6) {
		p.rules = append(p.rules, rule{
			syscall: []string{"read", "write"}[rnd.IntN(2)],
			action:  actions[rnd.IntN(len(actions))],
			conds:   randomConditions(rnd),
		})
	}
	return p
}

// checkRandomCalls compares filter and profile on arguments drawn at random, in
// part with the halves of the edges put together anew.
func checkRandomCalls(t *testing.T, rnd *rand.Rand, p Profile, f *Filter) {
	t.Helper()
	m := machines[runtime.GOARCH]
	byNumber, err := rulesByNumber(p, m)
	if err != nil {
		t.Fatal(err)
	}
	run := runner(t, f)
	for nr, rules := range byNumber {
		for range 300 {
			var args callArgs
			for i := range args {
				if e := edges(rules, uint(i)); rnd.IntN(4) > 0 {
					args[i] = e[rnd.IntN(len(e))]&^0xffffffff | e[rnd.IntN(len(e))]&0xffffffff
				} else {
					args[i] = rnd.Uint64() >> rnd.IntN(64)
				}
			}
			got, err := run.verdict(m.audit, nr, args)
			if err != nil {
				t.Fatal(err)
			}
			if want := returnValue(decide(rules, p.def, args)); got != want {
				t.Fatalf("%s%#x gives %#x, want %#x\n%+v", rules[0].syscall, args, got, want, rules)
			}
		}
	}
}

// runner makes the virtual machine of a filter.
func runner(t *testing.T, f *Filter) program {
	t.Helper()
	ins, err := f.Instructions()
	if err != nil {
		t.Fatal(err)
	}
	run, err := newProgram(ins)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func randomConditions(rnd *rand.Rand) []seccomp.ScmpCondition {
	edges := []uint64{0, 1, 2, 6, 16, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 1, 1 << 63, math.MaxUint64}
	var conds []seccomp.ScmpCondition
	for i := range uint(3) {
		if rnd.IntN(2) == 0 {
			continue
		}
		c := seccomp.ScmpCondition{Argument: i, Op: allOps[rnd.IntN(len(allOps))], Operand1: edges[rnd.IntN(len(edges))]}
		if c.Op == seccomp.CompareMaskedEqual {
			c.Operand2 = edges[rnd.IntN(len(edges))] & c.Operand1
		}
		if satisfiable(c) && !alwaysHolds(c) {
			conds = append(conds, c)
		}
	}
	return conds
}

func TestHolds(t *testing.T) {
	tests := []struct {
		op   seccomp.ScmpCompareOp
		want [3]bool // for 4, 5 and 6, compared with 5
	}{
		{seccomp.CompareNotEqual, [3]bool{true, false, true}},
		{seccomp.CompareLess, [3]bool{true, false, false}},
		{seccomp.CompareLessOrEqual, [3]bool{true, true, false}},
		{seccomp.CompareEqual, [3]bool{false, true, false}},
		{seccomp.CompareGreaterEqual, [3]bool{false, true, true}},
		{seccomp.CompareGreater, [3]bool{false, false, true}},
		{seccomp.CompareInvalid, [3]bool{}},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.op), func(t *testing.T) {
			for i, want := range tt.want {
				v := uint64(4 + i)
				if got := holds(seccomp.ScmpCondition{Op: tt.op, Operand1: 5}, v); got != want {
					t.Errorf("%d: %v, want %v", v, got, want)
				}
			}
		})
	}
}
