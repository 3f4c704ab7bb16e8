package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
)

// PostgreSQL's everyday work under the filter, watched with strace: not one
// system call is denied, save those whose denial is by design.
func TestSliceWorkUnderFilter(t *testing.T) {
	t.Parallel()
	s := newSlice(t, "nft", map[string]string{
		"wal_level": "logical", "max_parallel_workers_per_gather": "4", "min_parallel_table_scan_size": "0",
		"parallel_setup_cost": "0", "parallel_tuple_cost": "0",
	})
	traced := filepath.Join(t.TempDir(), "initdb.strace")
	denied := map[string]int{}

	t.Run("initdb", func(t *testing.T) {
		initdbConfined(t, s, traced)
		countDenied(t, traced, `execve("`+filepath.Join(s.cluster.BinDir, "initdb"), denied)
	})
	s.start()
	t.Run("server", func(t *testing.T) {
		watch := straceServer(t, s)
		work(t, s)
		s.want(0, []string{"stopped"}, "stop", "--service", "postgres") // restart: fast shutdown, then start
		countDenied(t, watch(), "", denied)
	})
	s.want(0, []string{"started"}, "start", "--service", "postgres")
	s.awaitOK()
	s.want(0, []string{"stopped"}, "stop", "--service", "postgres")

	for call, n := range denied {
		if !slices.Contains(deniedByDesign, call) {
			t.Errorf("%s was denied %d times", call, n)
		}
	}
	t.Logf("denied by design: %v", denied)
}

// Archive scripts limit and await what they start. Without rt_sigsuspend a shell's wait and timeout(1) would spin for ever.
func TestSliceScriptsUnderFilter(t *testing.T) {
	s := newSlice(t, "nft", nil)
	s.configure(withPrograms(t, "sh", "bash", "timeout", "sleep", "echo"))
	s.start()
	for _, tc := range []struct{ program, wrong string }{
		{"timeout 20 echo done", ""},
		{"timeout 0.2 sleep 300", "exited with exit code 124"},
		{"bash -c 'sleep 0.1 & wait; echo done'", ""},
		{"sleep 0.1 & wait; echo done", ""},
	} {
		ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
		program := strings.ReplaceAll(tc.program, "'", "''")
		out, err := s.cluster.PsqlSocket(ctx, s.node, "CREATE TEMP TABLE t (line text); COPY t FROM PROGRAM '"+program+"'; SELECT line FROM t")
		cancel()
		if tc.wrong == "" && (err != nil || !strings.Contains(out, "done")) {
			t.Errorf("%s: %q, %v", tc.program, out, err)
		}
		if tc.wrong != "" && (err == nil || !strings.Contains(err.Error(), tc.wrong)) {
			t.Errorf("%s: %q, %v; want %q", tc.program, out, err, tc.wrong)
		}
	}
}

// clone3 gets ENOSYS so that the C library falls back to clone, whose flags can be filtered.
var deniedByDesign = []string{"clone3", "socket"} // UDP, by which the C library sorts addresses

// initdbConfined makes a cluster through `pghardend exec` with the same profile.
func initdbConfined(t *testing.T, s *slice, trace string) {
	dir := filepath.Join(filepath.Dir(s.cluster.Data), "initdb")
	must(t, os.Mkdir(dir, 0o700))
	must(t, exec.CommandContext(s.ctx, "chown", s.cluster.User.Username, dir).Run())
	cfg := s.cfg
	service := cfg.Services["postgres"]
	service.Command = []string{filepath.Join(s.cluster.BinDir, "initdb"), "-D", dir, "--no-sync", "--auth=trust", "--locale=C.UTF-8", "-E", "UTF8"}
	withPrograms(t, "sh", filepath.Join(s.cluster.BinDir, "postgres"))(&service)
	cfg.Services = map[string]testbed.Service{"postgres": service}
	a, err := testbed.NewAgent(s.ctx, s.node, cfg)
	must(t, err)
	cmd := a.Command(s.ctx, "exec", "--service", "postgres")
	cmd.Args = append(strings.Fields(fmt.Sprintf("%s -f -qq -e signal=none -o %s --", strace(t), trace)), cmd.Args...)
	cmd.Path = strace(t)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Success. You can now start the database server") {
		t.Fatalf("initdb under the filter: %v\n%s", err, out)
	}
}

func strace(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("strace is needed to watch system calls; make deps installs it: %v", err)
	}
	return path
}

// straceServer attaches to the postmaster, whose children it follows from then
// on. The function it returns waits for the end of the server and names the log.
func straceServer(t *testing.T, s *slice) func() string {
	t.Helper()
	pid, err := s.cluster.PID()
	must(t, err)
	log := filepath.Join(t.TempDir(), "server.strace")
	cmd := exec.CommandContext(s.ctx, strace(t), "-f", "-qq", "-e", "signal=none", "-o", log, "-p", fmt.Sprint(pid))
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	must(t, testbed.Await(s.ctx, "strace to attach", func(context.Context) error {
		if got := procFields(pid, "status")["TracerPid"]; got != fmt.Sprint(cmd.Process.Pid) {
			return fmt.Errorf("TracerPid is %s", got)
		}
		return nil
	}))
	return func() string {
		<-ended // its exit code is that of the traced process
		return log
	}
}

var straceLine = regexp.MustCompile(`^\d+ +(?:<\.\.\. )?([a-z0-9_]+)(?:\(| resumed>).* = -1 (ENOSYS|EPERM) `)

// countDenied counts calls that ended with what the filter answers, from the line
// with the words of from on: the launcher's own calls before it are not filtered.
// Neither error comes from the kernel itself in this work.
func countDenied(t *testing.T, log, from string, denied map[string]int) {
	t.Helper()
	data, err := os.ReadFile(log)
	must(t, err)
	_, text, found := strings.Cut(string(data), from)
	if !found {
		t.Fatalf("%q is not in the trace", from)
	}
	calls := 0
	for line := range strings.Lines(text) {
		calls++
		if m := straceLine.FindStringSubmatch(line); m != nil {
			denied[m[1]]++
			if !slices.Contains(deniedByDesign, m[1]) {
				t.Logf("denied: %s", strings.TrimSpace(line))
			}
		}
	}
	if calls < 1000 {
		t.Errorf("strace saw only %d lines; it did not watch", calls)
	}
}

func work(t *testing.T, s *slice) {
	conn := s.cluster.Conninfo(s.node.V4(), testbed.AppUser)
	super := s.cluster.Conninfo(s.node.V4(), testbed.Superuser)
	client := func(program string, args ...string) {
		t.Helper()
		cmd, err := s.cluster.Client(s.ctx, s.peer, program, args...)
		must(t, err)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", program, err, out)
		}
	}
	sql := func(statement, want string) {
		t.Helper()
		got, err := s.cluster.Psql(s.ctx, s.peer, super, statement)
		if err != nil || (want != "" && got != want) {
			t.Errorf("%s: %q %v; want %q", statement, got, err, want)
		}
	}
	client("createdb", "-h", s.node.V4().String(), "-p", fmt.Sprint(s.cluster.Port), "-U", testbed.Superuser, "second")
	bench := func(args ...string) {
		t.Helper()
		r, err := s.cluster.Pgbench(s.ctx, s.peer, conn, args...)
		if err != nil || r.Failed != 0 || r.Processed == 0 {
			t.Errorf("pgbench %v: %d processed, %d failed, %v", args, r.Processed, r.Failed, err)
		}
	}
	_, err := s.cluster.Pgbench(s.ctx, s.peer, conn, "-i", "-s", "1", "-q")
	must(t, err)
	bench("-c", "2", "-t", "50")
	bench("-c", "2", "-t", "200", "-S", "-M", "prepared")
	plan, err := s.cluster.Psql(s.ctx, s.peer, super, "EXPLAIN (ANALYZE, COSTS off) SELECT count(*) FROM pgbench_accounts")
	if err != nil || !regexp.MustCompile(`Workers Launched: [1-9]`).MatchString(plan) {
		t.Errorf("no parallel worker ran: %v\n%s", err, plan)
	}
	sql("SELECT count(*) > 0 FROM pg_ls_waldir()", "t")
	sql("CREATE INDEX accounts_abalance ON pgbench_accounts (abalance)", "")
	sql("VACUUM FULL pgbench_tellers", "")
	file := filepath.Join(s.cluster.Socket, "copy")
	sql(fmt.Sprintf("COPY (SELECT generate_series(1, 1000)) TO '%[1]s'; CREATE TABLE copied (n int); COPY copied FROM '%[1]s'; SELECT sum(n) FROM copied", file), "500500")
	sql("SELECT pg_create_logical_replication_slot('slot', 'test_decoding') IS NOT NULL", "t")
	sql("INSERT INTO copied VALUES (1)", "")
	sql("SELECT count(*) FROM pg_logical_slot_get_changes('slot', NULL, NULL)", "3")
	sql("SELECT pg_drop_replication_slot('slot')", "")
	sql("CHECKPOINT; SELECT pg_switch_wal() IS NOT NULL", "t")
	sql("CREATE EXTENSION pg_stat_statements", "")
	sql("NOTIFY channel; LISTEN channel", "")
	sql("SELECT lo_from_bytea(0, 'x') > 0", "t")
	if _, err := os.Stat(file); err != nil {
		t.Errorf("COPY made no file: %v", err)
	}
}
