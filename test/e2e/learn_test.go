package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/learn"
	"github.com/pghardend/pghardend/pkg/mac"
)

// syncBuffer is written by a command and read meanwhile.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// learnStart runs learn and waits until it records. What it returns interrupts it,
// and gives its exit code and standard error.
func learnStart(t *testing.T, s *slice, args ...string) func() (int, string) {
	t.Helper()
	cmd, done, errs := learnCommand(t, s, append([]string{"--service", "postgres"}, args...)...)
	return func() (int, string) {
		t.Helper()
		must(t, cmd.Process.Signal(unix.SIGINT))
		var exit *exec.ExitError
		if err := <-done; err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), errs.String()
	}
}

// learnCommand is learn that records, until it is told to end.
func learnCommand(t *testing.T, s *slice, args ...string) (cmd *exec.Cmd, ended <-chan error, said *syncBuffer) {
	t.Helper()
	cmd = s.agent.Command(s.ctx, append([]string{"learn"}, args...)...)
	errs := &syncBuffer{}
	cmd.Stderr = errs
	must(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	must(t, testbed.Await(ctx, "learn", func(context.Context) error {
		if !strings.Contains(errs.String(), "recorded ") {
			return fmt.Errorf("it says: %s", errs)
		}
		return nil
	}))
	return cmd, done, errs
}

func (s *slice) learnWork() {
	s.t.Helper()
	conninfo := s.cluster.Conninfo(s.node.V4(), testbed.AppUser)
	for _, args := range [][]string{{"-i", "-s", "1", "-q"}, {"-c", "4", "-t", "50"}, {"-C", "-t", "20"}} {
		_, err := s.cluster.Pgbench(s.ctx, s.peer, conninfo, args...)
		must(s.t, err)
	}
	_, err := s.cluster.PsqlSocket(s.ctx, s.node, "CHECKPOINT")
	must(s.t, err)
}

func readRecording(t *testing.T, file string) learn.Recording {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	r, err := learn.Parse(file, text)
	must(t, err)
	return r
}

// A recording of a real server under load, ended by an interrupt: by type of
// process and with arguments; what it says is needed is allowed by the shipped
// profile, and a server with no more than that does the same work.
func TestLearnPostgres(t *testing.T) {
	s := newSlice(t, "nft", nil)
	file := filepath.Join(launchDir(t), "recording.json")
	stop := learnStart(t, s, "--output", file)
	s.start()
	s.learnWork()
	s.want(0, nil, "stop", "--service", "postgres")
	code, said := stop()
	if code != 0 || strings.Contains(said, "NOT COMPLETE") || strings.Contains(said, "not started") {
		t.Fatalf("exit code %d\n%s", code, said)
	}
	r := readRecording(t, file)
	for _, name := range []string{"main", "client backend", "checkpointer", "walwriter", "background writer", "autovacuum launcher", "logical replication launcher"} {
		if len(r.Processes[name].Calls) == 0 {
			t.Errorf("nothing is recorded of %s", name)
		}
	}
	main := r.Processes["main"]
	for _, c := range []learn.Call{{Name: "bind"}, {Name: "socket", Args: []uint64{unix.AF_INET, unix.SOCK_STREAM, 0}}, {Name: "mmap", Args: []uint64{0, 0, 5}}} {
		if !slices.ContainsFunc(main.Calls, func(x learn.Call) bool { return x.String() == c.String() }) {
			t.Errorf("%s is not in the recording of main", c)
		}
	}
	if !slices.Contains(main.Bind, 5432) || !slices.Contains(main.Files[learn.Write], "{data_dir}/postmaster.pid") ||
		slices.Contains(r.Processes["client backend"].Bind, 5432) {
		t.Errorf("main: %v %v", main.Bind, main.Files[learn.Write])
	}
	t.Logf("%d types, %d calls", len(r.Processes), len(r.All().Calls))

	t.Run("subset", func(t *testing.T) {
		s.want(0, nil, "learn", "--service", "postgres", "--for", "10ms", "--merge", file, "--diff", "postgres")
	})
	t.Run("enough", func(t *testing.T) { learnedServer(t, s, file) })
}

// learnedServer starts a server with the learned profiles, and lets it work.
func learnedServer(t *testing.T, s *slice, file string) {
	profile, err := os.ReadFile(file + ".seccomp.json")
	must(t, err)
	policyText, err := os.ReadFile(file + ".landlock.yaml")
	must(t, err)
	policy, err := mac.ParsePolicy("learned", policyText)
	must(t, err)
	rules := policy.RuleSet(s.cluster.Data, "data_dir")
	rules.Bind = mac.Ports{Restricted: true, Allowed: readRecording(t, file).All().Bind}
	service := s.cfg.Services["postgres"]
	in := launchInput{
		User: service.User, Groups: service.Groups, Command: service.Command, DataDir: s.cluster.Data, Profile: string(profile),
		Landlock: launch.Landlock{Mode: launch.LandlockRequired, Rules: rules},
	}
	cmd, _ := launchCommand(t, in)
	out := &syncBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	must(t, s.node.Do(cmd.Start))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGINT)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the server's end: %v\n%s", err, out)
			}
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			t.Errorf("the server does not stop\n%s", out)
		}
	})
	must(t, testbed.Await(s.ctx, "the server with the learned profile", func(context.Context) error {
		if err := s.cluster.Ready(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
	s.learnWork()
	status := procFields(cmd.Process.Pid, "status")
	if status["Seccomp"] != "2" {
		t.Errorf("Seccomp: %s; the test proves nothing", status["Seccomp"])
	}
}

// What the recorded service did beyond its profile is told, by whom; what it
// did before is not lost by merging.
func TestLearnDiff(t *testing.T) {
	s := newSlice(t, "nft", nil)
	s.configure(withoutLandlock)
	s.start()
	first := filepath.Join(launchDir(t), "first.json")
	stop := learnStart(t, s, "--output", first)
	_, err := s.cluster.PsqlSocket(s.ctx, s.node, "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null'")
	must(t, err)
	if code, said := stop(); code != 0 || !strings.Contains(said, "was not started while") {
		t.Errorf("exit code %d\n%s", code, said)
	}
	if r := readRecording(t, first); len(r.Processes["helper cat"].Calls) == 0 || len(r.Processes["client backend"].Calls) == 0 {
		t.Errorf("recorded: %v", r.Processes)
	}
	s.configure(func(s *testbed.Service) {
		s.Landlock = map[string]any{"write": []string{"/tmp"}}
		s.Features = []string{"auto", "helpers"}
	})
	r := s.want(2, []string{"+ landlock: execute \"/usr/bin/dash\" (", "+ landlock: execute \"/usr/bin/cat\" (helper cat)", "- seccomp: shmget"},
		"learn", "--service", "postgres", "--for", "10ms", "--merge", first, "--diff", "postgres")
	if strings.Contains(r.Stdout, "+ seccomp") {
		t.Errorf("calls under the filter are said not to be allowed:\n%s", r.Stdout)
	}
	// The profile of pgpool lacks what postgres waits with.
	s.want(2, []string{"+ seccomp: epoll_wait ("}, "learn", "--service", "postgres", "--for", "10ms", "--merge", first, "--diff", "pgpool")
}

// In complain mode a call that the profile denies works and is told, and nothing
// says that the layers are enforced; other layers hold. The control: with
// enforce it is denied.
func TestComplain(t *testing.T) {
	// A shell, which is no helper, and a program that makes a user namespace.
	const act = "COPY (SELECT 1) TO PROGRAM 'exec /usr/bin/unshare --user /bin/true'"
	t.Run("control", func(t *testing.T) {
		s := newSlice(t, "nft", nil)
		s.configure(withPrograms(t, "sh", "unshare", "true"))
		s.start()
		if _, err := s.cluster.PsqlSocket(s.ctx, s.node, act); err == nil {
			t.Error("the act is not denied; the test proves nothing")
		}
	})
	t.Run("complain", func(t *testing.T) {
		s := newSlice(t, "nft", nil)
		s.configure(func(s *testbed.Service) { s.Mode = "complain" })
		must(t, s.agent.Start())
		s.awaitStatus("complaints", func(st control.Status) error {
			if len(st.Services) != 1 || st.Services[0].State != "ready" || st.State != control.StateDegraded {
				return fmt.Errorf("state %s, services %+v, reasons %q", st.State, st.Services, st.Reasons)
			}
			for _, l := range st.Layers {
				if !l.Configured { // control groups in this test, SELinux
					continue
				}
				complains := l.Name == "seccomp" || l.Name == "landlock"
				if l.Enforced == complains || (l.Mode == "complain") != complains {
					return fmt.Errorf("layer %+v", l)
				}
			}
			return nil
		})
		if _, err := s.cluster.PsqlSocket(s.ctx, s.node, act); err != nil {
			t.Errorf("the act is denied: %v", err)
		}
		pid, err := s.cluster.PID()
		must(t, err)
		if status := procFields(pid, "status"); status["Seccomp"] != "0" || status["NoNewPrivs"] != "1" || strings.Trim(status["CapBnd"], "0") != "" {
			t.Errorf("status: %v", status)
		}
		s.awaitStatus("what would be denied", func(st control.Status) error {
			text := strings.Join(st.Warnings, "\n")
			if !containsAll(text, []string{"seccomp: would be denied: unshare(0x10000000)"}) {
				return fmt.Errorf("warnings: %s", text)
			}
			return nil
		})
		if r := s.want(3, []string{"complain", "mode: enforce"}, "status"); strings.Contains(r.Stdout, "restart needed") {
			t.Errorf("what was asked for is called drift:\n%s", r.Stdout)
		}
		s.want(3, []string{"seccomp", "complain"}, "verify")
		s.want(0, []string{"unshare(0x10000000)", `execute "/usr/bin/dash"`, `execute "/usr/bin/unshare"`}, "events")
		// Back to enforce: what runs is not taken for confined.
		s.configure(func(s *testbed.Service) { s.Mode = "" })
		s.want(3, []string{"seccomp", "NO"}, "verify")
	})
}
