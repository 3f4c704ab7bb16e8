package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

// What lasts for a limited time: openings, and changes that nobody confirms.

const holdPort = 8444

// newHold is a slice without services and with a stranger, whose node listens.
func newHold(t *testing.T, backend string) (s *slice, stranger *testbed.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sliceTimeout)
	t.Cleanup(cancel)
	bed, err := testbed.New(ctx, bedName("hold"), []testbed.HostSpec{
		{Name: "pg-0", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64"}},
		{Name: "sibling", Addresses: []string{"10.20.1.66/24", "fd00:20:1::66/64"}},
		{Name: "control", Addresses: []string{"10.0.0.5/24", "fd00:10::5/64"}},
		{Name: "stranger", Addresses: []string{"10.60.0.7/24", "fd00:60::7/64"}},
	})
	must(t, err)
	t.Cleanup(func() { must(t, bed.Close()) })
	s = &slice{t: t, ctx: ctx, bed: bed, node: bed.Host("pg-0"), sibling: bed.Host("sibling"), control: bed.Host("control")}
	s.cfg = testbed.AgentConfig{Backend: backend, Peers: testbed.Peers{
		Instance: "orders-prod",
		Nodes:    []testbed.Peer{testbed.PeerOf(s.node, "postgres")},
		Networks: map[string][]string{
			"control_plane": {"10.0.0.0/24", "fd00:10::/64"},
			"siblings":      {"10.20.1.0/24", "fd00:20:1::/64"},
		},
	}}
	s.agent, err = testbed.NewAgent(ctx, s.node, s.cfg)
	must(t, err)
	for _, port := range []uint16{22, holdPort, holdPort + 1} {
		for _, a := range []netip.Addr{s.node.V4(), s.node.V6()} {
			_, err := s.node.ServeTCP(ctx, netip.AddrPortFrom(a, port)) // until the bed is closed
			must(t, err)
		}
	}
	return s, bed.Host("stranger")
}

func (s *slice) startHold() {
	s.t.Helper()
	must(s.t, s.agent.Start())
	s.awaitStatus("status ok", func(st control.Status) error {
		if st.State != control.StateOK || st.PID != s.agent.PID() {
			return fmt.Errorf("state %s of process %d, reasons %q", st.State, st.PID, st.Reasons)
		}
		return nil
	})
}

// reaches checks what host experiences when it connects to the node.
func (s *slice) reaches(host *testbed.Host, v6 bool, port uint16, want testbed.Verdict) {
	s.t.Helper()
	to := s.node.V4()
	if v6 {
		to = s.node.V6()
	}
	got, err := host.Connect(s.ctx, netip.AddrPortFrom(to, port))
	must(s.t, err)
	if got != want {
		s.t.Errorf("%s to %s port %d: %s, want %s", host.Name(), to, port, got, want)
	}
}

// awaitReach waits until host experiences want.
func (s *slice) awaitReach(host *testbed.Host, port uint16, want testbed.Verdict) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	must(s.t, testbed.Await(ctx, fmt.Sprintf("%s from %s to port %d", want, host.Name(), port), func(ctx context.Context) error {
		got, err := host.Connect(ctx, netip.AddrPortFrom(s.node.V4(), port))
		if err == nil && got != want {
			err = fmt.Errorf("%s", got)
		}
		return err
	}))
}

func (s *slice) open(from string) control.Opening {
	s.t.Helper()
	var x control.Opening
	code, err := s.agent.JSON(s.ctx, &x, "open", "--from", from, "--port", fmt.Sprint(holdPort), "--for", "1m", "--reason", "restore, ticket 4711")
	must(s.t, err)
	if code != 0 || x.ID == "" {
		s.t.Fatalf("open: exit code %d, %+v", code, x)
	}
	return x
}

func TestOpening(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, stranger := newHold(t, backend)
		s.startHold()
		s.reaches(stranger, false, holdPort, testbed.NoAnswer)
		s.reaches(stranger, true, holdPort, testbed.NoAnswer)

		x := s.open(stranger.V4().String())
		s.open(stranger.V6().String() + "/128")
		for _, v6 := range []bool{false, true} {
			s.reaches(stranger, v6, holdPort, testbed.Open)
			s.reaches(stranger, v6, holdPort+1, testbed.NoAnswer)
			s.reaches(s.sibling, v6, holdPort, testbed.NoAnswer)
		}
		s.want(0, []string{"nothing to do"}, "plan")
		s.want(0, []string{x.ID, "restore, ticket 4711", "10.60.0.7 to tcp port 8444"}, "status")
		s.want(1, []string{"refused: ", "address by address"}, "open", "--from", "10.20.1.0/24", "--port", "8444", "--for", "1m", "--reason", "x")
		s.want(1, []string{"refused: ", "it is open already"}, "open", "--from", "10.60.0.7", "--port", "8444", "--for", "1m", "--reason", "x")

		before := time.Now()
		run(t, s.node, "ipset flush pgh4-open")
		s.awaitRestored(before, "pgh4-open")
		s.reaches(stranger, false, holdPort, testbed.Open)
		before = time.Now()
		run(t, s.node, "ipset add pgh4-open 10.20.1.66,tcp:8444 timeout 3000")
		s.awaitRestored(before, "pgh4-open")
		s.reaches(s.sibling, false, holdPort, testbed.NoAnswer)

		must(t, s.agent.Restart(s.ctx))
		s.awaitStatus("the opening after a restart", func(st control.Status) error {
			if st.PID != s.agent.PID() || len(st.Openings) != 2 || st.Openings[0].ID != x.ID || !st.Openings[0].Opened.Equal(x.Opened) {
				return fmt.Errorf("%+v", st.Openings)
			}
			return nil
		})
		s.reaches(stranger, false, holdPort, testbed.Open)

		conn, err := stranger.Dial(s.ctx, "tcp", netip.AddrPortFrom(s.node.V4(), holdPort))
		must(t, err)
		defer conn.Close()
		if tracked(t, s, stranger.V4()) == "" {
			t.Error("the connection through the opening is not tracked")
		}
		s.want(0, []string{"closed " + x.ID}, "close", "--id", x.ID)
		s.reaches(stranger, false, holdPort, testbed.NoAnswer)
		s.reaches(stranger, true, holdPort, testbed.Open)
		if left := tracked(t, s, stranger.V4()); left != "" {
			t.Errorf("a connection outlives its opening: %s", left)
		}
		s.want(0, []string{"closed "}, "close", "--all")
		s.reaches(stranger, true, holdPort, testbed.NoAnswer)
		s.want(0, []string{"nothing to do"}, "plan")
	})
}

// leaveOpening writes what a daemon that opened a while ago has left behind.
func (s *slice) leaveOpening(from netip.Addr, left time.Duration) {
	s.t.Helper()
	file := filepath.Join(s.agent.Dir, "state", "openings.json")
	now := time.Now()
	data, err := json.Marshal(map[string]any{"version": 1, "openings": []control.Opening{{
		ID: "0a1b2c", From: netip.PrefixFrom(from, from.BitLen()), Proto: "tcp", Port: holdPort,
		Opened: now.Add(left - time.Minute), Until: now.Add(left), Reason: "left behind", By: "uid 0",
	}}})
	must(s.t, err)
	must(s.t, os.WriteFile(file, data, 0o600))
}

// The kernel closes an opening, whatever has become of the daemon.
func TestOpeningOfADeadDaemonClosesByItself(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		s, stranger := newHold(t, backend)
		s.startHold()
		_, err := s.agent.Stop(s.ctx)
		must(t, err)
		s.leaveOpening(stranger.V4(), 6*time.Second)
		s.startHold()
		s.reaches(stranger, false, holdPort, testbed.Open)
		must(t, s.agent.Kill9(s.ctx))
		s.reaches(stranger, false, holdPort, testbed.Open) // it is not the daemon's death that closes it
		s.awaitReach(stranger, holdPort, testbed.NoAnswer)
		s.startHold()
		s.reaches(stranger, false, holdPort, testbed.NoAnswer)
		data, err := os.ReadFile(filepath.Join(s.agent.Dir, "state", "openings.json"))
		must(t, err)
		if !strings.Contains(string(data), "its time was up") {
			t.Errorf("it is not recorded:\n%s", data)
		}
	})
}

// lockOut is a peer list after which the control plane is smaller and its host no part of it.
func (s *slice) lockOut() testbed.Peers {
	p := s.cfg.Peers
	p.Networks = map[string][]string{"control_plane": {"10.0.0.0/30", "fd00:10::/126"}, "siblings": p.Networks["siblings"]}
	return p
}

func TestConfirmWithDaemon(t *testing.T) {
	t.Parallel()
	s, _ := newHold(t, "nft")
	s.startHold()
	s.reaches(s.control, false, 22, testbed.Open)

	must(t, s.agent.WritePeers(s.lockOut()))
	s.want(0, []string{"in force until ", "`pghardend confirm`", "the daemon waits"}, "apply", "--confirm-within", "10s")
	s.reaches(s.control, false, 22, testbed.NoAnswer)
	s.want(0, []string{"a change goes back at "}, "status")
	must(t, s.agent.Kill9(s.ctx)) // in the middle, and its successor knows
	must(t, s.agent.Start())
	s.awaitStatus("the wait goes on", func(st control.Status) error {
		if st.PID != s.agent.PID() || st.Pending == nil {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	s.reaches(s.control, false, 22, testbed.NoAnswer)
	s.awaitReach(s.control, 22, testbed.Open)
	s.want(3, []string{"not confirmed in time", "`pghardend apply --force` keeps it"}, "status")
	s.want(1, []string{"no change waits for confirmation"}, "confirm")

	s.want(0, []string{"in force until "}, "apply", "--confirm-within", "10s")
	s.want(0, []string{"confirmed"}, "confirm")
	until := time.Now().Add(11 * time.Second)
	s.awaitStatus("more time than there was", func(st control.Status) error {
		if st.State != control.StateOK || st.Pending != nil {
			t.Errorf("%+v", st)
		}
		if time.Now().Before(until) {
			return fmt.Errorf("until %s", until)
		}
		return nil
	})
	s.reaches(s.control, false, 22, testbed.NoAnswer)
	s.want(0, []string{"there is nothing to confirm"}, "apply", "--confirm-within", "10s")
}

// held is an `apply --confirm-within` that waits in the foreground.
func (s *slice) held(within string) (cmd *exec.Cmd, done chan error, said *strings.Builder) {
	s.t.Helper()
	said = &strings.Builder{}
	cmd = s.agent.Command(s.ctx, "apply", "--confirm-within", within)
	cmd.Stdout, cmd.Stderr = said, said
	must(s.t, cmd.Start())
	done = make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	return cmd, done, said
}

func (s *slice) ends(done chan error, said *strings.Builder, code string, words ...string) {
	s.t.Helper()
	select {
	case err := <-done:
		if got := fmt.Sprint(err); got != code || !containsAll(said.String(), words) {
			s.t.Errorf("it ends with %s, want %s, and says, lacking one of %q:\n%s", got, code, words, said)
		}
	case <-time.After(30 * time.Second):
		s.t.Fatal("it does not end")
	}
}

func TestConfirmWithoutDaemon(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, stranger := newHold(t, backend)

		// The first rules of all give way to none.
		s.reaches(stranger, false, holdPort, testbed.Open)
		cmd, done, said := s.held("1h")
		s.awaitReach(stranger, holdPort, testbed.NoAnswer)
		must(t, cmd.Process.Signal(unix.SIGTERM))
		s.ends(done, said, "exit status 1", "interrupted before the change was confirmed", "the state before is back")
		s.reaches(stranger, false, holdPort, testbed.Open)

		s.want(0, nil, "apply")
		s.want(0, []string{"there is nothing to confirm"}, "apply", "--confirm-within", "10s")
		s.want(1, []string{"no change waits for confirmation"}, "confirm")
		must(t, s.agent.WritePeers(s.lockOut()))

		// A session that is cut off takes the command with it no more than time does.
		cmd, done, said = s.held("10s")
		s.awaitReach(s.control, 22, testbed.NoAnswer)
		must(t, cmd.Process.Signal(unix.SIGHUP))
		must(t, cmd.Process.Signal(unix.SIGPIPE))
		s.awaitReach(s.control, 22, testbed.Open)
		s.ends(done, said, "exit status 1", "in force until ", "this command waits", "nobody confirmed the change in time", "the state before is back")
		s.startAs(control.StateDegraded, "not confirmed in time") // nor does a daemon take it
		s.reaches(s.control, false, 22, testbed.Open)
		_, err := s.agent.Stop(s.ctx)
		must(t, err)

		_, done, said = s.held("1m")
		s.awaitReach(s.control, 22, testbed.NoAnswer)
		s.want(0, []string{"confirmed"}, "confirm")
		s.ends(done, said, "<nil>", "confirmed")
		s.reaches(s.control, false, 22, testbed.NoAnswer)
		s.startHold()
		s.reaches(s.control, false, 22, testbed.NoAnswer)
	})
}

func (s *slice) startAs(state, reason string) {
	s.t.Helper()
	must(s.t, s.agent.Start())
	s.awaitStatus("state "+state, func(st control.Status) error {
		if st.PID != s.agent.PID() || st.State != state || st.LastReconcile.IsZero() || !strings.Contains(strings.Join(st.Reasons, "\n"), reason) {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}
