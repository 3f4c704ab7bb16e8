package limits

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The test binary is its own helper: limits can only be lowered for good, so
// they are set in a process of their own, which then becomes the next one.
const (
	envFirst = "LIMITS_TEST_FIRST" // set these, become the test binary again
	envSet   = "LIMITS_TEST_SET"   // set these, become /bin/cat /proc/self/limits
)

func TestMain(m *testing.M) {
	if os.Getenv(envFirst) != "" || os.Getenv(envSet) != "" {
		if err := helper(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func helper() error {
	env, argv := envSet, []string{"/bin/cat", "/proc/self/limits"}
	if os.Getenv(envFirst) != "" {
		env, argv = envFirst, []string{"/proc/self/exe"}
	}
	var s Set
	if err := json.Unmarshal([]byte(os.Getenv(env)), &s); err != nil {
		return err
	}
	if err := os.Unsetenv(env); err != nil {
		return err
	}
	if err := s.ApplySelf(); err != nil {
		return err
	}
	return syscall.Exec(argv[0], argv, os.Environ())
}

// become runs the helper and returns the limits that the executed program saw.
func become(t *testing.T, first, set Set) (Set, error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = os.Environ()
	for env, s := range map[string]Set{envFirst: first, envSet: set} {
		if s == nil {
			continue
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, env+"="+string(text))
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	return ParseProc(out)
}

// The Go runtime raises the soft nofile limit when it finds it below the hard
// one and puts it back on exec: first makes sure that it does.
func TestF31_LimitsAreExactAfterExec(t *testing.T) {
	first := Set{"nofile": {512, 2048}}
	base, err := become(t, first, Set{})
	if err != nil {
		t.Fatal(err)
	}
	if d := Diff(first, base); d != nil {
		t.Fatalf("the start of the test is wrong: %v", d)
	}
	tests := []struct {
		name string
		set  Set
	}{
		{"nofile between soft and hard", Set{"nofile": {1000, 2048}}},
		{"nofile soft is hard", Set{"nofile": {2048, 2048}}},
		{"nofile below soft", Set{"nofile": {100, 200}}},
		{"nofile as it was", Set{"nofile": {512, 2048}}},
		{"nofile one below hard, as the runtime has it", Set{"nofile": {2047, 2048}}},
		{"others only", Set{"core": {0, 0}}},
		{"every limit", lower(base)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := become(t, first, tt.set)
			if err != nil {
				t.Fatal(err)
			}
			want := Set{}
			for name := range base {
				want[name] = base[name]
			}
			for name := range tt.set {
				want[name] = tt.set[name]
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("limits of the executed program (-want +got):\n%s", d)
			}
		})
	}
}

// lower makes every limit of s another one that anybody may set and that leaves
// a Go program (with the race detector's huge mappings) and cat able to run.
func lower(s Set) Set {
	roomy := map[string]Limit{
		"as": {1<<47 - 2, 1<<47 - 1}, "data": {1<<47 - 2, 1<<47 - 1}, "stack": {4 << 20, 6 << 20},
		"nofile": {300, 400}, "cpu": {100, 200}, "fsize": {1 << 20, 1 << 21}, "rss": {1 << 40, 1 << 41},
		"rttime": {1 << 30, 1 << 31}, "locks": {1000, 2000}, "core": {0, 4096},
	}
	low := Set{}
	for name, cur := range s {
		l, ok := roomy[name]
		if !ok { // nproc, sigpending … differ from machine to machine
			l = Limit{Soft: cur.Soft - cur.Soft/4, Hard: cur.Hard - cur.Hard/8}
			l.Soft = min(l.Soft, l.Hard)
		}
		l.Hard = min(l.Hard, cur.Hard)
		l.Soft = min(l.Soft, l.Hard)
		low[name] = l
	}
	return low
}

// A hard limit that was lowered cannot be raised again by a process without
// CAP_SYS_RESOURCE; with it, only nr_open stands above nofile.
func TestF31_ApplySelfNamesTheLimit(t *testing.T) {
	_, err := become(t, Set{"nofile": {512, 2048}}, Set{"nofile": {512, Unlimited}})
	checkError(t, err, []string{"cannot set limit nofile to 512:unlimited", "operation not permitted", "nr_open"})
	_, err = become(t, nil, Set{"nofile": {2, 1}})
	checkError(t, err, []string{"limit nofile: soft 2 is above hard 1"})
}

func TestReadSeesAnotherProcess(t *testing.T) {
	want := Set{"core": {0, 0}, "nofile": {77, 88}}
	p, _ := target(t)
	got, err := Read(context.Background(), p.PID)
	if err != nil {
		t.Fatal(err)
	}
	if d := Diff(want, got); d != nil {
		t.Error(d)
	}
}
