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
			if (service == "") == !all {
				return fmt.Errorf("say which: --service NAME or --all; see `%s --help`", cmd.CommandPath())
			}
			ctx := cmd.Context()
			client := control.NewClient(agent.RuntimeDir(ctx, o.config))
			names := []string{service}
			if all {
				s, err := client.Status(ctx) // the daemon knows what runs, whatever is in the file by now
				if err != nil {
					return fmt.Errorf("cannot %s services: %w", use, withoutDaemon(err))
				}
				if names = nil; len(s.Services) == 0 {
					fmt.Fprintln(o.out, "the daemon has no services")
				}
				for _, svc := range s.Services {
					names = append(names, svc.Name)
				}
			}
			var errs []error
			for _, name := range names {
				if err := act(client, ctx, name); err != nil {
					errs = append(errs, fmt.Errorf("cannot %s service %s: %w", use, name, withoutDaemon(err)))
					continue
				}
				fmt.Fprintf(o.out, "service %s %s\n", name, done)
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().StringVar(&service, "service", "", "the service")
	c.Flags().BoolVar(&all, "all", false, "all services that the daemon knows")
	return c
}

// withoutDaemon says what to do where there is none to ask.
func withoutDaemon(err error) error {
	if errors.Is(err, control.ErrNoDaemon) {
		return fmt.Errorf("%w; start it (systemctl start pghardend); without it, `pghardend teardown --stop-services` stops all services and removes the rules", err)
	}
	return err
}
