package launch

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// What a launch found loaded holds for its process and for all that descend from it, and
// for no other that has its number.
func TestFiltersBeforeTheLaunch(t *testing.T) {
	ctx := t.Context()
	spec := Spec{Service: "pg", RecordDir: t.TempDir()}
	child := exec.Command("cat")
	if _, err := child.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	wantNone(t, child.Start())
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	look := func(pid int) before {
		t.Helper()
		status, err := sandbox.ReadStatus(ctx, pid)
		wantNone(t, err)
		b, err := filtersBefore(ctx, spec, status)
		wantNone(t, err)
		return b
	}
	own, err := sandbox.ReadStatus(ctx, 0)
	wantNone(t, err)
	if got := look(os.Getpid()); got != (before{filters: own.Filters}) {
		t.Errorf("without a record: %+v", got)
	}
	recordStart(ctx, spec, 11)
	for _, pid := range []int{os.Getpid(), child.Process.Pid} {
		if got := look(pid); got != (before{filters: 11, known: true}) {
			t.Errorf("with a record: %+v", got)
		}
	}
	other := spec
	other.Service = "pgpool"
	if b, err := filtersBefore(ctx, other, own); err != nil || b.known {
		t.Errorf("another service's record counts: %+v, %v", b, err)
	}
	path := recordPath(spec.RecordDir, "pg", os.Getpid())
	data, err := os.ReadFile(path)
	wantNone(t, err)
	wantNone(t, os.WriteFile(path, []byte(strings.Replace(string(data), `"start_ticks":`, `"start_ticks":1`, 1)), 0o600))
	if got := look(child.Process.Pid); got.known {
		t.Errorf("the record of a process that is gone counts: %+v", got)
	}
}

// Without a record nobody takes several filters for the service's own: a unit has a dozen.
func TestFiltersWithoutARecord(t *testing.T) {
	for filters, want := range map[int]string{0: "mode filters", 1: "", 2: "filters", 12: "filters"} {
		s := confined()
		s.Filters = filters
		if filters == 0 {
			s.Seccomp = 0
		}
		findings := compareSeccomp(s, before{})
		if got := faults(findings); got != want {
			t.Errorf("%d filters: faults %q, want %q", filters, got, want)
		}
		if filters > 1 && !strings.Contains(findings[1].Got, "restart") {
			t.Errorf("%d filters: %q does not say what to do", filters, findings[1].Got)
		}
	}
}
