package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/pkg/config"
)

// validation is what `validate --json` prints.
type validation struct {
	OK       bool            `json:"ok"`
	Problems []*config.Error `json:"problems"`
	Node     string          `json:"node,omitempty"`
	Role     string          `json:"role,omitempty"`
	Instance string          `json:"instance,omitempty"`
	Nodes    int             `json:"nodes"`
	Networks int             `json:"networks"`
	Services int             `json:"services"`
}

func newValidate(o *options) *cobra.Command {
	return o.jsonFlag(&cobra.Command{
		Use:   "validate",
		Short: "Check the configuration and the peer list",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := agent.Load(cmd.Context(), o.config)
			if err != nil && o.json {
				if err := o.printJSON(validation{Problems: problems(err, o.config)}); err != nil {
					return err
				}
				return &codeError{code: exitError}
			}
			if err != nil {
				return err
			}
			if o.json {
				return o.printJSON(validation{
					OK: true, Problems: []*config.Error{},
					Node: d.Self.Name, Role: d.Self.Role, Instance: d.Peers.Instance,
					Nodes: len(d.Peers.Nodes), Networks: len(d.Peers.Networks), Services: len(d.Services),
				})
			}
			_, err = fmt.Fprintf(o.out, "%s and %s are good: node %s (%s) of instance %s; nodes: %d, networks: %d, services: %d\n",
				d.Config.File, d.Peers.File, d.Self.Name, d.Self.Role, d.Peers.Instance,
				len(d.Peers.Nodes), len(d.Peers.Networks), len(d.Services))
			return err
		},
	})
}

// problems lists what err is made of. What is no problem of a line, such as a
// file that cannot be opened, is one of the file as a whole.
func problems(err error, file string) []*config.Error {
	switch e := err.(type) { //nolint:errorlint // the tree is walked here
	case *config.Error:
		return []*config.Error{e}
	case interface{ Unwrap() []error }:
		var all []*config.Error
		for _, inner := range e.Unwrap() {
			all = append(all, problems(inner, file)...)
		}
		return all
	}
	return []*config.Error{{File: file, Problem: err.Error()}}
}
