package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

// Access for operators with the daemon running, beyond what hold_test.go shows.

// leave writes the openings that an earlier daemon has left behind, each with so much time.
func (s *slice) leave(left time.Duration, from ...netip.Addr) {
	s.t.Helper()
	now := time.Now()
	var list []control.Opening
	for i, a := range from {
		list = append(list, control.Opening{
			ID: fmt.Sprintf("0a1b%02d", i), From: netip.PrefixFrom(a, a.BitLen()), Proto: "tcp", Port: holdPort,
			Opened: now.Add(left - time.Minute), Until: now.Add(left), Reason: "restore, ticket 4711", By: "uid 0, sudo by alice",
		})
	}
	data, err := json.Marshal(map[string]any{"version": 1, "openings": list})
	must(s.t, err)
	must(s.t, os.WriteFile(filepath.Join(s.agent.Dir, "state", "openings.json"), data, 0o600))
}

// echoes says whether a connection is answered within the time.
func echoes(conn net.Conn, within time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("still there\n")); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 64))
	return err
}

func (s *slice) dial(from *testbed.Host, to netip.Addr, port uint16) net.Conn {
	s.t.Helper()
	conn, err := from.Dial(s.ctx, "tcp", netip.AddrPortFrom(to, port))
	must(s.t, err)
	s.t.Cleanup(func() { _ = conn.Close() }) // it may have been reset
	return conn
}

var memberTime = regexp.MustCompile(`(?m)^add pgh[46]-open (\S+) timeout (\d+)$`)

// kernelTimes is what the kernel gives each opening, in seconds.
func (s *slice) kernelTimes() map[string]int {
	s.t.Helper()
	times := map[string]int{}
	for _, m := range memberTime.FindAllStringSubmatch(run(s.t, s.node, "ipset save"), -1) {
		seconds, err := strconv.Atoi(m[2])
		must(s.t, err)
		times[m[1]] = seconds
	}
	return times
}

// An opening that ends takes with it the connections that only it allowed, and
// no others; a restart of the daemon neither prolongs nor forgets it.
func TestOpeningEndsWithItsConnections(t *testing.T) {
	t.Parallel()
	const given = 15 * time.Second
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, stranger := newHold(t, backend)
		s.startHold()
		code, err := s.agent.Stop(s.ctx)
		if err != nil || code != 0 {
			t.Fatalf("stopping the daemon: %d %v", code, err)
		}
		s.leave(given, families(stranger)...)
		until := time.Now().Add(given)
		s.startHold()
		kept := s.dial(s.control, s.node.V4(), 22)
		var live []net.Conn
		for _, to := range families(s.node) {
			live = append(live, s.dial(stranger, to, holdPort))
		}
		must(t, s.agent.Restart(s.ctx))
		s.ok("after a restart")
		times := s.kernelTimes()
		for member, left := range times {
			if most := int(time.Until(until)/time.Second) + 2; left > most {
				t.Errorf("%s is open for %d s more, want at most %d", member, left, most)
			}
		}
		if len(times) != 2 {
			t.Errorf("open in the kernel: %v, want one of each family", times)
		}
		for _, c := range append(live, kept) {
			must(t, echoes(c, 5*time.Second))
		}
		if time.Now().After(until) {
			t.Fatal("too slow: the openings have ended")
		}
		s.want(0, []string{"restore, ticket 4711", "uid 0, sudo by alice", "10.60.0.7 to tcp port 8444", "fd00:60::7 to tcp port 8444"}, "status")

		s.awaitStatus("the end of the openings, and the cut", func(st control.Status) error {
			for _, f := range []string{"ipv4", "ipv6"} {
				if left := run(t, s.node, "conntrack -L -f "+f+" -p tcp --dport "+fmt.Sprint(holdPort)+" 2>/dev/null || true"); left != "" {
					return fmt.Errorf("tracked: %s; %+v", left, st.Openings)
				}
			}
			if len(st.Openings) != 0 {
				return fmt.Errorf("%+v", st.Openings)
			}
			return nil
		})
		if late := time.Since(until); late < -2*time.Second || late > 10*time.Second {
			t.Errorf("cut %v after the end", late)
		}
		if len(s.kernelTimes()) != 0 {
			t.Errorf("still open in the kernel: %v", s.kernelTimes())
		}
		for _, c := range live {
			if err := echoes(c, time.Second); err == nil {
				t.Errorf("the connection from %s goes on", c.LocalAddr())
			}
		}
		must(t, echoes(kept, 5*time.Second))
		s.want(0, []string{"nothing to do"}, "plan")
		must(t, s.agent.Restart(s.ctx))
		s.ok("after another restart")
		s.reaches(stranger, false, holdPort, testbed.NoAnswer)
		data, err := os.ReadFile(filepath.Join(s.agent.Dir, "state", "openings.json"))
		must(t, err)
		if n := strings.Count(string(data), "its time was up"); n != 2 {
			t.Errorf("%d of 2 ends are recorded:\n%s", n, data)
		}
	})
}

// What is no opening is refused with the reason, and changes nothing.
func TestOpeningRefused(t *testing.T) {
	t.Parallel()
	s, _ := newHold(t, "nft")
	good := map[string]string{"--from": "192.0.2.7", "--port": "8444", "--for": "1m", "--reason": "x"}
	args := func(change map[string]string) []string {
		list := []string{"open"}
		for _, key := range []string{"--from", "--port", "--for", "--reason", "--proto"} {
			v, ok := change[key]
			if !ok {
				v, ok = good[key]
			}
			if ok && v != "-" {
				list = append(list, key, v)
			}
		}
		return list
	}
	s.want(1, []string{"no daemon"}, args(nil)...)
	s.startHold()
	for _, row := range []struct{ key, value, says string }{
		{"--from", "0.0.0.0/0", "every address there is"},
		{"--from", "::/0", "every address there is"},
		{"--from", "10.0.0.0/7", "wider than /8"},
		{"--from", "fc00::/6", "wider than /7"},
		{"--from", "10.20.1.0/28", "address by address"},
		{"--from", "10.0.0.0/8", "address by address"},
		{"--from", "fd00:20:1::/80", "address by address"},
		{"--from", "192.0.2.7/24", "192.0.2.0/24"},
		{"--from", "::ffff:192.0.2.7", "write 192.0.2.7"},
		{"--from", "224.0.0.1", "nobody else sends from"},
		{"--from", "db.example.com", "no address"},
		{"--from", "-", "from"},
		{"--port", "0", "1 to 65535"},
		{"--port", "65536", "65536"},
		{"--port", "-", "port"},
		{"--proto", "icmp", "use tcp or udp"},
		{"--for", "59s", "1m0s to 24h0m0s"},
		{"--for", "25h", "1m0s to 24h0m0s"},
		{"--for", "-", "for"},
		{"--reason", " ", "say why"},
		{"--reason", "two\nlines", "one line"},
		{"--reason", strings.Repeat("x", 201), "200"},
		{"--reason", "-", "reason"},
	} {
		s.want(1, []string{row.says}, args(map[string]string{row.key: row.value})...)
	}
	if got := s.kernelTimes(); len(got) != 0 {
		t.Fatalf("open in the kernel: %v", got)
	}
	for i := range 16 {
		s.want(0, []string{"open until"}, args(map[string]string{"--from": fmt.Sprintf("192.0.2.%d", i+1)})...)
	}
	s.want(1, []string{"16 openings", "close"}, args(map[string]string{"--from": "192.0.2.99"})...)
	if got := s.kernelTimes(); len(got) != 16 {
		t.Errorf("open in the kernel: %v, want 16", got)
	}
	s.want(1, []string{"status"}, "close", "--id", "ffffff")
	s.want(1, []string{"--id ID or --all"}, "close")
	s.want(0, []string{"closed "}, "close", "--all")
	s.want(0, []string{"nothing is open"}, "close", "--all")
	if got := s.kernelTimes(); len(got) != 0 {
		t.Errorf("still open in the kernel: %v", got)
	}
}

// An operator whose own session falls to the change gets it back with the state before.
func TestConfirmSessionComesBack(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, _ := newHold(t, backend)
		s.startHold()
		var sessions []net.Conn
		for _, to := range families(s.node) {
			sessions = append(sessions, s.dial(s.control, to, 22))
		}
		for _, c := range sessions {
			must(t, echoes(c, 5*time.Second))
		}
		must(t, s.agent.WritePeers(s.lockOut()))
		s.want(0, []string{"in force until "}, "apply", "--confirm-within", "10s")
		for _, c := range sessions { // written, and never answered: the operator types in vain
			if err := echoes(c, time.Second); err == nil {
				t.Errorf("the session to %s goes on", c.RemoteAddr())
			}
		}
		s.awaitReach(s.control, 22, testbed.Open)
		for _, c := range sessions {
			must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
			if _, err := c.Read(make([]byte, 64)); err != nil { // what was typed is sent again, and answered
				t.Errorf("the session to %s has not come back: %v", c.RemoteAddr(), err)
			}
		}
	})
}

// The time to confirm passes while the daemon is away, or while the command that
// waits has been killed: who comes next puts the state before back, and takes
// the files again once they change.
func TestConfirmTimePassesUnattended(t *testing.T) {
	t.Parallel()
	s, _ := newHold(t, "nft")
	good := s.cfg.Peers
	pass := func(until time.Time) {
		t.Helper()
		must(t, testbed.Await(s.ctx, "the end of the time to confirm in", func(context.Context) error {
			if left := time.Until(until); left > 0 {
				return fmt.Errorf("%v left", left)
			}
			return nil
		}))
	}
	s.startHold()
	must(t, s.agent.WritePeers(s.lockOut()))
	s.want(0, []string{"in force until "}, "apply", "--confirm-within", "10s")
	until := time.Now().Add(10 * time.Second)
	code, err := s.agent.Stop(s.ctx)
	if err != nil || code != 0 {
		t.Fatalf("stopping the daemon: %d %v", code, err)
	}
	s.reaches(s.control, false, 22, testbed.NoAnswer) // the rules stay as they are
	pass(until)
	s.startAs(control.StateDegraded, "not confirmed in time")
	s.reaches(s.control, false, 22, testbed.Open)

	changed := good
	changed.Networks = map[string][]string{"control_plane": good.Networks["control_plane"], "siblings": good.Networks["siblings"], "dns": {"10.0.0.53/32"}}
	must(t, s.agent.WritePeers(changed))
	s.ok("after the files have changed")
	must(t, testbed.Await(s.ctx, "the new member", func(context.Context) error {
		if !strings.Contains(run(t, s.node, "ipset save pgh4-dns"), "10.0.0.53") {
			return errors.New("not in the set yet")
		}
		return nil
	}))
	code, err = s.agent.Stop(s.ctx)
	if err != nil || code != 0 {
		t.Fatalf("stopping the daemon: %d %v", code, err)
	}

	out := s.lockOut()
	out.Networks["dns"] = changed.Networks["dns"]
	must(t, s.agent.WritePeers(out))
	cmd, done, said := s.held("12s")
	s.awaitReach(s.control, 22, testbed.NoAnswer)
	until = time.Now().Add(12 * time.Second)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatalf("%v: %v\n%s", err, <-done, said)
	}
	s.ends(done, said, "signal: killed", "in force until ")
	s.want(1, []string{"the process that waited for it is gone"}, "confirm")
	must(t, s.agent.Start())
	s.awaitStatus("the daemon waits in its place", func(st control.Status) error {
		if st.PID != s.agent.PID() || st.Pending == nil {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	pass(until)
	s.awaitReach(s.control, 22, testbed.Open)
	s.want(3, []string{"not confirmed in time"}, "status")
}

// lockOutRow is a change of the files that takes ssh away from the operators.
type lockOutRow struct {
	name string
	cfg  func(testbed.AgentConfig) testbed.AgentConfig
}

var lockOuts = []lockOutRow{
	{"row off", flowChange("ssh", map[string]any{"enabled": false})},
	{"row narrowed", flowChange("ssh", map[string]any{"from": []string{"postgres"}})},
	{"row for others", flowChange("ssh", map[string]any{"to": []string{"pgpool"}})},
	{"another port", flowChange("ssh", map[string]any{"ports": []int{2222}})},
	{"control plane emptied", func(c testbed.AgentConfig) testbed.AgentConfig {
		c.Peers.Networks = map[string][]string{"control_plane": {}, "siblings": c.Peers.Networks["siblings"]}
		return c
	}},
}

func flowChange(flow string, change map[string]any) func(testbed.AgentConfig) testbed.AgentConfig {
	return func(c testbed.AgentConfig) testbed.AgentConfig {
		c.Flows = map[string]any{flow: change}
		return c
	}
}

// place puts the files of a configuration where the daemon reads them.
type place func(testbed.AgentConfig)

// byRename replaces each file.
func (s *slice) byRename(cfg testbed.AgentConfig) {
	s.t.Helper()
	must(s.t, errors.Join(s.agent.WritePeers(cfg.Peers), s.agent.WriteConfig(cfg)))
}

// bySwap makes both files links into a directory that is itself a link, and
// swaps that, as Ansible and Kubernetes do. runtime_dir and state_dir stay.
func (s *slice) bySwap(cfg testbed.AgentConfig) {
	s.t.Helper()
	s.byRenameInto(cfg)
	current := filepath.Join(s.agent.Dir, "current")
	for _, file := range []string{s.agent.ConfigPath, s.agent.PeersPath} {
		link := filepath.Join("current", filepath.Base(file))
		if now, err := os.Readlink(file); err == nil && now == link {
			continue
		}
		must(s.t, os.Symlink(link, file+".link"))
		must(s.t, os.Rename(file+".link", file))
	}
	if _, err := os.Stat(current); err != nil {
		s.t.Fatal(err)
	}
}

// byRenameInto writes both files to a fresh directory and points "current" to it.
func (s *slice) byRenameInto(cfg testbed.AgentConfig) {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.agent.Dir, "version-")
	must(s.t, err)
	fresh := testbed.Agent{Dir: s.agent.Dir, ConfigPath: filepath.Join(dir, "pghardend.yaml"), PeersPath: filepath.Join(dir, "peers.yaml")}
	must(s.t, errors.Join(fresh.WritePeers(cfg.Peers), fresh.WriteConfig(cfg)))
	link := filepath.Join(s.agent.Dir, "current.new")
	must(s.t, os.Symlink(filepath.Base(dir), link))
	must(s.t, os.Rename(link, filepath.Join(s.agent.Dir, "current")))
}

// No change of a file alone keeps the operators out, however it gets there; who
// means it says so.
func TestLockOutByFileIsRefused(t *testing.T) {
	t.Parallel()
	s, _ := newHold(t, "nft")
	s.startHold()
	refused := func(t *testing.T) {
		t.Helper()
		s.awaitStatus("the refusal", func(st control.Status) error {
			if st.State != control.StateDegraded || st.PID != s.agent.PID() || !containsAll(strings.Join(st.Reasons, "\n"),
				[]string{"the last good configuration stays in force", "nobody could log in", "--force"}) {
				return fmt.Errorf("state %s of process %d, reasons %q", st.State, st.PID, st.Reasons)
			}
			return nil
		})
		for _, v6 := range []bool{false, true} {
			s.reaches(s.control, v6, 22, testbed.Open)
		}
	}
	each := func(t *testing.T, put place) {
		for _, row := range lockOuts {
			t.Run(row.name, func(t *testing.T) {
				session := s.dial(s.control, s.node.V4(), 22)
				put(row.cfg(s.cfg))
				refused(t)
				s.want(1, []string{"ssh"}, "apply")
				must(t, echoes(session, 5*time.Second))
				put(s.cfg)
				s.ok("with the file as it was")
			})
		}
	}
	t.Run("rename", func(t *testing.T) { each(t, s.byRename) })
	t.Run("at start", func(t *testing.T) {
		for _, row := range lockOuts[:2] {
			code, err := s.agent.Stop(s.ctx)
			if err != nil || code != 0 {
				t.Fatalf("stopping the daemon: %d %v", code, err)
			}
			s.byRename(row.cfg(s.cfg))
			s.want(1, []string{"the last good configuration", "is in force instead"}, "apply")
			must(t, s.agent.Start())
			refused(t)
			s.byRename(s.cfg)
			s.ok("with the file as it was")
		}
	})
	t.Run("symlink swap", func(t *testing.T) { each(t, s.bySwap) })
	t.Run("forced", func(t *testing.T) {
		session := s.dial(s.control, s.node.V4(), 22)
		s.bySwap(lockOuts[0].cfg(s.cfg))
		s.want(0, nil, "apply", "--force")
		for _, v6 := range []bool{false, true} {
			s.reaches(s.control, v6, 22, testbed.NoAnswer)
		}
		if err := echoes(session, time.Second); err == nil {
			t.Error("the session goes on")
		}
		s.ok("without the row")
		must(t, s.agent.Restart(s.ctx)) // it is the last good one from now on
		s.ok("after a restart")
		s.reaches(s.control, false, 22, testbed.NoAnswer)
		s.bySwap(s.cfg)
		s.awaitReach(s.control, 22, testbed.Open)
	})
}

// The very first files of a node must let the operators in, too.
func TestLockOutAtFirstStart(t *testing.T) {
	t.Parallel()
	s, _ := newHold(t, "nft")
	for _, row := range lockOuts {
		s.byRename(row.cfg(s.cfg))
		s.want(1, []string{"nobody could log in", "apply --force"}, "run")
		s.want(1, []string{"nobody could log in", "nothing was applied"}, "apply")
		s.reaches(s.control, false, 22, testbed.Open)
	}
	s.want(0, nil, "apply", "--force")
	s.reaches(s.control, false, 22, testbed.NoAnswer)
	s.byRename(s.cfg)
	s.startHold()
	s.reaches(s.control, false, 22, testbed.Open)
}

// Scope siblings: the daemon's rules judge what comes from and goes to the
// shared subnets, link-local addresses included, and the metadata service. The
// host's own firewall has the last word on all else, and no say in that.
func TestScopeSiblings(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		a := newAttack(t, backend)
		a.cfg.Scope = "siblings"
		ports := []uint16{80, 5432, 8008, 8009}
		for _, h := range []*testbed.Host{a.node, a.peer, a.sibling, a.stranger, a.metadata} {
			for _, port := range ports {
				for _, at := range families(h) {
					_, err := h.ServeTCP(a.ctx, netip.AddrPortFrom(at, port))
					must(t, err)
				}
			}
		}
		// The host's own firewall: it lets everybody in at 8008, siblings included, and nobody at 8009.
		for _, ipt := range []string{"iptables-", "ip6tables-"} {
			run(t, a.node, fmt.Sprintf("%[1]s%[2]s -A INPUT -p tcp --dport 8008 -j ACCEPT; %[1]s%[2]s -A INPUT -p tcp --dport 8009 -j DROP", ipt, backend))
		}
		linkLocal := func(from, to *testbed.Host) testbed.Outcome {
			t.Helper()
			src, err := from.LinkLocal()
			must(t, err)
			dst, err := to.LinkLocal()
			must(t, err)
			p := testbed.TCPProbe(netip.AddrPortFrom(dst.WithZone(""), 8008), testbed.SYN)
			p.From = src.WithZone("")
			return send(t, from, p)
		}
		if in, out := linkLocal(a.sibling, a.node), linkLocal(a.node, a.sibling); in.Answered != 1 || out.Answered != 1 {
			t.Fatalf("without rules by link-local addresses: in %v, out %v; the test proves nothing", in, out)
		}
		a.startBare()
		judged := func(state string) {
			t.Helper()
			var wg sync.WaitGroup
			for _, row := range []struct {
				from, to *testbed.Host
				port     uint16
				open     bool
			}{
				{a.stranger, a.node, 8008, true}, {a.stranger, a.node, 5432, true}, {a.stranger, a.node, 8009, false},
				{a.node, a.stranger, 8008, true}, {a.node, a.stranger, 8009, true},
				{a.sibling, a.node, 8008, false}, {a.sibling, a.node, 5432, false}, {a.node, a.sibling, 8008, false}, {a.node, a.sibling, 5432, false},
				{a.peer, a.node, 5432, true}, {a.peer, a.node, 8008, false}, {a.node, a.peer, 5432, false}, {a.node, a.metadata, 80, true},
			} {
				for _, to := range families(row.to) {
					wg.Go(func() {
						v, err := row.from.Connect(a.ctx, netip.AddrPortFrom(to, row.port)) // as root
						if err != nil || (v == testbed.Open) != row.open {
							t.Errorf("%s: %s to %s port %d: %s %v, want open %v", state, row.from.Name(), to, row.port, v, err, row.open)
						}
					})
				}
			}
			wg.Wait()
			if in := linkLocal(a.sibling, a.node); in.Sent != 1 || len(in.Answers) != 0 {
				t.Errorf("%s: from the sibling by link-local addresses: %v", state, in)
			}
			if out := linkLocal(a.node, a.sibling); out.Denied != 1 || out.Sent != 0 {
				t.Errorf("%s: to the sibling by link-local addresses: %v", state, out)
			}
			for _, to := range families(a.metadata) {
				if asNobody(t, a, to, 80) {
					t.Errorf("%s: a user who is not root reaches %s", state, to)
				}
			}
		}
		for _, to := range families(a.stranger) {
			if !asNobody(t, a, to, 8008) {
				t.Errorf("a user who is not root cannot reach %s; the test proves nothing about the metadata service", to)
			}
		}
		wire, err := a.node.Capture(func(p testbed.Packet) bool {
			return !p.Out && p.Src.Is6() && p.Src.IsLinkLocalUnicast() && p.Proto == testbed.ProtoTCP
		})
		must(t, err)
		past, err := a.node.Deliveries(func(p testbed.Packet) bool {
			return p.Src.Is6() && p.Src.IsLinkLocalUnicast() && p.Proto == testbed.ProtoTCP
		})
		must(t, err)
		judged("scope siblings")
		must(t, errors.Join(wire.Close(), past.Close()))
		if on, in := len(wire.Packets()), past.Packets(); on == 0 || len(in) != 0 {
			t.Errorf("%d segments from link-local addresses arrived, and %v were let in", on, in)
		}
		before := time.Now()
		run(t, a.node, "iptables-"+backend+" -D PGHARDEND-IN 1; ip6tables-"+backend+" -F PGHARDEND-OUT")
		a.awaitRestored(before, "ipv4 chain PGHARDEND-IN", "ipv6 chain PGHARDEND-OUT")
		judged("after a repair")
		for _, line := range []string{"-A INPUT -p tcp -m tcp --dport 8008 -j ACCEPT", "-A INPUT -p tcp -m tcp --dport 8009 -j DROP"} {
			for _, save := range []string{"iptables-", "ip6tables-"} {
				if !slices.Contains(strings.Split(run(t, a.node, save+backend+"-save -t filter"), "\n"), line) {
					t.Errorf("%s: the foreign rule %q is gone", save, line)
				}
			}
		}
		a.want(0, nil, "explain", "--from", "10.60.0.7", "--to", "pg-0", "--proto", "tcp", "--port", "8008")
		a.want(4, nil, "explain", "--from", "10.20.1.66", "--to", "pg-0", "--proto", "tcp", "--port", "8008")
	})
}

// asNobody says whether a process of an ordinary user on the node can connect.
func asNobody(t *testing.T, a *attack, to netip.Addr, port uint16) bool {
	t.Helper()
	out := run(t, a.node, fmt.Sprintf("setpriv --reuid=65534 --regid=65534 --clear-groups timeout 3 bash -c ': > /dev/tcp/%s/%d' 2>/dev/null && echo reached; true", to, port))
	return strings.Contains(out, "reached")
}
