package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
)

func newValidate(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "validate",
		Short: "Check the configuration and the peer list",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := agent.Load(cmd.Context(), o.config)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(o.out, "%s and %s are good: node %s (%s) of instance %s, %d nodes, %d networks, %d services\n",
				d.Config.File, d.Peers.File, d.Self.Name, d.Self.Role, d.Peers.Instance,
				len(d.Peers.Nodes), len(d.Peers.Networks), len(d.Services))
			return err
		},
	}
}
