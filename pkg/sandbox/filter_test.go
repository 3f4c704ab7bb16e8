package sandbox

import (
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	allow  = uint32(unix.SECCOMP_RET_ALLOW)
	kill   = uint32(unix.SECCOMP_RET_KILL_PROCESS)
	eperm  = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.EPERM)
	enosys = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
)

// mustCompile makes a filter of entries.
func mustCompile(t *testing.T, m machine, entries ...string) program {
	t.Helper()
	p, err := ParseProfile("test", []byte(profile(entries...)))
	if err != nil {
		t.Fatal(err)
	}
	f, err := compileFor(p, m)
	if err != nil {
		t.Fatal(err)
	}
	return runner(t, f)
}

// ask returns the verdict on a call by name.
func ask(t *testing.T, run program, m machine, name string, args ...uint64) uint32 {
	t.Helper()
	nr, ok, err := number(name, m)
	if err != nil || !ok {
		t.Fatalf("system call %s: not there (%v)", name, err)
	}
	var a callArgs
	copy(a[:], args)
	v, err := run.verdict(m.audit, uint32(nr), a)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestActions(t *testing.T) {
	m := machines[runtime.GOARCH]
	run := mustCompile(t, m, entry("read", "ALLOW"), entry("write", "ERRNO"), entry("close", "KILL"),
		entry("lseek", "KILL_PROCESS"), entry("fsync", "KILL_THREAD"), entry("dup", "TRAP"), entry("fstat", "LOG"),
		`{"names": ["fcntl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4094}`)
	want := map[string]uint32{
		"read": allow, "write": eperm, "close": unix.SECCOMP_RET_KILL_THREAD, "lseek": kill,
		"fsync": unix.SECCOMP_RET_KILL_THREAD, "dup": unix.SECCOMP_RET_TRAP, "fstat": unix.SECCOMP_RET_LOG,
		"fcntl": unix.SECCOMP_RET_ERRNO | 4094, "ftruncate": enosys,
	}
	for name, v := range want {
		if got := ask(t, run, m, name); got != v {
			t.Errorf("%s: %#x, want %#x", name, got, v)
		}
	}
}

// Several conditions in one entry all have to hold; several entries are
// alternatives. Each argument is compared over all its 64 bits.
func TestConditions(t *testing.T) {
	m := machines[runtime.GOARCH]
	tests := []struct {
		name    string
		entries []string
		allowed [][]uint64
		denied  [][]uint64
	}{
		{"two conditions: and", []string{entry("read", "ALLOW", arg("0", "EQ", "1"), arg("2", "EQ", "3"))},
			[][]uint64{{1, 0, 3}, {1, 9, 3}}, [][]uint64{{1, 0, 2}, {2, 0, 3}, {0, 0, 0}, {3, 0, 1}}},
		{"two entries: or", []string{entry("read", "ALLOW", arg("0", "EQ", "1")), entry("read", "ALLOW", arg("0", "EQ", "3"))},
			[][]uint64{{1}, {3}}, [][]uint64{{0}, {2}, {4}, {1 << 32}}},
		{"equal: the upper half counts", []string{entry("read", "ALLOW", arg("0", "EQ", "1"))},
			[][]uint64{{1}}, [][]uint64{{1 | 1<<32}, {1 | 1<<63}}},
		{"not equal", []string{entry("read", "ALLOW", arg("0", "NE", "5"))},
			[][]uint64{{4}, {6}, {5 | 1<<32}}, [][]uint64{{5}}},
		{"less", []string{entry("read", "ALLOW", arg("0", "LT", "4294967298"))},
			[][]uint64{{0}, {1<<32 - 1}, {1<<32 + 1}}, [][]uint64{{1<<32 + 2}, {2 << 32}}},
		{"less or equal", []string{entry("read", "ALLOW", arg("5", "LE", "7"))},
			[][]uint64{{9, 9, 9, 9, 9, 7}, {0, 0, 0, 0, 0, 0}}, [][]uint64{{0, 0, 0, 0, 0, 8}, {0, 0, 0, 0, 0, 1 << 32}}},
		{"greater or equal", []string{entry("read", "ALLOW", arg("0", "GE", "4294967296"))},
			[][]uint64{{1 << 32}, {1 << 63}}, [][]uint64{{1<<32 - 1}, {0}}},
		{"greater", []string{entry("read", "ALLOW", arg("0", "GT", "1"))}, [][]uint64{{2}, {1 << 32}}, [][]uint64{{0}, {1}}},
		{"mask: the upper half does not count", []string{entry("read", "ALLOW", masked("1", "4294967295", "21522"))},
			[][]uint64{{0, 21522}, {0, 21522 | 1<<32}}, [][]uint64{{0, 21523}, {0, 21522 << 32}}},
		{"mask over the upper half", []string{entry("read", "ALLOW", masked("0", "9223372036854775809", "9223372036854775808"))},
			[][]uint64{{1 << 63}, {1<<63 | 6}}, [][]uint64{{1<<63 | 1}, {0}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run := mustCompile(t, m, tt.entries...)
			for _, args := range tt.allowed {
				if got := ask(t, run, m, "read", args...); got != allow {
					t.Errorf("%#x: %#x, want it allowed", args, got)
				}
			}
			for _, args := range tt.denied {
				if got := ask(t, run, m, "read", args...); got != enosys {
					t.Errorf("%#x: %#x, want ENOSYS", args, got)
				}
			}
		})
	}
}

// libseccomp itself refuses what ParseProfile refuses before it; should that
// change, the trap is open: here is what the trap is.
func TestTrapRepeatedArgument(t *testing.T) {
	c := func(op seccomp.ScmpCompareOp, v uint64) seccomp.ScmpCondition {
		return seccomp.ScmpCondition{Argument: 0, Op: op, Operand1: v}
	}
	p := Profile{name: "test", def: seccomp.ActErrno.SetReturnCode(38), rules: []rule{{syscall: "read", action: seccomp.ActAllow,
		conds: []seccomp.ScmpCondition{c(seccomp.CompareGreaterEqual, 3), c(seccomp.CompareLessOrEqual, 5)}}}}
	_, err := Compile(p)
	checkError(t, err, "cannot compile seccomp profile test", "read", "two checks on same syscall argument")
}

// An entry without conditions makes libseccomp forget the others of the call,
// without a word. ParseProfile refuses it, and so does the proof.
func TestTrapSwallowedRule(t *testing.T) {
	p := Profile{name: "test", def: seccomp.ActErrno.SetReturnCode(38), rules: []rule{
		{syscall: "ioctl", action: seccomp.ActErrno.SetReturnCode(1),
			conds: []seccomp.ScmpCondition{{Argument: 1, Op: seccomp.CompareEqual, Operand1: unix.TIOCSTI}}},
		{syscall: "ioctl", action: seccomp.ActAllow},
	}}
	_, err := Compile(p)
	checkError(t, err, "cannot trust the seccomp filter", "ioctl", "libseccomp misread the profile")
}

// The proof must notice whatever is wrong with a program.
func TestProofFindsWrongPrograms(t *testing.T) {
	m := machines[runtime.GOARCH]
	parse := func(entries ...string) Profile {
		p, err := ParseProfile("test", []byte(profile(entries...)))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	want := parse(entry("read", "ALLOW"), entry("write", "ERRNO"), entry("socket", "ALLOW", arg("0", "EQ", "1"), arg("2", "EQ", "0")))
	tests := []struct {
		name    string
		program Profile
	}{
		{"a rule is missing", parse(entry("read", "ALLOW"), entry("socket", "ALLOW", arg("0", "EQ", "1"), arg("2", "EQ", "0")))},
		{"a rule has another action", parse(entry("read", "KILL"), entry("write", "ERRNO"),
			entry("socket", "ALLOW", arg("0", "EQ", "1"), arg("2", "EQ", "0")))},
		{"a condition is missing", parse(entry("read", "ALLOW"), entry("write", "ERRNO"), entry("socket", "ALLOW", arg("0", "EQ", "1")))},
		{"a condition is off by one", parse(entry("read", "ALLOW"), entry("write", "ERRNO"),
			entry("socket", "ALLOW", arg("0", "EQ", "2"), arg("2", "EQ", "0")))},
		{"only 32 bits are compared", parse(entry("read", "ALLOW"), entry("write", "ERRNO"),
			entry("socket", "ALLOW", masked("0", "4294967295", "1"), arg("2", "EQ", "0")))},
		{"a rule too many", parse(entry("read", "ALLOW"), entry("write", "ERRNO"), entry("close", "ALLOW"),
			entry("socket", "ALLOW", arg("0", "EQ", "1"), arg("2", "EQ", "0")))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			prog, err := build(tt.program, m)
			if err != nil {
				t.Fatal(err)
			}
			if err := prove(tt.program, m, prog); err != nil {
				t.Fatalf("the program does not even fit its own profile: %v", err)
			}
			if err := prove(want, m, prog); err == nil {
				t.Error("the proof accepts the program")
			}
		})
	}
	t.Run("another architecture passes", func(t *testing.T) {
		prog := []bpf.RawInstruction{{Op: 0x06, K: allow}} // return ALLOW
		checkError(t, prove(Profile{def: seccomp.ActAllow, rules: want.rules[:1]}, m, prog), "want the process killed")
	})
}

func TestForeignArchitecturesAreKilled(t *testing.T) {
	calls := map[string][]struct{ audit, bits uint32 }{
		"amd64": {{unix.AUDIT_ARCH_I386, 0}, {unix.AUDIT_ARCH_X86_64, x32Bit}, {unix.AUDIT_ARCH_AARCH64, 0}, {0, 0}},
		"arm64": {{unix.AUDIT_ARCH_ARM, 0}, {unix.AUDIT_ARCH_X86_64, 0}, {unix.AUDIT_ARCH_I386, 0}, {0, 0}},
	}
	for name, m := range machines {
		run := mustCompile(t, m, entry("read", "ALLOW"), entry("socket", "ERRNO", arg("0", "EQ", "1")))
		for _, c := range calls[name] {
			for nr := range uint32(600) {
				got, err := run.verdict(c.audit, nr|c.bits, callArgs{})
				if err != nil {
					t.Fatal(err)
				}
				if got != kill {
					t.Fatalf("%s filter, architecture %#x, number %#x: %#x, want the process killed", name, c.audit, nr|c.bits, got)
				}
			}
		}
	}
}

func TestCompileRefusesTheZeroProfile(t *testing.T) {
	_, err := Compile(Profile{})
	checkError(t, err, "it is empty")
}

func TestZeroFilter(t *testing.T) {
	for _, f := range []*Filter{nil, {}} {
		if _, err := f.Instructions(); err == nil {
			t.Error("Instructions of no filter")
		}
		checkError(t, f.Load(), "the seccomp filter is empty")
	}
}

// A filter is used by many at once and hands out copies; so is a profile.
func TestFilterIsImmutable(t *testing.T) {
	p := postgresProfile(t)
	f, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	first, err := f.Instructions()
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(first)
	clear(first)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got, err := f.Instructions(); err != nil || !slices.Equal(got, want) {
				t.Errorf("Instructions changed (%v)", err)
			}
			again, err := Compile(p)
			if err != nil {
				t.Error(err)
				return
			}
			if d := cmp.Diff(f.prog, again.prog); d != "" {
				t.Errorf("the same profile gives another program:\n%s", d)
			}
		})
	}
	wg.Wait()
}

func TestProgramTooLong(t *testing.T) {
	_, err := decode(make([]byte, 8*(unix.BPF_MAXINSNS+1)))
	checkError(t, err, "4097 instructions, the kernel takes 4096")
	_, err = decode(make([]byte, 7))
	checkError(t, err, "no program")
}
