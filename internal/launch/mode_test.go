package launch

import (
	"testing"
	"time"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

func TestComplainEnds(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		complain Complain
		want     bool
	}{{Complain{}, false}, {Complain{Until: now.Add(time.Hour)}, false}, {Complain{On: true}, true},
		{Complain{On: true, Until: now.Add(time.Hour)}, true}, {Complain{On: true, Until: now}, false}} {
		if got := c.complain.At(now); got != c.want {
			t.Errorf("%+v: %t", c.complain, got)
		}
	}
}

// Whatever the kernel says, a service that complains is not confined by seccomp,
// and one that does not complain is only if it has a filter.
func TestComplainIsNeverRight(t *testing.T) {
	right := func(s Spec, status sandbox.Status) bool {
		for _, f := range seccompFindings(s, status, before{}) {
			if !f.OK {
				return false
			}
		}
		return true
	}
	none, filtered := sandbox.Status{}, sandbox.Status{Seccomp: 2, Filters: 1}
	complains := Spec{Complain: Complain{On: true}}
	if right(complains, none) || right(complains, filtered) || right(Spec{}, none) || !right(Spec{}, filtered) {
		t.Error("a layer that is not enforced is right, or the other way round")
	}
	past := Spec{Complain: Complain{On: true, Until: time.Now().Add(-time.Hour)}}
	if right(past, none) {
		t.Error("after its end, a service without filter is right")
	}
	landlock := LandlockState{Mode: LandlockRequired}
	if f := LandlockFindings(complains, landlock, 1); len(f) != 1 || f[0].OK || !f[0].Complaining() {
		t.Errorf("%+v", f)
	}
}

// Only a launch that complains may go on without a filter.
func TestMissingFilterIsAnError(t *testing.T) {
	if err := (&prepared{}).loadFilter(false); err == nil {
		t.Error("a launch without filter goes on")
	}
}
