package suites

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/internal/testbed"
)

// suite is a run of pg_regress or pg_isolation_regress.
type suite struct {
	name     string
	input    string // below build/postgres-suites/VERSION
	driver   string // below the server's pgxs/src/test
	schedule string // a file in input; empty: tests
	tests    []string
	args     []string
	design   map[string]string // denied by design, besides deniedByDesign
}

// settings are those of pg_regress's own server and what contrib's tests ask for; fsync is off as there.
var settings = map[string]string{
	"fsync": "off", "max_prepared_transactions": "10", "log_temp_files": "'128kB'", "log_autovacuum_min_duration": "0",
	"wal_level": "logical", "max_replication_slots": "4", "logical_decoding_work_mem": "'64kB'", "log_lock_waits": "on",
}

func with(base map[string]string, more ...string) map[string]string {
	m := maps.Clone(base)
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

func TestRegression(t *testing.T) {
	compare(t, settings, suite{name: "PostgreSQL's regression tests", input: "regress", driver: "regress/pg_regress", schedule: "parallel_schedule",
		args: []string{"--max-concurrent-tests=20"}})
}

func TestIsolation(t *testing.T) {
	compare(t, settings, suite{name: "PostgreSQL's isolation tests", input: "isolation", driver: "isolation/pg_isolation_regress",
		schedule: "isolation_schedule"})
}

// extensionDesigns are the denials by design of extensions.
var extensionDesigns = map[string]map[string]string{
	"plperl": deniedToPerl,
	"dblink": {
		"sendmmsg EPERM":  "libpq looks an LDAP server up, by DNS, to which no flow leads: netfilter",
		"connect EACCES":  "it connects to the LDAP port of localhost, which is not declared: Landlock",
		"shutdown ENOSYS": "libldap shuts the connection down before it closes it",
	},
	"uuid-ossp": {"ioctl ENOSYS": "libuuid asks for a hardware address and takes a random one; policies/seccomp/README.md"},
}

func TestExtensions(t *testing.T) {
	root := suitesDir(t)
	files, err := filepath.Glob(filepath.Join(root, "ext/*/tests"))
	must(t, err)
	if len(files) < 10 {
		t.Fatalf("only %d suites of extensions in %s", len(files), root)
	}
	var all []suite
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(t, err)
		name := filepath.Base(filepath.Dir(file))
		all = append(all, suite{name: "tests of " + name, input: "ext/" + name, driver: "regress/pg_regress", tests: strings.Fields(string(text)),
			args: []string{"--dbname=contrib_regression"}, design: extensionDesigns[name]})
	}
	compare(t, with(settings, "shared_preload_libraries", "'pg_stat_statements'", "compute_query_id", "regress"), all...)
}

// suitesDir is where scripts/postgres-suites.sh has put the tests of the server's version.
func suitesDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv(suitesVariable)
	if dir == "" {
		out, err := exec.Command("dpkg-query", "--show", "--showformat=${Version}", "postgresql-15").Output()
		must(t, err)
		dir, err = filepath.Abs(filepath.Join("../../build/postgres-suites", string(out)))
		must(t, err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("%v: run scripts/postgres-suites.sh, or make test-postgres", err)
	}
	return dir
}

// compare runs suites on a confined server and on a bare one, and wants the same result of every test, and no denial.
func compare(t *testing.T, settings map[string]string, suites ...suite) {
	ctx, bed := newBed(t)
	servers := []*server{newServer(ctx, t, bed, "pg-0", settings), newServer(ctx, t, bed, "pg-1", settings)}
	// Beside the data directory: what the tests load and read, and where they have the server write.
	input := filepath.Join(filepath.Dir(servers[0].cluster.Data), "suites")
	must(t, os.CopyFS(input, os.DirFS(suitesDir(t))))
	outputs := []string{servers[0].dir("output"), servers[1].dir("output")}
	servers[0].confine(bed, func(s *testbed.Service) {
		allow("read", input)(s)
		allow("write", outputs[0])(s)
		s.Mounts = map[string]any{"exec": []string{filepath.Join(input, "lib")}} // the tests' library is there
	})
	for _, s := range servers {
		s.defaultSocket()
		s.start()
	}
	for _, x := range suites {
		t.Run(filepath.Base(x.input), func(t *testing.T) { compareOne(t, x, servers, input, outputs) })
	}
	servers[0].verify()
	for _, s := range servers {
		s.stop()
	}
	t.Run("all", func(t *testing.T) {
		var designs []map[string]string
		for _, x := range suites {
			designs = append(designs, x.design)
		}
		unexpected(t, servers[0].failures(), servers[1].failures(), designs...) // the shutdown included
		for word, n := range refusals(servers[0].log()) {
			if bare := refusals(servers[1].log())[word]; n != bare {
				t.Errorf("the confined server's log has %q %d times, the other's %d times", word, n, bare)
			}
		}
	})
}

// compareOne runs one suite on both servers at once.
func compareOne(t *testing.T, x suite, servers []*server, input string, outputs []string) {
	var results [2]result
	var before, after [2]map[failure]int
	var wg sync.WaitGroup
	for i, s := range servers {
		before[i] = s.failures()
		wg.Go(func() { results[i] = s.regress(x, input, outputs[i]) })
	}
	wg.Wait()
	for i, s := range servers {
		after[i] = s.failures()
	}
	denied := unexpected(t, less(after[0], before[0]), less(after[1], before[1]), x.design)
	c, b := results[0], results[1]
	if len(c.tests) == 0 || len(c.tests) < len(x.tests) {
		t.Errorf("only %d tests were run:\n%s", len(c.tests), c.output)
	}
	switch d := cmp.Diff(b.tests, c.tests); {
	case d != "":
		t.Errorf("results differ (-unconfined +confined):\n%s\n%.20000s", d, c.diffs)
	case c.diffs != b.diffs:
		t.Errorf("the same tests fail, but not in the same way (-unconfined +confined):\n%.20000s", cmp.Diff(b.diffs, c.diffs))
	case c.diffs != "":
		t.Errorf("tests fail in both, which is the fault of the tests' set-up:\n%.20000s", c.diffs)
	}
	summary.add(t, x.name, c.count(), b.count(), denied)
}

// defaultSocket has the server listen where Debian's clients look, too: dblink and postgres_fdw make it its own client.
func (s *server) defaultSocket() {
	s.t.Helper()
	dir := filepath.Join(s.host.RunDir(), "postgresql") // the host's /run
	must(s.t, os.Mkdir(dir, 0o755))
	must(s.t, s.own(dir))
	appendTo(s.t, filepath.Join(s.cluster.Data, "postgresql.conf"), fmt.Sprintf("unix_socket_directories = '%s, /run/postgresql'\n", s.cluster.Socket))
}

// result is what a driver said of each test, and the differences to the expected output.
type result struct {
	tests  map[string]string
	diffs  string
	output string
}

func (r result) count() string {
	ok := 0
	for _, word := range r.tests {
		if word == "ok" {
			ok++
		}
	}
	return fmt.Sprintf("%d of %d ok", ok, len(r.tests))
}

// regress runs a suite as a client of the server.
func (s *server) regress(x suite, input, output string) result {
	driver := filepath.Join(s.cluster.BinDir, "../lib/pgxs/src/test", x.driver)
	out := filepath.Join(output, x.input)
	err := os.MkdirAll(out, 0o700)
	for dir := out; dir != output; dir = filepath.Dir(dir) {
		err = errors.Join(err, s.own(dir))
	}
	if err != nil {
		return result{output: err.Error()}
	}
	in := filepath.Join(input, x.input)
	args := append([]string{"--inputdir=" + in, "--outputdir=" + out, "--dlpath=" + filepath.Join(input, "lib"), "--bindir=" + s.cluster.BinDir,
		"--host=" + s.cluster.Socket, fmt.Sprintf("--port=%d", s.cluster.Port), "--user=" + testbed.Superuser, "--no-locale", "--encoding=UTF8"}, x.args...)
	if x.schedule != "" {
		args = append(args, "--schedule="+filepath.Join(in, x.schedule))
	}
	// Some tests name files relative to their directory.
	cmd := s.host.CommandAs(s.ctx, s.cluster.User, "sh", append([]string{"-c", `cd "$0" && exec "$@"`, in, driver}, append(args, x.tests...)...)...)
	text, err := cmd.CombinedOutput()
	r := result{tests: parseRegress(string(text)), output: string(text)}
	if err != nil { // some test failed, or the driver itself did, which the tests that are missing show
		r.output += "\n" + err.Error()
		diffs, err := os.ReadFile(filepath.Join(out, "regression.diffs"))
		if err != nil {
			r.output += "\n" + err.Error()
		}
		// The paths in it differ by server, and so do the times of files.
		r.diffs = regexp.MustCompile(`(?m)^(---|\+\+\+|diff) .*$`).ReplaceAllString(string(diffs), "$1")
	}
	return r
}

var (
	regressLine = regexp.MustCompile(`^(?:test|    ) (\S+) +\.\.\. (ok|FAILED|failed \(ignored\)).*$`)
	tapLine     = regexp.MustCompile(`^(ok|not ok) \d+ +[-+] (\S+) .*$`)
)

// parseRegress reads what pg_regress says of each test: of PostgreSQL 15 in words of its own, from 16 on in those of
// TAP, where a + is before the name of a test that ran beside others. Pure.
func parseRegress(text string) map[string]string {
	tests := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if m := regressLine.FindStringSubmatch(line); m != nil {
			tests[m[1]] = m[2]
		}
		if m := tapLine.FindStringSubmatch(line); m != nil {
			tests[m[2]] = m[1]
		}
	}
	return tests
}

func TestParseRegress(t *testing.T) {
	got := parseRegress("============== creating database \"regression\" ==============\nCREATE DATABASE\n" +
		"test tablespace                   ... ok          401 ms\nparallel group (2 tests):  boolean char\n" +
		"     boolean                      ... ok           60 ms\n     char                         ... FAILED (test process exited with exit code 2)       61 ms\n" +
		"     random                       ... failed (ignored)  12 ms\n\n 3 of 4 tests passed.\n")
	want := map[string]string{"tablespace": "ok", "boolean": "ok", "char": "FAILED", "random": "failed (ignored)"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	got = parseRegress("# using postmaster on /tmp, port 5432\nok 1         - test_setup                               308 ms\n" +
		"# parallel group (2 tests):  char boolean\nok 2         + boolean                                   60 ms\n" +
		"not ok 3     + char                                      61 ms\n# (test process exited with exit code 2)\n1..3\n")
	want = map[string]string{"test_setup": "ok", "boolean": "ok", "char": "not ok"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// refusals counts the words of the kernel's refusals in a log.
func refusals(log string) map[string]int {
	counts := map[string]int{}
	for _, word := range []string{"Operation not permitted", "Function not implemented", "Permission denied", "Bad system call"} {
		counts[word] = strings.Count(log, word)
	}
	return counts
}
