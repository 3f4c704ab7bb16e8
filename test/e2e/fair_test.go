package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/testbed"
)

// greedy is how many processes of the neighbour want a CPU each.
const greedy = 8

// greedyService is a neighbour that takes all of the CPU that it gets, for two minutes at most.
// Each of its processes has a session of its own, as postgres's backends have: where there are no groups
// the kernel shares by session (autogroup, sched(7)).
func greedyService(cgroup map[string]any) testbed.Service {
	script := fmt.Sprintf("ulimit -t 120; i=0; while [ $i -lt %d ]; do setsid sh -c 'while :; do :; done' & i=$((i+1)); done; wait", greedy)
	return testbed.Service{Profile: "postgres", User: "nobody", Command: []string{"/usr/bin/dash", "-c", script},
		Landlock: map[string]any{"mode": "off"}, Cgroup: cgroup}
}

// fairSlice is a slice with a greedy service beside postgres, whose processes share one CPU.
func fairSlice(t *testing.T, own, theirs map[string]any, change func(*testbed.AgentConfig)) (s *slice, spinners []int) {
	t.Helper()
	s = cgroupSlice(t, nil, func(c *testbed.AgentConfig) {
		withCgroup(own)(c)
		c.Services["greedy"] = greedyService(theirs)
		if change != nil {
			change(c)
		}
	})
	must(t, s.agent.Start())
	s.awaitStatus("both services", func(st control.Status) error {
		spinners = spinners[:0]
		for _, svc := range st.Services {
			if svc.State != "ready" {
				return fmt.Errorf("%+v", svc)
			}
			if svc.Name != "greedy" {
				continue
			}
			tree, err := launch.Tree(s.ctx, svc.PID)
			if err != nil {
				return err
			}
			for _, pid := range tree {
				if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && pid != svc.PID && strings.HasPrefix(string(data), "sh\x00") {
					spinners = append(spinners, pid)
				}
			}
		}
		if len(st.Services) != 2 || len(spinners) != greedy {
			return fmt.Errorf("%d services, spinners %v", len(st.Services), spinners)
		}
		return nil
	})
	pin(t, spinners...)
	return s, spinners
}

// pin has processes, with all threads, share one CPU.
func pin(t *testing.T, pids ...int) {
	t.Helper()
	var may, one unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &may))
	for cpu := range 1 << 10 {
		if may.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	for _, pid := range pids {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		must(t, err)
		for _, thread := range threads {
			if err := unix.SchedSetaffinity(atoi(t, thread.Name()), &one); err != nil && !errors.Is(err, unix.ESRCH) {
				t.Fatal(err)
			}
		}
	}
}

// cpuTime is the time that processes have run, in nanoseconds (/proc/PID/schedstat, Documentation/scheduler/sched-stats.rst).
func cpuTime(t *testing.T, pids ...int) (sum uint64) {
	t.Helper()
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
		must(t, err)
		first, _, _ := strings.Cut(string(data), " ")
		n, err := strconv.ParseUint(first, 10, 64)
		must(t, err)
		sum += n
	}
	return sum
}

// share is which part of the CPU one gets that others want as well: of two seconds of its time.
func (s *slice) share(one int, others []int) float64 {
	s.t.Helper()
	const enough = 2e9
	own, theirs := cpuTime(s.t, one), cpuTime(s.t, others...)
	must(s.t, testbed.Await(s.ctx, "two seconds of CPU time to be used", func(context.Context) error {
		if used := cpuTime(s.t, one) - own + cpuTime(s.t, others...) - theirs; used < enough {
			return fmt.Errorf("%v", time.Duration(used))
		}
		return nil
	}))
	own, theirs = cpuTime(s.t, one)-own, cpuTime(s.t, others...)-theirs
	return float64(own) / float64(own+theirs)
}

// busyBackend is the pid of a backend that wants a whole CPU until the test ends.
func (s *slice) busyBackend() (pid int) {
	s.t.Helper()
	a := &attack{slice: s}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = a.superuser("SET statement_timeout = '2min'; DO $busy$ BEGIN LOOP PERFORM 1; END LOOP; END $busy$") // it is ended below
	}()
	s.t.Cleanup(func() {
		_ = unix.Kill(pid, unix.SIGTERM) // it is a backend, which ends by that
		<-ended
	})
	must(s.t, testbed.Await(s.ctx, "a busy backend", func(context.Context) error {
		out, err := a.superuser("SELECT pid FROM pg_stat_activity WHERE query LIKE '%$busy$%' AND pid <> pg_backend_pid() AND state = 'active'")
		if err == nil {
			pid, err = strconv.Atoi(out)
		}
		return err
	}))
	pin(s.t, pid)
	return pid
}

// A51: a greedy neighbour gets the CPU by weight, however many processes it has.
func TestA51_GreedyNeighbour(t *testing.T) {
	for _, tt := range []struct {
		name        string
		own, theirs map[string]any
		from, to    float64
	}{
		{"control", map[string]any{"mode": "off"}, map[string]any{"mode": "off"}, 0, 0.25}, // one of nine
		{"equal", map[string]any{"mode": "required"}, map[string]any{"mode": "required"}, 0.4, 0.6},
		{"heavy", map[string]any{"mode": "required", "cpu_weight": 900}, map[string]any{"mode": "required"}, 0.8, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, spinners := fairSlice(t, tt.own, tt.theirs, nil)
			got := s.share(s.busyBackend(), spinners)
			t.Logf("a backend has %.2f of the CPU beside %d spinners", got, greedy)
			if got < tt.from || got > tt.to {
				t.Errorf("a backend has %.2f of the CPU, want %.2f to %.2f", got, tt.from, tt.to)
			}
		})
	}
}

// A51: a service that takes all of the CPU takes none of it from the agent. The agent itself needs too
// little to show a share; a process in its group stands in for an agent that needs a lot. The agent
// is held to the same CPU, and puts rules back.
func TestA51_GreedyServiceAndTheAgent(t *testing.T) {
	for _, tt := range []struct {
		name, mode string
		from, to   float64
	}{{"control", "off", 0, 0.25}, {"confined", "required", 0.8, 1}} {
		t.Run(tt.name, func(t *testing.T) {
			group := map[string]any{"mode": tt.mode}
			s, spinners := fairSlice(t, group, group, func(c *testbed.AgentConfig) { c.Agent = map[string]any{"cgroup": group} })
			daemon := s.agent.PID()
			pin(t, daemon)
			own := exec.Command("/bin/sh", "-c", "ulimit -t 60; while :; do :; done")
			own.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			must(t, own.Start())
			defer func() {
				_ = own.Process.Kill() // its end is waited for
				_ = own.Wait()
			}()
			pin(t, own.Process.Pid)
			must(t, os.WriteFile(filepath.Join(groupOf(t, daemon, "cpu"), "cgroup.procs"), []byte(strconv.Itoa(own.Process.Pid)), 0))
			got := s.share(own.Process.Pid, spinners)
			t.Logf("one in the agent's place has %.2f of the CPU beside %d spinners", got, greedy)
			if got < tt.from || got > tt.to {
				t.Errorf("one in the agent's place has %.2f of the CPU, want %.2f to %.2f", got, tt.from, tt.to)
			}
			if tt.name == "confined" {
				before := time.Now()
				run(t, s.node, "iptables-nft -w -F INPUT")
				s.awaitStatus("a repair", func(st control.Status) error { return repaired(st, before) })
			}
		})
	}
}

// repaired says whether rules were put back after a time.
func repaired(st control.Status, after time.Time) error {
	for _, d := range st.Drift {
		if d.Resource == "firewall" && d.Cause == "drift" && d.Found.After(after) && !d.Repaired.IsZero() {
			return nil
		}
	}
	return errors.New("none yet")
}

// A51: where services share a bound, as those of one user share nproc, a fork bomb in one keeps the other from
// starting anything. With groups it fills its own alone, and postgres, the other service and the agent work on.
func TestA51_ForkBombBesideAnotherService(t *testing.T) {
	const bomb, bound = 150, 60
	for _, name := range []string{"control", "confined"} {
		t.Run(name, func(t *testing.T) {
			dir := launchMkdir(t, filepath.Join(launchDir(t), "fifo"), 0o755)
			ask, answer := fifo(t, filepath.Join(dir, "ask")), fifo(t, filepath.Join(dir, "answer"))
			group, limits := map[string]any{"mode": "required", "tasks_max": bound}, map[string]any{"nproc": 1000}
			if name == "control" {
				group, limits = map[string]any{"mode": "off"}, map[string]any{"nproc": bound}
			}
			service := func(script string) testbed.Service {
				return testbed.Service{Profile: "postgres", User: "nobody", Command: []string{"/usr/bin/dash", "-c", script}, Limits: limits,
					Landlock: map[string]any{"mode": "off"}, Cgroup: group}
			}
			s := cgroupSlice(t, nil, func(c *testbed.AgentConfig) {
				withCgroup(map[string]any{"mode": "required"})(c)
				// A shell that cannot fork ends: the bomb in a shell of its own.
				c.Services["bomb"] = service(fmt.Sprintf("read x < %s/start; ( i=0; while [ $i -lt %d ]; do sleep 60 & i=$((i+1)); done ); sleep 60", dir, bomb))
				c.Services["other"] = service(fmt.Sprintf("while read x; do (sleep 0 && echo $x); done < %[1]s/ask > %[1]s/answer", dir))
			})
			start := fifo(t, filepath.Join(dir, "start"))
			must(t, s.agent.Start())
			s.awaitStatus("three services", func(st control.Status) error {
				for _, svc := range st.Services {
					if svc.State != "ready" {
						return fmt.Errorf("%+v", svc)
					}
				}
				return nil
			})
			works := func() string {
				_, err := ask.WriteString("yes\n")
				must(t, err)
				must(t, answer.SetReadDeadline(time.Now().Add(time.Minute)))
				var buf [64]byte
				n, err := answer.Read(buf[:])
				must(t, err)
				return strings.TrimSpace(string(buf[:n]))
			}
			if got := works(); got != "yes" {
				t.Fatalf("before: %q", got)
			}
			_, err := start.WriteString("go\n")
			must(t, err)
			defer func() {
				for _, pid := range bombs(t) {
					_ = unix.Kill(pid, unix.SIGKILL) // may have ended
				}
			}()
			must(t, testbed.Await(s.ctx, "a bomb that has gone off", func(context.Context) error {
				if n := len(bombs(t)); n < bound/2 {
					return fmt.Errorf("%d processes", n)
				}
				return nil
			}))
			if name == "control" {
				_, err := ask.WriteString("yes\n")
				must(t, err)
				s.awaitStatus("the other service to fail; or the test proves nothing", func(st control.Status) error {
					for _, svc := range st.Services {
						if svc.Name == "other" && svc.State == "ready" && svc.Restarts == 0 {
							return fmt.Errorf("%+v", svc)
						}
					}
					return nil
				})
				return
			}
			pid := mustPID(t, s)
			group0 := filepath.Join(filepath.Dir(groupOf(t, pid, "pids")), "service.bomb")
			must(t, testbed.Await(s.ctx, "the bomb to fill its group", func(context.Context) error {
				if got := groupFile(t, group0, "pids.events"); got == "max 0" {
					return errors.New(got)
				}
				return nil
			}))
			if n := len(bombs(t)); n >= bound {
				t.Errorf("%d processes in a group for %d", n, bound)
			}
			for range 3 {
				if got := works(); got != "yes" {
					t.Errorf("the other service: %q", got)
				}
			}
			if out, err := (&attack{slice: s}).superuser("SELECT 1"); err != nil || out != "1" || mustPID(t, s) != pid {
				t.Errorf("postgres: %q %v", out, err)
			}
			before := time.Now()
			run(t, s.node, "iptables-nft -w -F INPUT")
			s.awaitStatus("a repair", func(st control.Status) error { return repaired(st, before) })
		})
	}
}

// fifo makes a named pipe for everybody and opens it for both, so that nobody waits for the other side.
func fifo(t *testing.T, path string) *os.File {
	t.Helper()
	must(t, unix.Mkfifo(path, 0o666))
	must(t, os.Chmod(path, 0o666))
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0) // so that a read can have a deadline
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// A51: a backend that takes more memory than the service may have is ended by the kernel, and it alone. The
// postmaster sees to the rest; neither it nor the agent is restarted.
func TestA51_MemoryOfABackend(t *testing.T) {
	const hog = "SELECT length(repeat('x', 500 << 20))"
	for name, most := range map[string]string{"control": "2G", "confined": "300M"} {
		t.Run(name, func(t *testing.T) {
			s := cgroupSlice(t, map[string]string{"shared_buffers": "16MB"}, withCgroup(map[string]any{"mode": "required", "memory_max": most}))
			s.start()
			s.settled("the start")
			pid, daemon := mustPID(t, s), s.agent.PID()
			a := &attack{slice: s}
			out, err := a.superuser(hog)
			if name == "control" {
				if err != nil || out != strconv.Itoa(500<<20) {
					t.Errorf("%q %v; the test proves nothing", out, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), "server closed the connection unexpectedly") {
				t.Errorf("%q %v", out, err)
			}
			must(t, testbed.Await(s.ctx, "postgres to recover", func(context.Context) error {
				_, err := a.superuser("SELECT 1")
				return err
			}))
			log, err := os.ReadFile(s.agent.LogPath)
			must(t, err)
			if !strings.Contains(string(log), "was terminated by signal 9") {
				t.Error("the server does not say that a backend was killed")
			}
			if got := s.awaitOK().Services[0]; got.PID != pid || got.Restarts != 0 || s.agent.PID() != daemon || mustPID(t, s) != pid {
				t.Errorf("postmaster %d, was %d: %+v; agent %d, was %d", mustPID(t, s), pid, got, s.agent.PID(), daemon)
			}
			if events := groupFile(t, groupOf(t, pid, "memory"), "memory.oom_control"); !strings.Contains(events, "oom_kill 1") {
				t.Error(events)
			}
			before := time.Now()
			run(t, s.node, "iptables-nft -w -F INPUT")
			s.awaitRestored(before, "INPUT")
		})
	}
}
