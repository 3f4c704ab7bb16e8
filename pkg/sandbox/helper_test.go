package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// What the package does to a thread cannot be undone, so the test binary starts
// itself as a helper, which does it to a thread of its own and reports.
const envHelper = "SANDBOX_TEST_HELPER"

// helpers by name. They run on a locked thread that is not the process's first
// one, as the state of threads, not processes, is what matters. What they return
// is written to standard output.
var helpers = map[string]func() (any, error){
	"calls":          tryCalls,
	"calls-filtered": func() (any, error) { return confinedThen(tryCalls) },
	"calls-featured": func() (any, error) {
		return confinedThen(tryCalls, "jit", "io_uring", "huge_pages", "open_exec", "udp")
	},
	"become-filtered":   func() (any, error) { return confinedThen(becomeCat, "helpers") },
	"foreign":           tryForeign,
	"foreign-filtered":  func() (any, error) { return confinedThen(tryForeign) },
	"load-without-nnp":  loadWithoutNoNewPrivs,
	"load-twice":        loadTwice,
	"caps":              tryCapabilities,
	"keepcaps":          tryKeepCaps,
	"threads-untouched": tryThreads,
}

// Only during initialisation is the main goroutine sure to be on the first
// thread; locked there, it keeps that thread out of the helpers' way.
func init() {
	if os.Getenv(envHelper) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	name := os.Getenv(envHelper)
	if name == "" {
		os.Exit(m.Run())
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- runHelper(name)
		// As the launch stage does: the runtime dies if the filter keeps it from
		// ending the thread (sigaltstack).
		select {}
	}()
	if err := <-done; err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runHelper(name string) error {
	run, ok := helpers[name]
	if !ok {
		return fmt.Errorf("no helper %q", name)
	}
	if syscall.Gettid() == syscall.Getpid() {
		return fmt.Errorf("helper %s runs on the first thread", name)
	}
	result, err := run()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// help runs a helper and returns what it wrote.
func help(t *testing.T, name string, prepare ...func(*exec.Cmd)) ([]byte, error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	// Under the race detector a process waits for a second before it exits.
	cmd.Env = append(os.Environ(), envHelper+"="+name, "GORACE=atexit_sleep_ms=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	for _, p := range prepare {
		p(cmd)
	}
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("helper %s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// mustHelp runs a helper and decodes its result.
func mustHelp[T any](t *testing.T, name string, prepare ...func(*exec.Cmd)) T {
	t.Helper()
	var result T
	out, err := help(t, name, prepare...)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &result); err != nil {
		t.Fatalf("helper %s wrote %q: %v", name, out, err)
	}
	return result
}
