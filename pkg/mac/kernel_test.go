package mac

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// confined runs act on a thread of its own that is restricted by the rules, as a
// kernel of the ABI version would. The thread ends with act.
func confined(t *testing.T, set RuleSet, abi int, act func()) (plan Plan, probed []string) {
	t.Helper()
	if have, err := ABI(); err != nil || have < abi {
		t.Fatalf("these tests need a kernel with Landlock ABI %d: %d, %v", abi, have, err)
	}
	plan, err := Compile(set, abi, false)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := plan.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer rules.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread is of no use to others
		done <- func() error {
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				return err
			}
			probe := NewProbe(plan, "")
			defer probe.Close()
			if err := rules.Restrict(); err != nil {
				return err
			}
			if probed, err = probe.Check(); err != nil {
				return err
			}
			act()
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return plan, probed
}

func write(path string) error { return os.WriteFile(path, []byte("x"), 0o600) }

func read(path string) error {
	_, err := os.ReadFile(path)
	return err
}

func denied(err error) bool { return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EXDEV) }

// What the words of a policy mean, each next to the same act where it is allowed.
func TestAccess(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	for _, place := range []string{"rw", "rw/sub", "full", "ro", "up", "out"} {
		if err := errors.Join(os.Mkdir(at(place), 0o700), write(at(place, "file"))); err != nil {
			t.Fatal(err)
		}
	}
	bind := func(path string) error {
		return withSocket(unix.AF_UNIX, unix.SOCK_STREAM, func(fd int) error { return unix.Bind(fd, &unix.SockaddrUnix{Name: path}) })
	}
	acts := []struct {
		name    string
		allowed bool
		act     func() error
	}{
		{"read rw", true, func() error { return read(at("rw/file")) }},
		{"read ro", true, func() error { return read(at("ro/file")) }},
		{"read up", false, func() error { return read(at("up/file")) }},
		{"read out", false, func() error { return read(at("out/file")) }},
		{"list out", false, func() error { _, err := os.ReadDir(at("out")); return err }},
		{"make in rw", true, func() error { return write(at("rw/new")) }},
		{"make in ro", false, func() error { return write(at("ro/new")) }},
		{"make in up", false, func() error { return write(at("up/new")) }},
		{"write to a file in up", true, func() error { return try(at("up/file"), unix.O_WRONLY) }},
		{"cut a file in up", false, func() error { return os.Truncate(at("up/file"), 0) }},
		{"cut a file in ro", false, func() error { return os.Truncate(at("ro/file"), 0) }},
		{"cut a file in rw", true, func() error { return os.Truncate(at("rw/file"), 0) }},
		{"write to a file in ro", false, func() error { return try(at("ro/file"), unix.O_WRONLY) }},
		{"move within rw", true, func() error { return os.Rename(at("rw/new"), at("rw/sub/new")) }},
		{"move rw to ro", false, func() error { return os.Rename(at("rw/sub/new"), at("ro/new")) }},
		{"link rw to out", false, func() error { return os.Link(at("rw/sub/new"), at("out/new")) }},
		{"move ro to rw", false, func() error { return os.Rename(at("ro/file"), at("rw/stolen")) }},
		{"remove in rw", true, func() error { return os.Remove(at("rw/sub/new")) }},
		{"remove in ro", false, func() error { return os.Remove(at("ro/file")) }},
		{"mkdir in rw", true, func() error { return os.Mkdir(at("rw/dir"), 0o700) }},
		{"mkdir in ro", false, func() error { return os.Mkdir(at("ro/dir"), 0o700) }},
		{"symlink in rw", false, func() error { return os.Symlink("x", at("rw/link")) }},
		{"symlink in full", true, func() error { return os.Symlink("x", at("full/link")) }},
		{"socket in rw", false, func() error { return bind(at("rw/s")) }},
		{"socket in full", true, func() error { return bind(at("full/s")) }},
		{"fifo in full", false, func() error { return unix.Mkfifo(at("full/fifo"), 0o600) }},
	}
	for _, a := range acts {
		if strings.HasPrefix(a.name, "link") || strings.HasPrefix(a.name, "move r") || strings.HasPrefix(a.name, "remove in ro") || a.allowed {
			continue // would change what the others need
		}
		if err := a.act(); err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatalf("unconfined, %s: %v; the test proves nothing", a.name, err)
		}
	}
	for _, made := range []string{"ro/new", "up/new", "ro/dir", "rw/link", "rw/s", "full/fifo"} {
		_ = os.Remove(at(made))
	}
	set := full(Rule{Path: at("rw"), Access: Write}, Rule{Path: at("full"), Access: Write | Link | Socket},
		Rule{Path: at("ro"), Access: Read}, Rule{Path: at("up"), Access: Update})
	confined(t, set, newestABI, func() {
		for _, a := range acts {
			if err := a.act(); a.allowed && err != nil || !a.allowed && !denied(err) {
				t.Errorf("%s: %v, want allowed %t", a.name, err, a.allowed)
			}
		}
	})
	// What an older kernel lacks is not denied there, as the list of missing features says.
	plan, _ := confined(t, set, 2, func() {
		if err := os.Truncate(at("ro/file"), 0); err != nil {
			t.Errorf("truncate with ABI 2: %v", err)
		}
		if err := write(at("ro/new")); !denied(err) {
			t.Errorf("making a file with ABI 2: %v", err)
		}
	})
	if !slices.Contains(Names(plan.Missing), "truncate") {
		t.Errorf("missing are %q", Names(plan.Missing))
	}
}

// The probes see each feature that an ABI version has, and none that it has not.
func TestProbeByABI(t *testing.T) {
	for abi := MinABI; abi <= newestABI; abi++ {
		want := []string{"files"}
		if abi >= 4 {
			want = append(want, "tcp-bind")
		}
		if abi >= 6 {
			want = append(want, "abstract-sockets")
		}
		if abi >= 4 {
			want = append(want, "tcp-connect")
		}
		if _, probed := confined(t, full(), abi, func() {}); !slices.Equal(probed, want) {
			t.Errorf("ABI %d: probed %q, want %q", abi, probed, want)
		}
	}
}

// Without Restrict the probes say so.
func TestProbeFindsNothingEnforced(t *testing.T) {
	plan, err := Compile(full(), newestABI, false)
	if err != nil {
		t.Fatal(err)
	}
	probe := NewProbe(plan, "")
	defer probe.Close()
	if _, err := probe.Check(); err == nil || !strings.Contains(err.Error(), "reading the root directory") || !strings.Contains(err.Error(), "success") {
		t.Errorf("%v", err)
	}
}

// A43, A52: the two scopes, and that the service's own are reached.
func TestA43_Scopes(t *testing.T) {
	stranger := exec.Command("cat")
	in, err := stranger.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = stranger.Wait() }()
	if err := unix.Kill(stranger.Process.Pid, 0); err != nil {
		t.Fatal(err)
	}
	confined(t, full(Rule{Path: "/usr", Access: Read}), newestABI, func() {
		if err := unix.Kill(stranger.Process.Pid, 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("signalling a stranger: %v", err)
		}
	})
}

// A36: what is executed, and that the loader is needed for it.
func TestA36_Execute(t *testing.T) {
	program, err := exec.LookPath("cat")
	if err == nil {
		program, err = filepath.EvalSymlinks(program)
	}
	if err != nil {
		t.Fatal(err)
	}
	loader := "/lib64/ld-linux-x86-64.so.2"
	if runtime.GOARCH == "arm64" {
		loader = "/lib/ld-linux-aarch64.so.1"
	}
	base := []Rule{{Path: "/usr", Access: Read}, {Path: "/etc", Access: Read}, {Path: "/lib", Access: Read, Optional: true}, {Path: os.DevNull, Access: Read | Update}}
	for _, c := range []struct {
		rules []Rule
		ok    bool
	}{
		{[]Rule{{Path: program, Access: Execute}, {Path: loader, Access: Execute}}, true},
		{[]Rule{{Path: program, Access: Execute}}, false},
		{[]Rule{{Path: loader, Access: Execute}}, false},
	} {
		confined(t, full(append(c.rules, base...)...), newestABI, func() {
			err := exec.Command(program, os.DevNull).Run()
			if c.ok && err != nil || !c.ok && !errors.Is(err, syscall.EACCES) {
				t.Errorf("%v: %v", c.rules, err)
			}
		})
	}
}

func TestOpenFollowsOnlyRootsLinks(t *testing.T) {
	dir := t.TempDir() // below /tmp, which others may write to
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/etc", link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		link:                          "symbolic link",
		filepath.Join(link, "ssl"):    "symbolic link",
		filepath.Join(dir, "missing"): "no such file",
		"/etc/passwd/x":               "not a directory",
		filepath.Join(dir, "x\x00y"):  "invalid argument",
		"/missing/b/":                 "no such file",
	} {
		if o, err := openPath(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v %v, want %q", path, o, err, want)
		}
	}
	o, err := openPath("/var/run") // a link to /run on every system
	if err != nil || o.path != "/run" || !o.dir {
		t.Errorf("%+v %v", o, err)
	}
	_ = unix.Close(o.fd)
}

// Where a path leads counts, not what it is called.
func TestOpenJudgesPlaces(t *testing.T) {
	plan, err := Compile(RuleSet{Rules: []Rule{{Path: "/var/run", Access: Write, Setting: "key"}}, NeverWrite: []string{"/run/pghardend"}}, newestABI, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Open(context.Background()); err == nil || !strings.Contains(err.Error(), "must not write to /run/pghardend") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := plan.Open(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// A rule set keeps no descriptor but its own, and that only until Close.
func TestDescriptors(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // has the runtime open what it needs first
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	before := count()
	plan, err := Compile(full(Rule{Path: "/usr", Access: Read}, Rule{Path: "/var/run", Access: Read}), newestABI, false)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		rules, err := plan.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if now := count(); now != before+1 {
			t.Errorf("%d descriptors, before %d", now, before)
		}
		if flags, err := unix.FcntlInt(uintptr(rules.fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("the rule set would pass execve: %d %v", flags, err)
		}
		rules.Close()
	}
	if now := count(); now != before {
		t.Errorf("%d descriptors are left, before %d", now, before)
	}
}

func BenchmarkOpenAndProbe(b *testing.B) {
	for b.Loop() {
		plan, err := Compile(full(Rule{Path: "/usr", Access: Read}, Rule{Path: "/etc", Access: Read}), newestABI, false)
		if err != nil {
			b.Fatal(err)
		}
		rules, err := plan.Open(context.Background())
		if err != nil {
			b.Fatal(fmt.Errorf("open: %w", err))
		}
		NewProbe(plan, "").Close()
		rules.Close()
	}
}
