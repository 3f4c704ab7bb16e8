package agent

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/internal/metrics"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/audit"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// stillSource has nothing to say.
type stillSource struct{ metrics.Source }

func (stillSource) State(context.Context) metrics.State                { return metrics.State{} }
func (stillSource) Packets(context.Context) ([]metrics.Packets, error) { return nil, nil }

// counted are the samples of the page whose names begin with a word.
func counted(t *testing.T, m *agentMetrics, word string) []string {
	t.Helper()
	w := httptest.NewRecorder()
	m.handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	var lines []string
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, word) {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return lines
}

// countingMetrics has a service postgres that runs as pid root.
func countingMetrics(root int) *agentMetrics {
	return &agentMetrics{
		metrics: metrics.New("1", "nft", stillSource{}),
		open:    map[uint64]bool{},
		owners: newOwners(func() map[int]string { return map[int]string{root: "postgres"} }, func(exe string) string {
			return map[string]string{"/opt/pg/postgres": "postgres"}[exe]
		}),
	}
}

// The loop tells of an event when it is new and when it is over: one drift, one
// repair.
func TestMetricsCountEventsOnce(t *testing.T) {
	m := countingMetrics(0)
	now := time.Now()
	drift := func(id uint64, repaired time.Time) reconcile.Event {
		return reconcile.Event{ID: id, Resource: "firewall", Cause: reconcile.CauseDrift, Found: now, Repaired: repaired, OpenMS: 1.5}
	}
	m.event(drift(1, now)) // by reflex: over when it is told
	m.event(drift(2, time.Time{}))
	m.event(drift(2, time.Time{})) // a repair that failed again
	m.event(drift(2, now))
	m.event(drift(3, time.Time{}))
	m.event(reconcile.Event{ID: 4, Resource: "firewall", Cause: reconcile.CauseChange, Repaired: now, OpenMS: 900})
	want := []string{`pghardend_drifts_total{resource="firewall",cause="change"} 1`, `pghardend_drifts_total{resource="firewall",cause="drift"} 3`}
	if d := cmp.Diff(want, counted(t, m, "pghardend_drifts_total")); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if d := cmp.Diff([]string{`pghardend_repair_seconds_sum{resource="firewall"} 0.003`}, counted(t, m, "pghardend_repair_seconds_sum")); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestMetricsForgetOpenEvents(t *testing.T) {
	m := countingMetrics(0)
	for id := range uint64(3 * maxOpenEvents) {
		m.event(reconcile.Event{ID: id, Resource: "firewall", Cause: reconcile.CauseDrift})
	}
	if len(m.open) > maxOpenEvents {
		t.Errorf("%d events are kept", len(m.open))
	}
}

// A denial counts for the service above the process, under a name that is known.
func TestMetricsCountDenials(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "echo up; read line")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = cmd.Wait()
	}()
	m := countingMetrics(os.Getpid())
	denial := audit.Denial{PID: os.Getpid(), Exe: "/opt/pg/postgres", Syscall: "execve", Known: true, Action: audit.ActionErrno}
	for _, change := range []func(*audit.Denial){
		func(*audit.Denial) {},
		func(d *audit.Denial) { d.PID = cmd.Process.Pid },                   // a child
		func(d *audit.Denial) { d.PID = 1 << 30; d.Action = "kill" },        // gone, known by its program
		func(d *audit.Denial) { d.PID = 1<<30 + 1; d.Exe = "/opt/browser" }, // gone, somebody's
		func(d *audit.Denial) { d.PID = 1 },                                 // of no service
		func(d *audit.Denial) { d.Syscall, d.Known = "9999", false },
		func(d *audit.Denial) { d.Syscall, d.Known = "10000", false },
		func(d *audit.Denial) { d.Action = audit.ActionLog }, // let through
	} {
		d := denial
		change(&d)
		m.denied(t.Context(), d)
	}
	want := []string{
		`pghardend_denied_syscalls_total{service="postgres",syscall="execve"} 3`,
		`pghardend_denied_syscalls_total{service="postgres",syscall="unknown"} 2`,
	}
	if d := cmp.Diff(want, counted(t, m, "pghardend_denied")); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// A flood of denials asks /proc once in a while.
func TestOwnersAreKept(t *testing.T) {
	asked := 0
	o := newOwners(func() map[int]string { asked++; return map[int]string{os.Getpid(): "postgres"} }, func(string) string { return "" })
	for range 1000 {
		if got := o.of(t.Context(), os.Getpid(), ""); got != "postgres" {
			t.Fatalf("got %q", got)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	for pid := range 3 * maxOwners {
		o.of(t.Context(), 1<<30+pid, "")
	}
	if len(o.known) > maxOwners {
		t.Errorf("%d processes are kept", len(o.known))
	}
}

// What is shown of layers and sets is what the last pass has seen.
func TestMetricsState(t *testing.T) {
	rules := &fakeRules{applied: make(chan struct{}, 1)}
	a := testAgent(t, newFiles(t).started(), rules)
	source := metricsSource{a}
	if s := source.State(t.Context()); !s.Degraded || len(s.Sets) != 0 || !s.LastReconcile.IsZero() {
		t.Errorf("before the first pass: %+v", s)
	}
	run(t, a)
	<-a.loop.Enforced()
	s := source.State(t.Context())
	if s.Degraded || s.Conflicts != 0 || s.LastReconcile.IsZero() || s.LastClean.IsZero() {
		t.Errorf("after it: %+v", s)
	}
	if !slices.Contains(s.Layers, metrics.Layer{Name: "netfilter", Subject: "node", Enforced: true}) {
		t.Errorf("layers %+v", s.Layers)
	}
	if s.Sets["pgh4-pgpool"] != 2 || s.Sets["pgh6-pgpool"] != 1 || s.Sets["pgh4-control_plane"] != 1 {
		t.Errorf("sets %v", s.Sets)
	}
}

// The names that a flow or reason may have in labels are those of our rules.
func TestTags(t *testing.T) {
	d := newFiles(t).started().current
	known := tags(d.Rules)
	for _, want := range []string{"postgres", "ssh", "established", "drop"} {
		if !known[want] {
			t.Errorf("no %s in %v", want, slices.Sorted(maps.Keys(known)))
		}
	}
	if len(known) > len(d.Firewall.Flows)+32 {
		t.Errorf("%d names: %v", len(known), slices.Sorted(maps.Keys(known)))
	}
	if len(tags(firewall.Ruleset{})) != 0 {
		t.Error("names without rules")
	}
}

// Metrics that cannot be served are said in status, and hold up nothing.
func TestMetricsPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	m := &agentMetrics{metrics: metrics.New("v", "nft", metricsSource{}), listen: taken.Addr().String(), log: slog.New(slog.DiscardHandler), owners: newOwners(nil, nil)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.run(ctx) }()
	awaitTrue(t, "there is no warning", func() bool { return len(m.warnings()) == 1 })
	if w := m.warnings()[0]; !strings.Contains(w, "not served on "+m.listen) || !strings.Contains(w, "address already in use") {
		t.Error(w)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
