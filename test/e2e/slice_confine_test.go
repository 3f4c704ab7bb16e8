package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/testbed"
)

// Every process of PostgreSQL under a pgbench run, read from /proc by this test
// itself and not by the code under test.
func TestSliceConfinement(t *testing.T) {
	t.Setenv("PGHARDEND_LEAK", "must not reach postgres")
	s := newSlice(t, "nft", map[string]string{"max_worker_processes": "8"})
	s.agent.Env = append(s.agent.Env, "PGHARDEND_LEAK=must not reach postgres", "NOTIFY_SOCKET=/nonexistent", "PGDATA=/nonexistent")
	s.start()
	conn := s.cluster.Conninfo(s.node.V4(), testbed.AppUser)
	_, err := s.cluster.Pgbench(s.ctx, s.peer, conn, "-i", "-s", "2", "-q")
	must(t, err)
	bench, stop := context.WithCancel(s.ctx)
	defer stop()
	done := make(chan error, 1)
	go func() {
		r, err := s.cluster.Pgbench(bench, s.peer, conn, "-c", "6", "-T", "6")
		if err == nil && (r.Failed != 0 || r.Processed == 0) {
			err = fmt.Errorf("pgbench: %d processed, %d failed", r.Processed, r.Failed)
		}
		done <- err
	}()
	postmaster, err := s.cluster.PID()
	must(t, err)
	must(t, testbed.Await(s.ctx, "six backends of pgbench", func(ctx context.Context) error {
		pids, err := launch.Tree(ctx, postmaster)
		if err == nil && len(pids) < 6+6 {
			err = fmt.Errorf("%d processes", len(pids))
		}
		return err
	}))
	pids, err := launch.Tree(s.ctx, postmaster)
	must(t, err)
	uid, gid := s.cluster.User.Uid, s.cluster.User.Gid
	checked := 0
	for _, pid := range pids {
		if confined(t, pid, uid, gid, pid == postmaster) {
			checked++
		}
	}
	if checked < 12 {
		t.Errorf("only %d processes were checked", checked)
	}
	s.want(0, []string{"all ", "checks passed"}, "verify")
	must(t, <-done)
	t.Logf("%d processes checked: uid, gid, groups, 5 capability sets, no_new_privs, seccomp, limits, descriptors, environment", checked)

	// Negative control: the check sees a process that is not confined.
	plain := exec.CommandContext(s.ctx, "/usr/bin/sleep", "60")
	must(t, plain.Start())
	defer func() { _ = plain.Process.Kill(); _ = plain.Wait() }()
	if faults := confinementFaults(plain.Process.Pid, uid, gid); len(faults) < 5 {
		t.Errorf("an unconfined process shows only %q", faults)
	}
}

// confined checks one process; false if it has ended meanwhile.
func confined(t *testing.T, pid int, uid, gid string, postmaster bool) bool {
	t.Helper()
	faults := confinementFaults(pid, uid, gid)
	faults = append(faults, descriptorFaults(pid)...)
	if postmaster {
		faults = append(faults, environmentFaults(pid)...)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/status", pid)); err != nil {
		return false
	}
	for _, f := range faults {
		t.Errorf("process %d: %s", pid, f)
	}
	return true
}

var wantedLimits = map[string]string{
	"Max open files": "4000 4000", "Max core file size": "0 0", "Max processes": "900 1000", "Max locked memory": "65536 65536",
}

func confinementFaults(pid int, uid, gid string) []string {
	var faults []string
	status := procFields(pid, "status")
	groups := strings.Fields(status["Groups"])
	want := map[string]string{
		"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Gid": strings.Join([]string{gid, gid, gid, gid}, " "),
		"NoNewPrivs": "1", "Seccomp": "2",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
	}
	for key, w := range want {
		if got := strings.Join(strings.Fields(status[key]), " "); got != w {
			faults = append(faults, fmt.Sprintf("%s is %q, want %q", key, got, w))
		}
	}
	for _, g := range groups {
		if !slices.Contains(declaredGIDs, g) && g != gid {
			faults = append(faults, "stray group "+g)
		}
	}
	limits := procLimits(pid)
	for key, w := range wantedLimits {
		if limits[key] != w {
			faults = append(faults, fmt.Sprintf("%s is %q, want %q", key, limits[key], w))
		}
	}
	return faults
}

// declaredGIDs are the supplementary groups that the configuration names.
var declaredGIDs = func() []string {
	out, err := exec.Command("id", "-G", "postgres").Output()
	if err != nil {
		return nil
	}
	return strings.Fields(string(out))
}()

func procFields(pid int, file string) map[string]string {
	fields := map[string]string{}
	f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return fields
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		fields[key] = strings.TrimSpace(value)
	}
	return fields
}

var limitLine = regexp.MustCompile(`^(Max [a-z ]+?)\s{2,}(\S+)\s+(\S+)`)

func procLimits(pid int) map[string]string {
	limits := map[string]string{}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return limits
	}
	for line := range strings.Lines(string(data)) {
		if m := limitLine.FindStringSubmatch(line); m != nil {
			limits[m[1]] = m[2] + " " + m[3]
		}
	}
	return limits
}

// descriptorFaults: what PostgreSQL opens itself is a file of its data directory,
// a socket, a pipe, an anonymous inode or shared memory; 0 is /dev/null and 1 and
// 2 are the log. Nothing of the agent's (its lock, its sockets, the test's files).
func descriptorFaults(pid int) []string {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var faults []string
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		own := strings.Contains(target, "/data/") || strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, "pipe:") ||
			strings.HasPrefix(target, "anon_inode:") || strings.HasPrefix(target, "/dev/") || strings.HasPrefix(target, "/memfd:") ||
			strings.HasPrefix(target, "/SYSV") || strings.HasSuffix(target, "/data")
		if !own && fd > 2 {
			faults = append(faults, fmt.Sprintf("descriptor %d is %s", fd, target))
		}
		if fd == 0 && target != "/dev/null" {
			faults = append(faults, "standard input is "+target)
		}
	}
	return faults
}

var allowedVariables = []string{
	"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "PG_OOM_ADJUST_FILE", "PG_OOM_ADJUST_VALUE",
	"RES_OPTIONS",                  // names are asked for by TCP
	"PGDATA", "PG_GRANDPARENT_PID", // set by the postmaster itself
}

func environmentFaults(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return []string{err.Error()}
	}
	var faults []string
	for entry := range strings.SplitSeq(strings.TrimRight(string(data), "\x00"), "\x00") {
		name, value, _ := strings.Cut(entry, "=")
		if !slices.Contains(allowedVariables, name) && !strings.HasPrefix(name, "LC_") || value == "/nonexistent" {
			faults = append(faults, "environment variable "+entry)
		}
	}
	return faults
}

// A service that is stopped and started by its commands, and by the daemon after a crash.
func TestSliceStopStart(t *testing.T) {
	t.Parallel()
	s := startSlice(t, "nft")
	first, err := s.cluster.PID()
	must(t, err)
	began := time.Now()
	s.want(0, []string{"service postgres stopped"}, "stop", "--service", "postgres")
	t.Logf("fast stop took %v", time.Since(began).Round(time.Millisecond))
	if err := s.cluster.Ready(); err == nil {
		t.Error("PostgreSQL is ready after stop")
	}
	s.want(3, []string{"stopped"}, "status")
	s.want(3, []string{"not running"}, "verify")
	s.want(0, []string{"service postgres started"}, "start", "--service", "postgres")
	s.awaitOK()
	second, err := s.cluster.PID()
	must(t, err)
	if first == second {
		t.Errorf("the postmaster is process %d before and after", first)
	}
	s.want(1, []string{"no service"}, "stop", "--service", "nope")
}
