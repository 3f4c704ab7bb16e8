package agent

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/internal/supervise"
	"github.com/pghardend/pghardend/pkg/firewall"
)

func TestNetfilterLayer(t *testing.T) {
	now := time.Now()
	broken := []reconcile.Problem{{What: "firewall", Text: "no"}}
	badInput := []reconcile.Problem{{What: "config", Text: "bad"}}
	for _, tt := range []struct {
		name     string
		snap     reconcile.Snapshot
		interval time.Duration
		enforced bool
		detail   string
		reasons  int
	}{
		{"before the first pass", reconcile.Snapshot{}, time.Second, false, "no pass yet", 1},
		{"clean", reconcile.Snapshot{Passes: 1, LastLook: now}, time.Second, true, "read back", 0},
		{"bad input", reconcile.Snapshot{Passes: 1, LastLook: now, Problems: badInput}, time.Second, true, "read back", 0},
		{"broken", reconcile.Snapshot{Passes: 1, LastLook: now, Problems: broken}, time.Second, false, "not known to equal the plan", 0},
		{"only a sysctl is wrong", reconcile.Snapshot{Passes: 1, LastLook: now, Problems: []reconcile.Problem{{What: "sysctl"}}}, time.Second, true, "read back", 0},
		{"a connection could not be cut", reconcile.Snapshot{Passes: 1, LastLook: now, Problems: []reconcile.Problem{{What: "connections"}}}, time.Second, false, "see the reasons", 0},
		{"the loop hangs", reconcile.Snapshot{Passes: 1, LastLook: now.Add(-2 * time.Minute)}, time.Second, false, "2m0s ago", 1},
		{"the interval is long", reconcile.Snapshot{Passes: 1, LastLook: now.Add(-70 * time.Second)}, time.Minute, true, "read back", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s control.Status
			l := netfilterLayer(tt.snap, tt.interval, "nft", &s)
			if l.Name != "netfilter" || l.Subject != "node" || !l.Configured || l.Enforced != tt.enforced || !strings.Contains(l.Detail, tt.detail) || len(s.Reasons) != tt.reasons {
				t.Errorf("layer %+v, reasons %q", l, s.Reasons)
			}
		})
	}
}

func TestSysctlLayer(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name     string
		snap     reconcile.Snapshot
		managed  bool
		enforced bool
		detail   string
	}{
		{"before the first pass", reconcile.Snapshot{}, true, false, "no pass yet"},
		{"clean", reconcile.Snapshot{Passes: 1, LastLook: now}, true, true, "read back"},
		{"only the rules are wrong", reconcile.Snapshot{Passes: 1, LastLook: now, Problems: []reconcile.Problem{{What: "firewall"}}}, true, true, "read back"},
		{"wrong", reconcile.Snapshot{Passes: 1, LastLook: now, Problems: []reconcile.Problem{{What: "sysctl"}}}, true, false, "see the reasons"},
		{"the loop hangs", reconcile.Snapshot{Passes: 1, LastLook: now.Add(-2 * time.Minute)}, true, false, "see the reasons"},
		{"nobody asked", reconcile.Snapshot{Passes: 1, LastLook: now}, false, false, "left to others"},
	} {
		l := sysctlLayer(tt.snap, time.Second, tt.managed)
		if l.Name != "sysctl" || l.Subject != "node" || l.Configured != tt.managed || l.Enforced != tt.enforced || !strings.Contains(l.Detail, tt.detail) {
			t.Errorf("%s: %+v", tt.name, l)
		}
	}
}

// What somebody takes away again as fast as it is put back is not enforced, however
// well the last look ended.
func TestFoughtLayerIsNotEnforced(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name   string
		times  int
		each   time.Duration // open
		apart  time.Duration
		ago    time.Duration
		cause  string
		fought bool
	}{
		{"nobody", 0, 0, 0, 0, reconcile.CauseDrift, false},
		{"one drift, found late", 1, 9 * time.Second, 0, 0, reconcile.CauseDrift, false},
		{"each look finds it gone", 9, 900 * time.Millisecond, time.Second, 0, reconcile.CauseDrift, true},
		{"a tool's restart, answered at once", 30, time.Millisecond, 2 * time.Millisecond, 0, reconcile.CauseDrift, false},
		{"an operator's changes", 9, 900 * time.Millisecond, time.Second, 0, reconcile.CauseChange, false},
		{"it is over", 9, 900 * time.Millisecond, time.Second, 11 * time.Second, reconcile.CauseDrift, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, resource := range []string{firewallName, sysctlName} {
				snap := reconcile.Snapshot{Passes: 1, LastLook: now}
				for i := range tt.times {
					snap.Events = append(snap.Events, reconcile.Event{
						Resource: resource, Cause: tt.cause, OpenMS: float64(tt.each.Milliseconds()),
						Repaired: now.Add(-tt.ago - time.Duration(tt.times-i)*tt.apart),
					})
				}
				var s control.Status
				l := sysctlLayer(snap, time.Second, true)
				if resource == firewallName {
					l = netfilterLayer(snap, time.Second, "legacy", &s)
				}
				if l.Enforced == tt.fought || strings.Contains(l.Detail, "others change") != tt.fought {
					t.Errorf("%+v", l)
				}
				if resource == firewallName && tt.fought != (len(s.Reasons) == 1) {
					t.Errorf("reasons %q", s.Reasons)
				}
			}
		})
	}
}

// Rules of the other backend are its users' business, unless they make ours lie.
func TestF08_RulesOfTheOtherBackendAreReported(t *testing.T) {
	for _, tt := range []struct {
		name              string
		other             *firewall.OtherRules
		warnings, reasons int
	}{
		{"not looked at", nil, 0, 0},
		{"none", &firewall.OtherRules{Backend: "legacy"}, 0, 0},
		{"rules", &firewall.OtherRules{Backend: "legacy", Families: [2]firewall.OtherFamily{{Rules: 3, Tables: []string{"filter"}}}}, 1, 0},
		{"ours", &firewall.OtherRules{Backend: "legacy", Families: [2]firewall.OtherFamily{{}, {Rules: 3, Ours: true}}}, 0, 1},
		{"a policy", &firewall.OtherRules{Backend: "legacy", Families: [2]firewall.OtherFamily{{Drops: true}}}, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &ruleWatch{}
			w.other.Store(tt.other)
			var s control.Status
			w.addOther(&s)
			if len(s.Warnings) != tt.warnings || len(s.Reasons) != tt.reasons {
				t.Errorf("warnings %q, reasons %q", s.Warnings, s.Reasons)
			}
		})
	}
}

func TestServiceLayers(t *testing.T) {
	good := launch.Finding{PID: 1, Layer: "dac", Check: "uid", Want: "26", Got: "26", OK: true}
	bad := launch.Finding{PID: 2, Layer: "seccomp", Check: "mode", Want: "2", Got: "0"}
	findings := []launch.Finding{good, {PID: 1, Layer: "seccomp", Check: "mode", Want: "2", Got: "2", OK: true}, good, bad}
	layers := serviceLayers("postgres", 2, findings)
	want := []control.Layer{
		{Name: "dac", Subject: "postgres", Configured: true, Enforced: true, Detail: "2 checks on 2 processes, read from /proc just now"},
		{Name: "seccomp", Subject: "postgres", Configured: true, Enforced: false, Detail: "process 2: seccomp mode is 0, not 2"},
	}
	if !slices.Equal(layers, want) {
		t.Errorf("got %+v, want %+v", layers, want)
	}
	if got := failures("postgres", findings); !slices.Equal(got, []string{"service postgres: process 2: seccomp mode is 0, not 2"}) {
		t.Errorf("failures %q", got)
	}
}

func TestServicesInStatus(t *testing.T) {
	a := &Agent{}
	d := &Desired{Services: []launch.Spec{{Service: "postgres"}}}
	for _, tt := range []struct {
		state  supervise.Status
		reason string // "" is none
	}{
		{supervise.Status{Name: "postgres", State: supervise.StateBackoff, LastError: "exit status 1"}, "service postgres is backoff: exit status 1"},
		{supervise.Status{Name: "postgres", State: supervise.StateWaiting}, "service postgres is waiting"},
		{supervise.Status{Name: "postgres", State: supervise.StateStopped}, "service postgres is stopped"},
		{supervise.Status{Name: "gone", State: supervise.StateReady, PID: 42}, "service gone is not in the configuration any more but still runs; `pghardend stop --service gone` ends it"},
		{supervise.Status{Name: "gone", State: supervise.StateBackoff}, "service gone is not in the configuration any more and is backoff; `pghardend stop --service gone` ends the attempts"},
		{supervise.Status{Name: "gone", State: supervise.StateStopped}, ""},
	} {
		var s control.Status
		a.addService(t.Context(), d, tt.state, &s)
		var want []string
		if tt.reason != "" {
			want = []string{tt.reason}
		}
		if !slices.Equal(s.Reasons, want) {
			t.Errorf("%+v: reasons %q, want %q", tt.state, s.Reasons, want)
		}
		if len(s.Services) != 1 || s.Services[0].Name != tt.state.Name {
			t.Errorf("services %+v", s.Services)
		}
	}
}

// A process that cannot be looked at is no process that was verified.
func TestServiceThatCannotBeVerified(t *testing.T) {
	a := &Agent{}
	d := &Desired{Services: []launch.Spec{{Service: "postgres"}}}
	var s control.Status
	a.addService(t.Context(), d, supervise.Status{Name: "postgres", State: supervise.StateReady, PID: os.Getpid()}, &s)
	if len(s.Reasons) != 1 || !strings.Contains(s.Reasons[0], "service postgres cannot be verified: ") || len(s.Layers) != 0 {
		t.Errorf("status %+v", s)
	}
}

// Scripts iterate over the lists, so none is null.
func TestStatusHasNoNulls(t *testing.T) {
	f := newFiles(t)
	s := f.started()
	rules := &fakeRules{}
	a := testAgent(t, s, rules)
	data, err := json.Marshal(a.Status(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "null") {
		t.Errorf("%s", data)
	}
	for _, key := range []string{`"node":"pg-0"`, `"role":"postgres"`, `"instance":"orders-prod"`, `"state":"degraded"`, `the first pass has not ended yet`} {
		if !strings.Contains(string(data), key) {
			t.Errorf("%s lacks %s", data, key)
		}
	}
}

func TestStatusTellsProblemsAndDrift(t *testing.T) {
	f := newFiles(t)
	s := f.started()
	rules := &fakeRules{}
	a := testAgent(t, s, rules)
	run(t, a)
	if st, err := a.Apply(t.Context(), control.ApplyRequest{}); err != nil || st.State != control.StateOK || len(st.Reasons) != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	rules.set("flushed", nil)
	st, err := a.Apply(t.Context(), control.ApplyRequest{})
	if err != nil || len(st.Drift) == 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	if d := st.Drift[len(st.Drift)-1]; d.Resource != "firewall" || d.Cause != reconcile.CauseDrift || d.What != "flushed" || d.Repaired.IsZero() || d.OpenMS <= 0 {
		t.Errorf("drift %+v", d)
	}
	rules.set("flushed again", errors.New("xtables lock held"))
	f.write(f.peers, "")
	_, err = a.Apply(t.Context(), control.ApplyRequest{})
	contains(t, err, "xtables lock held", "peers.yaml:1: the file is empty", stays)
	st = a.Status(t.Context())
	if st.State != control.StateDegraded || len(st.Reasons) != 2 || st.Layers[0].Enforced {
		t.Errorf("%+v", st)
	}
	contains(t, errors.New(strings.Join(st.Reasons, "\n")), "config: ", "firewall: ", "(since 20")
}

func TestSummary(t *testing.T) {
	services := []supervise.Status{{Name: "a", State: supervise.StateReady}, {Name: "b", State: supervise.StateFailed}}
	if got := summary(reconcile.Snapshot{Passes: 1}, services); got != "rules in place; a ready; b failed" {
		t.Error(got)
	}
}
