package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/config"
)

// Environment variables that make the test binary something else.
const (
	envIsolated = "PGHARDEND_TEST_ISOLATED"
	envLock     = "PGHARDEND_TEST_LOCK"
)

// TestMain runs the tests of root in namespaces of their own. They do not touch the
// firewall; should they ever, it is not the host's. What they mount is theirs.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "exec" { // a service is asked something; nobody is there
		fmt.Fprintln(os.Stderr, "no services in these tests")
		os.Exit(1)
	}
	if dir := os.Getenv(envLock); dir != "" {
		os.Exit(holdLock(dir))
	}
	if os.Geteuid() == 0 && os.Getenv(envIsolated) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), envIsolated+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS}
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case err == nil:
			os.Exit(0)
		case errors.As(err, &exit):
			os.Exit(exit.ExitCode())
		case !errors.Is(err, os.ErrPermission): // root without rights cannot harm the host either
			fmt.Fprintln(os.Stderr, "cannot isolate the tests:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// holdLock is the process that tests of the lock kill.
func holdLock(dir string) int {
	if _, err := lock(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stdout, err)
		return 1
	}
	fmt.Fprintln(os.Stdout, "locked")
	_, _ = io.ReadAll(os.Stdin)
	return 0
}

const (
	goodPeers = `version: 1
instance: orders-prod
nodes:
  - {name: pg-0, role: postgres, addresses: [10.20.1.10, "fd00:20:1::10"]}
  - {name: pg-1, role: postgres, addresses: [10.20.1.11, "fd00:20:1::11"]}
  - {name: pool-0, role: pgpool, addresses: [10.20.1.20]}
  - {name: pool-1, role: pgpool, addresses: [10.20.1.21, "fd00:20:1::21"]}
networks:
  control_plane: [10.0.0.0/24, "fd00:10::/64"]
  applications: [10.50.0.0/16]
`
	serviceText = `services:
  postgres:
    profile: postgres
    user: postgres
    command: [/usr/lib/postgresql/15/bin/postgres, -D, /var/lib/postgresql/15/main]
    limits: {nofile: 65536, core: 0}
`
)

// files are a configuration on disk.
type files struct {
	t      *testing.T
	dir    string
	config string // paths
	peers  string
	state  string
	run    string
}

func newFiles(t *testing.T) *files {
	t.Helper()
	dir := t.TempDir()
	f := &files{t: t, dir: dir,
		config: filepath.Join(dir, "pghardend.yaml"), peers: filepath.Join(dir, "peers.yaml"),
		state: filepath.Join(dir, "state"), run: filepath.Join(dir, "run")}
	f.write(f.config, f.configText())
	f.write(f.peers, goodPeers)
	return f
}

func (f *files) configText() string {
	return fmt.Sprintf("version: 1\nnode: pg-0\nruntime_dir: %s\nstate_dir: %s\n", f.run, f.state)
}

// write replaces a file as editors and configuration tools do.
func (f *files) write(path, text string) {
	f.t.Helper()
	temp := path + ".new"
	if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(temp, path); err != nil {
		f.t.Fatal(err)
	}
}

// writeInPlace is what a reader may see half of.
func (f *files) writeInPlace(path, text string) {
	f.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *files) remove(path string) {
	f.t.Helper()
	if err := os.RemoveAll(path); err != nil {
		f.t.Fatal(err)
	}
}

func (f *files) read(path string) string {
	f.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(data)
}

// started is a source as the daemon has it, which has been asked once.
func (f *files) started() *fileSource {
	f.t.Helper()
	s, err := f.source()
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *files) source() (*fileSource, error) {
	s, err := newFileSource(f.t.Context(), f.config, slog.New(slog.DiscardHandler), nil)
	if err == nil {
		s.resources = func(Desired) []reconcile.Resource { return nil }
		s.facts.reader.ask = func(context.Context, config.Service, string) (Capacity, error) { return Capacity{}, nil }
	}
	return s, err
}

// load asks for the desired state once.
func load(t *testing.T, s *fileSource, force bool) (reconcile.Desired, error) {
	t.Helper()
	return s.Load(t.Context(), force)
}

// settled asks twice, as often as a changed file needs to count.
func settled(t *testing.T, s *fileSource) error {
	t.Helper()
	_, _ = load(t, s, false)
	_, err := load(t, s, false)
	return err
}

func contains(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("the error lacks %q:\n%v", p, err)
		}
	}
}

// upTo and from cut text at a mark, which stays with from.
func upTo(text, mark string) string {
	head, _, _ := strings.Cut(text, mark)
	return head
}

func from(text, mark string) string { return text[len(upTo(text, mark)):] }

func replace(t *testing.T, text, old, replacement string) string {
	t.Helper()
	if !strings.Contains(text, old) {
		t.Fatalf("%q is not in\n%s", old, text)
	}
	return strings.Replace(text, old, replacement, 1)
}
