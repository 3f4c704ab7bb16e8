package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

// EXPLAIN tells of JIT only where it shows costs.
const jitQuery = "EXPLAIN ANALYZE SELECT sum(n) FROM generate_series(1, 1000) n"

// jitOn makes each query worth compiling.
var jitOn = map[string]string{"jit": "on", "jit_above_cost": "0", "jit_inline_above_cost": "0", "jit_optimize_above_cost": "0"}

// Without the feature nothing is compiled, queries run all the same, and no setting
// brings it back; with it queries are compiled. No call is denied on the way.
func TestFeatureJIT(t *testing.T) {
	for name, features := range map[string][]string{"auto": nil, "allowed": {"auto", "jit"}} {
		t.Run(name, func(t *testing.T) {
			s := newSlice(t, "nft", jitOn)
			s.configure(func(svc *testbed.Service) { svc.Features = features })
			s.start()
			a := &attack{slice: s}
			_, err := a.superuser("ALTER SYSTEM SET jit_provider = 'llvmjit'")
			must(t, err)
			s.want(0, []string{"stopped"}, "stop", "--service", "postgres")
			s.want(0, []string{"started"}, "start", "--service", "postgres")
			s.awaitOK()
			watch := straceServer(t, s)
			plan, err := a.superuser(jitQuery)
			must(t, err)
			if compiled := strings.Contains(plan, "JIT:"); compiled != (name == "allowed") {
				t.Errorf("features %v: compiled %v\n%s", features, compiled, plan)
			}
			for range 50 { // enough for strace to have seen something
				_, err = a.superuser("SELECT 1")
				must(t, err)
				if name == "allowed" {
					break
				}
			}
			s.want(0, []string{"stopped"}, "stop", "--service", "postgres")
			denied := map[string]int{}
			countDenied(t, watch(), "", denied)
			for call, n := range denied {
				if !slices.Contains(deniedByDesign, call) {
					t.Errorf("%s was denied %d times", call, n)
				}
			}
		})
	}
}

// A39: what a superuser changes in the settings is seen. The feature that it chooses is
// worth nothing to an attacker, and the change is an event; the one that would be
// worth something is not chosen, and status says that it was asked for.
func TestA39_FeaturesBySettings(t *testing.T) {
	s := newSlice(t, "nft", map[string]string{"huge_pages": "off"})
	s.start()
	seccomp := func() string {
		t.Helper()
		for _, l := range s.awaitOK().Layers {
			if l.Name == "seccomp" && l.Subject == "postgres" {
				return l.Detail
			}
		}
		t.Fatal("status has no layer seccomp")
		return ""
	}
	if d := seccomp(); !strings.Contains(d, "launched with the profile postgres and ") || strings.Contains(d, "huge_pages") {
		t.Errorf("detail %q", d)
	}
	a := &attack{slice: s}
	_, err := a.superuser("ALTER SYSTEM SET huge_pages = 'try'")
	must(t, err)
	_, err = a.superuser("ALTER SYSTEM SET jit = 'on'")
	must(t, err)
	s.want(0, []string{"stopped"}, "stop", "--service", "postgres")
	s.want(0, []string{"started"}, "start", "--service", "postgres")
	if d := seccomp(); !strings.Contains(d, "huge_pages") || strings.Contains(d, "jit") {
		t.Errorf("detail %q", d)
	}
	must(t, testbed.Await(s.ctx, "the warning", func(context.Context) error {
		warnings := s.awaitOK().Warnings
		if !slices.ContainsFunc(warnings, func(w string) bool {
			return strings.Contains(w, "jit is on ("+s.cluster.Data+"/postgresql.auto.conf:")
		}) {
			return fmt.Errorf("warnings %q", warnings)
		}
		return nil
	}))
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	must(t, testbed.Await(ctx, "the event", func(context.Context) error {
		out := s.cli("events").Stdout
		if !strings.Contains(out, control.KindProfile) || !strings.Contains(out, "another profile: with huge_pages (auto: ") {
			return fmt.Errorf("events:\n%s", out)
		}
		return nil
	}))
}
