package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
)

// Live processes of a real PostgreSQL: limits and OOM scores are put back, what
// only a restart could is reported, and the children's own scores are theirs.
func TestSliceProcessDrift(t *testing.T) {
	t.Parallel()
	s := newSlice(t, "nft", nil)
	score := 100
	service := s.cfg.Services["postgres"]
	service.OOMScoreAdj = &score
	s.cfg.Services["postgres"] = service
	must(t, s.agent.WriteConfig(s.cfg))
	s.start()
	s.settled("the start")
	pid, err := s.cluster.PID()
	must(t, err)
	pids, err := launch.Tree(s.ctx, pid)
	must(t, err)
	child := pids[len(pids)-1]
	if len(pids) < 4 || oomScore(t, pid) != "100" || oomScore(t, child) != "0" {
		t.Fatalf("processes %v, OOM scores %s and %s; want a few, 100 and 0", pids, oomScore(t, pid), oomScore(t, child))
	}

	t.Run("oom score", func(t *testing.T) {
		before := time.Now()
		must(t, os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", child), []byte("7"), 0)) // its own business
		must(t, os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("500"), 0))
		d := s.awaitRestored(before, fmt.Sprintf("service postgres: process %d: oom_score_adj is 500, want 100", pid))
		t.Logf("put back at most %.0f ms after it was last seen right", d.OpenMS)
		if oomScore(t, pid) != "100" || oomScore(t, child) != "7" || strings.Contains(d.What, strconv.Itoa(child)) {
			t.Errorf("%s and, of a child, %s; want 100 and 7\n%s", oomScore(t, pid), oomScore(t, child), d.What)
		}
	})
	t.Run("limit of the postmaster", func(t *testing.T) { limitDrift(t, s, pid) })
	t.Run("limit of a child", func(t *testing.T) { limitDrift(t, s, child) })

	// What the configuration says now counts from the next start on.
	t.Run("a change of the configuration is no drift", func(t *testing.T) {
		was := s.awaitOK().Generation
		score = 200
		must(t, s.agent.WriteConfig(s.cfg))
		s.awaitStatus("the new configuration", func(st control.Status) error {
			if st.Generation == was {
				return fmt.Errorf("generation %d", st.Generation)
			}
			return nil
		})
		before := time.Now()
		must(t, os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("500"), 0))
		s.awaitRestored(before, "oom_score_adj is 500, want 100")
		s.want(0, nil, "stop", "--service", "postgres")
		s.want(0, nil, "start", "--service", "postgres")
		s.awaitOK()
		now, err := s.cluster.PID()
		must(t, err)
		if oomScore(t, now) != "200" {
			t.Errorf("after the restart: %s, want 200", oomScore(t, now))
		}
	})
}

// limitDrift changes a limit as only the process's user may without
// CAP_SYS_RESOURCE, which is also what the daemon needs to put it back. Where the
// machine does not give it to root, the daemon has to say so.
func limitDrift(t *testing.T, s *slice, pid int) {
	before := time.Now()
	set := func(soft string) {
		t.Helper()
		u := s.cluster.User
		out, err := exec.CommandContext(t.Context(), "setpriv", "--reuid", u.Uid, "--regid", u.Gid, "--clear-groups",
			"prlimit", "--pid", strconv.Itoa(pid), "--nofile="+soft+":4000").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	set("999")
	words := fmt.Sprintf("service postgres: process %d: limit nofile is 999:4000, want 4000", pid)
	if mayChangeLimits(t) {
		d := s.awaitRestored(before, words)
		t.Logf("put back at most %.0f ms after it was last seen right", d.OpenMS)
	} else {
		s.awaitStatus("an event that says what is missing", func(st control.Status) error {
			for _, d := range st.Drift {
				if containsAll(d.What, []string{words}) && strings.Contains(d.Error, "this needs CAP_SYS_RESOURCE") {
					return nil
				}
			}
			return fmt.Errorf("events %+v", st.Drift)
		})
		set("4000")
	}
	s.awaitOK()
	if got := procLimits(pid)["Max open files"]; got != "4000 4000" {
		t.Errorf("process %d has %s", pid, got)
	}
}

// mayChangeLimits says whether this machine's root has CAP_SYS_RESOURCE; the
// daemon has what the test has.
func mayChangeLimits(t *testing.T) bool {
	t.Helper()
	set, err := strconv.ParseUint(procFields(os.Getpid(), "status")["CapEff"], 16, 64)
	must(t, err)
	return set&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// A superuser runs what he has made himself, where no layer keeps him from it.
// Nobody can put that back, and it is reported and not restarted.
func TestSliceForeignProgram(t *testing.T) {
	s := newSlice(t, "nft", nil)
	s.configure(withoutLandlock)
	s.configure(withoutMounts) // which would deny what is dropped
	s.start()
	program := filepath.Join(s.cluster.Data, "evil")
	data, err := os.ReadFile("/usr/bin/sleep")
	must(t, err)
	must(t, os.WriteFile(program, data, 0o755))
	must(t, unix.Chown(program, atoi(t, s.cluster.User.Uid), -1))
	defer os.Remove(program)
	done := make(chan error, 1)
	go func() {
		_, err := s.cluster.PsqlSocket(s.ctx, s.node, "COPY (SELECT 1) TO PROGRAM '"+program+" 100'")
		done <- err
	}()
	var found control.Drift
	s.awaitStatus("the program among the events", func(st control.Status) error {
		s.cli("apply") // looks at everything now
		for _, d := range st.Drift {
			if d.Restart && strings.Contains(d.What, "exe is "+program) {
				found = d
				return nil
			}
		}
		return errors.New("not there yet")
	})
	if !strings.Contains(found.What, "restart needed") || !strings.Contains(found.What, "`pghardend stop --service postgres`") {
		t.Errorf("it does not say what to do:\n%s", found.What)
	}
	pids, err := launch.Tree(s.ctx, mustPID(t, s))
	must(t, err)
	killed := 0
	for _, pid := range pids {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && exe == program {
			must(t, unix.Kill(pid, unix.SIGKILL))
			killed++
		}
	}
	if killed != 1 {
		t.Errorf("%d processes of the program, want 1", killed)
	}
	<-done // COPY fails, its program was killed
	s.awaitOK()
}

func mustPID(t *testing.T, s *slice) int {
	t.Helper()
	pid, err := s.cluster.PID()
	must(t, err)
	return pid
}

func oomScore(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	must(t, err)
	return string(bytes.TrimSpace(data))
}
