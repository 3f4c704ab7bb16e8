package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/control"
)

// What is printed of long lists and texts; --json has all.
const (
	shownDrifts = 5
	shownLines  = 8
)

func newStatus(o *options) *cobra.Command {
	return o.jsonFlag(&cobra.Command{
		Use:   "status",
		Short: "Show what is configured and what is enforced (exit 3 if degraded)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir := agent.RuntimeDir(cmd.Context(), o.config)
			s, err := control.NewClient(dir).Status(cmd.Context())
			if errors.Is(err, control.ErrNoDaemon) {
				s = noDaemon(cmd.Context(), o.config, err)
			} else if err != nil {
				return err
			}
			if o.json {
				err = o.printJSON(s)
			} else {
				err = printStatus(o.out, s, time.Now())
			}
			if err == nil && s.State != control.StateOK {
				err = &codeError{code: exitDegraded}
			}
			return err
		},
	})
}

// noDaemon is the status where nobody answers: what was enforced may still be,
// but nobody looks. The node's name is there if the configuration can be read.
func noDaemon(ctx context.Context, configFile string, cause error) control.Status {
	s := control.Status{
		Version: version, State: control.StateDegraded,
		Reasons: []string{cause.Error() + ", so nothing is watched or repaired; start the daemon (systemctl start pghardend), `pghardend verify` says how things stand"},
		Layers:  []control.Layer{}, Services: []control.Service{}, Drift: []control.Drift{}, Openings: []control.Opening{},
		Denials:  control.Denials{Source: "none", Last: []control.Denial{}},
		Warnings: []string{},
	}
	d, err := agent.Load(ctx, configFile)
	if err == nil {
		err = agent.ModuleFault(ctx, d)
	}
	if err != nil {
		s.Reasons = append(s.Reasons, err.Error())
	}
	s.Node, s.Role, s.Instance = d.Self.Name, d.Self.Role, d.Peers.Instance
	return s
}

func printStatus(out io.Writer, s control.Status, now time.Time) error {
	fmt.Fprint(out, s.State)
	if s.Node != "" {
		fmt.Fprintf(out, ": node %s (%s) of instance %s", s.Node, s.Role, s.Instance)
	}
	fmt.Fprintln(out)
	for _, r := range s.Reasons {
		fmt.Fprintf(out, "  ! %s\n", strings.ReplaceAll(digest(r, shownLines), "\n", "\n    "))
	}
	for _, r := range s.Warnings {
		fmt.Fprintf(out, "  * %s\n", strings.ReplaceAll(digest(r, shownLines), "\n", "\n    "))
	}
	if p := s.Pending; p != nil {
		fmt.Fprintf(out, "  ? a change goes back at %s (%s left), unless `pghardend confirm` is said before\n", p.Until.Format(time.RFC3339), left(p.Until, now))
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(s.Layers) > 0 {
		fmt.Fprintln(w, "\nSUBJECT\tLAYER\tCONFIGURED\tENFORCED\tDETAIL")
	}
	for _, l := range s.Layers {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Subject, l.Name, yesNo(l.Configured), enforcedText(l), l.Detail)
	}
	if len(s.Services) > 0 {
		fmt.Fprintln(w, "\nSERVICE\tSTATE\tPID\tPROCESSES\tRESTARTS\tSINCE")
	}
	for _, svc := range s.Services {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%s\n", svc.Name, svc.State, svc.PID, svc.Processes, svc.Restarts, svc.Since.Format(time.RFC3339))
	}
	if len(s.Openings) > 0 {
		fmt.Fprintln(w, "\nOPENING\tLETS IN\tUNTIL\tLEFT\tBY\tREASON")
	}
	for _, x := range s.Openings {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", x.ID, openingText(x), x.Until.Format(time.RFC3339), left(x.Until, now), x.By, x.Reason)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !s.LastLook.IsZero() {
		fmt.Fprintf(out, "\nlast look %s ago; drift is announced by: %s\n", lookAge(now.Sub(s.LastLook)), cmp.Or(s.Alarms, "nothing, only looked for"))
	}
	if err := printDrift(out, s.Drift); err != nil {
		return err
	}
	return printDenials(out, s.Denials)
}

// left is how much time there is until then, to the second.
func left(until, now time.Time) string {
	return max(0, until.Sub(now)).Round(time.Second).String()
}

func printDrift(out io.Writer, drift []control.Drift) error {
	if len(drift) == 0 {
		return nil
	}
	shown := lastDrifts(drift, shownDrifts)
	fmt.Fprintf(out, "\nLAST CHANGES (%d of %d)\n", len(shown), len(drift))
	for _, d := range shown {
		fmt.Fprintf(out, "%s %s (%s), %s\n", d.Found.Local().Format(time.RFC3339), d.Resource, d.Cause, driftEnd(d))
		if d.Who != nil {
			fmt.Fprintf(out, "  changed by %s\n", oneLine(d.Who.String()))
		}
		for line := range strings.Lines(digest(d.What, shownLines)) {
			fmt.Fprintf(out, "  %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	if len(shown) < len(drift) {
		fmt.Fprintln(out, "`pghardend events` shows more")
	}
	return nil
}

// lastDrifts are the last n, of which what was changed on purpose pushes none out
// that was not.
func lastDrifts(list []control.Drift, n int) []control.Drift {
	left := map[bool]int{}
	for _, d := range list {
		left[isDrift(d)]++
	}
	most := map[bool]int{true: min(n, left[true])}
	most[false] = n - most[true]
	var out []control.Drift
	for _, d := range list {
		if left[isDrift(d)] <= most[isDrift(d)] {
			out = append(out, d)
		}
		left[isDrift(d)]--
	}
	return out
}

// isDrift counts as well what is not as it should be still.
func isDrift(d control.Drift) bool { return d.Cause == "drift" || d.Repaired.IsZero() }

func driftEnd(d control.Drift) string {
	switch {
	case d.Restart && d.Repaired.IsZero():
		return "NOT restored, a restart is needed"
	case d.Repaired.IsZero():
		return "NOT restored"
	case d.Asked != "":
		return fmt.Sprintf("right again after at most %s, %s was asked to", ms(d.OpenMS), d.Asked)
	case d.Error != "":
		return fmt.Sprintf("right again after at most %s, by another hand", ms(d.OpenMS))
	}
	return fmt.Sprintf("restored after at most %s", ms(d.OpenMS))
}

// digest cuts long text: of a plan it leaves what differs, without the rules and
// members that are indented below, and of that the first n lines. It never cuts
// one line only.
func digest(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) <= n+1 {
		return strings.Join(lines, "\n")
	}
	all := len(lines)
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, " ") })
	if len(lines) > n {
		lines = lines[:n]
	}
	return strings.Join(lines, "\n") + fmt.Sprintf("\n… %d more lines, --json has them", all-len(lines))
}

// lookAge is never below nothing: the clock may have been set.
func lookAge(d time.Duration) string { return max(0, d).Round(10 * time.Millisecond).String() }

// enforcedText never says yes of a layer that only complains.
func enforcedText(l control.Layer) string {
	if l.Mode != "" {
		return l.Mode
	}
	return yesNo(l.Enforced)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}
