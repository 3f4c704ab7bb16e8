package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/sandbox"
	"github.com/pghardend/pghardend/policies"
)

// proofVariable makes the test binary play a process to look at: a proofRole as JSON.
const proofVariable = "PGHARDEND_E2E_PROOF"

// proofRole is what the process does. It prints "ready" and lives until its
// standard input ends, unless it becomes another program.
type proofRole struct {
	Filters [][]unix.SockFilter // loaded one after the other, on all threads
	Lonely  []unix.SockFilter   // loaded on one thread alone
	Echo    bool                // prints "signal" for each SIGUSR1
	Exec    []string            // becomes this
}

func init() {
	if text := os.Getenv(proofVariable); text != "" {
		if err := proofMain(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
}

func proofMain(text string) error {
	var role proofRole
	if err := json.Unmarshal([]byte(text), &role); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	if role.Echo {
		signal.Notify(signals, unix.SIGUSR1)
	}
	for i, f := range role.Filters {
		load := loadFilter
		if i > 0 { // the first one may not let it set no_new_privs again
			load = func(f []unix.SockFilter) error { return loadProgram(f, unix.SECCOMP_FILTER_FLAG_TSYNC) }
		}
		if err := load(f); err != nil {
			return err
		}
	}
	if role.Lonely != nil {
		if err := proofLonely(role.Lonely); err != nil {
			return err
		}
	}
	if role.Exec != nil {
		os.Unsetenv(proofVariable)
		return unix.Exec(role.Exec[0], role.Exec, os.Environ())
	}
	go func() {
		for range signals {
			fmt.Println("signal")
		}
	}()
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// proofLonely leaves a thread behind that has a filter of its own.
func proofLonely(program []unix.SockFilter) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			done <- err
			return
		}
		if err := loadProgram(program, 0); err != nil {
			done <- err
			return
		}
		done <- nil
		select {}
	}()
	return <-done
}

// proofProcess is a process that plays a role.
type proofProcess struct {
	pid   int
	out   *os.File
	lines *bufio.Reader
}

func proofText(t *testing.T, role proofRole) string {
	t.Helper()
	text, err := json.Marshal(role)
	must(t, err)
	return string(text)
}

// startProof starts one and waits for its "ready"; it ends with the test.
func startProof(t *testing.T, role proofRole) proofProcess {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), proofVariable+"="+proofText(t, role))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, writer, err := os.Pipe()
	must(t, err)
	cmd.Stdout = writer
	must(t, cmd.Start())
	writer.Close()
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill() // it may be stopped
		_ = cmd.Wait()
		out.Close()
	})
	p := proofProcess{cmd.Process.Pid, out, bufio.NewReader(out)}
	p.says(t, "ready")
	return p
}

func (p proofProcess) says(t *testing.T, want string) {
	t.Helper()
	must(t, p.out.SetReadDeadline(time.Now().Add(20*time.Second)))
	if line, err := p.lines.ReadString('\n'); strings.TrimSpace(line) != want {
		t.Fatalf("process %d said %q, want %s: %v", p.pid, line, want, err)
	}
}

// allowing is a filter of n instructions that allows everything.
func allowing(n int) []unix.SockFilter {
	var program []unix.SockFilter
	for range n - 1 {
		program = append(program, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS})
	}
	return append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
}

// proofProfile is the profile of postgres with some more system calls, which a Go
// program can live under as long as it starts nothing, and its program.
func proofProfile(t *testing.T, with ...string) (sandbox.Profile, *sandbox.Filter, []unix.SockFilter) {
	t.Helper()
	profile, err := sandbox.ParseProfile("postgres", []byte(launchProfile(t, nil, with)))
	must(t, err)
	text, err := policies.FS.ReadFile("seccomp/features/helpers.json")
	must(t, err)
	helpers, err := sandbox.ParseFeature("helpers", text)
	must(t, err)
	profile, err = profile.With(helpers)
	must(t, err)
	filter, err := sandbox.Compile(profile)
	must(t, err)
	raw, err := filter.Instructions()
	must(t, err)
	var program []unix.SockFilter
	for _, ins := range raw {
		program = append(program, unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K})
	}
	return profile, filter, program
}

// traced attaches a tracer to a process, until the function it returns is called.
func traced(t *testing.T, pid int) func() {
	t.Helper()
	attached, end, ended := make(chan error), make(chan bool), make(chan bool)
	go func() {
		runtime.LockOSThread() // ptrace(2) is a matter of threads
		defer runtime.UnlockOSThread()
		attached <- unix.PtraceSeize(pid)
		<-end
		var status unix.WaitStatus
		_ = unix.PtraceInterrupt(pid)
		_, _ = unix.Wait4(pid, &status, unix.WALL, nil)
		_ = unix.PtraceDetach(pid)
		close(ended)
	}()
	must(t, <-attached)
	return func() { end <- true; <-ended }
}
