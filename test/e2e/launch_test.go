package e2e

import (
	"context"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/limits"
)

func TestLaunchConfines(t *testing.T) {
	r := launchRun(t, launchStatus()).works(t)
	r.wantFields(t,
		"Uid", "65534 65534 65534 65534", "Gid", "65534 65534 65534 65534", "Groups", "",
		"CapInh", launchNoCaps, "CapPrm", launchNoCaps, "CapEff", launchNoCaps, "CapBnd", launchNoCaps, "CapAmb", launchNoCaps,
		"NoNewPrivs", "1", "Seccomp", "2", "Seccomp_filters", "1", "Name", "cat")
	// In place: the supervisor's child is the program.
	if got := r.field(t, "Pid"); got != strconv.Itoa(r.pid) {
		t.Errorf("the program has pid %s, its launcher had %d", got, r.pid)
	}
}

// Most of what is given away belongs to a thread. With all threads busy, a launch
// that is not tied to one of them ends up half on another.
func TestLaunchStaysOnOneThread(t *testing.T) {
	for range 10 {
		in := launchStatus()
		in.Busy = true
		launchRun(t, in).works(t).wantFields(t, "CapBnd", launchNoCaps, "NoNewPrivs", "1", "Seccomp", "2")
	}
}

func TestF26_LaunchUser(t *testing.T) {
	for name, c := range map[string]struct {
		user  string
		words []string
	}{
		"missing":        {"nosuchuser", []string{"nosuchuser", "useradd"}},
		"missing number": {"4000000001", []string{"4000000001", "useradd"}},
		"root":           {"root", []string{"uid 0"}},
		"uid 0":          {"0", []string{"uid 0"}},
		"uid -1":         {"4294967295", []string{"4294967295"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := launchStatus()
			in.User = c.user
			launchRun(t, in).refused(t, launch.StepUser, c.words...)
		})
	}
	t.Run("control: by number", func(t *testing.T) {
		in := launchStatus()
		in.User = "65534"
		launchRun(t, in).works(t).wantFields(t, "Uid", "65534 65534 65534 65534")
	})
}

// Debian's postgres is in ssl-cert, so that it can read the host's key.
func TestF26_LaunchGroups(t *testing.T) {
	with := func(user string, groups ...string) launchInput {
		in := launchStatus()
		in.User, in.Groups = user, groups
		return in
	}
	launchRun(t, with("postgres")).refused(t, launch.StepGroups, "ssl-cert", "groups: [ssl-cert]", "gpasswd -d postgres ssl-cert")
	launchRun(t, with("nobody", "backup")).refused(t, launch.StepGroups, "backup", "gpasswd -a nobody backup")
	launchRun(t, with("nobody", "shadow")).refused(t, launch.StepGroups, "shadow", "take it out of groups")
	launchRun(t, with("nobody", "nosuchgroup")).refused(t, launch.StepGroups, "nosuchgroup")

	r := launchRun(t, with("postgres", "ssl-cert")).works(t)
	g, err := user.LookupGroup("ssl-cert")
	if err != nil {
		t.Fatal(err)
	}
	r.wantFields(t, "Groups", g.Gid)
}

func TestF27_LaunchBinary(t *testing.T) {
	const cat = "/usr/bin/cat"
	dir := launchDir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	// file makes a copy of cat with an owner and a mode; below makes a directory
	// like that with a sound copy in it.
	file := func(name string, uid int, mode uint32) string {
		launchCopy(t, cat, path(name), 0o755)
		launchOwn(t, path(name), uid)
		launchMode(t, path(name), mode)
		return path(name)
	}
	below := func(name string, uid int, mode uint32) string {
		launchMkdir(t, path(name), 0o755)
		launchCopy(t, cat, path(name+"/cat"), 0o755)
		launchOwn(t, path(name), uid)
		launchMode(t, path(name), mode)
		return path(name + "/cat")
	}
	good := file("good", 0, 0o755)
	capable := file("capable", 0, 0o755)
	// struct vfs_cap_data, version 2: CAP_NET_RAW permitted and effective.
	attr := []byte{1, 0, 0, 2, 0, 1 << (unix.CAP_NET_RAW - 8), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if err := unix.Setxattr(capable, "security.capability", attr, 0); err != nil {
		t.Fatal(err)
	}
	launchWrite(t, path("script"), []byte("#!/usr/bin/cat\n"), 0o755)
	linkedDir := launchSymlink(t, dir, path("linked"))

	for name, c := range map[string]struct {
		program string
		word    string
	}{
		"missing":                 {path("missing"), "does not exist"},
		"relative":                {"good", "absolute"},
		"with dots":               {dir + "/../" + filepath.Base(dir) + "/good", "absolute"},
		"writable by all":         {file("world", 0, 0o757), "chmod go-w"},
		"writable by group":       {file("group", 0, 0o775), "chmod go-w"},
		"setuid":                  {file("setuid", 0, 0o4755), "setuid"},
		"setgid":                  {file("setgid", 0, 0o2755), "setgid"},
		"file capabilities":       {capable, "setcap -r"},
		"the service user's":      {file("own", launchNobody, 0o755), "nobody"},
		"another user's":          {file("other", 4711, 0o755), "uid 4711"},
		"not executable":          {file("plain", 0, 0o644), "chmod a+x"},
		"directory":               {launchMkdir(t, path("dir"), 0o755), "not a regular file"},
		"script":                  {path("script"), "interpreter"},
		"symlink":                 {launchSymlink(t, good, path("link")), "name " + good},
		"symlink out":             {launchSymlink(t, cat, path("out")), "name " + cat},
		"behind a symlink":        {filepath.Join(linkedDir, "good"), "name " + good},
		"writable directory":      {below("open", 0, 0o777), "chmod go-w"},
		"sticky directory":        {below("sticky", 0, 0o1777), "chmod go-w"},
		"the user's directory":    {below("home", launchNobody, 0o755), "uid 65534"},
		"another's own directory": {below("elsewhere", 4711, 0o755), "uid 4711"},
	} {
		t.Run(name, func(t *testing.T) {
			in := launchStatus()
			in.Command[0] = c.program
			launchRun(t, in).refused(t, launch.StepBinary, c.word)
		})
	}
	for _, program := range []string{good, below("sound", 0, 0o755)} {
		in := launchStatus()
		in.Command[0] = program
		launchRun(t, in).works(t)
	}
}

func TestF28_LaunchDataDir(t *testing.T) {
	root := launchDir(t)
	dirOf := func(name string, uid int, mode uint32) string {
		dir := launchMkdir(t, filepath.Join(root, name), 0o700)
		launchOwn(t, dir, uid)
		launchMode(t, dir, mode)
		return dir
	}
	file := filepath.Join(root, "file")
	launchWrite(t, file, nil, 0o700)
	for name, c := range map[string]struct {
		dir   string
		words []string
	}{
		"missing":        {filepath.Join(root, "missing"), []string{"install -d -m 0700 -o nobody", "missing"}},
		"relative":       {"data", []string{"absolute"}},
		"root's":         {dirOf("root", 0, 0o700), []string{"uid 0", "chown -R nobody: " + root + "/root"}},
		"another's":      {dirOf("other", 4711, 0o700), []string{"uid 4711"}},
		"read by all":    {dirOf("open", launchNobody, 0o755), []string{"0755", "chmod 0700 " + root + "/open"}},
		"group writable": {dirOf("group", launchNobody, 0o770), []string{"0770"}},
		"a file":         {file, []string{"not a directory"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := launchStatus()
			in.DataDir = c.dir
			before, _ := os.Stat(c.dir)
			launchRun(t, in).refused(t, launch.StepDataDir, c.words...)
			after, _ := os.Stat(c.dir)
			if before != nil && (before.Mode() != after.Mode() || before.Sys().(*syscall.Stat_t).Uid != after.Sys().(*syscall.Stat_t).Uid) {
				t.Errorf("the refusal changed %v to %v", before, after)
			}
		})
	}
	for _, mode := range []uint32{0o700, 0o750} {
		in := launchInput{User: "nobody", DataDir: dirOf("good"+strconv.Itoa(int(mode)), launchNobody, mode),
			Command: []string{"/usr/bin/readlink", "/proc/self/cwd"}}
		if r := launchRun(t, in).works(t); r.stdout != in.DataDir+"\n" {
			t.Errorf("working directory is %q, want %s", r.stdout, in.DataDir)
		}
	}
}

func TestF29_LaunchSeccompUnsupported(t *testing.T) {
	in := launchStatus()
	in.NoSeccomp = true
	launchRun(t, in).refused(t, launch.StepSeccomp, "does not support seccomp", "CONFIG_SECCOMP_FILTER")
	in.NoSeccomp = false
	launchRun(t, in).works(t)
}

// The names are found before there is a Spec to launch.
func TestF29_LaunchUnknownSyscall(t *testing.T) {
	in := launchStatus()
	in.Profile = launchProfile(t, nil, []string{"frobnicate", "twiddle"})
	r := launchRun(t, in)
	if r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, "frobnicate") || !strings.Contains(r.stderr, "twiddle") {
		t.Errorf("exit code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	in.Profile = launchProfile(t, nil, nil)
	launchRun(t, in).works(t)
}

// A filter that forbids execve stops the launcher itself, which must say so.
func TestLaunchProfileWithoutExec(t *testing.T) {
	in := launchStatus()
	in.Profile, in.Gated = launchProfile(t, []string{"execve"}, nil), true
	launchRun(t, in).refused(t, launch.StepExec, "must allow execve")
}

func TestF31_LaunchLimits(t *testing.T) {
	current, err := limits.Read(context.Background(), os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// The soft limit of this process is not the one its children get: the Go
	// runtime raised it. Hard limits are the same.
	hard := current["nofile"].Hard
	in := launchInput{User: "nobody", Command: []string{"/usr/bin/cat", "/proc/self/limits"}, Limits: limits.Set{"nofile": {Soft: 64, Hard: hard + 1}}}
	launchRun(t, in).refused(t, launch.StepLimits, "nofile", strconv.FormatUint(hard+1, 10), strconv.FormatUint(hard, 10), "LimitNOFILE")

	in.Limits = limits.Set{
		"nofile": {Soft: 64, Hard: 128}, "core": {}, "nproc": {Soft: 500, Hard: 501}, "fsize": {Soft: 1 << 30, Hard: 1 << 31},
		"memlock": {Soft: 4096, Hard: 8192}, "stack": {Soft: 8 << 20, Hard: 16 << 20}, "cpu": {Soft: 100, Hard: 200},
	}
	got, err := limits.ParseProc([]byte(launchRun(t, in).works(t).stdout))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range limits.Diff(in.Limits, got) {
		t.Error(line)
	}
}

// A limit that was not asked for is passed on as it came, even the one that the
// Go runtime raises for itself, and even if the filter forbids to set limits.
func TestF31_LaunchLeavesOtherLimits(t *testing.T) {
	in := launchInput{User: "nobody", Command: []string{"/usr/bin/cat", "/proc/self/limits"}}
	in.Profile = launchProfile(t, []string{"prlimit64", "setrlimit"}, nil)
	r := launchRun(t, in, "/bin/sh", "-c", `ulimit -Sn 77; exec "$@"`, "sh").works(t)
	got, err := limits.ParseProc([]byte(r.stdout))
	if err != nil {
		t.Fatal(err)
	}
	if got["nofile"].Soft != 77 {
		t.Errorf("nofile is %s, the caller had 77", got["nofile"])
	}
}

// setresuid passes the limit and execve does not, by when the process is half-way.
// The launcher's own threads must not count, or it would refuse too early. (The
// kernel compares before it counts the new process, so it takes one more.)
func TestF31_LaunchTooManyProcesses(t *testing.T) {
	const name = "daemon" // nobody else here runs as this user
	launchLive(t, launchInput{User: name, Command: []string{"/usr/bin/cat"}})
	list, err := exec.Command("/usr/bin/ps", "-L", "-U", name, "-o", "lwp=").Output()
	if err != nil {
		t.Fatal(err)
	}
	now := uint64(len(strings.Fields(string(list))))
	in := launchStatus()
	in.User = name
	for range 5 {
		in.Limits = limits.Set{"nproc": {Soft: now - 1, Hard: now - 1}}
		launchRun(t, in).refused(t, launch.StepExec, "limits.nproc", name)
	}
	in.Limits = limits.Set{"nproc": {Soft: now, Hard: now}}
	launchRun(t, in).works(t)
}

func TestF33_LaunchCapabilities(t *testing.T) {
	const netRaw = "0000000000002000"
	all := []string{"CapInh", netRaw, "CapPrm", netRaw, "CapEff", netRaw, "CapBnd", netRaw, "CapAmb", netRaw}
	ambient := func(in launchInput) launchResult {
		cmd, reader := launchCommand(t, in)
		cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: []uintptr{unix.CAP_NET_RAW}}
		return launchWait(t, cmd, reader)
	}
	plain, asking := launchStatus(), launchStatus()
	asking.Capabilities = []string{"CAP_NET_RAW"}

	ambient(plain).refused(t, launch.StepCapabilities, "cap_net_raw", "AmbientCapabilities")
	ambient(asking).works(t).wantFields(t, all...)
	launchRun(t, asking).works(t).wantFields(t, append(all, "Uid", "65534 65534 65534 65534", "NoNewPrivs", "1")...)

	without := []string{"/usr/bin/setpriv", "--bounding-set", "-net_raw"}
	launchRun(t, asking, without...).refused(t, launch.StepCapabilities, "cap_net_raw", "CapabilityBoundingSet")
	launchRun(t, plain, without...).works(t).wantFields(t, "CapBnd", launchNoCaps, "CapEff", launchNoCaps)
}

// Names are found before there is a Spec to launch.
func TestF33_LaunchUnknownCapability(t *testing.T) {
	in := launchStatus()
	in.Capabilities = []string{"CAP_FLY", "CAP_NET_RAW"}
	if r := launchRun(t, in); r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, "CAP_FLY") {
		t.Errorf("exit code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
}

func TestLaunchNeedsRoot(t *testing.T) {
	dir := launchDir(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	reachable := filepath.Join(dir, "launcher") // go test's directory is closed to other users
	launchCopy(t, self, reachable, 0o755)
	cmd, reader := launchCommand(t, launchStatus())
	cmd.Path, cmd.Dir = reachable, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: launchNobody, Gid: launchNobody}}
	launchWait(t, cmd, reader).refused(t, launch.StepUnit, "not as root")

	launchRun(t, launchStatus(), "/usr/bin/setpriv", "--bounding-set", "-setuid").
		refused(t, launch.StepPrivilege, "cap_setuid")
}

func TestLaunchOOMScore(t *testing.T) {
	score := 321
	in := launchInput{User: "nobody", Command: []string{"/usr/bin/cat", "/proc/self/oom_score_adj"}, OOMScoreAdj: &score}
	if r := launchRun(t, in).works(t); r.stdout != "321\n" {
		t.Errorf("oom_score_adj is %q", r.stdout)
	}
	score = -999
	launchRun(t, in, "/usr/bin/setpriv", "--bounding-set", "-sys_resource").refused(t, launch.StepOOMScore, "CAP_SYS_RESOURCE")
}
