package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
)

// alive says whether a process exists and is no zombie.
func alive(pid int) bool {
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil
}

func gone(path string) error {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(fmt.Errorf("%s is there", path), err)
}

// Close ends what runs in the bed, children that left their parent and ignore signals included, and leaves nothing.
func TestTestbedClose(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, how := range []string{"close", "ctx"} {
		b, err := testbed.New(ctx, "closing", []testbed.HostSpec{{Name: "a", Addresses: []string{"10.20.1.10/24"}}})
		must(t, err)
		h := b.Host("a")
		run(t, h, "(trap '' TERM INT HUP; setsid sh -c 'while :; do sleep 1000; done' >/dev/null 2>&1 &)")
		pids, err := h.Processes()
		must(t, err)
		if len(pids) == 0 {
			t.Fatal("the process that should be killed does not run")
		}
		if how == "close" {
			must(t, b.Close())
		} else {
			cancel()
		}
		must(t, testbed.Await(t.Context(), "the end after "+how, func(context.Context) error {
			for _, pid := range pids {
				if alive(pid) {
					return fmt.Errorf("process %d lives", pid)
				}
			}
			return errors.Join(gone("/run/netns/"+h.Netns()), gone(h.RunDir()))
		}))
		must(t, b.Close())
	}
}

// owner starts this program as the owner of a bed, and returns it, its namespace and the process in it.
func owner(t *testing.T, name string) (cmd *exec.Cmd, netns string, pid int) {
	t.Helper()
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	_, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if _, scanErr := fmt.Sscan(line, &netns, &pid); err != nil || scanErr != nil {
		t.Fatalf("the owner said %q: %v, %v", line, err, scanErr)
	}
	return cmd, netns, pid
}

// A killed run's namespaces, processes and files are swept; a living one's are not.
func TestTestbedSweep(t *testing.T) {
	dead, deadNS, deadPID := owner(t, "dead")
	live, liveNS, livePID := owner(t, "live")
	must(t, dead.Process.Kill())
	_ = dead.Wait()
	if !alive(deadPID) || gone("/run/netns/"+deadNS) == nil {
		t.Fatal("the kernel cleaned up by itself: the test proves nothing")
	}
	must(t, testbed.Sweep(t.Context()))
	if alive(deadPID) || gone("/run/netns/"+deadNS) != nil {
		t.Error("the sweep left the dead run's namespace or process")
	}
	runID := strings.TrimSuffix(strings.TrimPrefix(deadNS, "pgh-"), "-dead-a")
	must(t, errors.Join(gone("/run/pghardend-testbed/"+runID+".lock"), gone("/var/lib/pghardend-testbed/"+runID)))
	if !alive(livePID) || gone("/run/netns/"+liveNS) == nil {
		t.Error("the sweep hit a living run")
	}
	must(t, live.Process.Kill())
	_ = live.Wait()
	must(t, testbed.Sweep(t.Context()))
	if alive(livePID) {
		t.Error("the second sweep left a process")
	}
}

func TestTestbedPostgres(t *testing.T) {
	b, node, sibling, control := testBed(t, "postgres")
	c, err := b.NewCluster(t.Context(), testbed.ClusterSpec{Settings: map[string]string{"jit": "off"}})
	must(t, err)
	for path, want := range map[string]fs.FileMode{c.Data: 0o700, filepath.Dir(c.Data): 0o755, filepath.Join(c.Data, "pg_hba.conf"): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %o", path, st.Mode(), err, want)
		}
	}
	must(t, c.Start(t.Context(), node))
	pid, err := c.PID()
	must(t, err)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	if want := fmt.Sprintf("Uid:\t%s\t", c.User.Uid); !strings.Contains(string(status), want) {
		t.Errorf("the server does not run as %s", c.User.Username)
	}
	for _, at := range families(node) {
		for _, from := range []*testbed.Host{sibling, control} {
			for _, role := range []string{testbed.Superuser, testbed.AppUser} {
				got, err := c.Psql(t.Context(), from, c.Conninfo(at, role), "SELECT current_user, inet_client_addr() IS NOT NULL; SELECT 2;")
				if want := role + "|t\n2"; got != want || err != nil {
					t.Errorf("%s as %s from %s: %q, %v", at, role, from.Name(), got, err)
				}
			}
		}
	}
	conninfo := c.Conninfo(node.V4(), testbed.AppUser)
	if _, err := c.Psql(t.Context(), sibling, conninfo+" password=wrong", "SELECT 1"); err == nil || !strings.Contains(err.Error(), "password") {
		t.Errorf("a wrong password: %v", err)
	}
	if _, err := c.Psql(t.Context(), sibling, conninfo, "SELECT 1/0; SELECT 'not reached'"); err == nil || !strings.Contains(err.Error(), "division by zero") {
		t.Errorf("an SQL error: %v", err)
	}
	if got, err := c.PsqlSocket(t.Context(), node, "SHOW jit"); got != "off" || err != nil {
		t.Errorf("by the socket: %q, %v", got, err)
	}
	_, err = c.Pgbench(t.Context(), sibling, conninfo, "-i", "-q")
	must(t, err)
	r, err := c.Pgbench(t.Context(), sibling, conninfo, "-n", "-t", "50", "-c", "2")
	if err != nil || r.Processed != 100 || r.Failed != 0 || r.TPS <= 0 {
		t.Errorf("pgbench: %+v, %v", r, err)
	}
	must(t, c.Stop(t.Context()))
	if c.Ready() == nil || alive(pid) {
		t.Error("the server still runs after Stop")
	}
	if _, err := c.Pgbench(t.Context(), sibling, conninfo, "-n", "-t", "1"); err == nil {
		t.Error("pgbench without a server is no error")
	}
	must(t, c.Start(t.Context(), node))
	if _, err := b.NewCluster(t.Context(), testbed.ClusterSpec{User: "nobody-at-all"}); err == nil {
		t.Error("a cluster for a user that does not exist")
	}
	broken, err := b.NewCluster(t.Context(), testbed.ClusterSpec{Port: 5433, Settings: map[string]string{"no_such_setting": "1"}})
	must(t, err)
	start := time.Now()
	if err := broken.Start(t.Context(), node); err == nil || !strings.Contains(err.Error(), "no_such_setting") || time.Since(start) > 10*time.Second {
		t.Errorf("a server that cannot start: after %s: %v", time.Since(start), err)
	}
}

// The agent fixture: commands with their exit codes and both streams, a daemon with kill, stop and restart, and an error
// with the log when the daemon dies while something is awaited.
func TestTestbedAgent(t *testing.T) {
	_, node, sibling, _ := testBed(t, "agent")
	peers := testbed.Peers{Instance: "testbed", Nodes: []testbed.Peer{testbed.PeerOf(node, "postgres")},
		Networks: map[string][]string{"control_plane": {"10.0.0.0/24", "fd00:10::/64"}}}
	a, err := testbed.NewAgent(t.Context(), node, testbed.AgentConfig{Backend: "nft", Interval: "200ms", Peers: peers})
	must(t, err)
	if st, err := os.Stat(a.Dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%s: %v, %v", a.Dir, st.Mode(), err)
	}
	r, err := a.CLI(t.Context(), "validate")
	if err != nil || r.Code != 0 {
		t.Fatalf("validate: %+v, %v", r, err)
	}
	r, err = a.CLI(t.Context(), "no-such-command")
	if err != nil || r.Code != 1 || r.Stderr == "" {
		t.Errorf("an unknown command: %+v, %v", r, err)
	}
	must(t, a.Start())
	if a.Start() == nil {
		t.Error("the daemon was started twice")
	}
	ok := func(ctx context.Context) error {
		var s struct {
			State, Node string
			Reasons     []string
		}
		code, err := a.JSON(ctx, &s, "status")
		if err == nil && (code != 0 || s.State != "ok" || s.Node != "node") {
			err = fmt.Errorf("status: exit code %d, %+v", code, s)
		}
		return err
	}
	must(t, a.Await(t.Context(), "a good state", ok))
	if e, err := sibling.Ping(t.Context(), node.V4(), 1); err != nil || e.Replies != 0 {
		t.Errorf("the agent's rules do not work in the host's namespace: %+v, %v", e, err)
	}
	first := a.PID()
	must(t, a.Kill9(t.Context()))
	if alive(first) {
		t.Error("the daemon outlived Kill9")
	}
	must(t, a.Start())
	must(t, a.Await(t.Context(), "a good state again", ok))
	must(t, a.Restart(t.Context()))
	must(t, a.Await(t.Context(), "a good state after the restart", ok))
	code, err := a.Stop(t.Context())
	if code != 0 || err != nil {
		t.Errorf("stop: exit code %d, %v", code, err)
	}
	must(t, testbed.WriteFile(a.ConfigPath, "version: 1\nno_such_key: 1\n"))
	must(t, a.Start())
	start := time.Now()
	err = a.Await(t.Context(), "what will not be", func(context.Context) error { return errors.New("no") })
	if err == nil || !strings.Contains(err.Error(), "no_such_key") || time.Since(start) > 10*time.Second {
		t.Errorf("after %s the error must show the log of the dead daemon: %v", time.Since(start), err)
	}
}

// A signal to a program that uses Main removes its beds, too.
func TestTestbedInterrupt(t *testing.T) {
	cmd, netns, pid := owner(t, "interrupted")
	must(t, cmd.Process.Signal(unix.SIGINT))
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	if alive(pid) || gone("/run/netns/"+netns) != nil {
		t.Error("the interrupted program left its bed")
	}
}
