package launch

import (
	"errors"
	"testing"

	"github.com/pghardend/pghardend/pkg/mac"
)

// F30: what does not deny is never called enforced, and is a fault where it is required.
func TestF30_SELinuxFindings(t *testing.T) {
	permissive := &mac.LabelError{Reason: mac.ReasonPermissive, Text: "SELinux: permissive"}
	const label = "system_u:system_r:pghardend_postgres_t:s0"
	for _, c := range []struct {
		state        SELinuxState
		enforced, ok bool
		findings     int
	}{
		{SELinuxState{Mode: SELinuxRequired, Label: label}, true, true, 1},
		{SELinuxState{Mode: SELinuxRequired, Label: label, Fault: permissive}, false, false, 1},
		{SELinuxState{Mode: SELinuxPreferred, Label: label}, true, true, 1},
		{SELinuxState{Mode: SELinuxPreferred, Label: label, Fault: permissive}, false, true, 1},
		{SELinuxState{Mode: SELinuxPreferred, Fault: errors.New("none")}, false, true, 1},
		{SELinuxState{Mode: SELinuxOff, Label: label}, false, true, 0},
		{SELinuxState{}, false, true, 0},
	} {
		f := c.state.Findings(7)
		if c.state.Enforced() != c.enforced || len(f) != c.findings || len(f) > 0 && (f[0].OK != c.ok || f[0].PID != 7) {
			t.Errorf("%+v: enforced %t, %+v", c.state, c.state.Enforced(), f)
		}
	}
}

func TestSELinuxLabels(t *testing.T) {
	want := SELinux{Mode: SELinuxRequired, Type: "postgres_t", Helpers: []string{"helper_t"}, Level: "s0:c1"}
	for _, c := range []struct {
		typ, level string
		child, ok  bool
	}{
		{"postgres_t", "s0:c1", false, true},
		{"postgres_t", "", false, true}, // a policy without levels
		{"postgres_t", "s0", false, false},
		{"postgres_t", "s0:c1,c2", true, false},
		{"helper_t", "s0:c1", true, true},
		{"helper_t", "s0:c1", false, false},
		{"unconfined_t", "s0:c1", true, false},
	} {
		if err := labelFault(want, mac.Context{User: "u", Role: "r", Type: c.typ, Level: c.level}, c.child); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
