package e2e

import (
	"fmt"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
)

// keptSysctls are keys that a node must keep, written down here on purpose.
var keptSysctls = map[string]string{
	"net.ipv4.conf.all.rp_filter": "1", "net.ipv4.conf.default.rp_filter": "1", "net.ipv4.conf.eth0.rp_filter": "1",
	"net.ipv4.conf.all.accept_redirects": "0", "net.ipv4.conf.eth0.accept_redirects": "0", "net.ipv6.conf.all.accept_redirects": "0", "net.ipv6.conf.eth0.accept_redirects": "0",
	"net.ipv4.conf.all.send_redirects": "0", "net.ipv4.conf.eth0.send_redirects": "0", "net.ipv4.conf.all.secure_redirects": "1",
	"net.ipv4.conf.all.accept_source_route": "0", "net.ipv4.conf.eth0.accept_source_route": "0", "net.ipv6.conf.all.accept_source_route": "0",
	"net.ipv4.conf.all.accept_local": "0", "net.ipv4.conf.eth0.route_localnet": "0",
	"net.ipv4.conf.all.log_martians": "1", "net.ipv4.conf.eth0.arp_ignore": "1", "net.ipv4.conf.eth0.arp_announce": "2",
	"net.ipv4.tcp_syncookies": "1", "net.ipv4.icmp_echo_ignore_broadcasts": "1", "net.ipv4.icmp_ignore_bogus_error_responses": "1", "net.ipv4.tcp_rfc1337": "1",
}

func (s *slice) sysctl(key string) string {
	s.t.Helper()
	return strings.TrimSpace(run(s.t, s.node, "sysctl -n "+key))
}

// spoil changes each of the keys, all at once, and returns what the event has to say.
func (s *slice) spoil(keys map[string]string) (words []string) {
	s.t.Helper()
	var names, sets []string
	for key := range keys {
		names = append(names, key)
	}
	sort.Strings(names)
	for _, key := range names {
		other := map[string]string{"0": "1", "1": "0", "2": "0"}[keys[key]]
		sets = append(sets, key+"="+other)
		words = append(words, fmt.Sprintf("sysctl %s: is %s, want %s", key, other, keys[key]))
	}
	run(s.t, s.node, "sysctl -qw "+strings.Join(sets, " "))
	return words
}

// Every key that drifts is put back by the daemon and is in the event; what the
// configuration leaves to others is not touched.
func TestSysctlsThroughTheDaemon(t *testing.T) {
	t.Parallel()
	s, _ := newHold(t, "nft")
	if s.sysctl("net.ipv4.conf.eth0.rp_filter") != "0" {
		t.Fatal("the host is hardened already; the test proves nothing")
	}
	s.want(2, []string{"sysctl net.ipv4.conf.eth0.rp_filter: is 0, want 1"}, "plan")
	s.startHold()
	right := func(t *testing.T, except map[string]string) {
		t.Helper()
		for key, want := range keptSysctls {
			if v, ok := except[key]; ok {
				want = v
			}
			if got := s.sysctl(key); got != want {
				t.Errorf("%s is %s, want %s", key, got, want)
			}
		}
	}
	right(t, nil)
	t.Run("all at once", func(t *testing.T) {
		// With the daemon stopped in its tracks, so that it finds all of them.
		code, err := s.agent.Stop(s.ctx)
		if err != nil || code != 0 {
			t.Fatalf("stopping the daemon: %d %v", code, err)
		}
		words := s.spoil(keptSysctls)
		s.want(2, words, "plan")
		s.startHold()
		right(t, nil)
		s.awaitStatus("the event", func(st control.Status) error {
			for _, d := range st.Drift {
				if d.Resource == "sysctl" && !d.Repaired.IsZero() && containsAll(d.What, words) {
					return nil
				}
			}
			return fmt.Errorf("%+v", st.Drift)
		})
		s.want(0, []string{"nothing to do"}, "plan")
	})
	t.Run("one by one", func(t *testing.T) {
		for _, key := range []string{"net.ipv4.conf.eth0.rp_filter", "net.ipv4.conf.all.send_redirects", "net.ipv6.conf.eth0.accept_redirects"} {
			before := time.Now()
			s.awaitRestored(before, s.spoil(map[string]string{key: keptSysctls[key]})...)
		}
		right(t, nil)
	})
	t.Run("new interface", func(t *testing.T) {
		before := time.Now()
		run(t, s.node, "ip link add new0 type veth peer name new1 && sysctl -qw net.ipv4.conf.new0.rp_filter=0 net.ipv4.conf.new0.accept_redirects=1 && ip link set new0 up")
		s.awaitRestored(before, "sysctl net.ipv4.conf.new0.rp_filter: is 0, want 1")
		s.want(0, []string{"nothing to do"}, "plan")
		for key, want := range map[string]string{"rp_filter": "1", "accept_redirects": "0", "arp_ignore": "1"} {
			if got := s.sysctl("net.ipv4.conf.new0." + key); got != want {
				t.Errorf("%s of the new interface is %s, want %s", key, got, want)
			}
		}
		run(t, s.node, "ip link del new0")
		s.ok("without the interface")
	})
	t.Run("leave and set", func(t *testing.T) {
		cfg := s.cfg
		cfg.Sysctl = map[string]any{"leave": []string{"net.ipv4.tcp_rfc1337", "net.ipv4.conf.*.arp_ignore"}, "set": []string{"net.ipv4.conf.all.log_martians=0"}}
		must(t, s.agent.WriteConfig(cfg))
		before := time.Now()
		s.want(0, nil, "apply")
		words := s.spoil(map[string]string{"net.ipv4.tcp_syncookies": "1", "net.ipv4.tcp_rfc1337": "1", "net.ipv4.conf.eth0.arp_ignore": "1"})
		for _, w := range words {
			if strings.Contains(w, "tcp_syncookies") {
				s.awaitRestored(before, w)
			}
		}
		s.want(0, nil, "apply") // a pass more
		right(t, map[string]string{"net.ipv4.tcp_rfc1337": "0", "net.ipv4.conf.eth0.arp_ignore": "0", "net.ipv4.conf.all.log_martians": "0"})
		s.want(0, []string{"nothing to do"}, "plan")
	})
	t.Run("not managed", func(t *testing.T) {
		cfg := s.cfg
		cfg.Sysctl = map[string]any{"manage": false}
		must(t, s.agent.WriteConfig(cfg))
		s.want(0, nil, "apply")
		s.spoil(map[string]string{"net.ipv4.tcp_syncookies": "1", "net.ipv4.conf.eth0.rp_filter": "1"})
		drift := time.Now()
		run(t, s.node, "iptables-nft -F PGHARDEND-IN") // the daemon is at work, and leaves them
		s.awaitRestored(drift, "PGHARDEND-IN")
		s.want(0, nil, "apply")
		if c, f := s.sysctl("net.ipv4.tcp_syncookies"), s.sysctl("net.ipv4.conf.eth0.rp_filter"); c != "0" || f != "0" {
			t.Errorf("tcp_syncookies is %s and rp_filter is %s, though they are not managed", c, f)
		}
		s.want(0, []string{"nothing to do"}, "plan")
		s.want(0, nil, "verify")
		must(t, s.agent.WriteConfig(s.cfg))
		s.want(0, []string{"tcp_syncookies"}, "apply")
		right(t, nil)
	})
}
