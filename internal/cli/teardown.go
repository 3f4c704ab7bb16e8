package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
)

func newTeardown(o *options) *cobra.Command {
	var stop bool
	c := o.jsonFlag(&cobra.Command{
		Use:   "teardown",
		Short: "Remove our rules and sets from the kernel",
		Long: "Remove our rules and sets from the kernel. Foreign rules and sets stay, and so do\n" +
			"sysctls as they are now. The daemon must not be running. Services go on, unless\n" +
			"--stop-services ends them.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			done, err := agent.Teardown(cmd.Context(), o.config, stop, o.logger(o.errOut))
			if o.json {
				return errors.Join(err, o.printJSON(map[string][]string{"done": append([]string{}, done...)}))
			}
			for _, line := range done {
				fmt.Fprintln(o.out, line)
			}
			return err
		},
	})
	c.Flags().BoolVar(&stop, "stop-services", false, "stop the services first (postgres: fast)")
	return c
}
