package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rig is a directory with a plan in it.
type rig struct {
	t   *testing.T
	dir string
	plan
}

func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// newRig plans a service that does what words say.
func newRig(t *testing.T, words ...string) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, dir: dir, plan: plan{
		Argv:   append([]string{serviceBinary, "play-service", dir}, append(words, "")...),
		Exe:    serviceBinary,
		Record: filepath.Join(dir, "services", "t.json"),
		Log:    filepath.Join(dir, "log"),
		Start:  30 * time.Second, Stop: 30 * time.Second,
	}}
	t.Cleanup(r.clean)
	return r
}

// newServerRig plans a postmaster of our own making.
func newServerRig(t *testing.T, words ...string) *rig {
	t.Helper()
	r := newRig(t)
	r.DataDir = filepath.Join(r.dir, "data")
	if err := os.Mkdir(r.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	r.Argv = append([]string{r.Exe, "play-postmaster", r.DataDir, r.dir}, words...)
	return r
}

// clean ends what the rig's services still run, each by the identity it has.
func (r *rig) clean() {
	for _, pid := range r.processes() {
		if p, err := openProcess(context.Background(), pid); err == nil {
			_ = p.signal(unix.SIGKILL)
			await(r.t, "the end of a process", p.dead)
			p.close()
		}
	}
	if r.t.Failed() {
		data, _ := os.ReadFile(r.Log)
		r.t.Logf("log of the service:\n%s", data)
	}
}

// processes lists what runs with the rig's directory among its arguments, gates
// and launch stages included, daemons excluded.
func (r *rig) processes() []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(d, "cmdline"))
		pid, _ := strconv.Atoi(filepath.Base(d))
		text := string(cmdline)
		if err == nil && pid != os.Getpid() && strings.Contains(text, r.dir) && !strings.Contains(text, "play-daemon") {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (r *rig) file(name string) string { return filepath.Join(r.dir, name) }

// run supervises in this process until the test ends or the function is called.
func (r *rig) run(change ...func(*Supervisor)) (*Supervisor, func()) {
	r.t.Helper()
	s := New(r.spec(), slog.New(slog.NewTextHandler(testWriter{r.t}, nil)))
	for _, f := range change {
		f(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	ended := false
	end := func() {
		cancel()
		if ended {
			return
		}
		ended = true
		select {
		case err := <-done:
			if err != nil {
				r.t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			r.t.Errorf("Run did not return promptly")
		}
	}
	r.t.Cleanup(end)
	return s, end
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// daemon is a supervisor in a process of its own.
type daemon struct {
	*rig
	cmd    *exec.Cmd
	status string
}

func (r *rig) daemon(args ...string) *daemon {
	r.t.Helper()
	status := filepath.Join(r.dir, fmt.Sprintf("status-%d", time.Now().UnixNano()))
	cmd := exec.Command(self(r.t), append([]string{"play-daemon", r.writePlan(), status}, args...)...)
	log, err := os.OpenFile(r.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	d := &daemon{rig: r, cmd: cmd, status: status}
	r.t.Cleanup(d.kill)
	return d
}

func (r *rig) writePlan() string {
	r.t.Helper()
	path := r.file("plan")
	data, err := json.Marshal(r.plan)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// kill is SIGKILL, as the kernel's OOM killer would do it.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

func (d *daemon) await(state State) Status {
	d.t.Helper()
	var st Status
	await(d.t, "daemon: "+string(state), func() bool {
		data, err := os.ReadFile(d.status)
		return err == nil && json.Unmarshal(data, &st) == nil && st.State == state
	})
	return st
}

// await waits for a condition, not for a time.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting for %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func awaitState(t *testing.T, s *Supervisor, state State) Status {
	t.Helper()
	var st Status
	deadline := time.Now().Add(60 * time.Second)
	for {
		if st = s.Status(); st.State == state {
			return st
		}
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting for state %s; status is %+v", state, st)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func kill(t *testing.T, pid int, sig unix.Signal) {
	t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

func alive(t *testing.T, pid int) bool {
	t.Helper()
	return isAlive(context.Background(), pid)
}

func isAlive(ctx context.Context, pid int) bool {
	p, err := openProcess(ctx, pid)
	if err == nil {
		p.close()
	}
	return err == nil
}

// forge writes a record that names a process, then spoils it.
func (r *rig) forge(pid int, change func(*record)) {
	r.t.Helper()
	ctx := context.Background()
	p, err := openProcess(ctx, pid)
	if err != nil {
		r.t.Fatal(err)
	}
	defer p.close()
	f, err := p.facts(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	boot, err := bootID(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	rec := record{Version: recordVersion, Service: "t", Boot: boot, PID: pid, Start: p.start, Exe: f.exe, DataDir: r.DataDir}
	change(&rec)
	data, err := json.Marshal(rec)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(r.Record), 0o700), os.WriteFile(r.Record, data, 0o600)); err != nil {
		r.t.Fatal(err)
	}
}

// startSleep runs a process that has nothing to do with us in dir.
func startSleep(t *testing.T, dir string) int {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "3600")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	// cmd.Start returns after the execve, so /proc shows sleep from here on.
	return cmd.Process.Pid
}

func deadPID(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("/bin/true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}
