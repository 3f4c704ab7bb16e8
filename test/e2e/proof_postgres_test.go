package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/testbed"
)

// verify of a real PostgreSQL: all is well, and then one thing after the other is
// really wrong and is found.

// verify runs it and returns what it says.
func (s *slice) verify(args ...string) agent.Verification {
	s.t.Helper()
	var v agent.Verification
	code, err := s.agent.JSON(s.ctx, &v, append([]string{"verify"}, args...)...)
	must(s.t, err)
	if want := map[bool]int{true: 0, false: 3}[v.OK]; code != want {
		s.t.Errorf("verify: exit code %d with ok %v", code, v.OK)
	}
	return v
}

// faultsOf are the checks of a process that failed.
func faultsOf(v agent.Verification, pid int) string {
	var checks []string
	for _, f := range v.Findings {
		if !f.OK && f.PID == pid {
			checks = append(checks, f.Check)
		}
	}
	return strings.Join(checks, " ")
}

// wantFault checks that verify finds exactly these faults of a process, and none
// of any other; what the last one got is returned.
func (s *slice) wantFault(pid int, checks string, words ...string) agent.Verification {
	s.t.Helper()
	v := s.verify()
	if got := faultsOf(v, pid); got != checks {
		s.t.Errorf("process %d: faults %q, want %q\n%s", pid, got, checks, strings.Join(v.Problems, "\n"))
	}
	for _, f := range v.Findings {
		if !f.OK && f.PID != pid {
			s.t.Errorf("another process: %+v", f)
		}
	}
	if all := strings.Join(v.Problems, "\n"); !containsAll(all, words) {
		s.t.Errorf("the problems do not say %q:\n%s", words, all)
	}
	return v
}

func (s *slice) wantAllWell(args ...string) agent.Verification {
	s.t.Helper()
	v := s.verify(args...)
	if !v.OK {
		s.t.Errorf("verify: %s", strings.Join(v.Problems, "\n"))
	}
	return v
}

// run starts a program as a user of the node, or as root with nil, and ends it with the test.
func (s *slice) run(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	name := filepath.Base(cmd.Args[len(cmd.Args)-2])
	must(t, testbed.Await(s.ctx, name, func(context.Context) error { // past nsenter and setpriv
		if got := procFields(cmd.Process.Pid, "status")["Name"]; got != name {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	}))
	return cmd.Process.Pid
}

// copyProgram runs a shell command as a compromised superuser would, with the
// confinement of the service, and returns its first line.
func (s *slice) copyProgram(t *testing.T, command string) string {
	t.Helper()
	file := filepath.Join(s.cluster.Data, "said")
	defer os.Remove(file)
	_, err := s.cluster.PsqlSocket(s.ctx, s.node, fmt.Sprintf("COPY (SELECT 1) TO PROGRAM '%s > %s'", strings.ReplaceAll(command, "'", "''"), file))
	must(t, err)
	data, err := os.ReadFile(file)
	must(t, err)
	return strings.TrimSpace(string(data))
}

func (s *slice) copyProgramPID(t *testing.T, command string) int {
	t.Helper()
	text := s.copyProgram(t, command)
	pid, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("the program said %q", text)
	}
	t.Cleanup(func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		must(t, testbed.Await(s.ctx, "the end of the program", func(context.Context) error {
			if state := processState(t, pid); state != "?" && state != "Z" {
				return fmt.Errorf("its state is %s", state)
			}
			return nil
		}))
	})
	return pid
}

func TestVerifyEveryProcess(t *testing.T) {
	s := startSlice(t, "nft")
	postmaster := mustPID(t, s)
	v := s.wantAllWell()
	var first launch.Process
	for _, p := range v.Processes {
		if p.PID == postmaster {
			first = p
		}
		if (p.PID == postmaster) != (p.Role == launch.RoleFirst) || p.Role == launch.RoleStray || p.Service != "postgres" || p.Threads != 1 || p.Cgroup == "" {
			t.Errorf("%+v", p)
		}
	}
	at := fmt.Sprintf("tcp %s:5432", s.node.V4())
	if len(v.Processes) < 5 || len(first.Filters) != 1 || !strings.Contains(strings.Join(first.Listens, " "), "5432") {
		t.Errorf("%d processes, the first is %+v; want one filter, and %s", len(v.Processes), first, at)
	}
	for _, check := range []string{"family", "uid", "bounding", "no_new_privs", "tracer", "threads", "filter", "network namespace", "cgroup", "environment", "listens"} {
		findingOf(t, v.Findings, postmaster, check)
	}
	deep := s.wantAllWell("--deep")
	for _, p := range deep.Processes {
		if len(p.Filters) != 1 || p.Filters[0] != first.Filters[0] {
			t.Errorf("process %d has filters %v, the first one %v", p.PID, p.Filters, first.Filters)
		}
	}
}

// What a deep look does to a server at work: nothing that its clients notice.
func TestVerifyDeepUnderLoad(t *testing.T) {
	s := startSlice(t, "nft")
	conn := s.cluster.Conninfo(s.node.V4(), testbed.AppUser)
	_, err := s.cluster.Pgbench(s.ctx, s.peer, conn, "-i", "-s", "2", "-q")
	must(t, err)
	ctx, stop := context.WithCancel(s.ctx)
	defer stop()
	done := make(chan error, 1)
	go func() {
		r, err := s.cluster.Pgbench(ctx, s.peer, conn, "-c", "8", "-T", "10")
		if err == nil && (r.Failed != 0 || r.Processed == 0) {
			err = fmt.Errorf("%d processed, %d failed", r.Processed, r.Failed)
		}
		done <- err
	}()
	stops := 0
	for len(done) == 0 {
		began := time.Now()
		v := s.wantAllWell("--deep")
		stops += len(v.Processes)
		t.Logf("%d processes in %v", len(v.Processes), time.Since(began).Round(time.Millisecond))
	}
	must(t, <-done)
	if stops < 16 {
		t.Errorf("only %d looks at processes during pgbench", stops)
	}
}

// How long it takes is printed; no claim depends on it.
func TestVerifyManyBackends(t *testing.T) {
	s := newSlice(t, "nft", map[string]string{"max_connections": "220"})
	s.start()
	file := filepath.Join(launchDir(t), "idle.sql")
	launchWrite(t, file, []byte("SELECT pg_sleep(100)\n"), 0o644)
	client, err := s.cluster.Client(s.ctx, s.node, "pgbench", "-n", "-c", "200", "-t", "1", "-f", file, s.cluster.Conninfo(s.node.V4(), testbed.AppUser))
	must(t, err)
	must(t, client.Start())
	defer func() { _ = client.Process.Kill(); _ = client.Wait() }()
	ctx, cancel := context.WithTimeout(s.ctx, 40*time.Second)
	defer cancel()
	must(t, testbed.Await(ctx, "200 backends", func(ctx context.Context) error {
		n, err := s.cluster.PsqlSocket(ctx, s.node, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'")
		if count, _ := strconv.Atoi(n); err == nil && count < 200 {
			err = fmt.Errorf("%d are active", count)
		}
		return err
	}))
	for _, args := range [][]string{nil, {"--deep"}} {
		began := time.Now()
		v := s.wantAllWell(args...)
		t.Logf("verify %s: %d processes, %d findings, %v in all", strings.Join(args, " "), len(v.Processes), len(v.Findings), time.Since(began).Round(time.Millisecond))
		if len(v.Processes) < 200 {
			t.Errorf("%d processes", len(v.Processes))
		}
	}
}

// A confined service leaves a process behind that nothing of it is a parent of.
// Landlock, which would keep it from running a shell, is off.
func TestVerifyOrphans(t *testing.T) {
	s := newSlice(t, "nft", nil)
	s.configure(withoutLandlock)
	s.start()
	s.wantAllWell()
	t.Run("double fork", func(t *testing.T) {
		pid := s.copyProgramPID(t, "setsid sh -c 'sleep 1000 </dev/null >/dev/null 2>&1 & echo $!'")
		v := s.wantFault(pid, "family exe", "has the user postgres", "its parent is")
		if f := findingOf(t, v.Findings, pid, "filter"); !f.OK || !strings.HasPrefix(f.Got, "sha256:") {
			t.Errorf("its filter is inherited, and read: %+v", f)
		}
	})
	s.wantAllWell()
	t.Run("control: a child", func(t *testing.T) {
		_, end := s.program(t, "echo $$ > said; exec sleep 1000")
		defer end()
		s.wantAllWell()
	})
}

// program has a superuser run a shell command that writes its process id to the
// file said and stays, until the function that is returned ends it.
func (s *slice) program(t *testing.T, command string) (int, func()) {
	t.Helper()
	file := filepath.Join(s.cluster.Data, "said")
	done := make(chan error, 1)
	go func() {
		_, err := s.cluster.Psql(s.ctx, s.peer, s.cluster.Conninfo(s.node.V4(), testbed.Superuser), "COPY (SELECT 1) TO PROGRAM $sh$"+command+"$sh$")
		done <- err
	}()
	var pid int
	must(t, testbed.Await(s.ctx, "the program", func(context.Context) error {
		select {
		case err := <-done:
			t.Fatal(err)
		default:
		}
		data, err := os.ReadFile(file)
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(data)))
		}
		return err
	}))
	return pid, func() {
		must(t, unix.Kill(pid, unix.SIGKILL))
		<-done // an error: its program was killed
		must(t, os.Remove(file))
	}
}

// Processes that were started outside: no parent, and no confinement.
func TestVerifyStrays(t *testing.T) {
	s := startSlice(t, "nft")
	u := s.cluster.User
	t.Run("the service's user", func(t *testing.T) {
		pid := s.run(t, s.node.CommandAs(s.ctx, u, "/usr/bin/sleep", "1000"))
		s.wantFaults(pid, "family filter filters mode no_new_privs bounding exe", "has the user postgres")
	})
	// An operator's sudo -u postgres psql is no better: it has the user and no box. As somebody else he is no stray.
	psql := func(t *testing.T, command func(name string, args ...string) *exec.Cmd) int {
		t.Helper()
		in, out, err := os.Pipe()
		must(t, err)
		t.Cleanup(func() { in.Close(); out.Close() })
		cmd := command(filepath.Join(s.cluster.BinDir, "psql"), fmt.Sprintf("host=%s port=%d user=%s dbname=postgres", s.cluster.Socket, s.cluster.Port, testbed.Superuser))
		cmd.Stdin = in
		return s.run(t, cmd)
	}
	t.Run("psql", func(t *testing.T) {
		pid := psql(t, func(name string, args ...string) *exec.Cmd { return s.node.CommandAs(s.ctx, u, name, args...) })
		s.wantFaults(pid, "family filter", "has the user postgres", "run client programs as another user", "pg_ident.conf")
	})
	t.Run("psql as another user", func(t *testing.T) {
		psql(t, func(name string, args ...string) *exec.Cmd {
			return s.node.Command(s.ctx, "setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "--", name}, args...)...)
		})
		s.wantAllWell()
	})
	t.Run("control: the same user elsewhere", func(t *testing.T) {
		s.run(t, s.peer.CommandAs(s.ctx, u, "/usr/bin/sleep", "1000"))
		s.wantAllWell()
	})
	t.Run("another user with the data directory", func(t *testing.T) {
		file, err := os.Open(filepath.Join(s.cluster.Data, "PG_VERSION"))
		must(t, err)
		defer file.Close()
		cmd := s.peer.Command(s.ctx, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", "/usr/bin/sleep", "1000")
		cmd.ExtraFiles = []*os.File{file}
		pid := s.run(t, cmd)
		s.wantFaults(pid, "family uid filter", "holds "+s.cluster.Data)
	})
	t.Run("the program as another user", func(t *testing.T) {
		data := launchMkdir(t, filepath.Join(launchDir(t), "data"), 0o700)
		launchOwn(t, data, 65534)
		nobody := []string{"--reuid=65534", "--regid=65534", "--clear-groups", "--"}
		_, err := s.node.Run(s.ctx, "setpriv", append(nobody, filepath.Join(s.cluster.BinDir, "initdb"), "-D", data, "--no-sync")...)
		must(t, err)
		cmd := s.node.Command(s.ctx, "setpriv", append(nobody, filepath.Join(s.cluster.BinDir, "postgres"), "-D", data, "-p", "6000", "-k", data)...)
		must(t, cmd.Start())
		defer func() { _ = cmd.Process.Signal(unix.SIGINT); _ = cmd.Wait() }()
		must(t, testbed.Await(s.ctx, "the other server", func(context.Context) error {
			_, err := os.Stat(filepath.Join(data, ".s.PGSQL.6000"))
			return err
		}))
		s.wantFaults(cmd.Process.Pid, "family uid filter", "runs "+filepath.Join(s.cluster.BinDir, "postgres"))
	})
	s.wantAllWell()
	t.Run("tracer", func(t *testing.T) {
		pid := mustPID(t, s)
		end := traced(t, pid)
		s.wantFault(pid, "tracer filter", "not readable", "traces it already", strconv.Itoa(os.Getpid()))
		end()
		s.wantAllWell()
	})
	t.Run("verify under a filter of its own", func(t *testing.T) {
		self, err := os.Executable()
		must(t, err)
		cmd := s.agent.Command(s.ctx, "verify")
		for i, arg := range cmd.Args {
			if arg == s.agent.Binary {
				cmd.Args = append(append(append([]string{}, cmd.Args[:i]...), self), cmd.Args[i+1:]...)
				cmd.Env = append(cmd.Env, proofVariable+"="+proofText(t, proofRole{Filters: [][]unix.SockFilter{allowing(2)}, Exec: append([]string{s.agent.Binary}, cmd.Args[i+1:]...)}))
				break
			}
		}
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 3 || !containsAll(string(out), []string{"filter is not readable: ", "a caller without a seccomp filter of its own"}) {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// wantFaults is wantFault for a process of which these faults, among others, are found.
func (s *slice) wantFaults(pid int, checks string, words ...string) {
	s.t.Helper()
	v := s.verify()
	got := " " + faultsOf(v, pid) + " "
	for _, check := range strings.Fields(checks) {
		if !strings.Contains(got, " "+check+" ") {
			s.t.Errorf("process %d: faults %q, want %q\n%s", pid, got, check, strings.Join(v.Problems, "\n"))
		}
	}
	if all := strings.Join(v.Problems, "\n"); !containsAll(all, words) {
		s.t.Errorf("the problems do not say %q:\n%s", words, all)
	}
}

// A server that has all the confinement and is not the service: by the same
// launch stage, with another data directory, before there was a daemon.
func TestVerifyTwinBeforeTheDaemon(t *testing.T) {
	s := newSlice(t, "nft", nil)
	s.configure(withoutLandlock)
	other, err := s.bed.NewCluster(s.ctx, testbed.ClusterSpec{Port: 5433})
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(s.agent.Dir, "state"), 0o700)) // as a package does: what is not there cannot be hidden
	cmd := s.agent.Command(s.ctx, "exec", "--service", "postgres", "--", "-D", other.Data)
	out, err := os.Create(filepath.Join(s.node.RunDir(), "twin.log"))
	must(t, err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	must(t, cmd.Start())
	defer func() { _ = cmd.Process.Signal(unix.SIGINT); _ = cmd.Wait() }()
	must(t, s.agentless("the twin", other.Ready))
	s.start()
	pid, err := other.PID()
	must(t, err)
	v := s.verify()
	if got := faultsOf(v, pid); got != "family listens" {
		t.Errorf("the twin's faults are %q\n%s", got, strings.Join(v.Problems, "\n"))
	}
	strays := 0
	for _, p := range v.Processes {
		if p.Role == launch.RoleStray {
			strays++
		}
	}
	if strays < 5 || faultsOf(v, mustPID(t, s)) != "" {
		t.Errorf("%d strays; the service itself: %q", strays, faultsOf(v, mustPID(t, s)))
	}
}

func (s *slice) agentless(what string, check func() error) error {
	return testbed.Await(s.ctx, what, func(context.Context) error { return check() })
}

// A service that listens where nobody is let in.
func TestVerifyListeners(t *testing.T) {
	s := newSlice(t, "nft", nil)
	s.configure(func(s *testbed.Service) {
		withoutLandlock(s)
		s.Features = append(s.Features, "auto", "udp")
	})
	s.start()
	for name, c := range map[string]struct{ perl, got string }{
		"tcp": {`IO::Socket::INET->new(Listen => 1, LocalAddr => q(0.0.0.0), LocalPort => 4444)`, "no flow lets in: tcp 0.0.0.0:4444"},
		"tcp, the node's address": {`IO::Socket::INET->new(Listen => 1, LocalAddr => q(` + s.node.V4().String() + `), LocalPort => 4444)`,
			"no flow lets in: tcp " + netip.AddrPortFrom(s.node.V4(), 4444).String()},
		"udp":                    {`IO::Socket::INET->new(Proto => q(udp), LocalAddr => q(0.0.0.0), LocalPort => 4444)`, "no flow lets in: udp 0.0.0.0:4444"},
		"abstract":               {`IO::Socket::UNIX->new(Listen => 1, Local => qq(\0pgh-proof))`, "no flow lets in: unix @pgh-proof"},
		"control: loopback":      {`IO::Socket::INET->new(Listen => 1, LocalAddr => q(127.0.0.1), LocalPort => 4444)`, ""},
		"control: udp, loopback": {`IO::Socket::INET->new(Proto => q(udp), LocalAddr => q(127.0.0.1), LocalPort => 4444)`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			pid, end := s.program(t, "exec perl -MIO::Socket -e '$s = "+c.perl+" or die $!; open F, q(>), q(said) and print F $$ and close F; sleep 1000'")
			defer end()
			if c.got == "" {
				s.wantAllWell()
				return
			}
			s.wantFault(pid, "listens", c.got)
		})
	}
}

// A server with the service's data directory that was started past the launch
// stage is not mistaken for a confined one, and its variables are named.
func TestVerifyEnvironment(t *testing.T) {
	s := newSlice(t, "nft", nil)
	argv := append([]string{"LD_PRELOAD=libm.so.6", "PGHARDEND_SECRET=hunter2"}, s.cluster.Command()...)
	cmd := s.node.CommandAs(s.ctx, s.cluster.User, "/usr/bin/env", argv...)
	out, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			continue
		}
	}()
	defer func() { _ = cmd.Process.Signal(unix.SIGINT); _ = cmd.Wait() }()
	must(t, s.agentless("PostgreSQL", s.cluster.Ready))
	pid := mustPID(t, s)
	s.wantFaults(pid, "environment filter no_new_privs", "LD_PRELOAD is not allowed", "PGHARDEND_SECRET is not allowed", "service postgres: process "+strconv.Itoa(pid))
	if r := s.cli("verify"); strings.Contains(r.Stdout+r.Stderr, "hunter2") {
		t.Errorf("the value of a variable is shown:\n%s", r.Stdout)
	}
}
