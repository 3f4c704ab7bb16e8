package suites

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

// server is a PostgreSQL on a host of its own: launched by an agent with every layer, or bare.
type server struct {
	t       *testing.T // the test, or the part of it that runs
	whole   *testing.T // the test
	ctx     context.Context
	host    *testbed.Host
	cluster *testbed.Cluster
	agent   *testbed.Agent // nil: bare
	cfg     testbed.AgentConfig
	trace   *trace
	tested  int // how often tryTrace has made a call fail
}

// serverPrograms are what the kernel calls the programs of these servers, the helpers among them: the shell by its link's name.
var serverPrograms = []string{"postgres", "sh", "cp"}

const testTimeout = 15 * time.Minute

var bedNumber atomic.Int32

// newBed has two database nodes and a client, one instance.
func newBed(t *testing.T) (context.Context, *testbed.Bed) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	bed, err := testbed.New(ctx, fmt.Sprintf("suites-%d", bedNumber.Add(1)), []testbed.HostSpec{
		{Name: "pg-0", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64"}},
		{Name: "pg-1", Addresses: []string{"10.20.1.11/24", "fd00:20:1::11/64"}},
		{Name: "pool-0", Addresses: []string{"10.20.1.20/24", "fd00:20:1::20/64"}},
	})
	must(t, err)
	t.Cleanup(func() { must(t, bed.Close()) })
	return ctx, bed
}

// newServer makes a server that does not run yet. change says what it needs beyond the defaults of its profile.
func newServer(ctx context.Context, t *testing.T, bed *testbed.Bed, host string, settings map[string]string) *server {
	t.Helper()
	s := &server{t: t, whole: t, ctx: ctx, host: bed.Host(host)}
	var err error
	s.cluster, err = bed.NewCluster(ctx, testbed.ClusterSpec{Settings: settings})
	must(t, err)
	return s
}

// confine gives the server an agent, and declares what this server needs beyond the defaults of its profile.
func (s *server) confine(bed *testbed.Bed, declare func(*testbed.Service)) *server {
	s.t.Helper()
	service := testbed.ServiceOf(s.cluster)
	var err error
	service.Groups, err = testbed.SupplementaryGroups(s.cluster.User)
	must(s.t, err)
	if prefix := filepath.Dir(s.cluster.BinDir); !strings.HasPrefix(prefix, "/usr/") {
		allow("read", prefix)(&service) // its libraries and what initdb put into share
	}
	service.Limits = map[string]any{"nofile": 4000, "core": 0, "memlock": 65536}
	if declare != nil {
		declare(&service)
	}
	s.cfg = testbed.AgentConfig{
		Services: map[string]testbed.Service{"postgres": service},
		Peers: testbed.Peers{
			Instance: "orders-prod",
			Nodes: []testbed.Peer{testbed.PeerOf(bed.Host("pg-0"), "postgres"), testbed.PeerOf(bed.Host("pg-1"), "postgres"),
				testbed.PeerOf(bed.Host("pool-0"), "pgpool")},
			Networks: map[string][]string{"control_plane": {"10.0.0.0/24"}},
		},
	}
	s.agent, err = testbed.NewAgent(s.ctx, s.host, s.cfg)
	must(s.t, err)
	return s
}

// allow adds paths to a list of services.NAME.landlock.
func allow(list string, paths ...string) func(*testbed.Service) {
	return func(s *testbed.Service) {
		have, _ := s.Landlock[list].([]string)
		s.Landlock[list] = append(have, paths...)
	}
}

// helpers declares programs, as what they are behind all links.
func helpers(t *testing.T, names ...string) func(*testbed.Service) {
	t.Helper()
	return func(s *testbed.Service) {
		for _, name := range names {
			path, err := exec.LookPath(name)
			must(t, err)
			path, err = filepath.EvalSymlinks(path)
			must(t, err)
			s.Helpers = append(s.Helpers, path)
		}
	}
}

// start starts the server and what records its failed system calls: from its first call on if it is confined. A confined
// one must be enforced and verified in every layer, or it proves nothing.
func (s *server) start() {
	s.t.Helper()
	if s.agent == nil {
		must(s.t, s.cluster.Start(s.ctx, s.host))
		pid, err := s.cluster.PID()
		must(s.t, err)
		s.trace = watch(s.whole, pid, serverPrograms...)
		s.tryTrace()
		return
	}
	must(s.t, s.agent.Start())
	s.trace = watch(s.whole, s.agent.PID(), serverPrograms...)
	s.awaitReady()
	s.verify()
	s.tryTrace()
}

// refused is what tryTrace provokes.
var refused = failure{unix.SYS_OPENAT, unix.EACCES}

// tryTrace has the server read what is root's, and wants to see that in the recording: it works, at this moment.
func (s *server) tryTrace() {
	s.t.Helper()
	before := s.trace.failures(s.t)[refused]
	if _, err := s.cluster.PsqlSocket(s.ctx, s.host, "SELECT pg_read_file('/etc/shadow')"); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		s.t.Errorf("reading /etc/shadow: %v", err)
	}
	if n := s.trace.failures(s.t)[refused] - before; n != 1 {
		s.t.Errorf("a call that was made to fail is %d times in the recording, so what else it has proves nothing", n)
	}
	s.tested++
}

// failures are those recorded so far, without those of tryTrace.
func (s *server) failures() map[failure]int {
	s.t.Helper()
	return less(s.trace.failures(s.t), map[failure]int{refused: s.tested})
}

func (s *server) awaitReady() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	must(s.t, s.agent.Await(ctx, "status ok", func(ctx context.Context) error {
		st, err := s.agent.Status(ctx)
		if err == nil && (st.State != control.StateOK || len(st.Services) != 1 || st.Services[0].State != "ready") {
			err = fmt.Errorf("state %s, services %+v, reasons %q", st.State, st.Services, st.Reasons)
		}
		return err
	}))
}

// verify has the agent compare every process of the server, and every rule, with what was asked for. Rules follow what
// the server says of its size, a moment after it is ready.
func (s *server) verify() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	must(s.t, s.agent.Await(ctx, "verify", func(ctx context.Context) error {
		r, err := s.agent.CLI(ctx, "verify", "--service", "postgres")
		if err == nil && (r.Code != 0 || !strings.Contains(r.Stdout, "checks passed")) {
			err = fmt.Errorf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		return err
	}))
}

// stop ends the server by a fast shutdown.
func (s *server) stop() {
	s.t.Helper()
	s.tryTrace()
	if s.agent == nil {
		must(s.t, s.cluster.Stop(s.ctx))
		return
	}
	r, err := s.agent.CLI(s.ctx, "stop", "--service", "postgres")
	must(s.t, err)
	if r.Code != 0 {
		s.t.Fatalf("stop: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}

// sql runs statements as superuser by the Unix socket and wants a result, unless that is empty.
func (s *server) sql(statements, want string) string {
	s.t.Helper()
	got, err := s.cluster.PsqlSocket(s.ctx, s.host, statements)
	if err != nil || want != "" && got != want {
		s.t.Errorf("%s: %q, %v; want %q", statements, got, err, want)
	}
	return got
}

// await waits until a statement has a result.
func (s *server) await(statement, want string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	must(s.t, testbed.Await(ctx, statement, func(ctx context.Context) error {
		got, err := s.cluster.PsqlSocket(ctx, s.host, statement)
		if err == nil && got != want {
			err = fmt.Errorf("%q, want %q", got, want)
		}
		return err
	}))
}

// client runs one of PostgreSQL's programs on the server's host as its user, by the Unix socket.
func (s *server) client(program string, args ...string) string {
	s.t.Helper()
	cmd := s.host.CommandAs(s.ctx, s.cluster.User, filepath.Join(s.cluster.BinDir, program), args...)
	cmd.Env = append(cmd.Env, "PGHOST="+s.cluster.Socket, "PGPORT="+strconv.Itoa(s.cluster.Port), "PGUSER="+testbed.Superuser)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Errorf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// log is what the server and, if there is one, its agent have said.
func (s *server) log() string {
	s.t.Helper()
	path := filepath.Join(filepath.Dir(s.cluster.Data), "postgres.log")
	if s.agent != nil {
		path = s.agent.LogPath
	}
	text, err := os.ReadFile(path)
	must(s.t, err)
	return string(text)
}

// dir makes a directory beside the data directory that is the server's user's.
func (s *server) dir(name string) string {
	s.t.Helper()
	path := filepath.Join(filepath.Dir(s.cluster.Data), name)
	must(s.t, os.Mkdir(path, 0o700))
	must(s.t, s.own(path))
	return path
}

// own gives a file to the server's user.
func (s *server) own(path string) error {
	uid, err1 := strconv.Atoi(s.cluster.User.Uid)
	gid, err2 := strconv.Atoi(s.cluster.User.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	return os.Chown(path, uid, gid)
}
