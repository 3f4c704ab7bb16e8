package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/launch"
)

// exitExecConfig: the service is not known, or the configuration cannot be read.
const exitExecConfig = 70

func newExec(o *options) *cobra.Command {
	var service, setting string
	var reportFD int
	c := &cobra.Command{
		Use:   "exec --service NAME [-- ARG...]",
		Short: "Confine this process and become the service, in place",
		Long: "Confine this process and become the service, in place: the process id stays, so\n" +
			"systemd and Patroni can start a service through it. Arguments are added to the\n" +
			"service's command. Each step that fails has an exit code of its own.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if service == "" {
				return &codeError{code: exitExecConfig, err: errors.New("say which: --service NAME; see `pghardend exec --help`")}
			}
			report, err := reportFile(reportFD)
			if err != nil {
				return &codeError{code: exitExecConfig, err: err}
			}
			if setting != "" {
				err = agent.Ask(cmd.Context(), o.config, service, setting)
			} else {
				err = agent.Exec(cmd.Context(), o.config, service, args, report)
			}
			var step *launch.Error
			if errors.As(err, &step) {
				return &codeError{code: step.Code(), err: err}
			}
			tellConfigError(report, err)
			return &codeError{code: exitExecConfig, err: err}
		},
	}
	c.Flags().StringVar(&service, "service", "", "the service to become")
	c.Flags().StringVar(&setting, "ask", "", "become the service's program for as long as it says what this setting of the server is")
	_ = c.Flags().MarkHidden("ask") // it is there; for the daemon
	c.Flags().IntVar(&reportFD, "report-fd", -1, "file descriptor of a pipe on which to report a failure as JSON")
	return c
}

// reportFile takes over the descriptor, which must not reach the service.
func reportFile(fd int) (*os.File, error) {
	if fd < 0 {
		return nil, nil
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("cannot use --report-fd %d: %w", fd, err)
	}
	return os.NewFile(uintptr(fd), "report"), nil
}

func tellConfigError(report *os.File, err error) {
	if report == nil {
		return
	}
	line := struct {
		Step  string `json:"step"`
		Error string `json:"error"`
		Code  int    `json:"code"`
	}{"config", err.Error(), exitExecConfig}
	text, err := json.Marshal(line)
	if err != nil {
		return
	}
	// If nobody reads the report, the exit code and standard error still tell.
	_, _ = report.Write(append(text, '\n'))
}
