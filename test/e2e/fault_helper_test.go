package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
)

// The faults that a running daemon has to survive, on both backends: what others
// do to the rules, and what fails beneath the daemon.

// realTools is where a host with stand-ins finds the commands themselves.
const realTools = "/run/sbin"

// standIns lets the host's commands in /usr/sbin be replaced, for this host alone.
func (s *slice) standIns() {
	s.t.Helper()
	run(s.t, s.node, fmt.Sprintf("mkdir %[1]s && mount --bind /usr/sbin %[1]s && mount -t tmpfs -o mode=755 none /usr/sbin && ln -s %[1]s/* /usr/sbin", realTools))
}

// command is one of iptables' of the backend in use; ip is iptables or ip6tables.
func (s *slice) command(ip, what string) string { return ip + "-" + s.cfg.Backend + what }

// standIn puts a script in the place of commands of both families, such as
// "-restore". In it $REAL is the command that it stands for.
func (s *slice) standIn(script string, what ...string) {
	s.t.Helper()
	for _, w := range what {
		for _, ip := range []string{"iptables", "ip6tables"} {
			s.standInFor(s.command(ip, w), script)
		}
	}
}

func (s *slice) standInFor(name, script string) {
	s.t.Helper()
	text := fmt.Sprintf("#!/bin/sh\nREAL=%s/%s\n%s\n", realTools, name, script)
	file := filepath.Join(s.node.RunDir(), name+".stand-in")
	must(s.t, os.WriteFile(file, []byte(text), 0o755))
	run(s.t, s.node, fmt.Sprintf("ln -sfn /run/%[1]s.stand-in /usr/sbin/%[1]s.new && mv -T /usr/sbin/%[1]s.new /usr/sbin/%[1]s", name))
}

// without takes commands away.
func (s *slice) without(names ...string) {
	s.t.Helper()
	run(s.t, s.node, "cd /usr/sbin && rm "+strings.Join(names, " "))
}

// real puts all commands back.
func (s *slice) real() {
	s.t.Helper()
	run(s.t, s.node, "ln -sfn "+realTools+"/* /usr/sbin")
}

// tool runs a command line with the real commands of the backend: $I4 and $I6.
func (s *slice) tool(line string) {
	s.t.Helper()
	run(s.t, s.node, fmt.Sprintf("export I4=%[1]siptables-%[2]s I6=%[1]sip6tables-%[2]s; %[3]s", s.toolDir(), s.cfg.Backend, line))
}

// toolDir is empty without stand-ins.
func (s *slice) toolDir() string {
	if _, err := os.Stat(filepath.Join(s.node.RunDir(), filepath.Base(realTools))); err != nil {
		return ""
	}
	return realTools + "/"
}

// isolated sends packets: the control plane is let in, the sibling is not, and
// nothing goes out to the sibling.
func (s *slice) isolated(when string) {
	s.t.Helper()
	for i, at := range families(s.node) {
		if o := send(s.t, s.sibling, testbed.TCPProbe(netip.AddrPortFrom(at, 22), testbed.SYN)); o.Arrived != 1 || len(o.Answers) != 0 {
			s.t.Errorf("%s: the sibling's SYN to %s: %v; want it to arrive and get no answer", when, at, o)
		}
		if o := send(s.t, s.node, testbed.TCPProbe(netip.AddrPortFrom(families(s.sibling)[i], 80), testbed.SYN)); o.Denied != 1 {
			s.t.Errorf("%s: the node's own SYN to the sibling: %v; want it denied", when, o)
		}
		if o := send(s.t, s.control, testbed.TCPProbe(netip.AddrPortFrom(at, 22), testbed.SYN)); len(o.Answers) != 1 {
			s.t.Errorf("%s: the control plane's SYN to %s: %v; want an answer", when, at, o)
		}
	}
}

// exposed is the positive control of isolated: it ends the daemon, removes its
// rules, and wants the same packets to get through.
func (s *slice) exposed() {
	s.t.Helper()
	_, err := s.agent.Stop(s.ctx)
	must(s.t, err)
	s.want(0, nil, "teardown")
	for _, at := range families(s.node) {
		if o := send(s.t, s.sibling, testbed.TCPProbe(netip.AddrPortFrom(at, 22), testbed.SYN)); len(o.Answers) != 1 {
			s.t.Errorf("without rules the sibling's SYN to %s gets no answer: %v", at, o)
		}
	}
}

// settled waits until the plan is empty.
func (s *slice) settled(what string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 15*time.Second)
	defer cancel()
	must(s.t, testbed.Await(ctx, "nothing to do after "+what, func(ctx context.Context) error {
		r, err := s.agent.CLI(ctx, "plan")
		if err == nil && r.Code != 0 {
			err = errors.New(r.Stdout + r.Stderr)
		}
		return err
	}))
}

// rules are our own of both families, in words.
func (s *slice) rules() string {
	s.t.Helper()
	var out []string
	text := run(s.t, s.node, fmt.Sprintf("%[1]siptables-%[2]s-save -t filter; %[1]sip6tables-%[2]s-save -t filter", s.toolDir(), s.cfg.Backend))
	for line := range strings.Lines(text) {
		if strings.Contains(line, "PGHARDEND-") && strings.HasPrefix(line, "-A ") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// foreign is everything that is not ours, chain by chain.
func (s *slice) foreign(h *testbed.Host) []string {
	s.t.Helper()
	var out []string
	for _, save := range []string{"iptables", "ip6tables"} {
		for _, table := range []string{"filter", "nat", "mangle"} {
			dump := run(s.t, h, fmt.Sprintf("%s-%s-save -t %s", save, s.cfg.Backend, table))
			for line := range strings.Lines(fwCounters.ReplaceAllString(dump, "")) {
				empty := strings.HasPrefix(line, ":") && strings.Contains(line, " ACCEPT ") // which the other host need not have
				if !empty && line[0] != '#' && line[0] != '*' && line != "COMMIT\n" && !strings.Contains(line, "PGHARDEND-") {
					out = append(out, save+" "+table+" "+strings.TrimSpace(line))
				}
			}
		}
	}
	chain := func(line string) string { return strings.Join(strings.Fields(line)[:4], " ") }
	slices.SortStableFunc(out, func(a, b string) int { return strings.Compare(chain(a), chain(b)) })
	return append(out, run(s.t, h, "nft list table inet firewalld 2>/dev/null || true"))
}

// holdLock takes the lock that all commands of the legacy backend want.
func (s *slice) holdLock() (release func()) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.node.RunDir(), "xtables.lock"), os.O_CREATE|os.O_RDONLY, 0o600)
	must(s.t, err)
	must(s.t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	return func() { must(s.t, f.Close()) }
}

// awaitKernel waits until a command in the node says yes: for when the daemon
// cannot be asked.
func (s *slice) awaitKernel(within time.Duration, what, line string) time.Duration {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, within)
	defer cancel()
	began := time.Now()
	must(s.t, testbed.Await(ctx, what, func(ctx context.Context) error {
		_, err := s.node.Run(ctx, "sh", "-c", line)
		return err
	}))
	return time.Since(began)
}

// present is a command that says whether a chain has rules, whoever has the lock.
func (s *slice) present(ip, chain string) string {
	return fmt.Sprintf("XTABLES_LOCKFILE=/run/another.lock %s%s -S %s | grep -q -- '^-A'", s.toolDir(), s.command(ip, ""), chain)
}

// eachHold runs f for both backends with a daemon that is well.
func eachHold(t *testing.T, f func(t *testing.T, s *slice)) {
	eachBackend(t, func(t *testing.T, backend string) {
		s, _ := newHold(t, backend)
		s.startHold()
		f(t, s)
	})
}

// eachHoldAtOnce is eachHold for tests that mostly wait.
func eachHoldAtOnce(t *testing.T, f func(t *testing.T, s *slice)) {
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, _ := newHold(t, backend)
		s.startHold()
		f(t, s)
	})
}

// holds says whether a command in the node says yes.
func (s *slice) holds(line string) bool {
	_, err := s.node.Run(s.ctx, "sh", "-c", line)
	return err == nil
}

// metric is the sum of a metric's samples, read at the control socket.
func (s *slice) metric(name string) (sum float64) {
	s.t.Helper()
	b := mtBed{t: s.t, node: s.node, agent: s.agent}
	text, err := b.scrape(s.ctx, "unix", b.socket())
	must(s.t, err)
	found := false
	for line := range strings.Lines(text) {
		var value float64
		if sample, number, ok := strings.Cut(strings.TrimSpace(line), " "); ok && (sample == name || strings.HasPrefix(sample, name+"{")) {
			_, err := fmt.Sscan(number, &value)
			must(s.t, err)
			sum, found = sum+value, true
		}
	}
	if !found {
		s.t.Errorf("there is no metric %s in\n%s", name, text)
	}
	return sum
}

// syn is a connection request to the node, which no sibling may make.
func (s *slice) syn() testbed.Probe {
	return testbed.TCPProbe(netip.AddrPortFrom(s.node.V4(), 22), testbed.SYN)
}
