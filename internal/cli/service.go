package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/control"
)

func newStart(o *options) *cobra.Command {
	return newServiceCommand(o, "start", "Start a stopped service", (*control.Client).StartService, "started")
}

func newStop(o *options) *cobra.Command {
	return newServiceCommand(o, "stop", "Stop a service (postgres: fast) and wait for its end", (*control.Client).StopService, "stopped")
}

func newServiceCommand(o *options, use, short string, act func(*control.Client, context.Context, string) error, done string) *cobra.Command {
	var service string
	var all bool
	c := &cobra.Command{
		Use:   use + " --service NAME | --all",
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := agent.LoadConfig(cmd.Context(), o.config)
			if err != nil {
				return err
			}
			names := []string{service}
			if all {
				names = nil
				for _, svc := range cfg.Services {
					names = append(names, svc.Name)
				}
			}
			client := control.NewClient(cfg.RuntimeDir)
			var errs []error
			for _, name := range names {
				if err := act(client, cmd.Context(), name); err != nil {
					errs = append(errs, fmt.Errorf("cannot %s service %s: %w", use, name, err))
					continue
				}
				fmt.Fprintf(o.out, "service %s %s\n", name, done)
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().StringVar(&service, "service", "", "the service")
	c.Flags().BoolVar(&all, "all", false, "all services of the configuration")
	c.MarkFlagsOneRequired("service", "all")
	c.MarkFlagsMutuallyExclusive("service", "all")
	return c
}
