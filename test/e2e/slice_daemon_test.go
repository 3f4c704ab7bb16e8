package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

const killRounds = 100

// TestF16: 100 kill -9 of the daemon under pgbench: no transaction fails, the
// postmaster stays the same process and is adopted, the rules are never gone.
func TestF16DaemonKilled(t *testing.T) {
	s := startSlice(t, "nft")
	conn := s.cluster.Conninfo(s.node.V4(), testbed.AppUser)
	_, err := s.cluster.Pgbench(s.ctx, s.peer, conn, "-i", "-q")
	must(t, err)
	pid, err := s.cluster.PID()
	must(t, err)

	bench, stop := context.WithCancel(s.ctx)
	defer stop()
	type outcome struct {
		runs, processed, failed int
		err                     error
	}
	done := make(chan outcome, 1)
	finish, ended := make(chan struct{}), make(chan struct{})
	defer func() {
		stop()
		<-ended // or it goes on in a bed that is gone
	}()
	go func() {
		defer close(ended)
		var o outcome
		for bench.Err() == nil {
			r, err := s.cluster.Pgbench(bench, s.peer, conn, "-c", "2", "-T", "2")
			o.runs, o.processed, o.failed, o.err = o.runs+1, o.processed+r.Processed, o.failed+r.Failed, errors.Join(o.err, err)
			select {
			case <-finish:
				done <- o
				return
			default:
			}
		}
	}()
	s.settled("the start") // what PostgreSQL says of its size is known, and in the rules
	for round := range killRounds {
		must(t, s.agent.Kill9(s.ctx))
		if plan := s.cli("plan"); plan.Code != 0 {
			t.Fatalf("round %d: after the kill the rules differ:\n%s%s", round, plan.Stdout, plan.Stderr)
		}
		must(t, s.agent.Start())
		if round%10 == 9 { // now and then let it come all the way; else kill it wherever it is
			st := s.awaitOK()
			if st.Services[0].PID != pid || !st.Services[0].Adopted {
				t.Fatalf("round %d: %+v; want process %d adopted", round, st.Services[0], pid)
			}
		}
	}
	close(finish)
	o := <-done
	if o.err != nil || o.failed != 0 || o.processed == 0 {
		t.Errorf("pgbench: %+v", o)
	}
	t.Logf("%d kills, %d transactions in %d runs, %d failed", killRounds, o.processed, o.runs, o.failed)
	if now, err := s.cluster.PID(); err != nil || now != pid {
		t.Errorf("the postmaster was process %d and is %d: %v", pid, now, err)
	}
	s.awaitOK()
}

// A postmaster that dies is started again; one that somebody stops is not.
func TestSliceCrashOfService(t *testing.T) {
	t.Parallel()
	s := startSlice(t, "nft")
	pid, err := s.cluster.PID()
	must(t, err)
	run(t, s.node, fmt.Sprintf("kill -9 %d", pid))
	st := s.awaitStatus("a new postmaster", func(st control.Status) error {
		if len(st.Services) != 1 || st.Services[0].State != "ready" || st.Services[0].PID == pid {
			return fmt.Errorf("%+v", st.Services)
		}
		return nil
	})
	if st.Services[0].Restarts < 1 {
		t.Errorf("%+v; want a restart counted", st.Services[0])
	}
}

// PostgreSQL waits for the rules, and so does READY: while the rules cannot be
// written, neither comes.
func TestSliceStartsAfterRules(t *testing.T) {
	t.Parallel()
	s := newSlice(t, "nft", nil)
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { must(t, conn.Close()) })
	s.agent.Env = append(s.agent.Env, "NOTIFY_SOCKET="+path)

	// A set of the wrong type that a foreign rule holds cannot be replaced.
	run(t, s.node, "ipset create pgh4-postgres hash:ip; iptables-nft -A INPUT -m set --match-set pgh4-postgres src -j DROP")
	must(t, s.agent.Start())
	s.awaitStatus("degraded by the firewall", func(st control.Status) error {
		if st.State != control.StateDegraded || !strings.Contains(strings.Join(st.Reasons, " "), "firewall") || len(st.Services) == 0 || st.Services[0].State != "waiting" {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	for range 3 { // passes
		awaitNotified(t, conn, "STATUS=degraded (firewall)", "READY=1")
	}
	if _, err := s.cluster.PID(); err == nil {
		t.Error("PostgreSQL was started before the rules were in place")
	}
	run(t, s.node, "iptables-nft -D INPUT -m set --match-set pgh4-postgres src -j DROP")
	awaitNotified(t, conn, "READY=1\nWATCHDOG=1\nSTATUS=rules in place", "")
	s.awaitOK()
	code, err := s.agent.Stop(s.ctx)
	if err != nil || code != 0 {
		t.Errorf("stopping the daemon: %d %v", code, err)
	}
	awaitNotified(t, conn, "STOPPING=1", "")
	must(t, s.cluster.Ready())
}

// awaitNotified reads messages for systemd until one has the words, and fails if
// one before has the forbidden ones.
func awaitNotified(t *testing.T, conn *net.UnixConn, words, forbidden string) {
	t.Helper()
	must(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		must(t, err)
		message := string(buf[:n])
		if forbidden != "" && strings.Contains(message, forbidden) {
			t.Fatalf("systemd was told %q", message)
		}
		if strings.Contains(message, words) {
			return
		}
	}
}

// SIGHUP reads the files now: the loop would look again only after a minute,
// the wait below ends after 15 seconds.
func TestSliceHangupReads(t *testing.T) {
	t.Parallel()
	s := newSlice(t, "nft", nil)
	s.cfg.Interval = "60s"
	must(t, s.agent.WriteConfig(s.cfg))
	s.start()
	s.cfg.Peers.Networks["dns"] = []string{"10.0.0.53/32"}
	must(t, s.agent.WritePeers(s.cfg.Peers))
	must(t, s.agent.Signal(unix.SIGHUP))
	must(t, testbed.Await(t.Context(), "the new member", func(context.Context) error {
		if !strings.Contains(run(t, s.node, "ipset save pgh4-dns"), "10.0.0.53") {
			return errors.New("not in the set yet")
		}
		return nil
	}))
}

// TestF13 and TestF18: a bad change keeps the last good state, is named in
// status with file, line and fix, and nothing is opened or lost by it.
func TestF13F18BadChange(t *testing.T) {
	s := startSlice(t, "nft")
	goodPeers, err := os.ReadFile(s.agent.PeersPath)
	must(t, err)
	goodConfig, err := os.ReadFile(s.agent.ConfigPath)
	must(t, err)
	edit := func(text []byte, old, replacement string) string {
		t.Helper()
		if !strings.Contains(string(text), old) {
			t.Fatalf("%q is not in\n%s", old, text)
		}
		return strings.Replace(string(text), old, replacement, 1)
	}
	for _, row := range []struct{ name, file, text, says string }{
		{"F13 empty", s.agent.PeersPath, "", "peers.yaml"},
		{"F13 truncated in the middle", s.agent.PeersPath, string(goodPeers[:len(goodPeers)/2]), "peers.yaml"},
		{"F13 everybody as a network", s.agent.PeersPath, edit(goodPeers, "10.0.0.0/24", "0.0.0.0/0"), "0.0.0.0/0"},
		{"F13 self missing", s.agent.PeersPath, edit(goodPeers, "name: pg-0", "name: pg-7"), "pg-0"},
		{"F13 v4-mapped", s.agent.PeersPath, edit(goodPeers, "fd00:20:1::20", "::ffff:10.20.1.20"), "::ffff:10.20.1.20"},
		{"F13 duplicate address", s.agent.PeersPath, edit(goodPeers, "10.20.1.20", "10.20.1.10"), "10.20.1.10"},
		{"F18 unknown key", s.agent.ConfigPath, string(goodConfig) + "firewal: {}\n", "firewal"},
		{"F18 half-written", s.agent.ConfigPath, string(goodConfig) + "firewall: {backend", "pghardend.yaml:"},
	} {
		t.Run(row.name, func(t *testing.T) {
			must(t, testbed.WriteFile(row.file, row.text))
			st := s.awaitStatus("degraded", func(st control.Status) error {
				if st.State != control.StateDegraded {
					return errors.New(st.State)
				}
				return nil
			})
			reason := strings.Join(st.Reasons, "\n")
			for _, w := range []string{row.says, "the last good configuration stays in force"} {
				if !strings.Contains(reason, w) {
					t.Errorf("the reason does not say %q:\n%s", w, reason)
				}
			}
			if got, err := s.sql(s.peer, s.node.V4(), "SELECT 1"); err != nil || got != "1" {
				t.Errorf("the peer's session: %q %v", got, err)
			}
			s.want(1, []string{row.says}, "validate")
			must(t, testbed.WriteFile(s.agent.PeersPath, string(goodPeers)))
			must(t, testbed.WriteFile(s.agent.ConfigPath, string(goodConfig)))
			s.awaitOK()
		})
	}
	t.Run("F18 wrong mode", func(t *testing.T) {
		before := time.Now()
		must(t, os.Chmod(s.agent.ConfigPath, 0o666)) // of what is known to be right: it is put back
		s.awaitRestored(before, filepath.Base(s.agent.ConfigPath), "0666")
		fi, err := os.Stat(s.agent.ConfigPath)
		if must(t, err); fi.Mode().Perm()&0o022 != 0 {
			t.Errorf("the mode is %o", fi.Mode().Perm())
		}
		run(t, s.node, fmt.Sprintf("cd %s; cp %s new; echo '# by somebody' >> new; chmod 666 new; mv new %[2]s", filepath.Dir(s.agent.ConfigPath), s.agent.ConfigPath))
		s.awaitStatus("degraded", func(st control.Status) error {
			if st.State != control.StateDegraded || !strings.Contains(strings.Join(st.Reasons, " "), "chmod") {
				return fmt.Errorf("%s %q", st.State, st.Reasons)
			}
			return nil
		})
		must(t, testbed.WriteFile(s.agent.ConfigPath, string(goodConfig)))
		s.awaitOK()
	})
	t.Run("F18 bad at boot", func(t *testing.T) {
		must(t, testbed.WriteFile(s.agent.PeersPath, ""))
		must(t, s.agent.Restart(s.ctx))
		s.awaitStatus("degraded, with the last good rules", func(st control.Status) error {
			if st.State != control.StateDegraded || len(st.Layers) == 0 || !st.Layers[0].Enforced || len(st.Services) != 1 || st.Services[0].State != "ready" {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
		must(t, testbed.WriteFile(s.agent.PeersPath, string(goodPeers)))
		s.awaitOK()
	})
	t.Run("good change", func(t *testing.T) {
		before := time.Now()
		must(t, testbed.WriteFile(s.agent.PeersPath, edit(goodPeers, "10.20.1.20", "10.20.1.66")))
		must(t, testbed.Await(s.ctx, "the new member", func(context.Context) error {
			if !strings.Contains(run(t, s.node, "ipset save pgh4-pgpool"), "10.20.1.66") {
				return errors.New("not in the set yet")
			}
			return nil
		}))
		t.Logf("a changed address is in the set after %v", time.Since(before).Round(10*time.Millisecond))
		if got, err := s.sql(s.sibling, s.node.V4(), "SELECT 1"); err != nil || got != "1" {
			t.Errorf("the former sibling, now a member: %q %v", got, err)
		}
	})
}
