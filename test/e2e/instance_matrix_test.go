package e2e

import (
	"slices"
	"testing"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/test/reach"
)

// Every cell is probed with all services running. That the probes can see a way through is shown by the hosts without
// pghardend and, for the nodes themselves, by the same instance without agents.
func TestInstanceMatrix(t *testing.T) {
	t.Parallel()
	want := expected(t)
	var asked map[reach.Cell]reach.Answer
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
		asked = in.compareExplain(got, asked)
		must(t, in.AwaitReady(in.ctx))
	})
}

func TestInstanceMatrixWithoutAgents(t *testing.T) {
	t.Parallel()
	in := startInstance(t, testbed.InstanceSpec{Name: "bare", Services: true, Unprotected: true})
	got, err := reach.Measure(in.ctx, in.Bed, in.Hosts())
	must(t, err)
	for _, c := range expected(t).Cells() {
		if got[c] != reach.Through {
			t.Errorf("%s: %s without pghardend, so the probe proves nothing", c, got[c])
		}
	}
}

// explainShare: one of so many cells is asked about again with another backend, since explain answers from the files. It has
// no divisor in common with the number of cells of a pair, so that each probe has its turn.
const explainShare = 7

// compareExplain asks the nodes in turn, each about all pairs, and both ends must agree with the packets. What was answered
// with another backend must be true of this one's packets, too, and part of it is asked again.
func (in *instance) compareExplain(got map[reach.Cell]reach.Outcome, before map[reach.Cell]reach.Answer) map[reach.Cell]reach.Answer {
	in.t.Helper()
	ask, want := got, 60*2*len(reach.Probes) // of 72 pairs, 12 are without a node
	if before != nil {
		ask, want = map[reach.Cell]reach.Outcome{}, 0
		for i, c := range expected(in.t).Cells() {
			if _, told := before[c]; told && i%explainShare == 0 {
				ask[c] = got[c]
				want++
			}
		}
	}
	answers, err := reach.Explain(in.ctx, in.Bed, in.Agents(), ask, nil)
	must(in.t, err)
	for _, w := range slices.Concat(reach.Disagree(got, answers), reach.Disagree(got, before)) {
		in.t.Error(w)
	}
	if len(answers) != want || want == 0 {
		in.t.Errorf("explain answered about %d cells, want %d", len(answers), want)
	}
	in.t.Logf("explain was asked about %d cells", len(answers))
	if before != nil {
		return before
	}
	return answers
}
