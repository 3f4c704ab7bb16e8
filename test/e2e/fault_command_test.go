package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
)

// withRow is a configuration whose rules differ by one row in both families.
func (s *slice) withRow(on bool) testbed.AgentConfig {
	cfg := s.cfg
	cfg.Flows = map[string]any{"patroni": map[string]any{"enabled": on}}
	return cfg
}

// F10: iptables-restore fails, dies halfway, is slow, or somebody writes between
// the read, the write and the look after it. Nothing is ever half written, and in
// the end all of it is.
func TestF10_RestoreUnderTheDaemon(t *testing.T) {
	t.Parallel()
	const sometimes = `F=/run/fault.${REAL##*/}; N=$(cat $F 2>/dev/null || echo 3); [ "$N" -le 0 ] || echo $((N-1)) >$F; `
	eachHoldAtOnce(t, func(t *testing.T, s *slice) {
		s.standIns()
		on := false
		for _, row := range []struct {
			name, script string
			says         []string // while it lasts; none: it ends by itself
		}{
			{"fails", "cat >/dev/null; echo no room for rules >&2; exit 1", []string{"firewall: ", "cannot write ipv4 rules", "cannot write ipv6 rules", "no room for rules"}},
			{"dies halfway", `head -n 30 | $REAL "$@"; kill -9 $$`, []string{"firewall: ", "cannot write ipv4 rules", "signal: killed"}},
			{"dies after writing, for a while", sometimes + `$REAL "$@" || exit; [ "$N" -le 0 ] || kill -9 $$`, nil},
			{"is slow", `sleep 1.5; exec $REAL "$@"`, nil},
			{"overwritten before", sometimes + `[ "$N" -le 0 ] || ${REAL%-restore} -D INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN; exec $REAL "$@"`, nil},
			{"overwritten after", sometimes + `$REAL "$@" || exit; [ "$N" -le 0 ] || ${REAL%-restore} -F PGHARDEND-OUT`, nil},
		} {
			t.Run(row.name, func(t *testing.T) {
				before, began := s.rules(), time.Now()
				run(t, s.node, "rm -f /run/fault.*")
				s.standIn(row.script, "-restore")
				on = !on
				must(t, s.agent.WriteConfig(s.withRow(on)))
				if row.says != nil {
					s.degradedBy(row.says...)
					s.isolated("while it " + row.name)
					if now := s.rules(); now != before {
						t.Errorf("something was written:\n%s\nbefore:\n%s", now, before)
					}
					s.real()
				}
				s.awaitKernel(30*time.Second, "the rules of the row in both families", fmt.Sprintf("test $(%[1]s/iptables-%[2]s-save | grep -c pghardend:patroni) -%[3]s 0 && test $(%[1]s/ip6tables-%[2]s-save | grep -c pghardend:patroni) -%[3]s 0",
					realTools, s.cfg.Backend, map[bool]string{true: "gt", false: "eq"}[on]))
				s.settled(row.name)
				s.ok("after: " + row.name)
				if strings.HasPrefix(row.script, sometimes) {
					run(t, s.node, "cat /run/fault.*-restore") // it did happen
				}
				s.real()
				s.isolated("after: " + row.name)
				t.Logf("in force after %v", time.Since(began).Round(10*time.Millisecond))
			})
		}
	})
}

// F11: commands are missing, or of the wrong version, when the daemon starts. It
// says so, keeps what it can, and leaves the rules that are there in force.
func TestF11_CommandsAtTheStart(t *testing.T) {
	t.Parallel()
	eachHoldAtOnce(t, func(t *testing.T, s *slice) {
		s.standIns()
		before := s.rules()
		stop := func() {
			t.Helper()
			_, err := s.agent.Stop(s.ctx)
			must(t, err)
		}
		stop()
		const old = "echo ip6tables v1.6.0"
		for _, row := range []struct {
			name  string
			spoil func()
			says  []string
		}{
			{"ip6tables missing", func() {
				s.without("ip6tables", s.command("ip6tables", ""), s.command("ip6tables", "-save"), s.command("ip6tables", "-restore"))
			}, []string{"ipv6", "ip6tables is not installed"}},
			{"ip6tables too old", func() { s.standInFor(s.command("ip6tables", ""), old) }, []string{"ipv6", "is version 1.6.0", "install 1.8.0 or later"}},
		} {
			s.real()
			row.spoil()
			must(t, s.agent.Start())
			s.degradedBy(append(row.says, "firewall: ")...)
			drift := time.Now()
			s.tool("$I4 -F PGHARDEND-OUT; ipset add pgh6-control_plane fd00:20:1::66")
			s.awaitKernel(10*time.Second, "what can be kept", s.present("iptables", "PGHARDEND-OUT")+" && ! ipset test -q pgh6-control_plane fd00:20:1::66")
			if now := s.rules(); now != before {
				t.Errorf("%s: the rules are\n%s\nnot\n%s", row.name, now, before)
			}
			s.isolated(row.name)
			t.Logf("%s: the rest was put back after %v", row.name, time.Since(drift).Round(10*time.Millisecond))
			stop()
		}
		s.real()
		s.without("iptables", "ip6tables", s.command("iptables", ""), s.command("ip6tables", ""))
		s.want(1, []string{"iptables is not installed", "install the package iptables"}, "run")
		s.isolated("without any command")
		if now := s.rules(); now != before {
			t.Errorf("without any command the rules are\n%s\nnot\n%s", now, before)
		}
		s.real()
		s.startHold()
		s.settled("all that")
	})
}

// F11: the first write after a boot loads modules, on a slow host for longer than a command may take. apply, which
// pghardend-boot.service runs, writes again. One that is slow for good is told.
func TestF11_FirstWriteAfterABoot(t *testing.T) {
	t.Parallel()
	s, _ := newHold(t, "nft")
	s.standIns()
	s.standIn("exec sleep 60", "-restore")
	s.want(1, []string{"iptables-nft-restore", "10s"}, "apply")
	s.standIn(`[ -e /run/${0##*/}.loaded ] || { touch /run/${0##*/}.loaded; exec sleep 60; }; exec $REAL "$@"`, "-restore")
	s.want(0, nil, "apply")
	s.isolated("after a slow first write")
}

// F11: commands go away, fail or hang while the daemon runs. What needs none of
// them goes on: sets, and with the nft backend the rules as well. Nothing is torn
// down, and the end of it is noticed.
func TestF11_CommandsWhileRunning(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, _ := newHold(t, backend)
		conn := s.systemd()
		s.startHold()
		s.standIns()
		for _, row := range []struct {
			name  string
			spoil func()
			says  string
		}{
			{"missing", func() {
				s.without(s.command("iptables", "-save"), s.command("ip6tables", "-save"), s.command("iptables", "-restore"), s.command("ip6tables", "-restore"))
			}, "no such file or directory"},
			{"failing", func() { s.standIn("echo broken >&2; exit 3", "-save", "-restore") }, "exit status 3: broken"},
			{"another program", func() { s.standIn("echo iptables v1.4.21: hello", "-save", "-restore") }, "cannot observe ipv4"},
		} {
			t.Run(row.name, func(t *testing.T) {
				row.spoil()
				before := time.Now()
				s.tool("$I4 -F PGHARDEND-OUT; ipset add pgh4-control_plane 10.20.1.66")
				s.chainIsBackWithoutACommand()
				s.degradedBy("firewall: ", row.says)
				s.awaitKernel(30*time.Second, "the set is put back", "! ipset test -q pgh4-control_plane 10.20.1.66")
				if o := send(t, s.sibling, s.syn()); o.Arrived != 1 || len(o.Answers) != 0 {
					t.Errorf("the sibling's SYN: %v", o)
				}
				s.real()
				s.awaitRestored(before, "PGHARDEND-OUT", "pgh4-control_plane")
				s.ok("with the commands back")
				s.isolated("with the commands back")
			})
		}
		t.Run("hanging", func(t *testing.T) {
			s.standIn(`while [ -e /run/hang ]; do sleep 0.1; done; exec $REAL "$@"`, "-save", "-restore")
			run(t, s.node, "touch /run/hang")
			before := time.Now()
			s.tool("$I4 -F PGHARDEND-OUT")
			s.chainIsBackWithoutACommand()
			s.degradedBy("firewall: ", "deadline exceeded") // which it can be asked meanwhile
			if took := time.Since(before); took < 8*time.Second || took > 25*time.Second {
				t.Errorf("it is said after %v, want about the 10 seconds that a command may take", took)
			}
			awaitNotified(t, conn, "WATCHDOG=1\nSTATUS=degraded (firewall)", "") // F24
			run(t, s.node, "rm /run/hang")
			s.real()
			s.awaitRestored(before, "PGHARDEND-OUT")
			s.ok("with the commands back")
			s.isolated("with the commands back")
		})
	})
}

// chainIsBackWithoutACommand is for the nft backend, which needs none.
func (s *slice) chainIsBackWithoutACommand() {
	s.t.Helper()
	if s.cfg.Backend == "nft" {
		took := s.awaitKernel(5*time.Second, "the chain is put back without a command", s.present("iptables", "PGHARDEND-OUT"))
		s.t.Logf("the chain was back after %v at most", took.Round(time.Millisecond))
	}
}

// F22: the disk of state_dir fills up, or becomes read-only, under a daemon that
// writes its journal there. Drift is put back as always; what could not be written
// down is, in order, when there is room.
func TestF22_JournalUnderTheDaemon(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, _ := newHold(t, backend)
		state := filepath.Join(s.agent.Dir, "state")
		run(t, s.node, "mkdir -m 700 "+state+" && mount -t tmpfs -o size=256k,mode=700 none "+state)
		s.startHold()
		drifts := func() int {
			t.Helper()
			return strings.Count(s.want(0, nil, "events", "--json", "--limit", "0").Stdout, `"cause":"drift"`)
		}
		for _, row := range []struct{ name, on, off string }{
			{"full", "dd if=/dev/zero of=" + state + "/fill bs=4k 2>/dev/null; true", "rm " + state + "/fill"},
			{"read-only", "mount -o remount,ro " + state, "mount -o remount,rw " + state},
		} {
			run(t, s.node, row.on)
			was := drifts()
			for i := 0; drifts() == was || s.cli("status").Code == 0; i++ { // the room there is may do for some
				before := time.Now()
				s.tool("$I4 -F PGHARDEND-OUT")
				s.awaitRestored(before, "PGHARDEND-OUT")
				if i > 100 {
					t.Fatalf("%s: the journal does not care", row.name)
				}
			}
			s.degradedBy("journal: ", "full or read-only")
			s.isolated("with a disk that is " + row.name)
			n := drifts()
			run(t, s.node, row.off)
			s.ok("with room again")
			must(t, s.agent.Kill9(s.ctx))
			if left := drifts(); left != n {
				t.Errorf("%s: %d drifts are on disk, %d were listed", row.name, left, n)
			}
			s.startHold()
		}
	})
}
