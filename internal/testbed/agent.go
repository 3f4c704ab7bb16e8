package testbed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
)

const (
	configFile = "pghardend.yaml"
	peersFile  = "peers.yaml"
)

// Agent is a pghardend on a host: its files and, if started, its daemon.
type Agent struct {
	Binary     string
	Dir        string // root's, 0700: the files, runtime_dir (run) and state_dir (state)
	ConfigPath string
	PeersPath  string
	LogPath    string   // what the daemons and their services wrote
	Env        []string // of the daemon and the commands, besides Host.Command's

	host *Host

	mu sync.Mutex
	d  *daemon // the one last started
}

// NewAgent builds the program and writes the two files for a host, without starting anything. A host can have several.
func NewAgent(ctx context.Context, h *Host, cfg AgentConfig) (*Agent, error) {
	bin, err := BuildBinary(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(h.dir, "agent-")
	if err != nil {
		return nil, fmt.Errorf("cannot make an agent on %s: %w", h.name, err)
	}
	a := &Agent{Binary: bin, Dir: dir, ConfigPath: filepath.Join(dir, configFile), PeersPath: filepath.Join(dir, peersFile),
		LogPath: filepath.Join(dir, "agent.log"), host: h}
	if err := errors.Join(a.WritePeers(cfg.Peers), a.WriteConfig(cfg)); err != nil {
		return nil, err
	}
	return a, nil
}

// StartAgent is NewAgent and Start.
func StartAgent(ctx context.Context, h *Host, cfg AgentConfig) (*Agent, error) {
	a, err := NewAgent(ctx, h, cfg)
	if err != nil {
		return nil, err
	}
	return a, a.Start() //nolint:contextcheck // the daemon outlives ctx
}

// WriteConfig replaces pghardend.yaml; its Peers are not written.
func (a *Agent) WriteConfig(cfg AgentConfig) error {
	text, err := cfg.yaml(a.Dir)
	if err != nil {
		return err
	}
	return WriteFile(a.ConfigPath, text)
}

// WritePeers replaces peers.yaml.
func (a *Agent) WritePeers(p Peers) error {
	text, err := p.YAML()
	if err != nil {
		return err
	}
	return WriteFile(a.PeersPath, text)
}

// WriteFile replaces a file by rename, mode 0600, with any text: for what a configuration should not be.
func WriteFile(path, text string) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}

// Host returns the host the agent is on.
func (a *Agent) Host() *Host { return a.host }

// Start starts the daemon and does not wait for anything it does. It runs until it is stopped or the bed is closed.
func (a *Agent) Start() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.d.running() {
		return fmt.Errorf("cannot start the agent on %s: it runs", a.host.name)
	}
	d, err := startDaemon(a.Command(context.Background(), "run"), a.LogPath) // its end is that of the bed, which kills it
	if err != nil {
		return fmt.Errorf("cannot start the agent on %s: %w", a.host.name, err)
	}
	a.d = d
	return nil
}

// Command prepares a command of the program on the host, with --config after its first argument.
func (a *Agent) Command(ctx context.Context, args ...string) *exec.Cmd {
	if len(args) > 0 {
		args = slices.Insert(slices.Clone(args), 1, "--config", a.ConfigPath)
	}
	cmd := a.host.Command(ctx, a.Binary, args...)
	cmd.Env = append(cmd.Env, a.Env...)
	return cmd
}

// Result is what a command of the program did.
type Result struct {
	Stdout, Stderr string
	Code           int // exit code; -1 after a signal
}

// CLI runs a command of the program to its end: CLI(ctx, "plan", "--json"). Any exit code is a result, not an error.
func (a *Agent) CLI(ctx context.Context, args ...string) (Result, error) {
	var stdout, stderr strings.Builder
	cmd := a.Command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		return Result{}, fmt.Errorf("cannot run pghardend %s: %w: %s", strings.Join(args, " "), errors.Join(ctx.Err(), err), stderr.String())
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}, nil
}

// Status asks the daemon itself, as the command would: for who asks again and again, since each command takes a tenth of a
// second of a CPU with the race detector.
func (a *Agent) Status(ctx context.Context) (control.Status, error) {
	return control.NewClient(filepath.Join(a.Dir, "run")).Status(ctx)
}

// JSON is CLI for a command that prints JSON, which goes into v. The exit code is returned.
func (a *Agent) JSON(ctx context.Context, v any, args ...string) (int, error) {
	r, err := a.CLI(ctx, append(args, "--json")...)
	if err != nil {
		return 0, err
	}
	if err := json.Unmarshal([]byte(r.Stdout), v); err != nil {
		return r.Code, fmt.Errorf("cannot read the output of pghardend %s (exit code %d): %w: %s%s", args[0], r.Code, err, r.Stdout, r.Stderr)
	}
	return r.Code, nil
}

func (a *Agent) daemon() *daemon {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.d
}

// PID returns the process id of the daemon last started, 0 if none was.
func (a *Agent) PID() int {
	if d := a.daemon(); d != nil {
		return d.cmd.Process.Pid
	}
	return 0
}

// Exited is closed when the daemon last started is gone. Nil if none was.
func (a *Agent) Exited() <-chan struct{} {
	if d := a.daemon(); d != nil {
		return d.exited
	}
	return nil
}

// Kill9 kills the daemon with SIGKILL and returns when it is gone. Its services live on.
func (a *Agent) Kill9(ctx context.Context) error {
	_, err := a.end(ctx, unix.SIGKILL)
	return err
}

// Stop ends the daemon with SIGTERM and returns its exit code. Its services and rules stay.
func (a *Agent) Stop(ctx context.Context) (int, error) { return a.end(ctx, unix.SIGTERM) }

// Restart is Stop, which must succeed, and Start.
func (a *Agent) Restart(ctx context.Context) error {
	code, err := a.Stop(ctx)
	if err == nil && code != 0 {
		err = a.failed("restart", fmt.Errorf("it ended with exit code %d", code))
	}
	if err != nil {
		return err
	}
	return a.Start() //nolint:contextcheck // the daemon outlives ctx
}

// Signal sends a signal to the daemon.
func (a *Agent) Signal(s unix.Signal) error {
	d := a.daemon()
	if d == nil {
		return a.failed("signal", errors.New("it was not started"))
	}
	if err := d.cmd.Process.Signal(s); err != nil {
		return a.failed("signal", err)
	}
	return nil
}

func (a *Agent) end(ctx context.Context, s unix.Signal) (int, error) {
	d := a.daemon()
	if d == nil {
		return 0, a.failed("end", errors.New("it was not started"))
	}
	code, err := d.end(ctx, s)
	if err != nil {
		return 0, a.failed("end", err)
	}
	return code, nil
}

func (a *Agent) failed(what string, err error) error {
	return fmt.Errorf("cannot %s the agent on %s: %w\nlast lines of its log:\n%s", what, a.host.name, err, a.Log())
}

// Log returns the last lines of the log.
func (a *Agent) Log() string { return tail(a.LogPath) }

// Await is the function Await, but fails at once if the daemon has ended, and shows the last lines of its log.
func (a *Agent) Await(ctx context.Context, what string, check func(context.Context) error) error {
	if err := a.daemon().await(ctx, what, check); err != nil {
		return fmt.Errorf("%w\nlast lines of the agent's log on %s:\n%s", err, a.host.name, a.Log())
	}
	return nil
}
