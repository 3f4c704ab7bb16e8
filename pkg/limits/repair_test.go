package limits

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// target starts a process with known limits, which lives until the test ends or
// end is called.
func target(t testing.TB) (p Process, end func()) {
	t.Helper()
	// cat blocks on nothing but its input.
	cmd := exec.Command("/bin/sh", "-c", "ulimit -Sn 77; ulimit -Hn 88; ulimit -Hc 0; echo ready; exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}
	t.Cleanup(end)
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	p, err = Identify(t.Context(), cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return p, end
}

func TestRepairPutsLimitsBack(t *testing.T) {
	p, _ := target(t)
	before, err := Read(t.Context(), p.PID)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Set{
		{},
		{"nofile": {77, 88}},
		{"nofile": {10, 88}},
		{"nofile": {80, 88}},                   // raised up to the hard limit, which anybody may
		{"nofile": {70, 80}, "core": {0, 0}},   // and lowered
		{"nofile": {70, 70}, "fsize": {5, 10}}, // the others stay
	} {
		if err := Repair(t.Context(), p, want); err != nil {
			t.Errorf("%v: %v", want, err)
		}
		got, err := Read(t.Context(), p.PID)
		if err != nil {
			t.Fatal(err)
		}
		for name, l := range want {
			before[name] = l
		}
		if d := Diff(before, got); d != nil {
			t.Errorf("%v: %v", want, d)
		}
		for name := range before {
			if other := (Limit{before[name].Soft, before[name].Hard - 1}); before[name].Hard > 0 {
				if same, err := Match(t.Context(), p.PID, Set{name: other}); same || err != nil {
					t.Errorf("%s is said to be %s: %v", name, other, err)
				}
			}
		}
		if same, err := Match(t.Context(), p.PID, before); !same || err != nil {
			t.Errorf("%v: not seen to be so: %v", want, err)
		}
	}
}

// Whoever has the number of a process that has ended keeps its limits.
func TestRepairSparesTheSuccessor(t *testing.T) {
	p, end := target(t)
	for name, other := range map[string]Process{
		"started earlier": {p.PID, p.Start - 1}, "started later": {p.PID, p.Start + 1}, "not known": {p.PID, 0},
	} {
		if err := Repair(t.Context(), other, Set{"nofile": {1, 1}}); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%s: %v", name, err)
		}
		if err := SetOOMScore(t.Context(), other, 999); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if same, err := Match(t.Context(), p.PID, Set{"nofile": {77, 88}}); !same || err != nil {
		t.Errorf("the limits of another process were changed: %v", err)
	}
	if score, err := OOMScore(t.Context(), p.PID); err != nil || score == 999 {
		t.Errorf("the score of another process was changed: %d %v", score, err)
	}
	end()
	if err := Repair(t.Context(), p, Set{"nofile": {1, 1}}); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("after its end: %v", err)
	}
	if _, err := Match(t.Context(), p.PID, Set{"nofile": {1, 1}}); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("after its end: %v", err)
	}
	if _, err := Identify(t.Context(), p.PID); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("after its end: %v", err)
	}
	if _, err := OOMScore(t.Context(), p.PID); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("after its end: %v", err)
	}
}

func TestRepairErrors(t *testing.T) {
	p, _ := target(t)
	checkError(t, Repair(t.Context(), p, Set{"files": {1, 1}}), []string{`unknown limit "files"`})
	// Not even root may have more, and the other limit is set all the same.
	err := Repair(t.Context(), p, Set{"nofile": {1, 1 << 62}, "fsize": {7, 8}})
	checkError(t, err, []string{fmt.Sprintf("cannot set limit nofile of process %d to 1:", p.PID), "CAP_SYS_RESOURCE", "nr_open"})
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("%v does not wrap os.ErrPermission", err)
	}
	if same, err := Match(t.Context(), p.PID, Set{"fsize": {7, 8}}); !same || err != nil {
		t.Errorf("the limit after the one that failed was not set: %v", err)
	}
	checkError(t, prlimitError(resource{id: unix.RLIMIT_CORE}, unix.EPERM), []string{"CAP_SYS_RESOURCE", "restart the service"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Repair(ctx, p, Set{"nofile": {1, 1}}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	for _, pid := range []int{0, -1} { // 0 is the caller to prlimit(2)
		if err := Repair(t.Context(), Process{PID: pid}, Set{"nofile": {1, 1}}); err == nil {
			t.Errorf("process %d was repaired", pid)
		}
	}
}

func TestSetOOMScore(t *testing.T) {
	p, _ := target(t)
	for _, score := range []int{100, 200} { // up, which anybody may
		if err := SetOOMScore(t.Context(), p, score); err != nil {
			t.Fatal(err)
		}
		if got, err := OOMScore(t.Context(), p.PID); err != nil || got != score {
			t.Errorf("%d %v, want %d", got, err, score)
		}
	}
	checkError(t, SetOOMScore(t.Context(), p, 1001), []string{fmt.Sprintf("cannot set oom_score_adj of process %d to 1001", p.PID)})
}

// The variable that the kernel writes to is one.
func TestMatchAllocatesAlmostNothing(t *testing.T) {
	p, _ := target(t)
	want, err := Read(t.Context(), p.PID)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = Match(t.Context(), p.PID, want) }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkMatch(b *testing.B) {
	p, _ := target(b)
	want := Set{"nofile": {77, 88}, "core": {0, 0}}
	b.ReportAllocs()
	for b.Loop() {
		if same, err := Match(b.Context(), p.PID, want); !same || err != nil {
			b.Fatal(same, err)
		}
	}
}

func FuzzParseStart(f *testing.F) {
	tail := " S 1 2 2 0 -1 4194560 100 0 0 0 0 0 0 0 20 0 1 0 4711 1000 100"
	f.Add("123 (cat)" + tail)
	f.Add("123 (a ) (\n S 1)" + tail)
	f.Add("123 (cat) S 1")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		start, err := parseStart(text)
		if err != nil && start != 0 {
			t.Error("a start time with an error")
		}
		// Nothing that a process calls itself changes what is read.
		if got, err := parseStart("1 (" + text + ")" + tail); err != nil || got != 4711 {
			t.Errorf("%d %v for the name %q", got, err, text)
		}
	})
}
