package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

// What the daemon reads and keeps, when files, disks and name servers are against it.

// degradedBy waits until status says all the words among its reasons.
func (s *slice) degradedBy(words ...string) {
	s.t.Helper()
	s.awaitStatus("degraded by "+strings.Join(words, ", "), func(st control.Status) error {
		if st.State != control.StateDegraded || st.PID != s.agent.PID() || !containsAll(strings.Join(st.Reasons, "\n"), words) {
			return fmt.Errorf("state %s of process %d, reasons %q", st.State, st.PID, st.Reasons)
		}
		return nil
	})
}

func (s *slice) awaitMember(set, member string) {
	s.t.Helper()
	must(s.t, testbed.Await(s.ctx, member+" in "+set, func(context.Context) error {
		if text := run(s.t, s.node, "ipset save "+set); !strings.Contains(text, member) {
			return errors.New(text)
		}
		return nil
	}))
}

// withDNS is the peer list with one resolver more, which shows whether it counts.
func (s *slice) withDNS(address string) testbed.Peers {
	p := s.cfg.Peers
	p.Networks = map[string][]string{"dns": {address}, "control_plane": p.Networks["control_plane"], "siblings": p.Networks["siblings"]}
	return p
}

func mustText(t *testing.T, p testbed.Peers) string {
	t.Helper()
	text, err := p.YAML()
	must(t, err)
	return text
}

// F19: whatever an attacker could put in the way of a name is refused and named;
// the last good state stays, and nothing waits for a FIFO.
func TestF19_SwappedInput(t *testing.T) {
	t.Parallel()
	s, _ := newHold(t, "nft")
	s.startHold()
	evil := mustText(t, s.withDNS("10.66.66.66/32"))
	good := mustText(t, s.cfg.Peers)
	peers := s.agent.PeersPath
	open := filepath.Join(s.agent.Dir, "open") // a directory that everybody can write to
	must(t, os.Mkdir(open, 0o777))
	must(t, os.Chmod(open, 0o777))
	replace := func(create func(path string) error) {
		t.Helper()
		must(t, create(peers+".new"))
		if info, err := os.Lstat(peers); err == nil && info.IsDir() {
			must(t, os.Remove(peers))
		}
		must(t, os.Rename(peers+".new", peers))
	}
	link := func(target string) func(string) error {
		return func(path string) error { return os.Symlink(target, path) }
	}
	written := func(path string) string {
		t.Helper()
		must(t, os.WriteFile(path, []byte(evil), 0o600))
		return path
	}
	for _, row := range []struct {
		name, says string
		swap       func()
	}{
		{"somebody's link", "symlink", func() {
			replace(link(written(filepath.Join(s.agent.Dir, "theirs.yaml"))))
			must(t, os.Lchown(peers, 65534, 65534))
		}},
		{"by way of everybody's directory", "symlink", func() {
			must(t, os.Symlink(written(filepath.Join(s.agent.Dir, "swapped.yaml")), filepath.Join(open, "peers.yaml")))
			replace(link(filepath.Join(open, "peers.yaml")))
		}},
		{"somebody's file", "uid 65534", func() {
			replace(func(path string) error {
				return errors.Join(os.WriteFile(path, []byte(evil), 0o600), os.Chown(path, 65534, 65534))
			})
		}},
		{"dangling", "no such file", func() { replace(link("nowhere")) }},
		{"loop", "too many", func() { replace(link("peers.yaml")) }},
		{"FIFO", "FIFO", func() {
			run(t, s.node, "mkfifo -m 600 "+peers+".new && mv -f "+peers+".new "+peers)
		}},
		{"device", "device", func() { replace(link("/dev/zero")) }},
		{"directory", "directory", func() {
			must(t, os.Remove(peers))
			must(t, os.Mkdir(peers, 0o700))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.swap()
			s.degradedBy("the last good configuration stays in force", "peers.yaml", row.says)
			s.want(1, []string{"peers.yaml"}, "validate")
			s.reaches(s.control, false, 22, testbed.Open)
			if text := run(t, s.node, "ipset save pgh4-dns"); strings.Contains(text, "10.66.66.66") {
				t.Errorf("the swapped list counts:\n%s", text)
			}
			replace(func(path string) error { return os.WriteFile(path, []byte(good), 0o600) })
			s.ok("with the file as it was")
		})
	}
	t.Run("root's own swap counts", func(t *testing.T) {
		next := s.cfg
		next.Peers = s.withDNS("10.0.0.53/32")
		s.bySwap(next)
		s.awaitMember("pgh4-dns", "10.0.0.53")
		s.ok("after the swap")
	})
}

// F19: nor does what the daemon keeps for itself lead anywhere else, be it read or written.
func TestF19_SwappedState(t *testing.T) {
	t.Parallel()
	s, stranger := newHold(t, "nft")
	s.startHold()
	state := filepath.Join(s.agent.Dir, "state")
	x := s.open(stranger.V4().String())
	code, err := s.agent.Stop(s.ctx)
	if err != nil || code != 0 {
		t.Fatalf("stopping the daemon: %d %v", code, err)
	}
	openings := filepath.Join(state, "openings.json")
	data, err := os.ReadFile(openings)
	must(t, err)
	theirs := filepath.Join(s.agent.Dir, "theirs.json")
	must(t, os.WriteFile(theirs, []byte(strings.ReplaceAll(string(data), stranger.V4().String(), s.sibling.V4().String())), 0o600))
	must(t, os.Remove(openings))
	must(t, os.Symlink(theirs, openings))
	must(t, os.Lchown(openings, 65534, 65534))
	must(t, s.agent.Start())
	s.degradedBy("no opening is in force", "openings.json")
	s.reaches(s.sibling, false, holdPort, testbed.NoAnswer)
	s.reaches(stranger, false, holdPort, testbed.NoAnswer) // lost rather than guessed
	if got := s.kernelTimes(); len(got) != 0 {
		t.Errorf("open in the kernel: %v (before: %s)", got, x.ID)
	}

	// Writing replaces a link and not what it points to.
	victim := filepath.Join(s.agent.Dir, "victim")
	must(t, os.WriteFile(victim, []byte("untouched"), 0o644))
	for _, name := range []string{"openings.json", "last-good/peers.yaml", "last-good/pghardend.yaml", "pending.json"} {
		path := filepath.Join(state, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		must(t, os.Symlink(victim, path))
	}
	must(t, s.agent.WritePeers(s.withDNS("10.0.0.53/32")))
	s.awaitMember("pgh4-dns", "10.0.0.53")
	s.open(stranger.V4().String())
	s.reaches(stranger, false, holdPort, testbed.Open)
	if text, err := os.ReadFile(victim); err != nil || string(text) != "untouched" {
		t.Errorf("the daemon wrote through a link: %q %v", text, err)
	}
	for _, name := range []string{"openings.json", "last-good/peers.yaml"} {
		if info, err := os.Lstat(filepath.Join(state, name)); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s: %v %v; want a regular file", name, info, err)
		}
	}
}

// F20: names are resolved neither at the start nor later, and are refused in the files.
func TestF20_NothingIsResolved(t *testing.T) {
	t.Parallel()
	s, _ := newHold(t, "nft")
	run(t, s.node, `nft 'add table inet watch; add chain inet watch out { type filter hook output priority -400; };
		add rule inet watch out udp dport {53, 5353, 5355} counter; add rule inet watch out tcp dport {53, 853} counter'`)
	counter := regexp.MustCompile(`counter packets (\d+)`)
	queries := func() (n int) {
		t.Helper()
		for _, m := range counter.FindAllStringSubmatch(run(t, s.node, "nft list table inet watch"), -1) {
			packets, err := strconv.Atoi(m[1])
			must(t, err)
			n += packets
		}
		return n
	}
	run(t, s.node, "timeout 5 getent hosts db.example.com; timeout 2 bash -c 'echo x > /dev/udp/10.0.0.5/53'; true")
	before := queries()
	if before == 0 {
		t.Fatal("a query is not counted; the test proves nothing")
	}
	s.startHold()
	good := mustText(t, s.cfg.Peers)
	for _, row := range []struct{ name, old, named string }{
		{"a node by name", "10.20.1.10", "pg-0.example.com"},
		{"a network by name", "10.0.0.0/24", "control.example.com"},
		{"localhost", "10.0.0.0/24", "localhost"},
	} {
		if !strings.Contains(good, row.old) {
			t.Fatalf("%q is not in\n%s", row.old, good)
		}
		must(t, testbed.WriteFile(s.agent.PeersPath, strings.Replace(good, row.old, row.named, 1)))
		s.degradedBy("the last good configuration stays in force", row.named)
		s.want(1, []string{row.named}, "validate")
		s.want(1, []string{row.named}, "apply", "--force")
		must(t, testbed.WriteFile(s.agent.PeersPath, good))
		s.ok("with the file as it was")
	}
	s.want(1, []string{"no address"}, "open", "--from", "db.example.com", "--port", "8444", "--for", "1m", "--reason", "x")
	s.want(1, nil, "explain", "--from", "db.example.com", "--to", "pg-0", "--proto", "tcp", "--port", "22")
	drift := time.Now()
	run(t, s.node, "iptables-nft -F PGHARDEND-IN")
	s.awaitRestored(drift, "PGHARDEND-IN")
	must(t, s.agent.Restart(s.ctx))
	s.ok("after a restart")
	for _, command := range []string{"status", "plan", "verify", "validate", "apply"} {
		s.want(0, nil, command)
	}
	if n := queries() - before; n != 0 {
		t.Errorf("%d packets to name servers", n)
	}
}

// F22: with a state_dir that is full or read-only all is enforced as before, and
// status says what cannot be kept; it is kept as soon as it can be.
func TestF22_StateDirFullOrReadOnly(t *testing.T) {
	t.Parallel()
	s, stranger := newHold(t, "nft")
	state := filepath.Join(s.agent.Dir, "state")
	run(t, s.node, "mkdir -m 700 "+state+" && mount -t tmpfs -o size=256k,mode=700 none "+state)
	for i, row := range []struct{ name, on, off string }{
		{"full", "dd if=/dev/zero of=" + state + "/fill bs=4k 2>/dev/null; test $(df --output=avail " + state + " | tail -1) = 0", "rm " + state + "/fill"},
		{"read-only", "mount -o remount,ro " + state, "mount -o remount,rw " + state},
	} {
		t.Run(row.name, func(t *testing.T) {
			resolver := fmt.Sprintf("10.0.0.%d", 60+i)
			if i == 0 {
				run(t, s.node, row.on) // before the very first start
				must(t, s.agent.Start())
				s.degradedBy("is in force, but cannot be kept", "journal: ", "full or read-only", state)
			} else {
				s.ok("before")
				run(t, s.node, row.on)
			}
			must(t, s.agent.WritePeers(s.withDNS(resolver+"/32")))
			s.awaitMember("pgh4-dns", resolver)
			s.degradedBy("is in force, but cannot be kept", "full or read-only", state)
			s.reaches(s.control, false, 22, testbed.Open)
			s.reaches(s.sibling, false, 22, testbed.NoAnswer)
			drift := time.Now()
			run(t, s.node, "iptables-nft -F PGHARDEND-IN; ipset add pgh4-control_plane 10.20.1.66")
			s.awaitRestored(drift, "PGHARDEND-IN", "set pgh4-control_plane: members")
			s.reaches(s.sibling, false, 22, testbed.NoAnswer)
			s.want(1, []string{"full or read-only"}, "apply", "--confirm-within", "10s") // a restart would forget it
			run(t, s.node, row.off)
			s.ok("with room again")
			if text := run(t, s.node, "cat "+state+"/last-good/peers.yaml"); !strings.Contains(text, resolver) {
				t.Errorf("what is in force is not kept:\n%s", text)
			}
			must(t, s.agent.Restart(s.ctx))
			s.ok("after a restart")
			s.awaitMember("pgh4-dns", resolver)
		})
	}
	t.Run("openings", func(t *testing.T) {
		run(t, s.node, "mount -o remount,ro "+state)
		s.open(stranger.V4().String())
		s.reaches(stranger, false, holdPort, testbed.Open)
		s.degradedBy("cannot be recorded", "full or read-only")
		run(t, s.node, "mount -o remount,rw "+state)
		s.ok("with room again")
		must(t, s.agent.Restart(s.ctx))
		s.ok("after a restart")
		s.reaches(stranger, false, holdPort, testbed.Open)
	})
}

// F17: the daemon takes over the rules and sets that the version before has
// written, and takes them back after a downgrade of the rules.
func TestF17_DaemonOverPreviousRules(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, _ := newHold(t, backend)
		dir, err := filepath.Abs("testdata/previous")
		must(t, err)
		base := filepath.Join(dir, "postgres-"+backend)
		run(t, s.node, fmt.Sprintf("ipset restore < %[1]s.ipset && iptables-%[2]s-restore < %[1]s-ipv4.rules && ip6tables-%[2]s-restore < %[1]s-ipv6.rules", base, backend))
		run(t, s.node, fmt.Sprintf("iptables-%s -A INPUT -s 192.0.2.1 -j DROP", backend)) // somebody else's
		settled := func(state string) {
			t.Helper()
			s.want(0, []string{"nothing to do"}, "plan")
			s.reaches(s.control, false, 22, testbed.Open)
			s.reaches(s.sibling, false, 22, testbed.NoAnswer)
			all := run(t, s.node, fmt.Sprintf("iptables-%[1]s-save -t filter; ip6tables-%[1]s-save -t filter", backend))
			for _, chain := range []string{"INPUT", "OUTPUT", "FORWARD"} {
				if n := strings.Count(all, "-A "+chain+" -m comment --comment \"pghardend:jump\""); n != 2 {
					t.Errorf("%s: %d jumps from %s, want one for each family:\n%s", state, n, chain, all)
				}
			}
			if !strings.Contains(all, "-A INPUT -s 192.0.2.1/32 -j DROP") {
				t.Errorf("%s: the foreign rule is gone", state)
			}
		}
		s.startHold()
		settled("upgrade")
		before := time.Now()
		run(t, s.node, fmt.Sprintf(`for F in 4 6; do
			I=iptables; [ $F = 4 ] || I=ip6tables
			grep -vE '^-A (INPUT|OUTPUT|FORWARD) |^:(INPUT|OUTPUT|FORWARD) ' %s-ipv$F.rules | $I-%s-restore --noflush
		done`, base, backend))
		s.awaitRestored(before, "ipv4 chain PGHARDEND-IN", "ipv6 chain PGHARDEND-IN")
		settled("downgrade of the rules")
	})
}
