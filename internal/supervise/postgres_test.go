package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const postgresBin = "/usr/lib/postgresql/15/bin"

// cluster is a real one, of the user postgres if the tests run as root, which
// postgres refuses to be.
type cluster struct {
	*rig
	cred *syscall.Credential
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	r := newRig(t)
	dir, err := os.MkdirTemp("", "pg") //nolint:usetesting // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r.dir, r.DataDir, r.Exe = dir, filepath.Join(dir, "data"), filepath.Join(postgresBin, "postgres")
	r.Argv = []string{self(t), "play-launch"}
	c := &cluster{rig: r}
	if os.Geteuid() == 0 {
		c.become("postgres")
	}
	c.output("initdb", "-D", r.DataDir, "-A", "trust", "-N", "-U", "postgres", "--no-locale", "-E", "UTF8")
	r.Argv = append(r.Argv, r.Exe, "-D", r.DataDir, "-c", "listen_addresses=", "-c", "unix_socket_directories="+dir, "-c", "fsync=off", "-c", "port=5432")
	return c
}

func (c *cluster) become(name string) {
	c.t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		c.t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	c.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	c.Argv = append(c.Argv, "-u", fmt.Sprintf("%d:%d", uid, gid))
	if err := os.Chown(c.dir, uid, gid); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(postgresBin, name), args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "PGHOST=" + c.dir, "PGPORT=5432", "PGUSER=postgres", "PGDATABASE=postgres"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.cred}
	return cmd
}

func (c *cluster) output(name string, args ...string) string {
	c.t.Helper()
	out, err := c.command(name, args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// session is one psql that stays connected.
type session struct {
	in  *bufio.Writer
	out *bufio.Scanner
	n   int
}

func (c *cluster) session() *session {
	c.t.Helper()
	cmd := c.command("psql", "-XAtq", "-v", "ON_ERROR_STOP=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	return &session{in: bufio.NewWriter(in), out: bufio.NewScanner(out)}
}

func (s *session) query() error {
	s.n++
	want := strconv.Itoa(s.n)
	fmt.Fprintf(s.in, "select %s;\n", want)
	if err := s.in.Flush(); err != nil {
		return err
	}
	if !s.out.Scan() || s.out.Text() != want {
		return errors.Join(fmt.Errorf("query %s: got %q", want, s.out.Text()), s.out.Err())
	}
	return nil
}

// load runs queries, in one session and in ever new ones, until the context ends.
func (c *cluster) load(ctx context.Context) <-chan error {
	one, result := c.session(), make(chan error, 2)
	go func() {
		for ctx.Err() == nil {
			if err := one.query(); err != nil {
				result <- err
				return
			}
		}
		result <- nil
	}()
	go func() {
		for ctx.Err() == nil {
			if out, err := c.command("psql", "-XAtqc", "select 1").CombinedOutput(); err != nil {
				result <- fmt.Errorf("a new session: %w: %s", err, out)
				return
			}
		}
		result <- nil
	}()
	return result
}

func TestF16_PostgresOutlivesItsDaemons(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	d := c.daemon()
	pid := d.await(StateReady).PID
	if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.TrimSpace(string(name)) != "postgres" {
		t.Fatalf("pid %d is %q", pid, name)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := c.load(ctx)
	for range 3 {
		d.kill()
		d = c.daemon()
		if st := d.await(StateReady); st.PID != pid || !st.Adopted || st.Restarts != 0 {
			t.Errorf("%+v, want pid %d adopted", st, pid)
		}
	}
	d.kill()
	if err := os.RemoveAll(filepath.Dir(c.Record)); err != nil { // postmaster.pid is enough
		t.Fatal(err)
	}
	s, _ := c.run()
	if st := awaitState(t, s, StateReady); st.PID != pid || !st.Adopted || st.Restarts != 0 {
		t.Errorf("%+v, want pid %d adopted", st, pid)
	}
	cancel()
	if err := errors.Join(<-result, <-result); err != nil {
		t.Errorf("a query failed: %v", err)
	}
	if err := s.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if state := readControl(context.Background(), c.DataDir); alive(t, pid) || state != clusterShutDown {
		t.Errorf("after Stop: cluster state %v", state)
	}
	if err := s.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if state := readControl(context.Background(), c.DataDir); state != clusterOpen {
		t.Errorf("after Start: cluster state %v", state)
	}
}

func TestPostgresCrashes(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	s, _ := c.run()
	first := awaitState(t, s, StateReady).PID
	kill(t, first, unix.SIGKILL)
	await(t, "the restart", func() bool { st := s.Status(); return st.State == StateReady && st.PID != first })
	if st := s.Status(); st.Restarts < 1 || st.Adopted {
		t.Errorf("%+v", st)
	}
	if got := c.output("psql", "-XAtqc", "select 1"); got != "1\n" {
		t.Errorf("psql: %q", got)
	}
	c.output("pg_ctl", "-D", c.DataDir, "-m", "fast", "stop")
	if st := awaitState(t, s, StateStopped); !strings.Contains(st.LastError, "another hand (exit 0)") {
		t.Errorf("%+v", st)
	}
}

// A postmaster that another hand started is adopted if the caller approves of it;
// its crash and its clean stop are told apart.
func TestPostgresOfAnotherHand(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	start := func() {
		c.output("pg_ctl", "-D", c.DataDir, "-s", "-w", "-l", filepath.Join(c.dir, "log2"), "-o",
			"-c listen_addresses= -c port=5432 -c fsync=off -c unix_socket_directories="+c.dir, "start")
	}
	start()
	refused := errors.New("no_new_privs 0, want 1")
	s, end := c.run(func(s *Supervisor) { s.spec.Verify = func(context.Context, int) error { return refused } })
	if st := awaitState(t, s, StateFailed); !strings.Contains(st.LastError, refused.Error()) {
		t.Errorf("%+v", st)
	}
	end()

	s, _ = c.run()
	st := awaitState(t, s, StateReady)
	if !st.Adopted {
		t.Errorf("%+v", st)
	}
	c.output("pg_ctl", "-D", c.DataDir, "-m", "fast", "stop")
	awaitState(t, s, StateStopped)

	start()
	if err := s.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	st = s.Status()
	if !st.Adopted || st.State != StateReady {
		t.Errorf("%+v", st)
	}
	kill(t, st.PID, unix.SIGKILL)
	await(t, "the restart", func() bool { now := s.Status(); return now.State == StateReady && now.PID != st.PID })
	if err := s.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
}
