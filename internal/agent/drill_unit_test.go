package agent

import "testing"

// Of a service that does not run the weaker is assumed, unless the agent is to start it.
func TestStartsInUnit(t *testing.T) {
	for start, want := range map[string]bool{"": false, "    start: agent\n": false, "    start: external\n": true} {
		cfg, svc := cluster(t, start, nil)
		cfg.RuntimeDir = t.TempDir()
		if got := startsInUnit(t.Context(), cfg, svc.Name); got != want {
			t.Errorf("%q: %t, want %t", start, got, want)
		}
	}
}
