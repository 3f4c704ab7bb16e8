package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/control"
)

func newClose(o *options) *cobra.Command {
	var id string
	var all bool
	c := o.jsonFlag(&cobra.Command{
		Use:   "close --id ID | --all",
		Short: "End an opening early",
		Long: "End an opening early. Connections that only it allowed are cut.\n" +
			"`pghardend status` lists the openings.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (id == "") == !all {
				return fmt.Errorf("say which: --id ID or --all; see `%s --help`", cmd.CommandPath())
			}
			ctx := cmd.Context()
			client := control.NewClient(agent.RuntimeDir(ctx, o.config))
			ids := []string{id}
			if all {
				list, err := client.Openings(ctx)
				if err != nil {
					return fmt.Errorf("cannot close: %w", withoutCloser(err))
				}
				if ids = openIDs(list); len(ids) == 0 && !o.json {
					fmt.Fprintln(o.out, "nothing is open")
				}
			}
			closed := []control.Opening{}
			var errs []error
			for _, id := range ids {
				x, err := client.Close(ctx, id)
				if err != nil {
					errs = append(errs, fmt.Errorf("cannot close %s: %w", id, withoutCloser(err)))
					continue
				}
				closed = append(closed, x)
				if !o.json {
					fmt.Fprintf(o.out, "closed %s: %s\n", x.ID, openingText(x))
				}
			}
			if o.json && (len(closed) > 0 || len(errs) == 0) {
				errs = append(errs, o.printJSON(closed))
			}
			return errors.Join(errs...)
		},
	})
	c.Flags().StringVar(&id, "id", "", "the opening")
	c.Flags().BoolVar(&all, "all", false, "all openings")
	return c
}

func openIDs(list []control.Opening) []string {
	var ids []string
	for _, x := range list {
		if x.Ended.IsZero() {
			ids = append(ids, x.ID)
		}
	}
	return ids
}

// withoutCloser says what becomes of openings that no daemon looks after.
func withoutCloser(err error) error {
	if errors.Is(err, control.ErrNoDaemon) {
		return fmt.Errorf("%w; start it (systemctl start pghardend); without it, an opening still ends when its time is up", err)
	}
	return err
}
