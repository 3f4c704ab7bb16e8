package supervise

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The server of these tests is the test process itself.
func TestPostmasterReady(t *testing.T) {
	ready := "ready   "
	for name, test := range map[string]struct {
		status string
		answer byte
		err    string
	}{
		"ready, no TLS":  {ready, 'N', ""},
		"ready, TLS":     {ready, 'S', ""},
		"standby":        {"standby ", 'N', ""},
		"starting":       {"starting", 'N', `says "starting"`},
		"stopping":       {"stopping", 'N', `says "stopping"`},
		"not said":       {"", 'N', `says ""`},
		"not a postgres": {ready, 'H', "answers 'H'"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			go answerSSL(listen(t, "unix", filepath.Join(dir, ".s.PGSQL.5432")), test.answer)
			if err := writePIDFile(dir, pidFileText(os.Getpid(), dir, dir, "", test.status)); err != nil {
				t.Fatal(err)
			}
			checkReady(t, dir, os.Getpid(), test.err)
		})
	}
}

func TestPostmasterReadyOverTCP(t *testing.T) {
	for host, address := range map[string]string{
		"localhost": "127.0.0.1:0", "*": "127.0.0.1:0", "0.0.0.0": "0.0.0.0:0", "127.0.0.1": "127.0.0.1:0", "::1": "[::1]:0", "::": "[::]:0",
	} {
		t.Run(host, func(t *testing.T) {
			dir := t.TempDir()
			l := listen(t, "tcp", address)
			go answerSSL(l, 'S')
			_, port, _ := net.SplitHostPort(l.Addr().String())
			text := strings.Replace(pidFileText(os.Getpid(), dir, "", host, "ready"), "5432", port, 1)
			if err := writePIDFile(dir, text); err != nil {
				t.Fatal(err)
			}
			checkReady(t, dir, os.Getpid(), "")
		})
	}
}

// postmaster.pid is the service's to write: it must not send the daemon anywhere.
func TestProbeIsNotSentAstray(t *testing.T) {
	for name, test := range map[string]struct{ host, err string }{
		"metadata service": {"169.254.169.254", "is not one of this machine"},
		"a neighbour":      {"192.0.2.7", "is not one of this machine"},
		"no socket at all": {"", "neither"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := writePIDFile(dir, pidFileText(os.Getpid(), dir, "", test.host, "ready")); err != nil {
				t.Fatal(err)
			}
			checkReady(t, dir, os.Getpid(), test.err)
		})
	}
	t.Run("another process's socket", func(t *testing.T) {
		r := newServerRig(t)
		s, _ := r.run()
		awaitState(t, s, StateReady)
		dir := t.TempDir()
		if err := writePIDFile(dir, pidFileText(os.Getpid(), dir, r.dir, "", "ready")); err != nil {
			t.Fatal(err)
		}
		checkReady(t, dir, os.Getpid(), "listens there")
	})
}

func TestProbeOfASilentServerEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := listen(t, "unix", filepath.Join(dir, ".s.PGSQL.5432"))
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			go func() { _, _ = io.Copy(io.Discard, conn) }()
		}
	}()
	if err := writePIDFile(dir, pidFileText(os.Getpid(), dir, dir, "", "ready")); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	checkReady(t, dir, os.Getpid(), "does not answer")
	if took := time.Since(start); took > 2*probeTimeout {
		t.Errorf("took %v", took)
	}
}

func TestPIDFileOfAHostileOwner(t *testing.T) {
	for name, place := range map[string]func(path string) error{
		"fifo": func(p string) error { return unix.Mkfifo(p, 0o600) },
		"fifo with a writer": func(p string) error {
			if err := unix.Mkfifo(p, 0o600); err != nil {
				return err
			}
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			t.Cleanup(func() { f.Close() })
			_, err = f.WriteString(pidFileText(os.Getpid(), filepath.Dir(p), "", "*", "ready"))
			return err
		},
		"symlink":   func(p string) error { return os.Symlink("/etc/passwd", p) },
		"directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"device":    func(p string) error { return os.Symlink("/dev/zero", p) },
		"huge":      func(p string) error { return os.WriteFile(p, make([]byte, maxPIDFile+1), 0o600) },
		"socket": func(p string) error {
			l, err := net.Listen("unix", p)
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := place(filepath.Join(dir, pidFileName)); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				_, err := readPIDFile(context.Background(), dir)
				done <- err
			}()
			select {
			case err := <-done:
				if err == nil {
					t.Error("it was read")
				}
			case <-time.After(10 * time.Second):
				t.Error("it blocks")
			}
		})
	}
}

func TestPidfdTellsTheExitOfWhatIsNoChild(t *testing.T) {
	t.Parallel()
	// The shell's child outlives it and becomes init's.
	out, err := exec.Command("/bin/sh", "-c", "(while :; do :; done) </dev/null >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	for _, c := range strings.TrimSpace(string(out)) {
		pid = pid*10 + int(c-'0')
	}
	ctx := t.Context()
	p, err := openProcess(ctx, pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "its end", p.dead)
	e := p.status(ctx)
	if !e.known { // what the fallback is for, see TestPostmasterEndedByHand
		t.Logf("this kernel or this init does not tell")
	} else if e.status.Signal() != unix.SIGKILL {
		t.Errorf("%v", e)
	}
	if err := p.signal(unix.SIGINT); err != nil {
		t.Errorf("a signal to what has ended: %v", err)
	}
}

func TestZombieIsNoProcess(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	await(t, "the zombie", func() bool {
		stat, err := readStat(cmd.Process.Pid)
		return err == nil && stat.State == "Z"
	})
	if p, err := openProcess(t.Context(), cmd.Process.Pid); !errors.Is(err, errGone) {
		t.Errorf("%+v, %v", p, err)
	}
}

func checkReady(t *testing.T, dir string, pid int, want string) {
	t.Helper()
	err := postmasterReady(context.Background(), dir, pid)
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%v, want %q", err, want)
	}
}

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
