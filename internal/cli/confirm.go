package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
)

func newConfirm(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "confirm",
		Short: "Keep the change that `apply --confirm-within` made",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := agent.Confirm(cmd.Context(), o.config); err != nil {
				return err
			}
			_, err := fmt.Fprintln(o.out, "confirmed: the change stays in force")
			return err
		},
	}
}
