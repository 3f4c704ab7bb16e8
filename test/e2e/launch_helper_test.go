package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/limits"
	"github.com/pghardend/pghardend/pkg/sandbox"
	"github.com/pghardend/pghardend/policies"
)

// The launch stage on the real kernel, as root: the test binary starts itself
// once more, and that process becomes the program of a launchInput.

// launchVariable holds the file with the launchInput.
const launchVariable = "PGHARDEND_E2E_LAUNCH"

// launchReportFD is where the launcher writes its report, and a descriptor that
// a shell can open by number.
const launchReportFD = 9

// launchInput is a launch.Spec as JSON.
type launchInput struct {
	User         string
	Groups       []string
	Command      []string
	Helpers      []string
	DataDir      string
	Limits       limits.Set
	Capabilities []string
	Environment  []string
	OOMScoreAdj  *int
	Profile      string // text of a seccomp profile; "": the one of postgres; the feature helpers is added
	Landlock     launch.Landlock
	Mounts       launch.Mounts
	SELinux      launch.SELinux
	NoLandlock   bool // play a kernel without Landlock
	// FalseLandlock plays one that only says that it enforces the rules.
	FalseLandlock bool
	Gated         bool // without the feature helpers, so that nothing is executed after the launch
	NoMounts      bool // play a kernel without mount_setattr(2)
	NoSeccomp     bool // play a kernel without seccomp filters
	Busy          bool // keep all threads busy, so that goroutines move between them
}

// launchNoSeccomp makes seccomp(2) and prctl(2) answer this process the way a
// kernel without CONFIG_SECCOMP_FILTER does. It is written by hand since
// pkg/sandbox makes no filters that allow by default.
func launchNoSeccomp() error {
	const fail = unix.SECCOMP_RET_ERRNO
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_SECCOMP},
		{Code: unix.BPF_RET | unix.BPF_K, K: fail | uint32(unix.ENOSYS)},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: unix.SYS_PRCTL},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16}, // low half of its first argument
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.PR_SET_SECCOMP},
		{Code: unix.BPF_RET | unix.BPF_K, K: fail | uint32(unix.EINVAL)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	return loadFilter(program)
}

func loadFilter(program []unix.SockFilter) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return loadProgram(program, unix.SECCOMP_FILTER_FLAG_TSYNC)
}

// loadProgram needs no_new_privs.
func loadProgram(program []unix.SockFilter, flags uintptr) error {
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}

// launchProfile is the text of postgres's profile, to which helpers are added, without some of its system calls, and with
// some more.
func launchProfile(t *testing.T, without, with []string) string {
	t.Helper()
	text, err := policies.FS.ReadFile("seccomp/postgres.json")
	if err != nil {
		t.Fatal(err)
	}
	var profile map[string]any
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber() // arguments of 64 bits do not fit a float
	if err := decoder.Decode(&profile); err != nil {
		t.Fatal(err)
	}
	var entries []any
	for _, e := range profile["syscalls"].([]any) {
		entry := e.(map[string]any)
		names := slices.DeleteFunc(entry["names"].([]any), func(n any) bool { return slices.Contains(without, n.(string)) })
		if entry["names"] = names; len(names) > 0 {
			entries = append(entries, entry)
		}
	}
	if len(with) > 0 {
		entries = append(entries, map[string]any{"names": with, "action": "SCMP_ACT_ALLOW"})
	}
	profile["syscalls"] = entries
	text, err = json.Marshal(profile)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// init and not TestMain, so that the launcher runs before anything a TestMain of
// this package may set up.
func init() {
	if file := os.Getenv(launchVariable); file != "" {
		os.Exit(launchMain(file))
	}
}

// launchMain is the launcher.
func launchMain(file string) int {
	err := launchExec(file)
	fmt.Fprintln(os.Stderr, err)
	var e *launch.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 1
}

func launchExec(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var in launchInput
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	spec, err := in.spec()
	if err != nil {
		return err
	}
	if in.NoSeccomp {
		if err := launchNoSeccomp(); err != nil {
			return err
		}
	}
	if in.NoLandlock {
		if err := launchNoLandlock(); err != nil {
			return err
		}
	}
	if in.NoMounts {
		if err := launchNoMounts(); err != nil {
			return err
		}
	}
	if in.FalseLandlock {
		if err := launchFalseLandlock(); err != nil {
			return err
		}
	}
	if in.Busy {
		launchShuffle()
	}
	return launch.Exec(context.Background(), spec, os.NewFile(launchReportFD, "report"))
}

// launchShuffle keeps all threads busy and stops the world all the time, after
// which a goroutine in a system call finds its place taken and goes on elsewhere.
func launchShuffle() {
	for range 4 * runtime.GOMAXPROCS(0) {
		go func() {
			for {
				runtime.Gosched()
			}
		}()
	}
	go func() {
		for stats := new(runtime.MemStats); ; {
			runtime.ReadMemStats(stats)
		}
	}()
}

func (in launchInput) spec() (launch.Spec, error) {
	text := []byte(in.Profile)
	if in.Profile == "" {
		var err error
		if text, err = policies.FS.ReadFile("seccomp/postgres.json"); err != nil {
			return launch.Spec{}, err
		}
	}
	profile, err := sandbox.ParseProfile("postgres", text)
	if err != nil {
		return launch.Spec{}, err
	}
	if in.Gated {
		return in.with(profile)
	}
	// Most commands are a shell or one of coreutils.
	if text, err = policies.FS.ReadFile("seccomp/features/helpers.json"); err != nil {
		return launch.Spec{}, err
	}
	helpers, err := sandbox.ParseFeature("helpers", text)
	if err != nil {
		return launch.Spec{}, err
	}
	if profile, err = profile.With(helpers); err != nil {
		return launch.Spec{}, err
	}
	return in.with(profile)
}

// with has all but the profile from the input.
func (in launchInput) with(profile sandbox.Profile) (launch.Spec, error) {
	caps, err := sandbox.ParseCapabilities(in.Capabilities)
	if err != nil {
		return launch.Spec{}, err
	}
	return launch.Spec{
		Service: "test", User: in.User, Groups: in.Groups, Command: in.Command, Helpers: in.Helpers, DataDir: in.DataDir, Limits: in.Limits,
		Capabilities: caps, Seccomp: profile, Environment: in.Environment, OOMScoreAdj: in.OOMScoreAdj,
		Landlock: in.Landlock, Mounts: in.Mounts, SELinux: in.SELinux,
	}, nil
}

// launchStatus is a launch that works and shows its own status.
func launchStatus() launchInput {
	return launchInput{User: "nobody", Command: []string{"/usr/bin/cat", "/proc/self/status"}}
}

// launchCommand is the launcher with its input, started by the words of wrap if
// there are any. Its report goes to the file returned second.
func launchCommand(t *testing.T, in launchInput, wrap ...string) (*exec.Cmd, *os.File) {
	t.Helper()
	dir := launchDir(t)
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "input.json")
	launchWrite(t, file, data, 0o644)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close(); writer.Close() })
	words := append(wrap, self)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append(os.Environ(), launchVariable+"="+file)
	cmd.ExtraFiles = make([]*os.File, launchReportFD-2)
	cmd.ExtraFiles[launchReportFD-3] = writer
	return cmd, reader
}

// launchResult is what came of it.
type launchResult struct {
	pid            int
	code           int
	stdout, stderr string
	report         string
}

// launchRun starts the launcher and waits for what it became.
func launchRun(t *testing.T, in launchInput, wrap ...string) launchResult {
	t.Helper()
	cmd, reader := launchCommand(t, in, wrap...)
	return launchWait(t, cmd, reader)
}

func launchWait(t *testing.T, cmd *exec.Cmd, reader *os.File) launchResult {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles[launchReportFD-3].Close()
	report, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	return launchResult{cmd.Process.Pid, cmd.ProcessState.ExitCode(), out.String(), errs.String(), string(report)}
}

// works fails the test unless the program was executed and nothing was reported.
func (r launchResult) works(t *testing.T) launchResult {
	t.Helper()
	if r.code != 0 || r.stdout == "" || r.report != "" {
		t.Fatalf("the launch failed: exit code %d, stdout %q, stderr %q, report %q", r.code, r.stdout, r.stderr, r.report)
	}
	return r
}

// refused fails the test unless the launch ended at the step, told so with the
// words in exit code and report, and executed nothing.
func (r launchResult) refused(t *testing.T, step launch.Step, words ...string) {
	t.Helper()
	want := (&launch.Error{Step: step}).Code()
	if r.code != want || r.stdout != "" {
		t.Fatalf("exit code %d (want %d, step %s), stdout %q, stderr %q", r.code, want, step, r.stdout, r.stderr)
	}
	var report struct {
		Step, Error string
		Code        int
	}
	if err := json.Unmarshal([]byte(r.report), &report); err != nil {
		t.Fatalf("report %q: %v", r.report, err)
	}
	if report.Step != string(step) || report.Code != want || strings.Count(r.report, "\n") != 1 {
		t.Errorf("report is %q, want step %s and code %d", r.report, step, want)
	}
	for _, w := range words {
		if !strings.Contains(report.Error, w) {
			t.Errorf("the report does not say %q: %s", w, report.Error)
		}
	}
}

// field is one line of a /proc/PID/status, with single spaces.
func (r launchResult) field(t *testing.T, name string) string {
	t.Helper()
	for line := range strings.Lines(r.stdout) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	t.Fatalf("no %s in %q", name, r.stdout)
	return ""
}

// wantFields compares lines of a status, given as name, value, name, value …
func (r launchResult) wantFields(t *testing.T, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if got := r.field(t, pairs[i]); got != pairs[i+1] {
			t.Errorf("%s is %q, want %q", pairs[i], got, pairs[i+1])
		}
	}
}

// launchDir is a directory that holds programs fit to be launched: root's, all
// the way up. /tmp is not.
func launchDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the end-to-end tests need root")
	}
	dir, err := os.MkdirTemp("/var/lib", "pghardend-e2e-") //nolint:usetesting // t.TempDir is below /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	launchMode(t, dir, 0o755)
	return dir
}

// launchMode is chmod(2), past the umask and with all bits.
func launchMode(t *testing.T, path string, mode uint32) {
	t.Helper()
	if err := unix.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func launchOwn(t *testing.T, path string, uid int) {
	t.Helper()
	if err := os.Chown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
}

func launchWrite(t *testing.T, path string, data []byte, mode uint32) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	launchMode(t, path, mode)
}

func launchMkdir(t *testing.T, path string, mode uint32) string {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	launchMode(t, path, mode)
	return path
}

func launchCopy(t *testing.T, from, to string, mode uint32) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	launchWrite(t, to, data, mode)
}

func launchSymlink(t *testing.T, target, link string) string {
	t.Helper()
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	return link
}

const launchNobody = 65534

const launchNoCaps = "0000000000000000"
