// Package cli is the command line: it parses, calls the agent and prints. One
// file holds one command.
//
// Data goes to standard output, logs and errors to standard error. Every
// command that prints data takes --json.
//
// # Exit codes
//
//	0       done; plan: nothing to do; status, verify: all is enforced
//	1       an error, named on standard error
//	2       plan: there are changes; profile show --diff: the profiles differ;
//	        learn --diff: the profile lacks something
//	3       status, verify: degraded; drill: an attack was not stopped
//	4       explain: denied
//	5       run, apply, teardown: another pghardend is at work
//	70–104  exec: one code for each step of the launch that can fail
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/supervise"
)

// Exit codes.
const (
	exitOK       = 0
	exitError    = 1
	exitChanges  = 2
	exitDegraded = 3
	exitLocked   = 5
)

// version is set when the program is built.
var version = "devel"

// gcPercent is for commands that end in a moment; the daemon chooses its own.
const gcPercent = 400

const defaultConfig = "/etc/pghardend/pghardend.yaml"

// A codeError ends the program with a code of its own. A nil err prints nothing.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

// options are what every command has.
type options struct {
	config string
	json   bool
	out    io.Writer
	errOut io.Writer
}

// Run executes the command line and returns the exit code.
func Run(args []string) int {
	o := &options{out: plainWriter{os.Stdout}, errOut: os.Stderr}
	if len(args) > 1 && args[1] == supervise.GateCommand {
		// Before any signal is caught: a service may be stopped while it waits here.
		return o.exitCode(supervise.Gate(args[2:]))
	}
	debug.SetGCPercent(gcPercent)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	root := newRoot(o)
	root.SetArgs(args[1:])
	err := root.ExecuteContext(ctx)
	return o.exitCode(err)
}

func (o *options) exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	var coded *codeError
	code := exitError
	switch {
	case errors.As(err, &coded):
		code = coded.code
		err = coded.err
	case errors.Is(err, agent.ErrLocked):
		code = exitLocked
	}
	if err != nil {
		fmt.Fprintf(plainWriter{o.errOut}, "pghardend: %s\n", strings.TrimSpace(err.Error()))
	}
	return code
}

func newRoot(o *options) *cobra.Command {
	root := &cobra.Command{
		Use:           "pghardend",
		Short:         "Keep a PostgreSQL host's firewall and confinement as they should be",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			o.config, err = filepath.Abs(o.config) // the daemon and its children look from elsewhere
			return err
		},
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())
	})
	root.SetOut(o.out)
	root.SetErr(o.errOut)
	root.PersistentFlags().StringVar(&o.config, "config", defaultConfig, "configuration file")
	root.AddCommand(
		newRun(o), newValidate(o), newPlan(o), newApply(o), newConfirm(o), newStatus(o), newEvents(o), newVerify(o),
		newExplain(o), newOpen(o), newClose(o), newLearn(o),
		newDrill(o), newDrillBox(o), newDrillStage(o),
		newExec(o), newProfile(o), newStart(o), newStop(o), newTeardown(o), newVersion(o), newRepair(o))
	return root
}

// jsonFlag adds --json to a command that prints data.
func (o *options) jsonFlag(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return c
}

// logger writes to w: text if standard error is a terminal, else JSON.
func (o *options) logger(w io.Writer) *slog.Logger {
	if f, ok := o.errOut.(*os.File); ok && isTerminal(f) {
		return slog.New(slog.NewTextHandler(w, nil))
	}
	return slog.New(slog.NewJSONHandler(w, nil))
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
