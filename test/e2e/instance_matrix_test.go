package e2e

import (
	"testing"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/test/reach"
)

// Every cell is probed with all services running. That the probes can see a way through is shown by the hosts without
// pghardend and, for the nodes themselves, by the same instance without agents.
func TestInstanceMatrix(t *testing.T) {
	want := expected(t)
	eachBackend(t, func(t *testing.T, backend string) {
		in := startInstance(t, testbed.InstanceSpec{Name: "matrix", Backend: backend, Services: true})
		got, err := reach.Measure(in.ctx, in.Bed, in.Hosts())
		must(t, err)
		wrong := want.Compare(got)
		for _, w := range wrong {
			t.Error(w)
		}
		through := 0
		for _, o := range got {
			if o == reach.Through {
				through++
			}
		}
		t.Logf("%d cells measured, %d get through, %d wrong", len(got), through, len(wrong))
		in.compareExplain(got)
		must(t, in.AwaitReady(in.ctx))
	})
}

func TestInstanceMatrixWithoutAgents(t *testing.T) {
	in := startInstance(t, testbed.InstanceSpec{Name: "bare", Services: true, Unprotected: true})
	got, err := reach.Measure(in.ctx, in.Bed, in.Hosts())
	must(t, err)
	for _, c := range expected(t).Cells() {
		if got[c] != reach.Through {
			t.Errorf("%s: %s without pghardend, so the probe proves nothing", c, got[c])
		}
	}
}

// compareExplain asks the nodes in turn, each about all pairs, and both ends must agree with the packets.
func (in *instance) compareExplain(got map[reach.Cell]reach.Outcome) {
	in.t.Helper()
	answers, err := reach.Explain(in.ctx, in.Bed, in.Agents(), got, nil)
	must(in.t, err)
	for _, w := range reach.Disagree(got, answers) {
		in.t.Error(w)
	}
	if pairs, each := 60, 2*len(reach.Probes); len(answers) != pairs*each { // of 72 pairs, 12 are without a node
		in.t.Errorf("explain answered about %d cells, want %d", len(answers), pairs*each)
	}
	in.t.Logf("explain was asked about %d cells", len(answers))
}
