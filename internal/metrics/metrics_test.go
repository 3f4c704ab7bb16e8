package metrics

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeSource says what it is told to.
type fakeSource struct {
	state   State
	packets []Packets
	err     error
	hold    chan struct{} // if not nil, State waits for it

	states, counters atomic.Int32 // calls
}

func (s *fakeSource) State(ctx context.Context) State {
	s.states.Add(1)
	if s.hold != nil {
		select {
		case <-s.hold:
		case <-ctx.Done():
		}
	}
	return s.state
}

func (s *fakeSource) Packets(context.Context) ([]Packets, error) {
	s.counters.Add(1)
	return s.packets, s.err
}

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != contentType {
		t.Fatalf("status %d, %v", w.Code, w.Header())
	}
	return w.Body.String()
}

func TestPage(t *testing.T) {
	m := New("1.2.3", "nft", &fakeSource{
		state: State{
			Layers:   []Layer{{"netfilter", "node", true}, {"seccomp", "postgres", false}},
			Degraded: true, Conflicts: 1,
			LastReconcile: time.UnixMilli(1700000000250),
			Sets:          map[string]int{"pgh6-postgres": 1, "pgh4-applications": 10000},
		},
		packets: []Packets{
			{"ipv6", "in", "postgres", "accept", 10, 6000},
			{"ipv4", "in", "drop", "drop", 7, 420},
			{"ipv4", "in", "drop", "drop", 1, 60},
		},
		err: errors.New("ip6tables-save: killed"),
	})
	m.Drift("firewall", "drift")
	m.Drift("firewall", "drift")
	m.Drift("sysctl", "start")
	m.Repaired("firewall", 1500*time.Microsecond)
	m.Repaired("firewall", 2*time.Millisecond)
	m.Repaired("firewall", time.Hour)
	m.Denied(1, "postgres", "execve")
	m.Blocked(2, "postgres")
	m.DeniedSELinux("postgres", "file")
	m.Lost()
	const want = `# HELP pghardend_build_info The daemon's version and the backend of iptables in use.
# TYPE pghardend_build_info gauge
pghardend_build_info{version="1.2.3",backend="nft"} 1
# HELP pghardend_degraded 1 if not everything is as desired; ` + "`pghardend status`" + ` says why.
# TYPE pghardend_degraded gauge
pghardend_degraded 1
# HELP pghardend_conflicts Resources that somebody else changes again and again.
# TYPE pghardend_conflicts gauge
pghardend_conflicts 1
# HELP pghardend_last_reconcile_timestamp_seconds End of the last full comparison with the kernel.
# TYPE pghardend_last_reconcile_timestamp_seconds gauge
pghardend_last_reconcile_timestamp_seconds 1.70000000025e+09
# HELP pghardend_last_clean_timestamp_seconds End of the last pass that left everything as desired.
# TYPE pghardend_last_clean_timestamp_seconds gauge
pghardend_last_clean_timestamp_seconds 0
# HELP pghardend_layer_enforced 1 if the kernel was seen to enforce the layer on the subject, which is a service or the node.
# TYPE pghardend_layer_enforced gauge
pghardend_layer_enforced{layer="netfilter",subject="node"} 1
pghardend_layer_enforced{layer="seccomp",subject="postgres"} 0
# HELP pghardend_set_members Members of a set.
# TYPE pghardend_set_members gauge
pghardend_set_members{set="pgh4-applications"} 10000
pghardend_set_members{set="pgh6-postgres"} 1
# HELP pghardend_packets_total Packets that a flow or reason decided about.
# TYPE pghardend_packets_total counter
pghardend_packets_total{family="ipv4",direction="in",flow="drop",verdict="drop"} 8
pghardend_packets_total{family="ipv6",direction="in",flow="postgres",verdict="accept"} 10
# HELP pghardend_bytes_total Bytes of the packets that a flow or reason decided about.
# TYPE pghardend_bytes_total counter
pghardend_bytes_total{family="ipv4",direction="in",flow="drop",verdict="drop"} 480
pghardend_bytes_total{family="ipv6",direction="in",flow="postgres",verdict="accept"} 6000
# HELP pghardend_drifts_total Times that a resource was not as desired.
# TYPE pghardend_drifts_total counter
pghardend_drifts_total{resource="firewall",cause="drift"} 2
pghardend_drifts_total{resource="sysctl",cause="start"} 1
# HELP pghardend_repair_seconds How long a drift was open at most, until it was seen to be repaired.
# TYPE pghardend_repair_seconds histogram
pghardend_repair_seconds_bucket{resource="firewall",le="0.0005"} 0
pghardend_repair_seconds_bucket{resource="firewall",le="0.001"} 0
pghardend_repair_seconds_bucket{resource="firewall",le="0.002"} 2
pghardend_repair_seconds_bucket{resource="firewall",le="0.005"} 2
pghardend_repair_seconds_bucket{resource="firewall",le="0.01"} 2
pghardend_repair_seconds_bucket{resource="firewall",le="0.025"} 2
pghardend_repair_seconds_bucket{resource="firewall",le="0.05"} 2
pghardend_repair_seconds_bucket{resource="firewall",le="0.1"} 2
pghardend_repair_seconds_bucket{resource="firewall",le="0.25"} 2
pghardend_repair_seconds_bucket{resource="firewall",le="0.5"} 2
pghardend_repair_seconds_bucket{resource="firewall",le="1"} 2
pghardend_repair_seconds_bucket{resource="firewall",le="2.5"} 2
pghardend_repair_seconds_bucket{resource="firewall",le="10"} 2
pghardend_repair_seconds_bucket{resource="firewall",le="+Inf"} 3
pghardend_repair_seconds_sum{resource="firewall"} 3600.0035
pghardend_repair_seconds_count{resource="firewall"} 3
# HELP pghardend_denied_syscalls_total Syscalls that a seccomp filter denied and the kernel recorded.
# TYPE pghardend_denied_syscalls_total counter
pghardend_denied_syscalls_total{service="postgres",syscall="execve"} 1
# HELP pghardend_denied_execs_total Programs that a service tried to execute and may not.
# TYPE pghardend_denied_execs_total counter
pghardend_denied_execs_total{service="postgres"} 2
# HELP pghardend_denied_selinux_total Accesses that SELinux denied a service, by class of what it wanted.
# TYPE pghardend_denied_selinux_total counter
pghardend_denied_selinux_total{service="postgres",class="file"} 1
# HELP pghardend_events_lost_total Times that notifications of changes were lost; all is read anew then.
# TYPE pghardend_events_lost_total counter
pghardend_events_lost_total 1
# HELP pghardend_scrape_errors_total Times that not all packet counters could be read.
# TYPE pghardend_scrape_errors_total counter
pghardend_scrape_errors_total 1
`
	if d := cmp.Diff(strings.Split(want, "\n"), strings.Split(scrape(t, m), "\n")); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// sampleLine is the format's grammar of a sample as Prometheus reads it.
var sampleLine = regexp.MustCompile(`^[a-z_]+(\{[a-z]+="([^"\\\n]|\\["\\n])*"(,[a-z]+="([^"\\\n]|\\["\\n])*")*\})? [0-9.e+-]+$`)

// samples checks each line and counts those that are no comments.
func samples(t testing.TB, text string) int {
	t.Helper()
	n := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "# HELP ") || strings.HasPrefix(line, "# TYPE ") {
			continue
		}
		if !sampleLine.MatchString(line) {
			t.Errorf("%q is not a sample", line)
		}
		n++
	}
	return n
}

// Whatever is fed in, the number of samples is bounded, and the counts are whole.
func TestCardinalityIsBounded(t *testing.T) {
	const many = 10000
	src := &fakeSource{state: State{Sets: map[string]int{}}}
	m := New("1", "nft", src)
	for i := range many {
		strange := fmt.Sprintf("strange \"%d\"\\\n\xff{}", i)
		m.Drift(strange, strange)
		m.Repaired(strange, time.Second)
		m.Denied(1, strange, strange)
		src.state.Sets[strange] = i
		src.state.Layers = append(src.state.Layers, Layer{Name: strange, Subject: strange})
		src.packets = append(src.packets, Packets{strange, strange, strange, strange, 1, 1})
	}
	text := scrape(t, m)
	const singles = 7
	most := singles + maxDrifts + 1 + (maxResources+1)*(len(buckets)+3) + maxDenied + 1 + 2*(maxPackets+1) + maxSets + maxLayers
	if n := samples(t, text); n > most {
		t.Errorf("%d samples, at most %d are allowed", n, most)
	}
	for _, want := range []string{
		fmt.Sprintf(`pghardend_drifts_total{resource="other",cause="other"} %d`, many-maxDrifts),
		fmt.Sprintf(`pghardend_denied_syscalls_total{service="other",syscall="other"} %d`, many-maxDenied),
		fmt.Sprintf(`pghardend_packets_total{family="other",direction="other",flow="other",verdict="other"} %d`, many-maxPackets),
		fmt.Sprintf(`pghardend_repair_seconds_count{resource="other"} %d`, many-maxResources),
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	before := samples(t, text)
	m.Drift("one more", "one more")
	m.Denied(1, "one more", "one more")
	if after := samples(t, scrape(t, m)); after != before {
		t.Errorf("%d samples, then %d", before, after)
	}
}

// A scraper in a hurry costs no more than one that takes its time.
func TestSourceIsAskedOnceInAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &fakeSource{}
		m := New("1", "nft", src)
		for range 1000 { // for 10 s
			scrape(t, m)
			<-time.After(10 * time.Millisecond)
		}
		if states, counters := src.states.Load(), src.counters.Load(); states != 10 || counters != 2 {
			t.Errorf("asked %d times for the state and %d times for counters", states, counters)
		}
	})
}

// F25: while a scrape waits for the source, others get what was read before, and
// counting goes on; the source is not waited for for ever.
func TestF25_AScrapeThatWaitsHoldsNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &fakeSource{state: State{Conflicts: 1}}
		m := New("1", "nft", src)
		scrape(t, m)
		<-time.After(stateFor)
		src.hold, src.state.Conflicts = make(chan struct{}), 2
		waited := make(chan string)
		go func() { waited <- scrape(t, m) }()
		synctest.Wait()
		began := time.Now()
		m.Drift("firewall", "drift")
		text := scrape(t, m)
		if !strings.Contains(text, "pghardend_conflicts 1\n") || !strings.Contains(text, `{resource="firewall",cause="drift"} 1`) || !time.Now().Equal(began) {
			t.Errorf("after %s:\n%s", time.Since(began), text)
		}
		if text := <-waited; !strings.Contains(text, "pghardend_conflicts 2\n") || time.Since(began) != askTimeout {
			t.Errorf("after %s:\n%s", time.Since(began), text)
		}
	})
}

// The first scrapes have nothing to fall back on, so each waits: a state that
// nobody has read must not look like a good one.
func TestFirstScrapesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &fakeSource{state: State{Degraded: true}, hold: make(chan struct{})}
		m := New("1", "nft", src)
		texts := make(chan string, 3)
		for range 3 {
			go func() { texts <- scrape(t, m) }()
		}
		synctest.Wait()
		if len(texts) != 0 {
			t.Fatalf("answered before anything was read:\n%s", <-texts)
		}
		close(src.hold)
		for range 3 {
			if text := <-texts; !strings.Contains(text, "pghardend_degraded 1\n") {
				t.Error(text)
			}
		}
	})
}

func FuzzLabels(f *testing.F) {
	f.Add("postgres", "execve")
	f.Add("a\"b\\c\nd", "\xff\x00")
	f.Fuzz(func(t *testing.T, service, syscall string) {
		m := New("1", "nft", &fakeSource{})
		m.Denied(1, service, syscall)
		samples(t, scrape(t, m))
	})
}
