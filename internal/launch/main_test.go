package launch

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// helperVariable makes the test binary play a process for the tests to look at.
const helperVariable = "LAUNCH_TEST_HELPER"

func init() {
	if os.Getenv(helperVariable) != "" {
		runtime.LockOSThread() // keeps main on the first thread of the process
	}
}

// TestMain runs the tests, or a helper: "headless" is a process whose first
// thread has ended while another waits for the end of standard input.
func TestMain(m *testing.M) {
	if os.Getenv(helperVariable) == "" {
		os.Exit(m.Run())
	}
	go func() {
		for {
			if _, err := os.Readlink("/proc/self/exe"); errors.Is(err, os.ErrNotExist) {
				break
			}
			runtime.Gosched()
		}
		os.Stdout.WriteString("ready\n")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
}

// startHelper starts the headless helper and returns its pid.
func startHelper(t *testing.T) int {
	t.Helper()
	return startReady(t, []string{helperVariable + "=headless"}, os.Args[0])
}

// startReady starts a program that prints "ready" and lives until its standard
// input ends.
func startReady(t *testing.T, env []string, name string, args ...string) int {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
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
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("helper said %q: %v", line, err)
	}
	return cmd.Process.Pid
}

// realPath is where a program of the system really is.
func realPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// wantError checks that err is there and says each of the words.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error does not say %q: %v", w, err)
		}
	}
}

func wantNone(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
}
