package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
)

// newInstance makes an instance and waits until all of it is ready.
func newInstance(t *testing.T, spec testbed.InstanceSpec) *testbed.Instance {
	t.Helper()
	in, err := testbed.NewInstance(t.Context(), spec)
	must(t, err)
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, in.AwaitReady(t.Context()))
	return in
}

// Without agents everybody reaches everything, packet by packet: the control of each experiment with agents.
func TestTestbedInstanceUnprotected(t *testing.T) {
	in := newInstance(t, testbed.InstanceSpec{Name: "unprotected", Services: true, Unprotected: true})
	var shots []testbed.Shot
	for _, from := range in.Hosts() {
		for _, target := range in.Hosts() {
			if from == target {
				continue
			}
			for _, to := range families(target) {
				for _, port := range []uint16{22, 5432, 9999, 9898, 9000, 8008, 2379, 31337} {
					shots = append(shots, testbed.Shot{From: from, Probe: testbed.TCPProbe(netip.AddrPortFrom(to, port), testbed.SYN)})
				}
				for _, port := range []uint16{53, 9694, 31337} {
					shots = append(shots, testbed.Shot{From: from, Probe: testbed.UDPProbe(netip.AddrPortFrom(to, port), []byte("x"))})
				}
				shots = append(shots, testbed.Shot{From: from, Probe: testbed.EchoProbes(to, 1)[0]})
			}
		}
	}
	start := time.Now()
	fates, err := in.Bed.SendAll(t.Context(), shots)
	must(t, err)
	if took := time.Since(start); len(shots) != 1728 || took > 20*time.Second {
		t.Errorf("%d cells took %s", len(shots), took)
	}
	for i, f := range fates {
		heartbeat := shots[i].Probe.Proto == testbed.ProtoUDP // pgpool takes it and says nothing
		if !f.Delivered || f.Answer == nil && !heartbeat {
			t.Errorf("%s to %s protocol %d: %s", shots[i].From.Name(), shots[i].Probe.To, shots[i].Probe.Proto, f)
		}
	}
	c, _ := in.Primary()
	for _, at := range []netip.Addr{in.Host("pg-0").V4(), in.Host("pg-0").V6()} {
		if got, err := c.Psql(t.Context(), in.Sibling(), c.Conninfo(at, testbed.Superuser), "SELECT 1"); got != "1" || err != nil {
			t.Errorf("the sibling does not get into the open server: %q, %v", got, err)
		}
	}
	for _, p := range in.Pools {
		sockets := run(t, p.Host, "ss -Hlx | awk '{print $5}'")
		for path := range strings.Lines(sockets) {
			if !strings.HasPrefix(path, p.Socket) {
				t.Errorf("pgpool on %s has a socket outside of its directory: %s", p.Host.Name(), path)
			}
		}
		pid, err := p.PID()
		must(t, err)
		mine, err1 := os.Readlink("/proc/self/ns/ipc")
		its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/ipc", pid))
		if must(t, errors.Join(err1, err2)); mine == its || sockets == "" {
			t.Errorf("pgpool on %s shares the machine's shared memory, or has no sockets: %q", p.Host.Name(), sockets)
		}
	}
}

// With agents the services work as deployed: replication, clients by way of every pgpool, and two failovers in a row.
func TestTestbedInstance(t *testing.T) {
	start := time.Now()
	in := newInstance(t, testbed.InstanceSpec{Services: true, Backend: "nft"})
	t.Logf("ready after %s", time.Since(start).Round(time.Millisecond))
	c, _ := in.Primary()
	_, err := c.Pgbench(t.Context(), in.App(), in.PgpoolConninfo("pool-0"), "-i", "-q")
	must(t, err)
	transactions := 0
	for _, p := range in.Pools {
		for _, at := range families(p.Host) {
			r, err := c.Pgbench(t.Context(), in.App(), p.Conninfo(at), "-n", "-c", "4", "-t", "25")
			if transactions += r.Processed; err != nil || r.Processed != 100 || r.Failed != 0 {
				t.Errorf("by %s: %+v, %v", at, r, err)
			}
		}
		if _, err := c.Psql(t.Context(), in.Sibling(), p.Conninfo(p.Host.V4()), "SELECT 1"); err == nil {
			t.Errorf("the sibling gets to %s", p.Host.Name())
		}
		if _, err := c.Psql(t.Context(), in.App(), p.Conninfo(p.Host.V4())+" password=wrong", "SELECT 1"); err == nil {
			t.Errorf("%s takes a wrong password", p.Host.Name())
		}
	}
	for i := range 2 {
		old, oldHost := in.Primary()
		must(t, in.AwaitReplay(t.Context()))
		started := time.Now()
		must(t, in.Failover(t.Context()))
		_, host := in.Primary()
		t.Logf("failover to %s after %s", host.Name(), time.Since(started).Round(time.Millisecond))
		if host == oldHost {
			t.Fatal("the primary is the same")
		}
		for _, p := range in.Pools {
			got, err := old.Psql(t.Context(), in.App(), p.Conninfo(p.Host.V4()), "SELECT inet_server_addr(), count(*) FROM pgbench_history")
			if want := fmt.Sprintf("%s|%d", host.V4(), transactions); got != want || err != nil {
				t.Errorf("after failover %d by %s: %q (%v), want %q", i, p.Host.Name(), got, err, want)
			}
		}
		r, err := c.Pgbench(t.Context(), in.App(), in.PgpoolConninfo("pool-1"), "-n", "-t", "10")
		if transactions += r.Processed; err != nil || r.Processed != 10 {
			t.Errorf("writing after failover %d: %+v, %v", i, r, err)
		}
		must(t, in.Rejoin(t.Context()))
	}
}

// Agents alone: quick to make, and the peer list is changed on all nodes at once.
func TestTestbedInstancePeers(t *testing.T) {
	in := newInstance(t, testbed.InstanceSpec{Name: "bare", Backend: "legacy", Interval: "200ms"})
	check := func(n int) {
		t.Helper()
		must(t, testbed.Await(t.Context(), "the sets", func(ctx context.Context) error {
			for _, h := range in.PgNodes() {
				out, err := h.Run(ctx, "ipset", "save", "pgh4-pgpool")
				if got := strings.Count(out, "\nadd "); err != nil || got != n {
					return fmt.Errorf("%s has %d pgpool nodes (%w), want %d", h.Name(), got, err, n)
				}
			}
			return nil
		}))
	}
	check(3)
	must(t, in.WritePeers(in.Peers().Without("pool-2")))
	check(2)
	must(t, in.WritePeers(in.Peers().With(testbed.PeerOf(in.Host("pool-2"), "pgpool"))))
	check(3)
	must(t, in.StopAgents(t.Context()))
	must(t, in.StartAgents())
	must(t, in.AwaitReady(t.Context()))
	if err := in.Failover(t.Context()); err == nil {
		t.Error("a failover without servers")
	}
}

// ownInstance is ownBed with a whole instance: it says where a pgpool runs.
func ownInstance(ctx context.Context, name string) int {
	in, err := testbed.NewInstance(ctx, testbed.InstanceSpec{Name: name, Services: true, Unprotected: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p := in.Pools[0]
	err = testbed.Await(ctx, "pgpool's shared memory", func(ctx context.Context) error {
		out, err := p.Host.Run(ctx, "ipcs", "-m")
		if err == nil && !strings.Contains(out, "0x") {
			err = errors.New("no segment")
		}
		return err
	})
	pid, pidErr := p.PID()
	if err := errors.Join(err, pidErr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stdout, p.Host.Netns(), pid)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends or kills
	return 0
}

// Neither Ctrl-C nor SIGKILL leaves anything of an instance: processes, namespaces, sockets, shared memory, files.
func TestTestbedInstanceLeavesNothing(t *testing.T) {
	killed, killedNS, killedPID := owner(t, "instance-killed")
	interrupted, interruptedNS, interruptedPID := owner(t, "instance-interrupted")
	ipc := map[string]bool{}
	for _, pid := range []int{killedPID, interruptedPID} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/ipc", pid))
		must(t, err)
		ipc[link] = true
	}
	must(t, errors.Join(killed.Process.Kill(), interrupted.Process.Signal(unix.SIGINT)))
	_ = killed.Wait()
	_ = interrupted.Wait()
	if code := interrupted.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d after Ctrl-C, want 130", code)
	}
	if !alive(killedPID) {
		t.Error("the kernel cleaned up by itself: the test proves nothing")
	}
	must(t, testbed.Sweep(t.Context()))
	for ns, pid := range map[string]int{killedNS: killedPID, interruptedNS: interruptedPID} {
		id := strings.Join(strings.Split(ns, "-")[1:3], "-")
		must(t, errors.Join(gone("/run/pghardend-testbed/"+id+".lock"), gone("/var/lib/pghardend-testbed/"+id)))
		if names, err := filepath.Glob("/run/netns/pgh-" + id + "-*"); len(names) > 0 || err != nil || alive(pid) {
			t.Errorf("left: %v, process %d: %v (%v)", names, pid, alive(pid), err)
		}
	}
	// Shared memory lives as long as a process in its namespace.
	links, err := filepath.Glob("/proc/[0-9]*/ns/ipc")
	must(t, err)
	for _, l := range links {
		if at, err := os.Readlink(l); err == nil && ipc[at] {
			t.Errorf("%s is in a namespace of the dead", l)
		}
	}
}
