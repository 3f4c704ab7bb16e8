package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
)

// The drift rows of the fault list with the daemon running: what was changed is
// put back, what is foreign stays, and an event says so. The rows' finer cases
// are in firewall_drift_test.go.
func TestSliceDrift(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s := startSlice(t, backend)
		ipt := func(lines ...string) {
			t.Helper()
			for _, line := range lines {
				name, args, _ := strings.Cut(line, " ")
				run(t, s.node, name+"-"+backend+" "+args)
			}
		}
		isolated := func(t *testing.T) {
			t.Helper()
			for _, at := range families(s.node) {
				if o := send(t, s.sibling, testbed.TCPProbe(netip.AddrPortFrom(at, 5432), testbed.SYN)); o.Arrived != 1 || len(o.Answers) != 0 {
					t.Errorf("the sibling's SYN to %s: %v; want it to arrive and get no answer", at, o)
				}
				if got, err := s.sql(s.peer, at, "SELECT 1"); err != nil || got != "1" {
					t.Errorf("the peer's session to %s: %q %v", at, got, err)
				}
			}
		}
		saved := func(family string) string {
			t.Helper()
			return run(t, s.node, family+"-"+backend+"-save -t filter")
		}
		for _, row := range []struct {
			name   string
			change []string
			event  []string
			kept   string // a foreign rule that must still be there
			frozen bool   // it takes several commands, between which nothing may be put back
		}{
			{"TestF01 chains flushed", []string{"iptables -F PGHARDEND-IN", "iptables -F PGHARDEND-OUT"}, []string{"PGHARDEND-IN", "PGHARDEND-OUT"}, "", false},
			{"TestF01 everything flushed and deleted", []string{"iptables -F", "iptables -X"}, []string{"jump INPUT", "PGHARDEND-ICMP"}, "", true},
			{"TestF02 jump deleted", []string{"iptables -D INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN"}, []string{"jump INPUT: missing"}, "", false},
			{"TestF03 accept above our jump", []string{"iptables -I INPUT -p tcp --dport 5432 -j ACCEPT"}, []string{"jump INPUT: not in first place", "foreign rule above our jump, kept"}, "-A INPUT -p tcp -m tcp --dport 5432 -j ACCEPT", false},
			{"TestF04 rule edited, comment kept", []string{"iptables -R PGHARDEND-IN 9 -p tcp --dport 5432 -m comment --comment pghardend:postgres -j ACCEPT"}, []string{"chain PGHARDEND-IN: differs"}, "", false},
			{"TestF06 only ip6tables flushed", []string{"ip6tables -F"}, []string{"ipv6 chain PGHARDEND-IN"}, "", false},
		} {
			t.Run(row.name, func(t *testing.T) {
				before := time.Now()
				s.whileFrozen(row.frozen, func() { ipt(row.change...) })
				d := s.awaitRestored(before, row.event...)
				t.Logf("restored at most %.0f ms after it was last seen right", d.OpenMS)
				if strings.Contains(row.name, "F06") && strings.Contains(d.What, "ipv4") {
					t.Errorf("ipv4 was touched too:\n%s", d.What)
				}
				if !strings.Contains(saved("iptables"), row.kept) {
					t.Errorf("the foreign rule %q is gone", row.kept)
				}
				isolated(t)
			})
		}
		t.Run("TestF03 drop above our jump is tolerated", func(t *testing.T) {
			ipt("iptables -I INPUT -s 192.0.2.1 -j DROP")
			s.want(0, []string{"nothing to do"}, "plan")
			ipt("iptables -D INPUT -s 192.0.2.1 -j DROP")
		})
		t.Run("TestF05 policy changed", func(t *testing.T) {
			ipt("iptables -P INPUT ACCEPT", "iptables -P OUTPUT ACCEPT", "ip6tables -P INPUT ACCEPT")
			isolated(t)
			ipt("iptables -P INPUT DROP", "ip6tables -P INPUT DROP")
			isolated(t)
			s.want(0, []string{"nothing to do"}, "plan")
			ipt("iptables -P INPUT ACCEPT", "ip6tables -P INPUT ACCEPT")
		})
		t.Run("TestF15b sets", func(t *testing.T) { setDrift(t, s, backend) })
		t.Run("plan", func(t *testing.T) { planExitCodes(t, s, ipt) })
	})
}

func setDrift(t *testing.T, s *slice, backend string) {
	for _, row := range []struct {
		name, change, event string
		frozen              bool // a set cannot go while rules name it, and they would be back
	}{
		{"added", "ipset add pgh4-pgpool 10.20.1.66", "- 10.20.1.66/32", false},
		{"added as an exception", "ipset add pgh4-control_plane 10.0.0.5 nomatch", "- 10.0.0.5/32 nomatch", false},
		{"removed", "ipset del pgh4-pgpool 10.20.1.20", "+ 10.20.1.20/32", false},
		{"removed, ipv6", "ipset del pgh6-pgpool fd00:20:1::20", "+ fd00:20:1::20/128", false},
		{"destroyed", "iptables-" + backend + " -F; iptables-" + backend + " -X; ipset destroy pgh4-pgpool", "set pgh4-pgpool: missing", true},
		{"renamed", "iptables-" + backend + " -F; iptables-" + backend + " -X; ipset rename pgh4-pgpool stolen", "set pgh4-pgpool: missing", true},
		{"swapped", "ipset create evil hash:net; ipset add evil 10.20.1.66; ipset swap evil pgh4-pgpool; ipset destroy evil", "- 10.20.1.66/32", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := time.Now()
			s.whileFrozen(row.frozen, func() { run(t, s.node, row.change) })
			s.awaitRestored(before, row.event)
			if o := send(t, s.sibling, testbed.TCPProbe(netip.AddrPortFrom(s.node.V4(), 5432), testbed.SYN)); len(o.Answers) != 0 {
				t.Errorf("the sibling's SYN is answered: %v", o)
			}
			if got, err := s.sql(s.peer, s.node.V4(), "SELECT 1"); err != nil || got != "1" {
				t.Errorf("the peer's session: %q %v", got, err)
			}
		})
	}
}

// planExitCodes: 2 and a readable diff after a rule is deleted, 0 when nothing
// is to do. The daemon is away, or it would be faster.
func planExitCodes(t *testing.T, s *slice, ipt func(...string)) {
	code, err := s.agent.Stop(s.ctx)
	if err != nil || code != 0 {
		t.Fatalf("stopping the daemon: %d %v", code, err)
	}
	s.want(0, []string{"nothing to do"}, "plan") // its rules stay
	ipt("iptables -D PGHARDEND-IN 1")
	s.want(2, []string{"ipv4 chain PGHARDEND-IN: differs", "+ ! -p icmp -m conntrack"}, "plan")
	s.want(2, []string{`"problem": "differs"`}, "plan", "--json")
	s.want(0, []string{"chain PGHARDEND-IN: differs"}, "apply")
	s.want(0, []string{"nothing to do"}, "plan")
	s.want(3, []string{"no daemon is running"}, "status")
	s.start()
}

// TestF23: the second daemon ends with its own code and changes nothing.
func TestF23SecondDaemon(t *testing.T) {
	t.Parallel()
	s := startSlice(t, "nft")
	pid, err := s.cluster.PID()
	must(t, err)
	s.want(5, []string{"another pghardend is at work", "holds"}, "run")
	s.want(5, []string{"stop the daemon first"}, "teardown")
	s.awaitOK()
	if now, err := s.cluster.PID(); err != nil || now != pid {
		t.Errorf("the postmaster was %d and is %d: %v", pid, now, err)
	}
	s.want(0, []string{"nothing to do"}, "apply") // by the daemon
}

// Teardown leaves foreign rules and sets byte for byte, and nothing of ours.
func TestSliceTeardown(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s := newSlice(t, backend, nil)
		ipt, ip6t := "iptables-"+backend, "ip6tables-"+backend
		run(t, s.node, ipt+" -N DOCKER; "+ipt+" -A FORWARD -j DOCKER; "+ipt+" -A INPUT -p tcp --dport 80 -j ACCEPT; "+
			ip6t+" -A INPUT -s 2001:db8::1 -j DROP; ipset create f2b hash:ip; ipset add f2b 192.0.2.7; "+
			ipt+" -A INPUT -m set --match-set f2b src -j REJECT")
		state := func() string {
			return uncounted(run(t, s.node, ipt+"-save -t filter; "+ip6t+"-save -t filter; ipset save"))
		}
		before := state()
		s.start()
		code, err := s.agent.Stop(s.ctx)
		if err != nil || code != 0 {
			t.Fatalf("stopping the daemon: %d %v", code, err)
		}
		s.want(0, []string{"goes on running", "removed ipv4 jump INPUT", "removed ipv6 set pgh6-pgpool"}, "teardown")
		if after := state(); after != before {
			t.Errorf("foreign state before:\n%s\nafter:\n%s", before, after)
		}
		must(t, s.cluster.Ready())
		s.want(0, []string{"stopped service postgres"}, "teardown", "--stop-services")
		if err := s.cluster.Ready(); err == nil {
			t.Error("PostgreSQL runs after teardown --stop-services")
		}
		s.start() // a new daemon starts from nothing
	})
}

// uncounted drops comments and packet counters.
func uncounted(text string) string {
	var out []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			head, _, _ := strings.Cut(line, " [")
			out = append(out, strings.TrimSpace(head))
		}
	}
	return strings.Join(out, "\n")
}
