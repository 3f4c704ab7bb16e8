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

// planJSON is what `plan --json` and `apply --json` print.
type planJSON struct {
	Changes     []firewall.Change `json:"changes"`     // of rules and sets
	Foreign     []string          `json:"foreign"`     // rules of others that matter to ours
	Sysctls     []sysctlJSON      `json:"sysctls"`     // to set
	Connections []string          `json:"connections"` // that apply cut
}

type sysctlJSON struct {
	Key  string `json:"key"`
	Have string `json:"have"`
	Want string `json:"want"`
}

func (o *options) printPlan(plan agent.Changes, whenEmpty string) error {
	if o.json {
		return o.printJSON(planToJSON(plan))
	}
	text := plan.String()
	if plan.Empty() {
		text = whenEmpty + "\n"
	}
	_, err := fmt.Fprint(o.out, text)
	return err
}

func planToJSON(plan agent.Changes) planJSON {
	p := planJSON{
		Changes:     append([]firewall.Change{}, plan.Firewall.Changes...),
		Foreign:     append([]string{}, plan.Firewall.Foreign...),
		Sysctls:     []sysctlJSON{},
		Connections: []string{},
	}
	for _, c := range plan.Sysctl.Changes {
		p.Sysctls = append(p.Sysctls, sysctlJSON(c))
	}
	for _, c := range plan.Connections.Connections {
		p.Connections = append(p.Connections, c.String())
	}
	return p
}

func (o *options) printJSON(v any) error {
	enc := json.NewEncoder(o.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
