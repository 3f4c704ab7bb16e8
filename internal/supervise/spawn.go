package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// GateCommand is the hidden subcommand through which a Supervisor starts every
// process. The program must route "PROGRAM gate ARGV…" to Gate(ARGV), with the
// words unparsed.
const GateCommand = "gate"

// The child's file descriptors beyond the standard three.
const (
	reportFD = 3 // for the launch stage; close-on-exec is its business
	gateFD   = 4 // closed before the launch stage runs
)

const maxReport = 64 << 10 // bytes

// daemonExe is this very program, even if it was replaced on disk.
const daemonExe = "/proc/self/exe"

// Gate is the child's side of the start protocol in the package comment: it waits
// until the daemon has recorded this process, then becomes argv. It returns only
// on failure.
func Gate(argv []string) error {
	if len(argv) == 0 {
		return errors.New("cannot pass the gate: no command; it is for the daemon's own use")
	}
	var word [1]byte
	n, err := readRetry(gateFD, word[:])
	switch {
	case err != nil:
		return fmt.Errorf("cannot pass the gate: descriptor %d: %w; it is for the daemon's own use", gateFD, err)
	case n == 0:
		return errors.New("cannot pass the gate: the daemon ended before it had recorded this process")
	}
	if err := unix.Close(gateFD); err != nil {
		return fmt.Errorf("cannot pass the gate: %w", err)
	}
	err = fmt.Errorf("cannot execute %s: %w", argv[0], unix.Exec(argv[0], argv, os.Environ()))
	if line, jsonErr := json.Marshal(report{Step: "gate", Error: err.Error(), Code: 1}); jsonErr == nil {
		_, _ = unix.Write(reportFD, append(line, '\n'))
	}
	return err
}

func readRetry(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// report is what a launch stage writes when it failed.
type report struct {
	Step  string `json:"step"`
	Error string `json:"error"`
	Code  int    `json:"code"`
}

// parseReport returns the message of a report, verbatim, or "" if there was none.
func parseReport(data []byte) string {
	text := strings.TrimSpace(string(data))
	if text == "" {
		return ""
	}
	var r report
	if json.Unmarshal([]byte(text), &r) == nil && r.Error != "" {
		return r.Error
	}
	return text
}

// spawned is a child that waits at the gate.
type spawned struct {
	proc   *process
	gate   *os.File // write end
	report *os.File // read end
}

// fork starts a child that becomes the service after release.
func fork(ctx context.Context, spec Spec) (*spawned, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	gateR, gateW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer gateR.Close()
	reportR, reportW, err := os.Pipe()
	if err != nil {
		gateW.Close()
		return nil, err
	}
	defer reportW.Close()
	output := spec.LogFile
	if output == nil {
		output = os.Stderr
	}
	child, err := os.StartProcess(daemonExe, append([]string{os.Args[0], GateCommand}, spec.Argv...), &os.ProcAttr{
		Dir:   "/",
		Env:   environment(os.Environ()),
		Files: []*os.File{null, output, output, reportW, gateR},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	c := &spawned{gate: gateW, report: reportR}
	if err != nil {
		c.closePipes()
		return nil, fmt.Errorf("cannot fork: %w", err)
	}
	if c.proc, err = openProcess(ctx, child.Pid); err != nil {
		c.closePipes() // the child reads end-of-file and exits
		_, _ = child.Wait()
		return nil, fmt.Errorf("cannot hold the new process: %w", err)
	}
	c.proc.child = child
	return c, nil
}

// release lets the child through the gate.
func (c *spawned) release() error {
	_, err := c.gate.Write([]byte{1})
	return errors.Join(err, c.gate.Close())
}

// abandon makes the child exit without having become anything.
func (c *spawned) abandon() {
	c.gate.Close()
}

func (c *spawned) closePipes() {
	c.gate.Close()
	c.report.Close()
}

// readReport delivers once what the launch stage reported; "" is end-of-file
// without data. Closing report ends it without a word.
func readReport(r *os.File, wg *sync.WaitGroup) <-chan string {
	out := make(chan string, 1)
	wg.Go(func() {
		data, err := io.ReadAll(io.LimitReader(r, maxReport))
		if err == nil {
			out <- parseReport(data)
		}
	})
	return out
}

// environment is what a child gets of the daemon's: never NOTIFY_SOCKET,
// WATCHDOG_PID, LISTEN_FDS, LD_PRELOAD, PGPASSWORD or what else may be in there.
func environment(environ []string) []string {
	path := "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	var env []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case name == "PATH":
			path = kv
		case name == "LANG", name == "TZ", strings.HasPrefix(name, "LC_"):
			env = append(env, kv)
		}
	}
	return append(env, path)
}
