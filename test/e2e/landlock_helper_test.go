package e2e

import (
	"bufio"
	"debug/elf"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/mac"
	"github.com/pghardend/pghardend/policies"
)

// The attacks on Landlock alone: a shell is the compromised service, under the
// policy and the seccomp profile of postgres, and as nobody. It owns a data
// directory, and whatever the attack is about is open to it by every other layer.

// landlockAttack launches a shell script with helpers, once as it should be and
// once without Landlock, and compares what it says.
type landlockAttack struct {
	script  string
	helpers []string
	shell   string // default dash
	flag    string // of the shell, before the script; default -c
	data    string // default: one of its own
	change  func(*mac.RuleSet)
	wrap    []string
}

func (a landlockAttack) input(t *testing.T) launchInput {
	t.Helper()
	in := launchInput{User: "nobody", DataDir: a.data, Command: []string{"/usr/bin/dash", "-c", a.script}}
	if a.shell != "" {
		in.Command = []string{a.shell, a.flag, a.script}
	}
	if in.DataDir == "" {
		in.DataDir = landlockData(t)
	}
	for _, name := range a.helpers {
		path, err := exec.LookPath(name)
		must(t, err)
		path, err = filepath.EvalSymlinks(path)
		must(t, err)
		in.Helpers = append(in.Helpers, path)
	}
	in.Landlock = launch.Landlock{Mode: launch.LandlockRequired, Rules: landlockRules(t, in.DataDir)}
	if a.change != nil {
		a.change(&in.Landlock.Rules)
	}
	return in
}

// says checks the last word of each line of the script: with Landlock, and without.
func (a landlockAttack) says(t *testing.T, with, without string) {
	t.Helper()
	for _, c := range []struct{ mode, want string }{{launch.LandlockOff, without}, {launch.LandlockRequired, with}} {
		in := a.input(t)
		in.Landlock.Mode = c.mode
		r := launchRun(t, in, a.wrap...).works(t)
		if got := strings.Join(strings.Fields(r.stdout), " "); got != c.want {
			t.Errorf("landlock %s: %q, want %q\n%s", c.mode, got, c.want, r.stderr)
		}
	}
}

func landlockRules(t *testing.T, dataDir string) mac.RuleSet {
	t.Helper()
	text, err := policies.FS.ReadFile("landlock/postgres.yaml")
	must(t, err)
	policy, err := mac.ParsePolicy("postgres.yaml", text)
	must(t, err)
	set := policy.RuleSet(dataDir, "data_dir")
	set.Bind = mac.Ports{Restricted: true, Allowed: []uint16{5432}}
	set.Connect = mac.Ports{Restricted: true, Allowed: []uint16{5432}}
	return set
}

func landlockData(t *testing.T) string {
	t.Helper()
	dir := launchMkdir(t, filepath.Join(launchDir(t), "data"), 0o700)
	launchOwn(t, dir, launchNobody)
	return dir
}

// landlockOpen is a directory outside of all rules, to which everybody may write.
func landlockOpen(t *testing.T) string {
	t.Helper()
	return launchMkdir(t, filepath.Join(launchDir(t), "open"), 0o777)
}

// loaderOf is the dynamic loader that a program names.
func loaderOf(t *testing.T, program string) string {
	t.Helper()
	f, err := elf.Open(program)
	must(t, err)
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			name, err := io.ReadAll(p.Open())
			must(t, err)
			return strings.TrimRight(string(name), "\x00")
		}
	}
	t.Fatalf("%s is linked statically", program)
	return ""
}

// noexecWrap mounts a directory with noexec, in a mount namespace of the launch's own.
func noexecWrap(dir string) []string {
	return []string{"/usr/bin/unshare", "-m", "/bin/sh", "-ec",
		`mount --bind "$0" "$0"; mount -o remount,bind,noexec "$0"; exec "$@"`, dir}
}

// bystander is a process of nobody's that is none of the service.
func bystander(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("/usr/bin/cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: launchNobody, Gid: launchNobody}}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	_, err = io.WriteString(in, "ready\n")
	must(t, err)
	_, err = bufio.NewReader(out).ReadString('\n')
	must(t, err)
	return cmd.Process.Pid
}

// launchNoLandlock makes landlock_create_ruleset(2) answer this process the way a
// kernel without Landlock does.
func launchNoLandlock() error {
	return loadFilter([]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_LANDLOCK_CREATE_RULESET},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	})
}

// launchFalseLandlock makes landlock_restrict_self(2) say that it has worked.
func launchFalseLandlock() error {
	return loadFilter([]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_LANDLOCK_RESTRICT_SELF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	})
}
