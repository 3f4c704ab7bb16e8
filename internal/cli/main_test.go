package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
)

const envIsolated = "PGHARDEND_TEST_ISOLATED"

// TestMain is also the program itself, for the scripts. The tests of root run
// in a network namespace of their own: they do not touch the firewall, but
// should they ever, it is not the host's.
func TestMain(m *testing.M) {
	isScript := filepath.Base(os.Args[0]) == "pghardend"
	if !isScript && os.Geteuid() == 0 && os.Getenv(envIsolated) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), envIsolated+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case err == nil:
			os.Exit(0)
		case errors.As(err, &exit):
			os.Exit(exit.ExitCode())
		case !errors.Is(err, os.ErrPermission): // root without rights cannot harm the host either
			fmt.Fprintln(os.Stderr, "cannot isolate the tests:", err)
			os.Exit(1)
		}
	}
	testscript.Main(m, map[string]func(){"pghardend": func() { os.Exit(Run(os.Args)) }})
}

// TestScripts runs testdata/*.txtar. Beyond the usual commands they have:
//
//	exits CODE ARG...   runs pghardend and wants this exit code
//	hold DIR            holds the lock of this runtime_dir, as a process that is no daemon
//	daemon DIR FILE…    answers on the control socket with the status in FILE, and the events in another
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("TZ", "UTC")
			return filepath.WalkDir(env.WorkDir, func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				return prepare(path, env.WorkDir)
			})
		},
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "hold": hold, "daemon": daemon,
		},
	})
}

// prepare fills in where the script runs and makes the file one that we trust,
// whatever the umask is.
func prepare(path, workDir string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text = bytes.ReplaceAll(text, []byte("${WORK}"), []byte(workDir))
	return errors.Join(os.WriteFile(path, text, 0o600), os.Chmod(path, 0o600))
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec("pghardend", args[1:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d\nstdout:\n%sstderr:\n%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

func hold(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	ts.Check(err)
	ts.Defer(func() { f.Close() })
	ts.Check(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	_, err = f.WriteString("4711\n")
	ts.Check(err)
}

func daemon(ts *testscript.TestScript, _ bool, args []string) {
	var status control.Status
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &status))
	var events []control.Event
	if len(args) > 2 {
		ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[2])), &events))
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	ctx, cancel := context.WithCancel(context.Background())
	server, err := control.Listen(ctx, dir, &canned{status, events}, slog.New(slog.DiscardHandler))
	ts.Check(err)
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	ts.Defer(func() {
		cancel()
		ts.Check(<-done)
	})
}

// canned is a daemon that always has the same status and the same events.
type canned struct {
	status control.Status
	events []control.Event
}

func (c *canned) Status(context.Context) control.Status { return c.status }

func (c *canned) Apply(_ context.Context, r control.ApplyRequest) (control.Status, error) {
	if r.ConfirmWithin != 0 {
		return c.status, nil
	}
	return c.status, errors.New("nothing is applied here")
}

func (c *canned) Confirm(context.Context, string) (control.Status, error) {
	if c.status.Pending == nil {
		return c.status, fmt.Errorf("%w: there is nothing to confirm", control.ErrRefused)
	}
	return c.status, nil
}

func (c *canned) Openings(context.Context) []control.Opening { return c.status.Openings }

func (c *canned) Open(_ context.Context, r control.OpenRequest) (control.Opening, error) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return control.Opening{
		ID: "0a1b2c", From: r.From, Proto: r.Proto, Port: r.Port, Opened: at, Until: at.Add(r.For), Reason: r.Reason, By: r.By,
	}, nil
}

func (c *canned) Close(_ context.Context, id, by string) (control.Opening, error) {
	i := slices.IndexFunc(c.status.Openings, func(o control.Opening) bool { return o.ID == id })
	if i < 0 {
		return control.Opening{}, fmt.Errorf("%w %q; `pghardend status` lists them", control.ErrNoSuch, id)
	}
	o := c.status.Openings[i]
	o.EndedBy = by
	return o, nil
}

func (c *canned) Events(_ context.Context, after uint64, limit int) ([]control.Event, error) {
	list := slices.DeleteFunc(slices.Clone(c.events), func(e control.Event) bool { return e.Seq <= after })
	if limit > 0 {
		list = list[max(0, len(list)-limit):]
	}
	return list, nil
}

func (c *canned) Follow(ctx context.Context, after uint64, limit int) (<-chan control.Event, error) {
	list, err := c.Events(ctx, after, limit)
	ch := make(chan control.Event, len(list))
	for _, e := range list {
		ch <- e
	}
	close(ch) // as if the daemon ended
	return ch, err
}

func (c *canned) Metrics() http.Handler { return nil }

func (c *canned) StartService(_ context.Context, name string) error { return c.know(name) }

func (c *canned) StopService(_ context.Context, name string) error { return c.know(name) }

func (c *canned) know(name string) error {
	if !slices.ContainsFunc(c.status.Services, func(s control.Service) bool { return s.Name == name }) {
		return fmt.Errorf("%w %q; `pghardend status` lists them", control.ErrNotFound, name)
	}
	return nil
}
