package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

// F5: whatever the policies of the built-in chains are, the same packets pass, and
// they are left as somebody else wants them.
func TestF05_PolicyChangedUnderTheDaemon(t *testing.T) {
	t.Parallel()
	eachHoldAtOnce(t, func(t *testing.T, s *slice) {
		before := time.Now()
		for _, policy := range []string{"DROP", "ACCEPT"} {
			s.tool(fmt.Sprintf("for I in $I4 $I6; do for C in INPUT OUTPUT FORWARD; do $I -P $C %s; done; done", policy))
			s.isolated("policy " + policy)
			s.settled("a change of policies")
			s.isolated("policy " + policy + ", later")
		}
		st := s.ok("with other policies")
		for _, d := range st.Drift {
			if d.Cause == "drift" && d.Found.After(before) {
				t.Errorf("a policy is not ours to keep, but there was drift: %s", d.What)
			}
		}
		s.exposed()
	})
}

// F7: the other tools of a host start, change and end their rules while the daemon
// runs. Theirs are what they would be without us, as another host shows that has
// only them, and ours stay in force.
func TestF07_OtherToolsUnderTheDaemon(t *testing.T) {
	t.Parallel()
	dir, err := filepath.Abs("testdata/tools")
	must(t, err)
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, alone := newHold(t, backend)
		s.startHold()
		firewalld := "iptables"
		if backend == "nft" {
			firewalld = "nftables"
		}
		both := func(t *testing.T, line string) {
			t.Helper()
			for _, h := range []*testbed.Host{s.node, alone} {
				run(t, h, fmt.Sprintf("export I4=iptables-%[1]s I6=ip6tables-%[1]s FIREWALLD=%[2]s; %[3]s", backend, firewalld, line))
			}
		}
		check := func(t *testing.T, what string) {
			t.Helper()
			s.settled(what)
			if d := cmp.Diff(s.foreign(alone), s.foreign(s.node)); d != "" {
				t.Errorf("%s: the rules of others are not what they are without us (-without +with):\n%s", what, d)
			}
			s.isolated(what)
		}
		for _, tool := range []struct {
			name  string
			steps []string
		}{
			{"ufw", []string{"enable", "allow", "reload", "disable", "enable"}},
			{"fail2ban", []string{"start", "restart"}},
			{"docker", []string{"start", "publish", "unpublish", "restart"}},
			{"firewalld", []string{"start", "reload"}}, // with iptables it flushes what the others have
			{"fail2ban", []string{"start"}},
		} {
			for _, step := range tool.steps {
				t.Run(tool.name+" "+step, func(t *testing.T) {
					both(t, fmt.Sprintf("sh %s/%s.sh %s", dir, tool.name, step))
					check(t, tool.name+" "+step)
				})
			}
		}
		t.Run("fail2ban ban", func(t *testing.T) {
			both(t, "sh "+dir+"/fail2ban.sh ban")
			s.settled("a ban")
			s.reaches(s.control, true, 22, testbed.Open)
			if got, err := s.control.Connect(s.ctx, netip.AddrPortFrom(s.node.V4(), 22)); err != nil || got == testbed.Open {
				t.Errorf("who is banned is let in by our rules, which have to come later: %s, %v", got, err)
			}
			both(t, "sh "+dir+"/fail2ban.sh unban")
			check(t, "the ban")
		})
		t.Run("everything flushed", func(t *testing.T) {
			flush := "nft flush ruleset"
			if backend == "legacy" {
				flush += `; for I in $I4 $I6; do for T in filter nat mangle raw; do printf '%s\n' "*$T" -F -X COMMIT | $I-restore -n; done
					for C in INPUT OUTPUT FORWARD; do $I -P $C ACCEPT; done; done`
			}
			before := time.Now()
			both(t, flush)
			s.awaitRestored(before, "ipv4", "ipv6", "PGHARDEND-IN")
			check(t, "the flush")
			both(t, "sh "+dir+"/ufw.sh enable")
			check(t, "ufw after the flush")
		})
	})
}

// F8: status tells of rules in the backend that is not in use; ours stay in force.
// If they make ours lie, it is degraded.
func TestF08_OtherBackendUnderTheDaemon(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, _ := newHold(t, backend)
		other := "legacy"
		if backend == other {
			other = "nft"
		}
		seen := func(when, state string, words ...string) {
			t.Helper()
			must(t, s.agent.Start())
			s.awaitStatus(when, func(st control.Status) error {
				said := fmt.Sprint(st.Warnings)
				if state == control.StateDegraded {
					said = fmt.Sprint(st.Reasons)
				}
				if st.PID != s.agent.PID() || st.State != state || !containsAll(said, words) || len(words) == 0 && len(st.Warnings) != 0 {
					return fmt.Errorf("state %s, reasons %q, warnings %q", st.State, st.Reasons, st.Warnings)
				}
				if st.LastReconcile.IsZero() {
					return errors.New("no pass yet")
				}
				return nil
			})
			s.want(map[bool]int{true: 0, false: 3}[state == control.StateOK], words, "status")
			s.settled(when)
			_, err := s.agent.Stop(s.ctx)
			must(t, err)
		}
		seen("without", control.StateOK)
		run(t, s.node, fmt.Sprintf("iptables-%[1]s -A INPUT -s 192.0.2.1 -j DROP; ip6tables-%[1]s -A INPUT -p tcp --dport 80 -j ACCEPT; ip6tables-%[1]s -A INPUT -p tcp --dport 81 -j ACCEPT", other))
		seen("foreign rules in the other backend", control.StateOK, other, "1 ipv4 rules (filter)", "2 ipv6 rules (filter)")
		s.isolated("with rules in both backends")
		run(t, s.node, fmt.Sprintf("ip6tables-%s -P INPUT DROP", other))
		seen("a policy that drops in the other backend", control.StateDegraded, "netfilter", other)
		run(t, s.node, fmt.Sprintf("for I in iptables-%[1]s ip6tables-%[1]s; do $I -F; $I -P INPUT ACCEPT; done", other))
		seen("gone again", control.StateOK)
		must(t, s.agent.Start())
		s.exposed()
	})
}

// F9: somebody holds the lock of the legacy backend. The wait for it is bounded,
// said, and tried again; what is in force stays, sets are kept all the same, and
// the end of the lock is the end of it. The nft backend has no lock.
func TestF09_LockHeldUnderTheDaemon(t *testing.T) {
	t.Parallel()
	eachHoldAtOnce(t, func(t *testing.T, s *slice) {
		release := s.holdLock()
		began := time.Now()
		s.tool("XTABLES_LOCKFILE=/run/another.lock $I4 -F PGHARDEND-OUT")
		if s.cfg.Backend == "nft" {
			s.awaitRestored(began, "PGHARDEND-OUT")
			s.ok("with a lock that does not count")
			release()
			return
		}
		s.degradedBy("firewall: ", "cannot write ipv4 rules", "xtables lock")
		if took := time.Since(began); took < 4*time.Second || took > 15*time.Second {
			t.Errorf("it is said after %v, want about the 5 seconds that a command waits", took)
		}
		for _, at := range families(s.node) {
			if o := send(t, s.sibling, testbed.TCPProbe(netip.AddrPortFrom(at, 22), testbed.SYN)); len(o.Answers) != 0 {
				t.Errorf("the rules that were left do not count: the sibling's SYN to %s: %v", at, o)
			}
		}
		run(t, s.node, "ipset add pgh4-control_plane 10.20.1.66")
		s.awaitKernel(15*time.Second, "the set is put back", "! ipset test -q pgh4-control_plane 10.20.1.66")
		if s.holds(s.present("iptables", "PGHARDEND-OUT")) {
			t.Error("the chain was written in spite of the lock")
		}
		release()
		s.awaitRestored(began, "PGHARDEND-OUT")
		s.ok("after the lock")
		s.isolated("after the lock")
	})
}

// F25: more is announced than the socket holds, while nobody reads it. That is a
// reason to look at everything, and none to stop listening.
func TestF25_OverrunUnderTheDaemon(t *testing.T) {
	eachHold(t, func(t *testing.T, s *slice) {
		before := time.Now()
		s.whileFrozen(true, func() {
			must(t, s.node.Do(func() error { _, err := evFlood(20000); return err }))
			s.tool("$I4 -F PGHARDEND-OUT; ipset add pgh6-control_plane fd00:20:1::66")
		})
		d := s.awaitRestored(before, "PGHARDEND-OUT", "set pgh6-control_plane")
		s.ok("after the overrun")
		s.isolated("after the overrun")
		lost := s.metric("pghardend_events_lost_total")
		if nft := s.cfg.Backend == "nft"; nft != (lost > 0) {
			t.Errorf("%v announcements were lost: %+v", lost, d)
		}
		before = time.Now()
		s.tool("$I6 -F PGHARDEND-IN")
		if d = s.awaitRestored(before, "ipv6", "PGHARDEND-IN"); s.cfg.Backend == "nft" && d.Trigger != "event" {
			t.Errorf("after an overrun changes are not announced any more: %+v", d)
		}
	})
}
