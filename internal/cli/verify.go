package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
)

func newVerify(o *options) *cobra.Command {
	var service string
	var deep bool
	c := o.jsonFlag(&cobra.Command{
		Use:   "verify",
		Short: "Compare every live process and rule with what was asked for (exit 3 if any differs)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := agent.Verify(cmd.Context(), o.config, service, deep)
			if err != nil {
				return err
			}
			if o.json {
				err = o.printJSON(v)
			} else {
				err = o.printVerification(v)
			}
			if err == nil && !v.OK {
				err = &codeError{code: exitDegraded}
			}
			return err
		},
	})
	c.Flags().BoolVar(&deep, "deep", false, "read the seccomp filter of each process, which stops it for a moment, and not only of those that cannot have inherited it")
	c.Flags().StringVar(&service, "service", "", "only this service")
	return c
}

func (o *options) printVerification(v agent.Verification) error {
	w := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', 0)
	if len(v.Processes) > 0 {
		fmt.Fprintln(w, "PID\tPARENT\tROLE\tTHREADS\tOOM\tPROGRAM\tCGROUP\tLISTENS")
	}
	for _, p := range v.Processes {
		fmt.Fprintf(w, "%d\t%d\t%s\t%d\t%d\t%s\t%s\t%s\n", p.PID, p.Parent, p.Role, p.Threads, p.OOMScoreAdj, p.Program, p.Cgroup, strings.Join(p.Listens, ", "))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(v.Findings) > 0 {
		fmt.Fprintln(w, "PID\tLAYER\tCHECK\tWANT\tGOT\tOK")
	}
	for _, f := range v.Findings {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", f.PID, f.Layer, f.Check, f.Want, f.Got, yesNo(f.OK))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, s := range v.Services {
		fmt.Fprintf(o.out, "service %s: %d processes, the first is %d\n", s.Name, s.Processes, s.PID)
	}
	for _, p := range v.Problems {
		fmt.Fprintf(o.out, "! %s\n", strings.TrimSpace(p))
	}
	if v.OK {
		fmt.Fprintf(o.out, "all %d checks passed; rules, sets and sysctls equal the plan\n", len(v.Findings))
	}
	return nil
}
