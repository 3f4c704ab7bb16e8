package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/testbed"
)

// The machine of these tests has version 1 of control groups, each controller in a
// hierarchy of its own. The VMs share them.
var cgroupControllers = []string{"cpu", "memory", "pids"}

const cgroupDir = "/sys/fs/cgroup"

// cgroupSlice is a slice whose agent has a control group. What its agent makes is gone
// when the test has ended, however it ends.
func cgroupSlice(t *testing.T, settings map[string]string, change func(*testbed.AgentConfig)) *slice {
	t.Helper()
	before := ourGroups(t)
	t.Cleanup(func() { // after the bed was closed
		for _, dir := range slices.Backward(ourGroups(t)) {
			if !slices.Contains(before, dir) {
				must(t, unix.Rmdir(dir))
			}
		}
	})
	s := newSlice(t, "nft", settings)
	s.cfg.Agent = map[string]any{"cgroup": map[string]any{"mode": "required"}}
	if change != nil {
		change(&s.cfg)
	}
	must(t, s.agent.WriteConfig(s.cfg))
	return s
}

// withCgroup sets the group of postgres.
func withCgroup(settings map[string]any) func(*testbed.AgentConfig) {
	return func(c *testbed.AgentConfig) {
		service := c.Services["postgres"]
		service.Cgroup = settings
		c.Services["postgres"] = service
	}
}

// ourGroups lists the groups of agents in the machine's hierarchies, the outer first.
func ourGroups(t *testing.T) []string {
	t.Helper()
	var dirs []string
	for _, c := range cgroupControllers {
		must(t, filepath.WalkDir(filepath.Join(cgroupDir, c), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.Contains(path, "/pghardend-") {
				dirs = append(dirs, path)
			}
			if errors.Is(err, os.ErrNotExist) { // of somebody else's, gone meanwhile
				return nil
			}
			return err
		}))
	}
	return dirs
}

// groupOf is the directory of a process's group.
func groupOf(t *testing.T, pid int, controller string) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	must(t, err)
	for line := range strings.Lines(string(data)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); f[1] == controller {
			return filepath.Join(cgroupDir, controller, f[2])
		}
	}
	t.Fatalf("no controller %s in\n%s", controller, data)
	return ""
}

func groupFile(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	must(t, err)
	return strings.TrimSpace(string(data))
}

func (s *slice) cgroupLayer(subject string) control.Layer {
	s.t.Helper()
	for _, l := range s.awaitOK().Layers {
		if l.Name == launch.LayerCgroup && l.Subject == subject {
			return l
		}
	}
	s.t.Fatalf("status has no layer cgroup of %s", subject)
	return control.Layer{}
}

// A51: a fork bomb from SQL, of a bounded number of processes. It hits the bound of
// the service, and meanwhile the agent puts rules back.
func TestA51_ForkBomb(t *testing.T) {
	const bomb, bound = 200, 100
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do sleep 60 >/dev/null 2>&1 & i=$((i+1)); done; echo $i", bomb)
	for name, tasks := range map[string]any{"control": "unlimited", "confined": bound} {
		t.Run(name, func(t *testing.T) {
			s := cgroupSlice(t, nil, withCgroup(map[string]any{"mode": "required", "tasks_max": tasks}))
			s.configure(withoutLandlock) // which would deny the shell
			s.start()
			s.settled("the start")
			a := &attack{slice: s}
			out, err := a.program(script)
			sleeping := len(bombs(t))
			if name == "control" {
				if err != nil || !strings.Contains(out, strconv.Itoa(bomb)) || sleeping < bomb {
					t.Errorf("%q %v, %d processes; the test proves nothing", out, err, sleeping)
				}
			} else {
				dir := groupOf(t, mustPID(t, s), "pids")
				if err == nil || sleeping >= bound || sleeping < bound/2 || groupFile(t, dir, "pids.events") == "max 0" {
					t.Errorf("%q %v, %d processes, %s", out, err, sleeping, groupFile(t, dir, "pids.events"))
				}
				before := time.Now()
				run(t, s.node, "iptables-nft -w -F INPUT")
				s.awaitRestored(before, "INPUT")
				if l := s.cgroupLayer("postgres"); !l.Enforced || !strings.Contains(l.Detail, "pids.max "+strconv.Itoa(bound)) {
					t.Errorf("layer %+v", l)
				}
			}
			for _, pid := range bombs(t) {
				_ = unix.Kill(pid, unix.SIGKILL) // may have ended
			}
			if name == "confined" {
				must(t, s.agent.Await(s.ctx, "the end of the bomb", func(context.Context) error {
					if n := len(bombs(t)); n > 0 {
						return fmt.Errorf("%d processes", n)
					}
					return nil
				}))
				s.want(0, []string{"cgroup", "pids.max", "group pids"}, "verify")
			}
			if out, err := a.superuser("SELECT 1"); err != nil || out != "1" {
				t.Errorf("afterwards: %q %v", out, err)
			}
		})
	}
}

// bombs are the processes of a fork bomb.
func bombs(t *testing.T) []int {
	t.Helper()
	var pids []int
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, path := range paths {
		if data, err := os.ReadFile(path); err == nil && string(data) == "sleep\x0060\x00" {
			pids = append(pids, atoi(t, filepath.Base(filepath.Dir(path))))
		}
	}
	return pids
}

// A51: a neighbour that takes more memory than it may is ended by the kernel, and
// nobody else is. What it takes is bounded without that as well.
func TestA51_MemoryHog(t *testing.T) {
	for name, most := range map[string]string{"control": "1G", "confined": "64M"} {
		t.Run(name, func(t *testing.T) {
			fifo := filepath.Join(launchMkdir(t, filepath.Join(launchDir(t), "hog"), 0o755), "fifo")
			must(t, unix.Mkfifo(fifo, 0o666))
			must(t, os.Chmod(fifo, 0o666))
			reader, err := os.OpenFile(fifo, os.O_RDWR, 0) // so that the hog holds what it has, without a CPU
			must(t, err)
			defer reader.Close()
			s := cgroupSlice(t, nil, func(c *testbed.AgentConfig) {
				c.Services["hog"] = testbed.Service{Profile: "postgres", User: "nobody",
					Command:  []string{"/usr/bin/dd", "if=/dev/zero", "of=" + fifo, "bs=200M", "count=1"},
					Landlock: map[string]any{"mode": "off"}, Cgroup: map[string]any{"mode": "required", "memory_max": most}}
			})
			must(t, s.agent.Start())
			hog := func(check func(control.Service) error) control.Service {
				var hog control.Service
				s.awaitStatus("the hog", func(st control.Status) error {
					for _, svc := range st.Services {
						if svc.Name == "hog" {
							hog = svc
							return check(svc)
						}
					}
					return errors.New("no hog")
				})
				return hog
			}
			if name == "control" {
				h := hog(func(h control.Service) error {
					if h.State != "ready" || atoi(t, strings.TrimSuffix(procFields(h.PID, "status")["VmRSS"], " kB")) < 200<<10 {
						return fmt.Errorf("%+v", h)
					}
					return nil
				})
				if h.Restarts != 0 {
					t.Errorf("%+v; the test proves nothing", h)
				}
				return
			}
			hog(func(h control.Service) error {
				if h.Restarts < 2 || !strings.Contains(h.LastError, "killed") {
					return fmt.Errorf("%+v", h)
				}
				return nil
			})
			pid := mustPID(t, s)
			before := time.Now()
			run(t, s.node, "iptables-nft -w -F INPUT")
			s.awaitStatus("a repair", func(st control.Status) error {
				for _, d := range st.Drift {
					if d.Resource == "firewall" && d.Cause == "drift" && d.Found.After(before) && !d.Repaired.IsZero() {
						return nil
					}
				}
				return errors.New("none yet")
			})
			if out, err := (&attack{slice: s}).superuser("SELECT 1"); err != nil || out != "1" || mustPID(t, s) != pid {
				t.Errorf("postgres meanwhile: %q %v", out, err)
			}
		})
	}
}

// What is changed of a group, and who is moved out of it, is put back.
func TestCgroupDrift(t *testing.T) {
	s := cgroupSlice(t, nil, withCgroup(map[string]any{"mode": "required", "tasks_max": 150, "memory_max": "512M"}))
	s.cfg.Full = "10m"
	must(t, s.agent.WriteConfig(s.cfg))
	s.start()
	s.settled("the start")
	pid := mustPID(t, s)
	pids, memory := groupOf(t, pid, "pids"), groupOf(t, pid, "memory")
	if got := groupFile(t, pids, "pids.max") + " " + groupFile(t, memory, "memory.limit_in_bytes"); got != "150 536870912" {
		t.Fatal(got)
	}
	tree, err := launch.Tree(s.ctx, pid)
	must(t, err)
	for _, p := range tree {
		if groupOf(t, p, "pids") != pids || groupOf(t, p, "memory") != memory {
			t.Errorf("process %d is elsewhere", p)
		}
	}
	t.Run("setting", func(t *testing.T) {
		before := time.Now()
		must(t, os.WriteFile(filepath.Join(pids, "pids.max"), []byte("max"), 0))
		s.awaitRestored(before, "service postgres: pids.max of control group", "is max, want 150")
		if got := groupFile(t, pids, "pids.max"); got != "150" {
			t.Error(got)
		}
	})
	move := func(pid int) control.Drift {
		before := time.Now()
		must(t, os.WriteFile(filepath.Join(filepath.Dir(filepath.Dir(pids)), "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
		d := s.awaitRestored(before, fmt.Sprintf("service postgres: process %d is in the control group /, want", pid))
		if got := groupOf(t, pid, "pids"); got != pids {
			t.Error(got)
		}
		return d
	}
	s.awaitTraced()
	t.Run("postmaster", func(t *testing.T) { move(pid) })
	// Nobody looks at children for ten minutes: the kernel tells of it, and who it was.
	t.Run("child", func(t *testing.T) {
		if d := move(tree[len(tree)-1]); d.Trigger != "event" || d.Who == nil || d.Who.PID != os.Getpid() {
			t.Errorf("%+v, by %+v", d, d.Who)
		}
	})
	t.Run("verify sees what is not put back", func(t *testing.T) {
		s.whileFrozen(true, func() {
			must(t, os.WriteFile(filepath.Join(pids, "pids.max"), []byte("1000"), 0))
			s.want(3, []string{"cgroup pids.max is 1000, not 150"}, "verify")
		})
		s.awaitOK()
	})
	t.Run("configuration", func(t *testing.T) { // counts at once
		service := s.cfg.Services["postgres"]
		service.Cgroup["tasks_max"] = 160
		must(t, s.agent.WriteConfig(s.cfg))
		s.awaitStatus("the new bound", func(control.Status) error {
			if got := groupFile(t, pids, "pids.max"); got != "160" {
				return errors.New(got)
			}
			return nil
		})
		if l := s.cgroupLayer("postgres"); !l.Enforced || mustPID(t, s) != pid {
			t.Errorf("%+v", l)
		}
	})
}

// A group lives as long as its service: a daemon that dies costs nothing, a restart
// finds it again, and a stop removes it.
func TestCgroupLife(t *testing.T) {
	before := ourGroups(t)
	score := 100
	s := cgroupSlice(t, nil, func(c *testbed.AgentConfig) {
		c.Agent = map[string]any{"oom_score_adj": 300, "cgroup": map[string]any{"mode": "required", "memory_max": "1G"}}
		withCgroup(map[string]any{"mode": "required"})(c)
		service := c.Services["postgres"]
		service.OOMScoreAdj = &score
		c.Services["postgres"] = service
	})
	s.start()
	s.settled("the start")
	pid := mustPID(t, s)
	group := groupOf(t, pid, "pids")
	// max_connections is known: what the server may have itself comes on top of twice that.
	if got := groupFile(t, group, "pids.max"); atoi(t, got) < 300 || atoi(t, got) > 600 {
		t.Errorf("derived: %s", got)
	}
	daemon := s.agent.PID()
	if got := groupOf(t, daemon, "memory"); filepath.Base(got) != "agent" || groupFile(t, got, "memory.limit_in_bytes") != "1073741824" {
		t.Errorf("the agent is in %s", got)
	}
	if own, services := groupFile(t, groupOf(t, daemon, "cpu"), "cpu.shares"), groupFile(t, groupOf(t, pid, "cpu"), "cpu.shares"); own != "10240" || services != "1024" {
		t.Errorf("cpu.shares of the agent %s, of postgres %s", own, services)
	}
	if l := s.cgroupLayer("agent"); !l.Enforced {
		t.Errorf("%+v", l)
	}
	tree, err := launch.Tree(s.ctx, pid)
	must(t, err)
	if a, b, c := oomScore(t, daemon), oomScore(t, pid), oomScore(t, tree[len(tree)-1]); a != "300" || b != "100" || c != "0" {
		t.Errorf("OOM scores of the agent %s, the postmaster %s, a child %s", a, b, c)
	}

	must(t, s.agent.Kill9(s.ctx))
	must(t, s.agent.Start())
	if st := s.awaitOK(); !st.Services[0].Adopted || groupOf(t, pid, "pids") != group || !s.cgroupLayer("postgres").Enforced {
		t.Errorf("after kill -9: %+v", st.Services)
	}
	found := time.Now()
	must(t, os.WriteFile(filepath.Join(group, "pids.max"), []byte("max"), 0))
	s.awaitRestored(found, "pids.max")

	s.want(0, nil, "stop", "--service", "postgres")
	if _, err := os.Stat(group); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after stop: %v", err)
	}
	s.want(0, nil, "start", "--service", "postgres")
	s.awaitOK()
	if got := groupOf(t, mustPID(t, s), "pids"); got != group {
		t.Errorf("after start: %s, was %s", got, group)
	}

	_, err = s.agent.Stop(s.ctx)
	must(t, err)
	if now := groupOf(t, mustPID(t, s), "pids"); now != group {
		t.Errorf("without a daemon: %s", now)
	}
	s.want(0, nil, "teardown", "--stop-services")
	left := slices.DeleteFunc(ourGroups(t), func(dir string) bool { return slices.Contains(before, dir) })
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// Where there are no control groups, required refuses and preferred says so. The
// OOM score that the agent may not have is a reason, and nothing stops for it.
func TestF30_NoCgroups(t *testing.T) {
	s := newSlice(t, "nft", nil)
	run(t, s.node, "umount -R "+cgroupDir)
	s.cfg.Agent = map[string]any{"oom_score_adj": -900, "cgroup": map[string]any{"mode": "preferred"}}
	withCgroup(map[string]any{"mode": "preferred"})(&s.cfg)
	must(t, s.agent.WriteConfig(s.cfg))
	must(t, s.agent.Start())
	st := s.awaitStatus("a service", func(st control.Status) error {
		if len(st.Services) != 1 || st.Services[0].State != "ready" {
			return fmt.Errorf("%+v", st.Services)
		}
		return nil
	})
	if text := fmt.Sprint(st.Warnings); !containsAll(text, []string{"service postgres is not bounded by control groups", "the agent is not bounded", "offers no controller pids"}) {
		t.Errorf("warnings %s", text)
	}
	if mayChangeLimits(t) != (len(st.Reasons) == 0) || len(st.Reasons) > 0 && !strings.Contains(st.Reasons[0], "agent.oom_score_adj") {
		t.Errorf("reasons %q", st.Reasons)
	}
	for _, l := range st.Layers {
		if l.Name == launch.LayerCgroup && l.Enforced {
			t.Errorf("%+v", l)
		}
	}
	s.want(0, []string{"not enforced: the kernel, the container or the service manager offers no controller"}, "verify")
	s.want(0, nil, "stop", "--service", "postgres")
	withCgroup(map[string]any{"mode": "required"})(&s.cfg)
	must(t, s.agent.WriteConfig(s.cfg))
	r := s.cli("exec", "--service", "postgres")
	out := r.Stdout + r.Stderr
	if r.Code != 98 || !containsAll(out, []string{"step cgroup", "services.postgres.cgroup", "offers no controller", "cgroup.mode to preferred"}) {
		t.Errorf("exit code %d: %s", r.Code, out)
	}
}
