// Package suites shows that PostgreSQL does all its work in the box: its own regression and isolation tests, those of
// languages and contrib modules, and what operators do with it, on a server that pghardend has launched with every layer,
// and, where results are compared, on the same programs unconfined. The kernel says of each system call of the server
// that failed with what a filter or Landlock answers; what the unconfined server does not meet as well is a denial, and
// none is accepted but those in deniedByDesign.
//
// make test-postgres fetches the tests (scripts/postgres-suites.sh) and runs this; a table of all that was run is its end.
package suites

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"github.com/pghardend/pghardend/internal/testbed"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "test/suites makes namespaces: run it as root")
		os.Exit(1)
	}
	unmount, err := mountTracefs()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	removeTraces()
	code := testbed.Main(func(context.Context) int { return m.Run() })
	removeTraces()
	if err := unmount(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	fmt.Fprint(os.Stdout, summary.text())
	if err := summary.write(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// report is the table of what was run.
type report struct {
	mu   sync.Mutex
	rows []row
}

// row is one piece of work. Denials has "none", or what was denied.
type row struct {
	work, confined, bare, denials string
}

var summary report

// add records a piece of work. bare is empty if it was done confined only.
func (r *report) add(t *testing.T, work, confined, bare, denials string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if bare == "" {
		bare = "-"
	}
	if t.Failed() {
		work += " (FAILED)"
	}
	r.rows = append(r.rows, row{work, confined, bare, denials})
}

func (r *report) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rows) == 0 {
		return ""
	}
	var s strings.Builder
	fmt.Fprintf(&s, "\nWhat was run, on a server with seccomp, Landlock, no capabilities, no_new_privs and limits, and unconfined:\n\n")
	w := tabwriter.NewWriter(&s, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "WORK\tCONFINED\tUNCONFINED\tUNEXPECTED DENIALS")
	for _, row := range r.rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", row.work, row.confined, row.bare, row.denials)
	}
	w.Flush()
	return s.String()
}
