package e2e

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/limits"
)

// launchPreload is a library that none of the programs here is linked with.
const launchPreload = "/lib/x86_64-linux-gnu/libresolv.so.2"

// launchDirty starts what follows with everything a careless caller leaves
// behind: umask, directory, descriptors, environment, blocked and ignored signals.
func launchDirty(dir string) []string {
	return []string{"/bin/sh", "-c",
		`umask 0; cd "$1" && shift && exec 6</etc/hostname 7<>/dev/null || exit 1
		exec env --ignore-signal=HUP --ignore-signal=PIPE --ignore-signal=INT --ignore-signal=USR2 --block-signal=USR1 --block-signal=TERM \
			LD_PRELOAD=` + launchPreload + ` LD_LIBRARY_PATH=/tmp GLIBC_TUNABLES=glibc.malloc.check=1 PGDATA=/tmp BASH_ENV=/tmp/x \
			LANG=C.UTF-8 LC_TIME=C TZ=UTC NOTIFY_SOCKET=/run/notify-test WATCHDOG_USEC=1000000 WATCHDOG_PID=1 LISTEN_PID=1 LISTEN_FDS=1 "$@"`,
		"sh", dir}
}

// launchBoth runs a program in the dirty state, launched and, as the control,
// on its own: what survives there must not survive here.
func launchBoth(t *testing.T, command ...string) (launched launchResult, control string) {
	t.Helper()
	if _, err := os.Stat(launchPreload); err != nil {
		t.Fatal(err)
	}
	dirty := launchDirty(launchDir(t))
	in := launchInput{User: "nobody", Command: command, Environment: []string{"PG_OOM_ADJUST_VALUE=0"}}
	launched = launchRun(t, in, dirty...).works(t)
	words := append(dirty, command...)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("the control failed: %v: %s", err, out)
	}
	return launched, string(out)
}

func TestF34_LaunchSignalsAndUmask(t *testing.T) {
	r, control := launchBoth(t, "/usr/bin/cat", "/proc/self/status")
	const none = "0000000000000000"
	r.wantFields(t, "SigBlk", none, "SigIgn", none, "SigCgt", none, "Umask", "0077")
	c := launchResult{stdout: control}
	if c.field(t, "SigBlk") == none || c.field(t, "SigIgn") == none || c.field(t, "Umask") != "0000" {
		t.Errorf("the control is clean: %s", control)
	}
}

func TestF34_LaunchEnvironment(t *testing.T) {
	r, control := launchBoth(t, "/usr/bin/env")
	want := []string{
		"HOME=/nonexistent", "LANG=C.UTF-8", "LC_TIME=C", "LOGNAME=nobody", "NOTIFY_SOCKET=/run/notify-test",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "PG_OOM_ADJUST_VALUE=0", "RES_OPTIONS=use-vc", "TZ=UTC", "USER=nobody",
	}
	if got := strings.Split(strings.TrimSpace(r.stdout), "\n"); !slices.Equal(got, want) {
		t.Errorf("the environment is %q, want %q", got, want)
	}
	for _, name := range []string{"LD_PRELOAD=", "GLIBC_TUNABLES=", "PGDATA="} {
		if !strings.Contains(control, name) {
			t.Errorf("the control has no %s", name)
		}
	}
}

func TestF34_LaunchPreload(t *testing.T) {
	r, control := launchBoth(t, "/usr/bin/cat", "/proc/self/maps")
	if strings.Contains(r.stdout, "libresolv") || !strings.Contains(r.stdout, "libc") {
		t.Errorf("the library is there:\n%s", r.stdout)
	}
	if !strings.Contains(control, "libresolv") {
		t.Error("the control does not have the library")
	}
}

func TestF34_LaunchDirectory(t *testing.T) {
	r, control := launchBoth(t, "/usr/bin/readlink", "/proc/self/cwd")
	if r.stdout != "/\n" || control == "/\n" {
		t.Errorf("working directory is %q, in the control %q", r.stdout, control)
	}
}

func TestF34_LaunchDescriptors(t *testing.T) {
	r, control := launchBoth(t, "/usr/bin/ls", "/proc/self/fd")
	// 3 is the listing itself.
	if got := strings.Fields(r.stdout); !slices.Equal(got, []string{"0", "1", "2", "3"}) {
		t.Errorf("descriptors are %v", got)
	}
	if got := strings.Fields(control); !slices.Contains(got, "7") || !slices.Contains(got, "6") {
		t.Errorf("the control has %v", got)
	}
}

// Sockets of socket activation are passed on, and nothing beside them.
func TestF34_LaunchSocketActivation(t *testing.T) {
	in := launchInput{User: "nobody", Command: []string{"/usr/bin/ls", "/proc/self/fd"}}
	activated := func(count string) []string {
		return []string{"/bin/sh", "-c", `exec 3</dev/null 4</dev/null 7</dev/null; LISTEN_PID=$$ LISTEN_FDS=` + count + ` exec "$@"`, "sh"}
	}
	// 5 is the listing itself.
	if r := launchRun(t, in, activated("2")...).works(t); !slices.Equal(strings.Fields(r.stdout), []string{"0", "1", "2", "3", "4", "5"}) {
		t.Errorf("descriptors are %v", strings.Fields(r.stdout))
	}
	launchRun(t, in, activated("3")...).refused(t, launch.StepDescriptors, "descriptor 5")
	launchRun(t, in, activated("7")...).refused(t, launch.StepDescriptors, "descriptor 5")
	launchRun(t, in, activated("many")...).refused(t, launch.StepEnvironment, "LISTEN_FDS")
}

// launchLive starts a program that runs until the test ends, and waits until it
// has spoken.
func launchLive(t *testing.T, in launchInput) int {
	t.Helper()
	cmd, _ := launchCommand(t, in)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	if _, err := io.WriteString(stdin, "ready\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the program said %q: %v", line, err)
	}
	return cmd.Process.Pid
}

// launchFaults are the failed checks of a process.
func launchFaults(t *testing.T, spec launch.Spec, pid int) []string {
	t.Helper()
	findings, err := launch.Verify(context.Background(), spec, pid)
	if err != nil {
		t.Fatal(err)
	}
	if len(findings) < 12 {
		t.Errorf("only %d findings: %v", len(findings), findings)
	}
	faults := []string{}
	for _, f := range findings {
		if !f.OK {
			faults = append(faults, f.Check)
		}
	}
	return faults
}

func TestLaunchVerify(t *testing.T) {
	in := launchInput{User: "nobody", Command: []string{"/usr/bin/cat"}, Limits: limits.Set{"nofile": {Soft: 64, Hard: 128}}}
	spec, err := in.spec()
	if err != nil {
		t.Fatal(err)
	}
	pid := launchLive(t, in)
	if faults := launchFaults(t, spec, pid); len(faults) != 0 {
		t.Errorf("a confined process fails %v", faults)
	}
	// The same process, had something else been asked for.
	for check, change := range map[string]func(*launch.Spec){
		"uid":       func(s *launch.Spec) { s.User, s.Groups = "postgres", nil },
		"groups":    func(s *launch.Spec) { s.Groups = []string{"ssl-cert"} },
		"effective": func(s *launch.Spec) { s.Capabilities = 1 },
		"nofile":    func(s *launch.Spec) { s.Limits = limits.Set{"nofile": {Soft: 64, Hard: 127}} },
		"exe":       func(s *launch.Spec) { s.Command = []string{"/usr/bin/sleep"} },
	} {
		other := spec
		change(&other)
		if faults := launchFaults(t, other, pid); !slices.Contains(faults, check) {
			t.Errorf("%s is not found: %v", check, faults)
		}
	}
	// This process is root and unconfined.
	faults := launchFaults(t, spec, os.Getpid())
	for _, check := range []string{"uid", "gid", "permitted", "effective", "bounding", "no_new_privs", "mode", "filters", "exe"} {
		if !slices.Contains(faults, check) {
			t.Errorf("%s of an unconfined process is not found: %v", check, faults)
		}
	}
}

// A helper that a service executes is confined like it; its program is another.
func TestLaunchVerifyTree(t *testing.T) {
	in := launchInput{User: "nobody", Command: []string{"/usr/bin/dash", "-c", "/usr/bin/cat; :"}}
	spec, err := in.spec()
	if err != nil {
		t.Fatal(err)
	}
	root := launchLive(t, in)
	pids, err := launch.Tree(context.Background(), root)
	if err != nil || len(pids) != 2 || pids[0] != root {
		t.Fatalf("the tree of %d is %v: %v", root, pids, err)
	}
	for _, pid := range pids {
		if faults := launchFaults(t, spec, pid); len(faults) != 0 {
			t.Errorf("process %d fails %v", pid, faults)
		}
	}
	exe, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pids[1]), "exe"))
	if err != nil || exe != "/usr/bin/cat" {
		t.Errorf("the helper is %s: %v", exe, err)
	}
}

// A program that the service's user made itself is a finding, wherever it runs.
func TestLaunchVerifyForeignProgram(t *testing.T) {
	dir := launchMkdir(t, filepath.Join(launchDir(t), "home"), 0o700)
	dropped := filepath.Join(dir, "dropped")
	launchCopy(t, "/usr/bin/cat", dropped, 0o700)
	launchOwn(t, dropped, launchNobody)
	launchOwn(t, dir, launchNobody)
	in := launchInput{User: "nobody", Command: []string{"/usr/bin/dash", "-c", dropped + "; :"}}
	spec, err := in.spec()
	if err != nil {
		t.Fatal(err)
	}
	pids, err := launch.Tree(context.Background(), launchLive(t, in))
	if err != nil || len(pids) != 2 {
		t.Fatalf("the tree is %v: %v", pids, err)
	}
	if faults := launchFaults(t, spec, pids[1]); !slices.Equal(faults, []string{"exe"}) {
		t.Errorf("faults are %v, want exe", faults)
	}
}

func TestLaunchVerifyVanished(t *testing.T) {
	in := launchStatus()
	spec, err := in.spec()
	if err != nil {
		t.Fatal(err)
	}
	r := launchRun(t, in).works(t)
	if _, err := launch.Verify(context.Background(), spec, r.pid); !errors.Is(err, launch.ErrVanished) {
		t.Errorf("got %v", err)
	}
	if _, err := launch.Tree(context.Background(), r.pid); !errors.Is(err, launch.ErrVanished) {
		t.Errorf("got %v", err)
	}
}

// Processes that begin and end all the time are either seen whole or not at all.
func TestLaunchVerifyChurn(t *testing.T) {
	in := launchInput{User: "nobody", Command: []string{"/usr/bin/dash", "-c", "(while :; do /usr/bin/cat /proc/self/maps /proc/self/status >/dev/null; done) & /usr/bin/cat; kill $!"}}
	spec, err := in.spec()
	if err != nil {
		t.Fatal(err)
	}
	root := launchLive(t, in)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for seen := map[int]bool{}; len(seen) < 100; {
		pids, err := launch.Tree(ctx, root)
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			seen[pid] = true
			findings, err := launch.Verify(ctx, spec, pid)
			if err != nil && !errors.Is(err, launch.ErrVanished) {
				t.Fatal(err)
			}
			for _, f := range findings {
				if !f.OK {
					t.Fatalf("a confined process fails: %+v", f)
				}
			}
		}
	}
}
