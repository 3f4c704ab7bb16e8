package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/mounts"
	"github.com/pghardend/pghardend/policies"
)

// serviceMounts is what a service with this data directory is given, with the tools of an
// attacker: what is tested is what they can do to files.
func serviceMounts(t *testing.T, dataDir string) launch.Mounts {
	t.Helper()
	text, err := policies.FS.ReadFile("mounts/system.yaml")
	must(t, err)
	var system struct {
		Exec     []string `yaml:"exec"`
		ReadOnly []string `yaml:"read_only"`
		Devices  []string `yaml:"devices"`
	}
	must(t, yaml.Unmarshal(text, &system))
	m := launch.Mounts{Mode: launch.MountsRequired, Paths: mounts.Spec{Exec: system.Exec, ReadOnly: system.ReadOnly, Devices: system.Devices}}
	m.Paths.Exec = append(m.Paths.Exec, "/usr/bin")
	if dataDir != "" {
		m.Paths.Write = []string{dataDir, "/dev/shm", "/run/postgresql"}
	}
	return m
}

// ablation is what an attack says under none of two layers, each alone, and both.
type ablation struct{ none, landlock, mounts, both string }

// ablate runs a script of a landlockAttack four times.
func (a landlockAttack) ablate(t *testing.T, want ablation, change func(*launch.Mounts)) {
	t.Helper()
	for _, c := range []struct{ name, landlock, mounts, want string }{
		{"none", "off", "off", want.none}, {"landlock alone", "required", "off", want.landlock},
		{"mounts alone", "off", "required", want.mounts}, {"both", "required", "required", want.both},
	} {
		in := a.input(t)
		in.Landlock.Mode = c.landlock
		in.Mounts = serviceMounts(t, in.DataDir)
		in.Mounts.Mode = c.mounts
		if change != nil {
			change(&in.Mounts)
		}
		r := launchRun(t, in, a.wrap...).works(t)
		if got := strings.Join(strings.Fields(r.stdout), " "); got != c.want {
			t.Errorf("%s: %q, want %q\n%s", c.name, got, c.want, r.stderr)
		}
	}
}

// launchNoMounts makes mount_setattr(2) answer this process the way a kernel before 5.12 does.
func launchNoMounts() error {
	return loadFilter([]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_MOUNT_SETATTR},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	})
}

// inNamespace has a launch happen in mounts of its own, after a script for them.
func inNamespace(script string) []string {
	return []string{"/usr/bin/unshare", "-m", "/bin/sh", "-ec", script + `; exec "$@"`, "sh"}
}

// host plays the host of a service: a mount namespace with shared mounts, as systemd
// makes them, held by a process.
type mountHost struct {
	t   *testing.T
	pid string
}

func newMountHost(t *testing.T) mountHost {
	t.Helper()
	pid := startTalking(t, exec.Command("/usr/bin/unshare", "-m", "/bin/sh", "-ec", "mount --make-rshared /; echo ready; exec cat"))
	return mountHost{t, strconv.Itoa(pid)}
}

func (h mountHost) wrap() []string { return []string{"/usr/bin/nsenter", "-t", h.pid, "-m", "--"} }

// sh runs a script on the host.
func (h mountHost) sh(script string) string {
	h.t.Helper()
	return shellIn(h.t, h.pid, script)
}

// shellIn runs a script as root in the mount namespace of a process. The programs are the
// host's: in that of a service none can be executed.
func shellIn(t *testing.T, pid, script string) string {
	t.Helper()
	host := fmt.Sprintf("/proc/%d/root", os.Getpid())
	cmd := exec.Command("/usr/bin/nsenter", "-t", pid, "-m", "--", host+"/bin/sh", "-ec", script)
	cmd.Env = append(os.Environ(), "PATH="+host+"/usr/bin:"+host+"/usr/sbin:"+host+"/bin:"+host+"/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// startTalking starts a command, waits for its first line, and has it end with the
// test, when its standard input does.
func startTalking(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	t.Cleanup(func() { in.Close(); _, _ = io.Copy(io.Discard, out); _ = cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return cmd.Process.Pid
}

// mountFaults are the findings of the layer that a live process does not pass.
func mountFaults(t *testing.T, in launchInput, pid int) string {
	t.Helper()
	spec, err := in.spec()
	must(t, err)
	state, err := launch.ReadMounts(t.Context(), spec, pid)
	must(t, err)
	findings := state.Findings(pid)
	if len(findings) == 0 {
		t.Fatal("no findings")
	}
	var out []string
	for _, f := range findings {
		if !f.OK {
			out = append(out, f.Check+": "+f.Got)
		}
	}
	return strings.Join(out, "; ")
}

// mountTable is the host's table of mounts, as text, without the network namespaces
// that tests come and go with.
func mountTable(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	return withoutNetns(string(text))
}

func withoutNetns(table string) string {
	var b strings.Builder
	for line := range strings.Lines(table) {
		if !strings.Contains(line, " - nsfs ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// servicePlace makes a directory of the service's user.
func servicePlace(t *testing.T, dir, name string) string {
	t.Helper()
	place := launchMkdir(t, filepath.Join(dir, name), 0o700)
	launchOwn(t, place, launchNobody)
	return place
}
