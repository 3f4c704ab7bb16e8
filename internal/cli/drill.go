package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/drill"
	"github.com/pghardend/pghardend/internal/launch"
)

func newDrill(o *options) *cobra.Command {
	var r agent.DrillRequest
	var dry bool
	c := o.jsonFlag(&cobra.Command{
		Use:   "drill [--service NAME] [--rows A36,A40]",
		Short: "Attack a scratch copy of a service in its confinement, and say what stopped it (exit 3 if something did not)",
		Long: "Attack a scratch copy of a service in the service's own confinement, and say which layer\n" +
			"stopped what. Each attack has a control: the same act must succeed without the layers.\n" +
			"It works on data of its own, as a user of its own, in a network of its own, and removes\n" +
			"all of it. No service, file, rule or packet of the host is touched.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := agent.PlanDrill(cmd.Context(), o.config, r)
			if err != nil {
				return err
			}
			switch {
			case dry && o.json:
				return o.printJSON(plan)
			case dry:
				return printDrillPlan(o.out, plan)
			}
			fmt.Fprintln(o.errOut, drillSummary(plan))
			r.Out = o.errOut
			report, err := agent.Drill(cmd.Context(), o.config, r)
			if err != nil {
				return err
			}
			if o.json {
				err = o.printJSON(report)
			} else {
				err = printDrill(o.out, report)
			}
			if err == nil && !report.OK {
				err = &codeError{code: exitDegraded}
			}
			return err
		},
	})
	c.Flags().StringVar(&r.Service, "service", "", "the service; may be left out if there is only one")
	c.Flags().StringSliceVar(&r.Rows, "rows", nil, "only these rows, such as A36,A40")
	c.Flags().BoolVar(&r.Ablate, "ablate", false, "also find all layers that stop an attack alone")
	c.Flags().StringVar(&r.Dir, "dir", "", "directory for the scratch area (default state_dir)")
	c.Flags().StringSliceVar(&r.Without, "without", nil, "leave layers out, to see the drill fail")
	_ = c.Flags().MarkHidden("without") // it is there
	c.Flags().BoolVar(&dry, "dry-run", false, "say what would be done")
	return c
}

// drillSummary is what a drill is about to do.
func drillSummary(p agent.DrillPlan) string {
	return fmt.Sprintf("drill of service %s: %d attempts on a scratch copy below %s, in namespaces of its own; nothing else is touched",
		p.Service, len(p.Attempts), p.Dir)
}

func printDrillPlan(out io.Writer, p agent.DrillPlan) error {
	fmt.Fprintln(out, drillSummary(p))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROW\tATTEMPT\tDOES")
	for _, a := range p.Attempts {
		fmt.Fprintf(w, "%s\t%s\t%s\n", a.Row, a.Name, a.Does)
	}
	return w.Flush()
}

func printDrill(out io.Writer, r drill.Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	alone := ""
	if r.Ablated {
		alone = "\tALONE"
	}
	fmt.Fprintln(w, "ROW\tATTEMPT\tRESULT\tLAYER"+alone+"\tEVIDENCE")
	counts := map[string]int{}
	for _, a := range r.Attempts {
		counts[a.Result]++
		layer := string(a.Layer)
		if layer == "" {
			layer = "-"
		}
		if r.Ablated {
			alone = fmt.Sprintf("\t%d: %s", len(a.Alone), layerList(a.Alone))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s%s\t%s\n", a.Row, a.Name, a.Result, layer, alone, a.Evidence)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, l := range r.Layers {
		if !l.On {
			fmt.Fprintf(out, "layer %s is off: %s\n", l.Layer, l.Why)
		}
	}
	for _, note := range r.Notes {
		fmt.Fprintln(out, note)
	}
	for _, a := range r.Attempts {
		if a.Single != "" {
			fmt.Fprintf(out, "one layer alone: %s %s: %s\n", a.Row, a.Name, a.Single)
		}
	}
	for _, a := range r.Attempts {
		if a.Result == drill.NotStopped || a.Result == drill.Open {
			fmt.Fprintf(out, "! %s %s (%s): %s: %s\n", a.Row, a.Name, a.Does, a.Result, a.Advice)
		}
	}
	fmt.Fprintf(out, "%d stopped, %d NOT STOPPED, %d open, %d not applicable here\n",
		counts[drill.Stopped], counts[drill.NotStopped], counts[drill.Open], counts[drill.NotApplicable])
	return nil
}

func layerList(list []drill.Layer) string {
	if len(list) == 0 {
		return "-"
	}
	var names []string
	for _, l := range list {
		names = append(names, string(l))
	}
	return strings.Join(names, ",")
}

// newDrillBox is the first process in the namespaces of a drill.
func newDrillBox(o *options) *cobra.Command {
	var r agent.DrillRequest
	var area string
	var uid int
	c := &cobra.Command{Use: agent.DrillBoxCommand, Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return agent.DrillBox(cmd.Context(), o.config, area, uid, r, o.out)
	}}
	c.Flags().StringVar(&r.Service, "service", "", "")
	c.Flags().StringSliceVar(&r.Rows, "rows", nil, "")
	c.Flags().BoolVar(&r.Ablate, "ablate", false, "")
	c.Flags().StringSliceVar(&r.Without, "without", nil, "")
	c.Flags().IntVar(&r.Score, "score", 0, "")
	c.Flags().BoolVar(&r.Unit, "unit", false, "")
	c.Flags().StringVar(&area, "area", "", "")
	c.Flags().IntVar(&uid, "uid", 0, "")
	return c
}

// newDrillStage becomes a program under some layers.
func newDrillStage(o *options) *cobra.Command {
	var service, root string
	var score int
	var unit bool
	var layers []string
	c := &cobra.Command{Use: agent.DrillStageCommand, Hidden: true, RunE: func(cmd *cobra.Command, args []string) error {
		err := agent.DrillStage(cmd.Context(), o.config, service, root, score, unit, layers, args)
		var step *launch.Error
		if errors.As(err, &step) {
			return &codeError{code: step.Code(), err: err}
		}
		return &codeError{code: exitExecConfig, err: err}
	}}
	c.Flags().StringVar(&service, "service", "", "")
	c.Flags().StringVar(&root, "root", "", "")
	c.Flags().IntVar(&score, "score", 0, "")
	c.Flags().BoolVar(&unit, "unit", false, "")
	c.Flags().StringSliceVar(&layers, "layers", nil, "")
	return c
}
