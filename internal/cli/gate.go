package cli

import (
	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/supervise"
)

// newGate is the first thing a service's process runs; see package supervise.
func newGate() *cobra.Command {
	return &cobra.Command{
		Use:                supervise.GateCommand,
		Short:              "For the daemon's own use",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE:               func(_ *cobra.Command, args []string) error { return supervise.Gate(args) },
	}
}
