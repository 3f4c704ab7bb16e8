package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/control"
)

const shownDrifts = 5

func newStatus(o *options) *cobra.Command {
	return o.jsonFlag(&cobra.Command{
		Use:   "status",
		Short: "Show what is configured and what is enforced (exit 3 if degraded)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := agent.LoadConfig(cmd.Context(), o.config)
			if err != nil {
				return err
			}
			s, err := control.NewClient(cfg.RuntimeDir).Status(cmd.Context())
			if errors.Is(err, control.ErrNoDaemon) {
				s = control.Status{Node: cfg.Node, State: control.StateDegraded, Reasons: []string{
					fmt.Sprintf("no daemon is running on %s, so nothing is watched; start it (systemctl start pghardend), or see `pghardend verify`", cfg.RuntimeDir),
				}}
			} else if err != nil {
				return err
			}
			if o.json {
				err = o.printJSON(s)
			} else {
				err = printStatus(o.out, s)
			}
			if err == nil && s.State != control.StateOK {
				err = &codeError{code: exitDegraded}
			}
			return err
		},
	})
}

func printStatus(out io.Writer, s control.Status) error {
	fmt.Fprintf(out, "%s: node %s (%s) of instance %s\n", s.State, s.Node, s.Role, s.Instance)
	for _, r := range s.Reasons {
		fmt.Fprintf(out, "  ! %s\n", strings.ReplaceAll(strings.TrimSpace(r), "\n", "\n    "))
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(s.Layers) > 0 {
		fmt.Fprintln(w, "\nSUBJECT\tLAYER\tCONFIGURED\tENFORCED\tDETAIL")
	}
	for _, l := range s.Layers {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Subject, l.Name, yesNo(l.Configured), yesNo(l.Enforced), l.Detail)
	}
	if len(s.Services) > 0 {
		fmt.Fprintln(w, "\nSERVICE\tSTATE\tPID\tPROCESSES\tRESTARTS\tSINCE")
	}
	for _, svc := range s.Services {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%s\n", svc.Name, svc.State, svc.PID, svc.Processes, svc.Restarts, svc.Since.Format(time.RFC3339))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return printDrift(out, s.Drift)
}

func printDrift(out io.Writer, drift []control.Drift) error {
	if len(drift) == 0 {
		return nil
	}
	fmt.Fprintf(out, "\nLAST CHANGES (%d of %d)\n", min(shownDrifts, len(drift)), len(drift))
	for _, d := range drift[max(0, len(drift)-shownDrifts):] {
		end := fmt.Sprintf("restored after at most %.0f ms", d.OpenMS)
		if d.Error != "" {
			end = "NOT restored"
		}
		fmt.Fprintf(out, "%s %s (%s), %s\n", d.Found.Format(time.RFC3339), d.Resource, d.Cause, end)
		for line := range strings.Lines(firstLines(d.What, 6)) {
			fmt.Fprintf(out, "  %s", line)
		}
	}
	return nil
}

// firstLines cuts long text; --json has all of it.
func firstLines(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	if len(lines) <= n+1 {
		return text
	}
	return strings.Join(lines[:n], "") + fmt.Sprintf("… %d more lines\n", len(lines)-n-1)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}
