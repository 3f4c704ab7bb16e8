package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/pghardend/pghardend/pkg/firewall"
)

// Where the kernel cannot be asked cheaply, each tick is a look by commands.
func TestRulesWithoutACheapLook(t *testing.T) {
	r := &firewallResource{watch: &ruleWatch{}, written: func() { t.Error("something was put back") }}
	r.right = r.watch.digest()
	if !r.Peek(t.Context()) {
		t.Error("nothing was looked at, yet nothing is said to have changed")
	}
	if plan, err := r.Reflex(t.Context()); !errors.Is(err, firewall.ErrNoReflex) || !plan.Empty() {
		t.Errorf("%v, %v", plan, err)
	}
}

// What was seen counts only if all of it was.
func TestRuleDigestHasToBeWhole(t *testing.T) {
	w := &ruleWatch{}
	for _, then := range []ruleDigest{{}, {sets: 1}, {legacy: 1}, {whole: true}} {
		if !w.changed(then) { // the watch itself sees nothing
			t.Errorf("%+v counts", then)
		}
	}
}

func TestTicksLeaveRoomForTheRepair(t *testing.T) {
	for backend, want := range map[string]time.Duration{"nft": time.Second, "legacy": 900 * time.Millisecond} {
		if got := tickInterval(time.Second, backend); got != want {
			t.Errorf("%s: %v, want %v", backend, got, want)
		}
	}
}
