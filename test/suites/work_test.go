package suites

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
)

// workSettings make what is to be shown happen with little data.
var workSettings = map[string]string{
	"shared_preload_libraries": "'pg_stat_statements, pgaudit'", "archive_mode": "on",
	"parallel_setup_cost": "0", "parallel_tuple_cost": "0", "min_parallel_table_scan_size": "0", "min_parallel_index_scan_size": "0",
	"max_parallel_workers_per_gather": "4",
}

// workplace is a server with the directories outside of its data directory that it was given.
type workplace struct {
	*server
	space, archive string // the server's: declared
	dump           string // of clients: not declared
}

// piece is something that operators do with a server. do says what it has seen.
type piece struct {
	name   string
	do     func(w *workplace) string
	design map[string]string // denied by design, besides deniedByDesign
	needs  string            // what not every build of PostgreSQL has; see lacks
}

var pieces = []piece{
	{"pgbench: initialise, read-write, prepared select", doPgbench, nil, ""},
	{"pg_dump, pg_restore, pg_dumpall", doDump, nil, "pg_dump"},
	{"parallel query and index build", doParallel, nil, ""},
	{"JIT", doJIT, nil, "jit"},
	{"pg_stat_statements", doStatements, nil, ""},
	{"statistics of tables", doTableStatistics, nil, ""},
	{"pgaudit", doAudit, nil, "pgaudit"},
	{"plpgsql, plperl, plperlu", doLanguages, deniedToPerl, "plperl"},
	{"tablespaces (declared directory)", doTablespaces, nil, ""},
	{"archive_command by declared helpers", doArchive, nil, ""},
	{"vacuumdb, reindexdb, clusterdb, pg_amcheck", doMaintenance, nil, ""},
	{"crash recovery: a backend, then the postmaster killed", doCrash, nil, ""},
}

// The work of operators, first confined, then not, with the same results and no denial.
func TestWork(t *testing.T) {
	ctx, bed := newBed(t)
	settings := workSettings
	if lacks("pgaudit") {
		settings = with(settings, "shared_preload_libraries", "'pg_stat_statements'")
	}
	places := []*workplace{newWorkplace(newServer(ctx, t, bed, "pg-0", settings)), newWorkplace(newServer(ctx, t, bed, "pg-1", settings))}
	places[0].confine(bed, func(s *testbed.Service) {
		allow("write", places[0].space, places[0].archive)(s)
		helpers(t, "sh", "cp")(s)
		s.Features = []string{"auto", "jit"}
	})
	for _, w := range places {
		w.start()
	}
	for _, p := range pieces {
		t.Run(p.name, func(t *testing.T) {
			if lacks(p.needs) {
				summary.add(t, p.name, notBuilt, "", "-")
				return
			}
			var said [2]string
			var before, after [2]map[failure]int
			for i, w := range places {
				w.t = t
				before[i] = w.failures()
				said[i] = p.do(w)
				after[i] = w.failures()
			}
			denied := unexpected(t, less(after[0], before[0]), less(after[1], before[1]), p.design)
			summary.add(t, p.name, said[0], said[1], denied)
		})
	}
	for _, w := range places {
		w.t = t
		w.stop()
	}
}

func newWorkplace(s *server) *workplace {
	w := &workplace{server: s, space: s.dir("space"), archive: s.dir("archive"), dump: s.dir("dump")}
	// In the file, since it names the place.
	appendTo(s.t, filepath.Join(s.cluster.Data, "postgresql.conf"), fmt.Sprintf("archive_command = 'cp %%p %s/%%f'\n", w.archive))
	return w
}

func appendTo(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString(text)
	must(t, err)
	must(t, f.Close())
}

func doPgbench(w *workplace) string {
	w.client("pgbench", "-i", "-s", "1", "-q", "postgres")
	processed := regexp.MustCompile(`(?m)^number of transactions actually processed: (\d+)`)
	failed := regexp.MustCompile(`(?m)^number of failed transactions: 0 `)
	var counts []string
	for _, args := range [][]string{{"-n", "-c", "4", "-t", "100"}, {"-n", "-c", "4", "-t", "1000", "-S", "-M", "prepared"}, {"-n", "-c", "2", "-t", "20", "-C"}} {
		out := w.client("pgbench", append(args, "postgres")...)
		m := processed.FindStringSubmatch(out)
		if m == nil || !failed.MatchString(out) {
			w.t.Errorf("pgbench %v: %s", args, out)
			continue
		}
		counts = append(counts, m[1])
	}
	return strings.Join(counts, ", ") + " transactions"
}

// fingerprint is of all rows of pgbench's largest table.
const fingerprint = "SELECT count(*) || ' rows ' || md5(string_agg(aid || ' ' || bid || ' ' || abalance, ',' ORDER BY aid)) FROM pgbench_accounts"

func doDump(w *workplace) string {
	inside := func(name string) string { return filepath.Join(w.dump, name) }
	want := w.sql("\\c postgres\n"+fingerprint, "")
	for _, format := range []string{"custom", "directory"} {
		args := []string{"-F", format, "-f", inside(format)}
		if format == "directory" {
			args = append(args, "-j", "2")
		}
		w.client("pg_dump", append(args, "postgres")...)
		w.client("createdb", "from_"+format)
		w.client("pg_restore", "-j", "2", "-d", "from_"+format, inside(format))
		w.sql("\\c from_"+format+"\n"+fingerprint, want)
		w.client("dropdb", "from_"+format)
	}
	w.client("pg_dumpall", "-f", inside("all"))
	rows, _, _ := strings.Cut(want, " rows")
	return rows + " rows restored, equal"
}

func doParallel(w *workplace) string {
	plan := w.sql("\\c postgres\nEXPLAIN (ANALYZE, COSTS off) SELECT count(*), sum(abalance) FROM pgbench_accounts", "")
	m := regexp.MustCompile(`Workers Launched: ([1-9])`).FindStringSubmatch(plan)
	if m == nil {
		w.t.Fatalf("no parallel worker ran:\n%s", plan)
	}
	w.sql("\\c postgres\nSET max_parallel_maintenance_workers = 4; CREATE INDEX by_balance ON pgbench_accounts (abalance); "+
		"VACUUM (PARALLEL 2) pgbench_accounts; DROP INDEX by_balance", "")
	return "workers ran"
}

func doJIT(w *workplace) string {
	plan := w.sql("\\c postgres\nSET jit = on; SET jit_above_cost = 0; SET jit_inline_above_cost = 0; SET jit_optimize_above_cost = 0;\n"+
		"EXPLAIN ANALYZE SELECT sum(abalance * 2 + bid) FROM pgbench_accounts WHERE aid % 3 = 1", "")
	m := regexp.MustCompile(`JIT:\s+.*?Functions: [1-9]\d*\s+Options: Inlining true, Optimization true`)
	if !m.MatchString(strings.ReplaceAll(plan, "\n", " ")) {
		w.t.Fatalf("nothing was compiled:\n%s", plan)
	}
	return "compiled, inlined, optimised"
}

func doStatements(w *workplace) string {
	w.sql("\\c postgres\nCREATE EXTENSION pg_stat_statements; SELECT 1 AS seen; SELECT count(*) > 0 FROM pg_stat_statements WHERE query LIKE 'SELECT $1 AS seen'", "1\nt")
	return "statements are counted"
}

func doAudit(w *workplace) string {
	w.sql("\\c postgres\nCREATE EXTENSION pgaudit; SET pgaudit.log = 'all'; CREATE TABLE audited (n int); INSERT INTO audited VALUES (1); DROP TABLE audited", "")
	must(w.t, testbed.Await(w.ctx, "the audit log", func(context.Context) error {
		if n := strings.Count(w.log(), "AUDIT: SESSION,"); n < 3 {
			return fmt.Errorf("%d lines", n)
		}
		return nil
	}))
	return "lines are logged"
}

func doLanguages(w *workplace) string {
	w.sql("\\c postgres\n"+`DO $$ BEGIN PERFORM count(*) FROM pgbench_tellers; EXCEPTION WHEN OTHERS THEN RAISE; END $$;
CREATE EXTENSION plperl; CREATE EXTENSION plperlu;
CREATE FUNCTION reversed(text) RETURNS text LANGUAGE plperl AS $$ return scalar reverse $_[0] $$;
CREATE FUNCTION summed() RETURNS int LANGUAGE plperl AS $$ my $s = 0; $s += $_->{n} for @{spi_exec_query('SELECT generate_series(1, 10) AS n')->{rows}}; return $s $$;
CREATE FUNCTION kept(text) RETURNS text LANGUAGE plperlu AS $$ use POSIX (); open(my $f, '+>', 'kept') or die "$!"; print $f $_[0]; seek($f, 0, 0); my $l = <$f>; unlink 'kept'; return $l $$;
SELECT reversed('abc'), summed(), kept('x')`, "cba|55|x")
	return "functions ran"
}

func doTablespaces(w *workplace) string {
	w.sql("\\c postgres\nCREATE TABLESPACE space LOCATION '"+w.space+"'", "")
	w.sql("\\c postgres\nCREATE TABLE there TABLESPACE space AS SELECT generate_series(1, 10000) AS n; SET temp_tablespaces = space; "+
		"CREATE TEMP TABLE passing AS SELECT n FROM there; SELECT count(*) FROM passing; ALTER TABLE there SET TABLESPACE pg_default; "+
		"ALTER TABLE there SET TABLESPACE space; SELECT sum(n) FROM there", "10000\n50005000")
	w.sql("\\c postgres\nDROP TABLE there", "")
	w.sql("\\c postgres\nDROP TABLESPACE space", "")
	return "made, moved, dropped"
}

func doArchive(w *workplace) string {
	name := w.sql("SELECT pg_walfile_name(pg_switch_wal())", "")
	w.await("SELECT last_archived_wal >= '"+name+"' AND failed_count = 0 FROM pg_stat_archiver", "t")
	if info, err := os.Stat(filepath.Join(w.archive, name)); err != nil || info.Size() != 16<<20 {
		w.t.Errorf("the archived file: %v, %v", info, err)
	}
	return "WAL archived by sh and cp"
}

func doMaintenance(w *workplace) string {
	w.client("vacuumdb", "-z", "-j", "2", "postgres")
	w.client("vacuumdb", "--full", "-t", "pgbench_accounts", "postgres")
	w.client("reindexdb", "-t", "pgbench_accounts", "postgres")
	w.sql("\\c postgres\nCLUSTER pgbench_accounts USING pgbench_accounts_pkey", "")
	w.client("clusterdb", "-t", "pgbench_accounts", "postgres")
	w.client("pg_amcheck", "--install-missing", "-t", "pgbench_accounts", "postgres")
	return "done"
}

func doCrash(w *workplace) string {
	w.sql("CREATE TABLE survives AS SELECT generate_series(1, 1000) AS n; CHECKPOINT; INSERT INTO survives VALUES (1001)", "")
	backend := atoi(w.t, w.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'", ""))
	must(w.t, unix.Kill(backend, unix.SIGKILL))
	w.await("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = "+fmt.Sprint(backend), "t")
	w.await("SELECT count(*) FROM survives", "1001")
	w.sql("INSERT INTO survives VALUES (1002)", "")
	pid, err := w.cluster.PID()
	must(w.t, err)
	must(w.t, unix.Kill(pid, unix.SIGKILL))
	w.comesBack(pid)
	w.await("SELECT count(*) FROM survives", "1002")
	return "all rows are there"
}

// comesBack waits until another postmaster is ready. The bare one has nobody to start it.
func (w *workplace) comesBack(old int) {
	w.t.Helper()
	if w.agent == nil {
		must(w.t, w.awaitGone(old))
		// The bed learns of the end of its process a moment later.
		must(w.t, testbed.Await(w.ctx, "the start", func(ctx context.Context) error { return w.cluster.Start(ctx, w.host) }))
	}
	pid := 0
	must(w.t, testbed.Await(w.ctx, "another postmaster", func(context.Context) (err error) {
		if pid, err = w.cluster.PID(); err == nil && pid == old {
			err = fmt.Errorf("it is still %d", pid)
		}
		return errors.Join(err, w.cluster.Ready())
	}))
	if w.agent == nil {
		w.trace.follow(w.t, pid)
		return
	}
	w.awaitReady()
	w.verify()
}

// awaitGone waits for the end of a process and of the server's children, which end without their postmaster.
func (w *workplace) awaitGone(pid int) error {
	return testbed.Await(w.ctx, "the end of the server", func(context.Context) error {
		pids, err := w.host.Processes()
		if err == nil && len(pids) > 0 {
			err = fmt.Errorf("processes %v live, %d among them", pids, pid)
		}
		return err
	})
}
