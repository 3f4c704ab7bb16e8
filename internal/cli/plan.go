package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/pkg/firewall"
)

func newPlan(o *options) *cobra.Command {
	return o.jsonFlag(&cobra.Command{
		Use:   "plan",
		Short: "Show what apply would change now (exit 2 if anything)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := agent.Plan(cmd.Context(), o.config)
			if err != nil {
				return err
			}
			if err := o.printPlan(plan, "nothing to do"); err != nil {
				return err
			}
			if !plan.Empty() {
				return &codeError{code: exitChanges}
			}
			return nil
		},
	})
}

func (o *options) printPlan(plan firewall.Plan, whenEmpty string) error {
	if o.json {
		return o.printJSON(struct {
			Changes []firewall.Change `json:"changes"`
			Foreign []string          `json:"foreign"`
		}{append([]firewall.Change{}, plan.Changes...), append([]string{}, plan.Foreign...)})
	}
	text := plan.String()
	if plan.Empty() {
		text = whenEmpty + "\n"
	}
	_, err := fmt.Fprint(o.out, text)
	return err
}

func (o *options) printJSON(v any) error {
	enc := json.NewEncoder(o.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
