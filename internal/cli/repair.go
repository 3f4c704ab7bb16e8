package cli

import (
	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
)

// newRepair is for pghardend-repair.service.
func newRepair(o *options) *cobra.Command {
	return &cobra.Command{
		Use:    "repair",
		Short:  "Put back once what the daemon has asked for and may not do",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return agent.Repair(cmd.Context(), o.config) },
	}
}
