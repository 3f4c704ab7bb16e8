package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// What the daemon keeps beside rules and sets: limits that follow the server,
// sysctls, connections.
func TestNodeResources(t *testing.T) {
	t.Parallel()
	s := newSlice(t, "nft", map[string]string{"max_connections": "37", "max_wal_senders": "5"})
	s.start()
	t.Run("limits follow the server", func(t *testing.T) { nodeLimits(t, s) })
	t.Run("sysctl drift is restored", func(t *testing.T) { nodeSysctls(t, s) })
	t.Run("TestF12 who got in while the rules were away is cut", func(t *testing.T) { nodeIntruder(t, s) })
	t.Run("TestF12 a removed peer's session is cut", func(t *testing.T) { nodeRemovedPeer(t, s) })
}

func (s *slice) awaitRule(part string) {
	s.t.Helper()
	s.awaitStatus("a rule with "+part, func(control.Status) error {
		for _, family := range []string{"iptables", "ip6tables"} {
			if text := run(s.t, s.node, family+"-nft-save -t filter"); !strings.Contains(text, part) {
				return fmt.Errorf("%s has no %q", family, part)
			}
		}
		return nil
	})
}

func nodeLimits(t *testing.T, s *slice) {
	s.awaitRule("--connlimit-upto 52 ") // 37 clients, 5 WAL senders, 10 reserved
	s.want(0, []string{"nothing to do"}, "plan")
	s.want(0, []string{"at most 52 connections and 185 new a second per source"}, "explain", "--from", "pool-0", "--to", "pg-0", "--port", "5432")

	// The daemon asks once more after the start, of which the answer tells it.
	pid, err := s.cluster.PID()
	must(t, err)
	must(t, testbed.Await(s.ctx, "what the running server was started with", func(context.Context) error {
		text, err := os.ReadFile(filepath.Join(s.agent.Dir, "run", "facts.json"))
		if err == nil && !strings.Contains(string(text), fmt.Sprintf(" %d ", pid)) {
			err = fmt.Errorf("process %d is not in %s", pid, text)
		}
		return err
	}))
	file := filepath.Join(s.cluster.Data, "postgresql.auto.conf")
	before, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, append(before, "max_connections = 60\n"...), 0o600))
	s.want(0, []string{"nothing to do"}, "plan") // it counts when the server starts
	s.want(0, nil, "stop", "--service", "postgres")
	s.want(0, nil, "start", "--service", "postgres")
	s.awaitRule("--connlimit-upto 75 ")
	s.awaitOK()
	s.want(0, []string{"nothing to do"}, "plan")
}

func nodeSysctls(t *testing.T, s *slice) {
	for _, key := range []string{"net.ipv4.tcp_syncookies", "net.ipv4.conf.all.accept_redirects"} {
		want := strings.TrimSpace(run(t, s.node, "sysctl -n "+key))
		other := map[string]string{"0": "1", "1": "0"}[want]
		before := time.Now()
		run(t, s.node, "sysctl -w "+key+"="+other)
		s.awaitRestored(before, "sysctl "+key+": is "+other+", want "+want)
		if got := strings.TrimSpace(run(t, s.node, "sysctl -n "+key)); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	before := time.Now()
	run(t, s.node, "ip link add new0 type veth peer name new1 && sysctl -w net.ipv4.conf.new0.send_redirects=1")
	s.awaitRestored(before, "sysctl net.ipv4.conf.new0.send_redirects: is 1, want 0")

	// The commands see it as the daemon does.
	code, err := s.agent.Stop(s.ctx)
	if err != nil || code != 0 {
		t.Fatalf("stopping the daemon: %d %v", code, err)
	}
	run(t, s.node, "sysctl -w net.ipv4.tcp_syncookies=0")
	s.want(2, []string{"sysctl net.ipv4.tcp_syncookies: is 0, want 1"}, "plan")
	s.want(2, []string{`"key": "net.ipv4.tcp_syncookies"`, `"have": "0"`, `"want": "1"`}, "plan", "--json")
	s.want(3, []string{"sysctl net.ipv4.tcp_syncookies: is 0, want 1"}, "verify")
	s.want(0, []string{"sysctl net.ipv4.tcp_syncookies: is 0, want 1"}, "apply")
	s.want(0, []string{"nothing to do"}, "plan")
	s.start()
}

// awaitCut waits for the event that says that a connection was cut.
func (s *slice) awaitCut(after time.Time, from, to netip.Addr) {
	s.t.Helper()
	s.awaitStatus("a cut", func(st control.Status) error {
		for _, d := range st.Drift {
			if d.Resource == "connections" && d.Found.After(after) && !d.Repaired.IsZero() &&
				containsAll(d.What, []string{"connection tcp " + from.String(), to.String(), "not allowed any more"}) {
				return nil
			}
		}
		return fmt.Errorf("no such event yet in %+v", st.Drift)
	})
}

func tracked(t *testing.T, s *slice, from netip.Addr) string {
	t.Helper()
	return run(t, s.node, "conntrack -L -p tcp -s "+from.String()+" 2>/dev/null | grep ESTABLISHED || true")
}

func nodeIntruder(t *testing.T, s *slice) {
	code, err := s.agent.Stop(s.ctx)
	if err != nil || code != 0 {
		t.Fatalf("stopping the daemon: %d %v", code, err)
	}
	run(t, s.node, "iptables-nft -I INPUT -s 10.20.1.66 -j ACCEPT && iptables-nft -I OUTPUT -d 10.20.1.66 -j ACCEPT")
	c := ctStart(t, "tcp", s.sibling, s.node, firewall.IPv4, 0, 4711)
	defer c.stop()
	run(t, s.node, "iptables-nft -D INPUT 1 && iptables-nft -D OUTPUT 1")
	if tracked(t, s, s.sibling.V4()) == "" {
		t.Fatal("the intruder is not tracked, so that there is nothing to show")
	}
	s.want(3, []string{"connections that the rules would not let begin", "connection tcp 10.20.1.66"}, "verify")
	s.want(0, []string{"nothing to do"}, "plan") // rules and sysctls are as they should be
	before := time.Now()
	s.start()
	s.awaitCut(before, s.sibling.V4(), s.node.V4())
	if left := tracked(t, s, s.sibling.V4()); left != "" {
		t.Errorf("still tracked: %s", left)
	}

	// Once more while the daemon cannot look: it finds the rules flushed, puts
	// them back, and does not wait for its next look at connections.
	must(t, s.agent.Signal(unix.SIGSTOP))
	before = time.Now()
	// The kernel tracks connections only as long as a rule asks for it.
	run(t, s.node, "iptables-nft -t mangle -A INPUT -m conntrack --ctstate NEW && iptables-nft -F && iptables-nft -X")
	again := ctStart(t, "tcp", s.sibling, s.node, firewall.IPv4, 0, 4712)
	defer again.stop()
	must(t, s.agent.Signal(unix.SIGCONT))
	s.awaitCut(before, s.sibling.V4(), s.node.V4())
	if took := time.Since(before); took > 15*time.Second {
		t.Errorf("the intruder had %v", took)
	}
	if left := tracked(t, s, s.sibling.V4()); left != "" {
		t.Errorf("still tracked: %s", left)
	}
}

func nodeRemovedPeer(t *testing.T, s *slice) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	psql, err := s.cluster.Client(ctx, s.peer, "psql", "-c", "SELECT pg_sleep(300)", s.cluster.Conninfo(s.node.V4(), testbed.AppUser))
	must(t, err)
	must(t, psql.Start())
	defer func() { cancel(); _ = psql.Wait() }() // it has no way to end well
	must(t, testbed.Await(s.ctx, "a session", func(context.Context) error {
		if tracked(t, s, s.peer.V4()) == "" {
			return errors.New("not tracked")
		}
		return nil
	}))
	s.want(0, []string{"all ", "passed"}, "verify")
	before := time.Now()
	peers := s.cfg.Peers
	peers.Nodes = peers.Nodes[:1]
	must(t, s.agent.WritePeers(peers))
	s.awaitCut(before, s.peer.V4(), s.node.V4())
	if left := tracked(t, s, s.peer.V4()); left != "" {
		t.Errorf("still tracked: %s", left)
	}
	if o := send(t, s.peer, testbed.TCPProbe(netip.AddrPortFrom(s.node.V4(), 5432), testbed.SYN)); o.Arrived != 1 || len(o.Answers) != 0 {
		t.Errorf("the removed peer's SYN: %v; want it to arrive and get no answer", o)
	}
}
