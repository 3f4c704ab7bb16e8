package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
)

// pgpool's whole life under the filter, watched with strace from its first instruction: start, watchdog, heartbeat, clients,
// its control programs, a reload, the death of a child, a failover with its script, stop. Not one system call is denied,
// save those whose denial is by design.
func TestPgpoolWorkUnderFilter(t *testing.T) {
	t.Parallel()
	in := startInstance(t, testbed.InstanceSpec{Name: "poolwork", Services: true, LoadBalance: true})
	pool := in.Pools[0]
	in.poolService(pool, "stop")
	trace := filepath.Join(t.TempDir(), "pgpool.strace")
	ended := in.tracedPool(pool, trace)
	in.awaitPool(pool, "the other pgpools", func() error {
		if info := in.watchdog(pool); !watchdogComplete.MatchString(info) {
			return fmt.Errorf("the watchdog says:\n%s", info)
		}
		return nil
	})
	in.makeLeader(pool)

	in.poolWork(pool)
	must(t, in.Failover(in.ctx))
	in.poolBench(pool, pool.Host.V4()) // writes to the former standby

	pid, err := pool.PID()
	must(t, err)
	must(t, syscall.Kill(pid, syscall.SIGINT))
	select {
	case <-ended:
	case <-in.ctx.Done():
		t.Fatal("pgpool did not stop")
	}
	denied := map[string]int{}
	countDenied(t, trace, `execve("`+pool.Command()[0], denied)
	for call, n := range denied {
		if !slices.Contains(deniedByDesign, call) {
			t.Errorf("%s was denied %d times", call, n)
		}
	}
	t.Logf("denied by design: %v", denied)
	data, err := os.ReadFile(trace)
	must(t, err)
	for _, what := range []string{`execve("` + pool.Failover, `/psql", `, "SIGINT", "semtimedop(", "AF_NETLINK"} {
		if !strings.Contains(string(data), what) {
			t.Errorf("%s is not in the trace: that part of the work was not watched", what)
		}
	}
}

// poolWait is enough for an election among pgpools, one of which is traced.
const poolWait = time.Minute

func (in *instance) poolService(p *testbed.Pgpool, verb string) {
	in.t.Helper()
	if r, err := in.Agent(p.Host.Name()).CLI(in.ctx, verb, "--service", "pgpool"); err != nil || r.Code != 0 {
		in.t.Fatalf("%s pgpool on %s: %v\n%s%s", verb, p.Host.Name(), err, r.Stdout, r.Stderr)
	}
}

// tracedPool confines and becomes pgpool as a unit of systemd would. The channel is closed when all its processes have ended.
func (in *instance) tracedPool(p *testbed.Pgpool, trace string) <-chan struct{} {
	in.t.Helper()
	cmd := in.Agent(p.Host.Name()).Command(in.ctx, "exec", "--service", "pgpool")
	path := strace(in.t)
	cmd.Args = slices.Concat([]string{path, "-f", "-qq", "-e", "signal=none", "-o", trace, "--"}, cmd.Args)
	cmd.Path = path
	must(in.t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its exit code is that of the traced process
		close(ended)
	}()
	return ended
}

func (in *instance) awaitPool(p *testbed.Pgpool, what string, check func() error) {
	in.t.Helper()
	ctx, cancel := context.WithTimeout(in.ctx, poolWait)
	defer cancel()
	must(in.t, testbed.Await(ctx, "pgpool on "+p.Host.Name()+" to have "+what, func(context.Context) error { return check() }))
}

func (in *instance) watchdog(p *testbed.Pgpool) string {
	out, err := p.PCP(in.ctx, "pcp_watchdog_info", "-v").CombinedOutput()
	if err != nil {
		return err.Error() + "\n" + string(out)
	}
	return string(out)
}

var (
	watchdogLeaderName = regexp.MustCompile(`(?m)^Leader Host Name\s*: (\S+)\s*$`)
	watchdogComplete   = regexp.MustCompile(`(?m)^Alive Remote Nodes\s*: 2\s*$`)
)

// makeLeader restarts the leader until it is p: the leader is who runs the failover command.
func (in *instance) makeLeader(p *testbed.Pgpool) {
	in.t.Helper()
	for range in.Pools {
		var leader *testbed.Pgpool
		in.awaitPool(p, "a leader", func() error {
			info := in.watchdog(p)
			m := watchdogLeaderName.FindStringSubmatch(info)
			i := slices.IndexFunc(in.Pools, func(o *testbed.Pgpool) bool { return m != nil && o.Host.V4().String() == m[1] })
			if i < 0 {
				return fmt.Errorf("the watchdog says:\n%s", info)
			}
			leader = in.Pools[i]
			return nil
		})
		if leader == p {
			return
		}
		in.poolService(leader, "stop")
		in.poolService(leader, "start")
	}
	in.t.Fatalf("%s does not become the leader:\n%s", p.Host.Name(), in.watchdog(p))
}

func (in *instance) poolBench(p *testbed.Pgpool, at netip.Addr, args ...string) {
	in.t.Helper()
	primary, _ := in.Primary()
	r, err := primary.Pgbench(in.ctx, in.App(), p.Conninfo(at), args...)
	if err != nil || r.Failed != 0 || r.Processed == 0 {
		in.t.Errorf("pgbench %v: %d processed, %d failed, %v", args, r.Processed, r.Failed, err)
	}
}

// poolWork is what clients and operators do to a pgpool.
func (in *instance) poolWork(p *testbed.Pgpool) {
	t := in.t
	t.Helper()
	primary, _ := in.Primary()
	_, err := primary.Pgbench(in.ctx, in.App(), p.Conninfo(p.Host.V4()), "-i", "-s", "1", "-q")
	must(t, err)
	for _, at := range families(p.Host) {
		in.poolBench(p, at, "-c", "4", "-t", "20")
		in.poolBench(p, at, "-c", "2", "-t", "50", "-S", "-M", "prepared")
		in.poolBench(p, at, "-c", "2", "-t", "10", "-S", "-C") // a connection for each
	}
	for _, sql := range []string{"SHOW pool_nodes", "SHOW pool_processes", "PGPOOL SHOW ALL", "SELECT pg_is_in_recovery()"} {
		if _, err := p.PsqlSocket(in.ctx, sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, argv := range [][]string{
		{"pcp_node_count"}, {"pcp_node_info", "0"}, {"pcp_proc_count"}, {"pcp_proc_info"}, {"pcp_pool_status"},
		{"pcp_reload_config"}, {"pcp_detach_node", "1"}, {"pcp_attach_node", "1"},
	} {
		if out, err := p.PCP(in.ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", argv, err, out)
		}
	}
	pid, err := p.PID()
	must(t, err)
	must(t, syscall.Kill(pid, syscall.SIGHUP))
	killPoolChild(t, pid)
	in.awaitPool(p, "both servers", func() error {
		out, err := p.PsqlSocket(in.ctx, "SHOW pool_nodes")
		if err == nil && strings.Count(out, "|up|up|") < 2 { // for pgpool and in truth
			err = fmt.Errorf("it shows:\n%s", out)
		}
		return err
	})
}

// killPoolChild kills one of the processes that serve clients; pgpool makes a new one.
func killPoolChild(t *testing.T, pid int) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "pgrep", "-P", fmt.Sprint(pid), "-f", "^pgpool: wait for connection request").Output()
	must(t, err)
	var child int
	_, err = fmt.Sscan(string(out), &child)
	must(t, err)
	must(t, syscall.Kill(child, syscall.SIGKILL))
}
