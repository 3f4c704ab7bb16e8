package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
)

func newApply(o *options) *cobra.Command {
	var force bool
	c := o.jsonFlag(&cobra.Command{
		Use:   "apply",
		Short: "Bring the rules to the state of the files, once",
		Long: "Bring the rules to the state of the files, once, and print what changed.\n" +
			"If the daemon is running, it does the work.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := agent.Apply(cmd.Context(), o.config, force)
			if err != nil && plan.Empty() {
				return err
			}
			if err := errors.Join(o.printPlan(plan, "nothing to do"), err); err != nil {
				return err
			}
			if !plan.Empty() && !o.json {
				fmt.Fprintln(o.out, "done: rules and sets equal the plan now")
			}
			return nil
		},
	})
	c.Flags().BoolVar(&force, "force", false, "accept a peer list that looks suspicious, such as one that lost most of its nodes")
	return c
}
