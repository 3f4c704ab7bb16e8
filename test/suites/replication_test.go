package suites

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/pghardend/pghardend/internal/testbed"
)

// Both servers are confined: a base backup becomes a standby that streams, falls back on the archive, is promoted, and then
// takes its changes by logical replication.
func TestReplication(t *testing.T) {
	ctx, bed := newBed(t)
	primary := newWorkplace(newServer(ctx, t, bed, "pg-0", map[string]string{"archive_mode": "on", "wal_level": "logical", "wal_log_hints": "on"}))
	primary.confine(bed, func(s *testbed.Service) {
		allow("write", primary.archive)(s)
		helpers(t, "sh", "cp")(s)
	})
	primary.start()
	standby := newServer(ctx, t, bed, "pg-1", nil)
	standby.confine(bed, func(s *testbed.Service) {
		allow("read", primary.archive)(s)
		helpers(t, "sh", "cp")(s)
	})
	n := 0
	step := func(name string, do func(t *testing.T) string) {
		t.Run(name, func(t *testing.T) {
			primary.t, standby.t = t, t
			said := do(t)
			denied := unexpected(t, total(primary.server, standby), nil)
			summary.add(t, name, said, "", denied)
			n++
		})
	}
	primary.sql("\\c postgres\nCREATE TABLE moved (n int PRIMARY KEY); INSERT INTO moved SELECT generate_series(1, 1000)", "")
	step("pg_basebackup", func(*testing.T) string {
		standby.baseBackup(primary, "tar", "--gzip")
		standby.baseBackup(primary, "plain", "-R", "-C", "-S", "standby")
		appendTo(t, filepath.Join(standby.cluster.Data, "postgresql.conf"), fmt.Sprintf(
			"unix_socket_directories = '%s'\nrestore_command = 'cp %s/%%f %%p'\narchive_mode = off\n", standby.cluster.Socket, primary.archive))
		return "tar and plain, with slot"
	})
	step("streaming replication, restore_command", func(*testing.T) string {
		primary.sql("\\c postgres\nINSERT INTO moved VALUES (1001); SELECT pg_switch_wal() IS NOT NULL", "t")
		standby.start()
		primary.await("SELECT string_agg(state, ' ') FROM pg_stat_replication", "streaming")
		primary.sql("\\c postgres\nINSERT INTO moved VALUES (1002)", "")
		standby.await("\\c postgres\nSELECT count(*) FROM moved", "1002")
		return "streaming"
	})
	step("promotion", func(*testing.T) string {
		standby.sql("SELECT pg_promote()", "t")
		standby.sql("SELECT pg_is_in_recovery()", "f")
		standby.sql("\\c postgres\nINSERT INTO moved VALUES (2000)", "")
		return "promoted, writes"
	})
	step("logical replication", func(*testing.T) string {
		primary.sql("\\c postgres\nCREATE TABLE told (n int PRIMARY KEY); INSERT INTO told SELECT generate_series(1, 1000); CREATE PUBLICATION p FOR TABLE told", "")
		standby.sql(fmt.Sprintf("\\c postgres\nCREATE TABLE told (n int PRIMARY KEY);\nCREATE SUBSCRIPTION s CONNECTION 'host=%s port=%d user=%s dbname=postgres' PUBLICATION p",
			primary.host.V4(), primary.cluster.Port, testbed.Superuser), "")
		standby.await("\\c postgres\nSELECT count(*) FROM told", "1000")
		primary.sql("\\c postgres\nINSERT INTO told VALUES (1001); UPDATE told SET n = -n WHERE n < 11; DELETE FROM told WHERE n = 500", "")
		standby.await("\\c postgres\nSELECT count(*) || ' ' || sum(n) FROM told", strconv.Itoa(1000)+" "+strconv.Itoa(1001*1002/2-500-2*55))
		standby.sql("\\c postgres\nDROP SUBSCRIPTION s", "")
		return "initial copy and changes"
	})
	primary.t, standby.t = t, t
	primary.verify()
	standby.verify()
	standby.stop()
	primary.stop()
	unexpected(t, total(primary.server, standby), nil)
	if n != 4 {
		t.Errorf("%d steps were done", n)
	}
}

// total counts the failures of servers that run, or ran.
func total(servers ...*server) map[failure]int {
	sum := map[failure]int{}
	for _, s := range servers {
		if s.trace == nil {
			continue
		}
		for f, n := range s.failures() {
			sum[f] += n
		}
	}
	return sum
}

// baseBackup replaces the data directory by a copy of another server's, over the network.
func (s *server) baseBackup(from *workplace, format string, more ...string) {
	s.t.Helper()
	must(s.t, os.RemoveAll(s.cluster.Data))
	must(s.t, os.Mkdir(s.cluster.Data, 0o700))
	must(s.t, s.own(s.cluster.Data))
	args := append([]string{"-D", s.cluster.Data, "-F", format, "-c", "fast", "-X", "stream", "-h", from.host.V4().String(),
		"-p", strconv.Itoa(from.cluster.Port), "-U", testbed.Superuser}, more...)
	cmd := s.host.CommandAs(s.ctx, s.cluster.User, filepath.Join(s.cluster.BinDir, "pg_basebackup"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("pg_basebackup: %v\n%s", err, out)
	}
}
