package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
)

// With the nft backend the kernel announces each change: it is put back because
// of the announcement, not of the next tick, and the event names who made it.
func TestDriftEvents(t *testing.T) {
	s := startSlice(t, "nft")
	if st := s.awaitOK(); st.Alarms != "nft notifications" {
		t.Errorf("alarms come by %q", st.Alarms)
	}
	run(t, s.node, "iptables-nft -N FOREIGN; iptables-nft -A FORWARD -j FOREIGN; iptables-nft -A FOREIGN -s 192.0.2.1 -j DROP")
	for _, row := range []struct {
		name, change, command string
		what                  []string
		foreign               bool // FOREIGN must be left
	}{
		{"TestF02 jump deleted", "iptables-nft -D INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN", "iptables", []string{"ipv4", "INPUT"}, true},
		{"TestF01 chain flushed", "ip6tables-nft -F PGHARDEND-IN", "ip6tables", []string{"ipv6", "PGHARDEND-IN"}, true},
		{"TestF01 chain flushed by nft", "nft flush chain ip filter PGHARDEND-OUT", "nft", []string{"ipv4", "PGHARDEND-OUT"}, true},
		{"TestF03 accept above our jump", "iptables-nft -I INPUT -p tcp --dport 5432 -j ACCEPT", "iptables", []string{"ipv4", "INPUT"}, true},
		{"TestF01 ruleset flushed", "nft flush ruleset", "nft", []string{"ipv4", "ipv6", "PGHARDEND-ICMP"}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := time.Now()
			run(t, s.node, row.change)
			d := s.awaitEvent(before, row.what...)
			if d.Who == nil || d.Who.PID == 0 || !strings.HasPrefix(d.Who.Command, row.command) {
				t.Errorf("the culprit is %+v, not %s", d.Who, row.command)
			}
			t.Logf("open for %.2f ms, by %+v:\n%s", d.OpenMS, d.Who, d.What)
			s.want(0, []string{"nothing to do"}, "plan")
			if saved := run(t, s.node, "iptables-nft-save -t filter"); row.foreign && !strings.Contains(saved, "-A FOREIGN -s 192.0.2.1/32 -j DROP") {
				t.Errorf("the foreign chain is not as it was:\n%s", saved)
			}
		})
	}
}

// awaitEvent waits for a repair that an alarm led to, of all that is named.
func (s *slice) awaitEvent(after time.Time, what ...string) control.Drift {
	s.t.Helper()
	var found control.Drift
	s.awaitStatus("a repair by an event", func(st control.Status) error {
		for _, d := range st.Drift {
			if d.Cause == "drift" && d.Resource == "firewall" && d.Found.After(after) && !d.Repaired.IsZero() && containsAll(d.What, what) {
				found = d
				if d.Trigger != "event" {
					s.t.Errorf("it was found by %q", d.Trigger)
				}
				return nil
			}
		}
		return errors.New("no such event yet")
	})
	return found
}
