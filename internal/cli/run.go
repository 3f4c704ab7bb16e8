package cli

import (
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/agent"
)

func newRun(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: "Run the daemon: keep the rules, start and watch the services.\n" +
			"SIGHUP reads the files again. SIGTERM ends the daemon; rules and services stay.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hangups := make(chan os.Signal, 1)
			signal.Notify(hangups, unix.SIGHUP)
			defer signal.Stop(hangups)
			// Or a journald that dies would take the daemon with it: without
			// this, a write to a broken standard error ends a Go program.
			signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
			lines := newLineWriter(o.errOut)
			defer lines.close(time.Second)
			reload := make(chan struct{})
			go func() {
				for {
					select {
					case <-cmd.Context().Done():
						return
					case <-hangups:
						select {
						case reload <- struct{}{}:
						case <-cmd.Context().Done():
						}
					}
				}
			}()
			return agent.Run(cmd.Context(), o.config, version, reload, o.logger(lines))
		},
	}
}
