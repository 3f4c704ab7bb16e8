package suites

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/testbed"
)

// What the environment says to tests of another PostgreSQL than the installed one, or on another system; test/versions
// sets it. internal/testbed has variables for the server and the program.
const (
	suitesVariable = "PGHARDEND_TEST_SUITES" // a directory as scripts/postgres-suites.sh makes it
	lacksVariable  = "PGHARDEND_TEST_LACKS"  // words, each one's piece of work is left out: this build does not have it
	rowsVariable   = "PGHARDEND_TEST_ROWS"   // a file to which the table of what was run is written, tabs between columns
)

// notBuilt is in the table for work that was left out.
const notBuilt = "left out: not in this build, or not with these clients"

// lacks says whether a build of PostgreSQL was declared to lack something.
func lacks(what string) bool {
	return what != "" && slices.Contains(strings.Fields(os.Getenv(lacksVariable)), what)
}

// write puts the rows into the file that was asked for.
func (r *report) write() error {
	file := os.Getenv(rowsVariable)
	if file == "" {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var s strings.Builder
	for _, row := range r.rows {
		fmt.Fprintf(&s, "%s\t%s\t%s\t%s\n", row.work, row.confined, row.bare, row.denials)
	}
	return os.WriteFile(file, []byte(s.String()), 0o600)
}

// version is the server's major.
func (s *server) version() int {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.cluster.Data, "PG_VERSION"))
	must(s.t, err)
	return atoi(s.t, strings.TrimSpace(string(text)))
}

// collectorUntil is the last version with a process for statistics, to which the others send datagrams.
const collectorUntil = 14

// Statistics of tables, which until PostgreSQL 14 go through UDP on the loopback interface.
func doTableStatistics(w *workplace) string {
	w.sql("\\c postgres\nCREATE TABLE counted AS SELECT generate_series(1, 100) AS n; SELECT count(*) FROM counted", "100")
	w.await("\\c postgres\nSELECT n_tup_ins || ' ' || (seq_tup_read >= 100) FROM pg_stat_user_tables WHERE relname = 'counted'", "100 true")
	if w.version() > collectorUntil {
		return "counted, in shared memory"
	}
	if n := connectedUDP(w.t, w.server); n == 0 {
		w.t.Error("no socket of the statistics collector is there")
	}
	return "counted, by UDP"
}

// connectedUDP counts the host's UDP sockets that are connected.
func connectedUDP(t *testing.T, s *server) int {
	t.Helper()
	n := 0
	for _, file := range []string{"/proc/net/udp", "/proc/net/udp6"} {
		text, err := s.host.Run(s.ctx, "cat", file)
		must(t, err)
		for line := range strings.Lines(text) {
			// Number, local, remote, state: 01 is established.
			if f := strings.Fields(line); len(f) > 3 && f[3] == "01" {
				n++
			}
		}
	}
	return n
}

// Declared programs bring calls of their own into the profile, which could hide that the server or its loader needs one.
func TestWithoutHelpers(t *testing.T) {
	ctx, bed := newBed(t)
	places := []*workplace{{server: newServer(ctx, t, bed, "pg-0", nil)}, {server: newServer(ctx, t, bed, "pg-1", nil)}}
	places[0].confine(bed, nil)
	said := make([]string, len(places))
	for i, w := range places {
		w.start()
		said[i] = doPgbench(w)
		said[i] += "; " + doTableStatistics(w)
		w.stop()
	}
	summary.add(t, "the defaults: no helpers, no features but auto", said[0], said[1], unexpected(t, places[0].failures(), places[1].failures()))
}

// Reading ahead from PostgreSQL 18 on: by workers, which is the default, or by io_uring, which is a feature of the profile.
func TestReadAhead(t *testing.T) {
	ctx, bed := newBed(t)
	if s := newServer(ctx, t, bed, "pg-0", nil); s.version() < 18 {
		s.start()
		s.sql("SELECT count(*) FROM pg_settings WHERE name = 'io_method'", "0")
		s.stop()
		return
	}
	for _, method := range []string{"worker", "io_uring", "sync"} {
		t.Run(method, func(t *testing.T) { readAhead(t, method) })
	}
}

func readAhead(t *testing.T, method string) {
	ctx, bed := newBed(t)
	places := []*server{newServer(ctx, t, bed, "pg-0", nil), newServer(ctx, t, bed, "pg-1", nil)}
	const work = "io_method = "
	if lacks(method) {
		summary.add(t, work+method, notBuilt, "", "-")
		return
	}
	for _, s := range places {
		appendTo(t, filepath.Join(s.cluster.Data, "postgresql.conf"),
			fmt.Sprintf("io_method = %s\nshared_buffers = 1MB\neffective_io_concurrency = 32\n", method))
	}
	features := []string{"auto"}
	if method == "io_uring" {
		features = append(features, "io_uring")
	}
	places[0].confine(bed, func(s *testbed.Service) {
		s.Features = features
		if method == "io_uring" {
			s.Limits["memlock"] = ringMemory
		}
	})
	said := make([]string, len(places))
	for i, s := range places {
		s.start()
		s.sql("SHOW io_method", method)
		s.sql("\\c postgres\nCREATE TABLE large AS SELECT n, repeat('x', 500) AS filler FROM generate_series(1, 40000) AS n; "+
			"CHECKPOINT; SELECT count(*), sum(length(filler)) FROM large", "40000|20000000")
		said[i] = "40000 rows read"
		if method == "io_uring" {
			pid, err := s.cluster.PID()
			must(t, err)
			said[i] += fmt.Sprintf(", rings: %v", rings(t, pid) > 0)
			if rings(t, pid) == 0 {
				t.Errorf("the server has no ring")
			}
		}
		s.stop()
	}
	summary.add(t, work+method, said[0], said[1], unexpected(t, places[0].failures(), places[1].failures()))
}

// ringMemory is for the rings of all processes, in bytes: the kernel counts them against the user's RLIMIT_MEMLOCK
// (io_uring_setup(2)), and without enough the server does not start: "could not setup io_uring queue".
const ringMemory = 8 << 20

// rings counts the descriptors of io_uring that a process has.
func rings(t *testing.T, pid int) int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	must(t, err)
	n := 0
	for _, file := range files {
		if link, err := os.Readlink(file); err == nil && link == "anon_inode:[io_uring]" {
			n++
		}
	}
	return n
}
