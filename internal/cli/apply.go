package cli

import (
	"errors"
	"fmt"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/control"
)

func newApply(o *options) *cobra.Command {
	var request control.ApplyRequest
	apply := agent.Apply
	c := o.jsonFlag(&cobra.Command{
		Use:   "apply",
		Short: "Bring the rules to the state of the files, once",
		Long: "Bring the rules to the state of the files, once, and print what changed.\n" +
			"If the daemon is running, it does the work.\n\n" +
			"With --confirm-within, the state before is put back unless somebody says\n" +
			"`pghardend confirm` in time. Where no daemon is running, the command stays to see\n" +
			"to that, also if its terminal goes away; Ctrl-C puts the state before back at once.\n" +
			"A change that the daemon took up by itself in the last 2 minutes counts as well.\n\n" +
			"With --boot, while systemd boots the machine: where neither the files nor the\n" +
			"last good ones can be used, the control plane alone is let in, as far as it\n" +
			"can still be read from the peer list. Nobody is if it cannot.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("confirm-within") {
				return o.applyPending(cmd, request)
			}
			if cmd.Flags().Changed("boot") {
				apply = agent.ApplyAtBoot
			}
			a, err := apply(cmd.Context(), o.config, request.Force)
			if err != nil && a.Changes.Empty() {
				return err
			}
			return errors.Join(o.printForGood(a, err == nil), err)
		},
	})
	c.Flags().BoolVar(&request.Force, "force", false, "accept what looks suspicious, such as a peer list that lost most of its nodes or rules that let no operator in")
	c.Flags().Bool("boot", false, "let the control plane alone in if the files are bad, there are no last good ones, and the machine boots just now")
	c.Flags().DurationVar(&request.ConfirmWithin, "confirm-within", 0, "put the state before back unless confirmed in this time (10s to 1h)")
	c.MarkFlagsMutuallyExclusive("boot", "confirm-within")
	return c
}

// applyPending must outlive the session that the change may just have cut off.
func (o *options) applyPending(cmd *cobra.Command, r control.ApplyRequest) error {
	if r.ConfirmWithin == 0 {
		return errors.New("--confirm-within: 0s is no time to confirm in; leave it out to apply for good")
	}
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	waits := false
	err := agent.ApplyPending(cmd.Context(), o.config, r, func(a agent.Applied) error {
		waits = !a.Until.IsZero() && !a.ByDaemon
		// A terminal that has gone is no reason to go back; nobody may read this.
		_ = o.printApplied(a)
		return nil
	})
	if err == nil && waits && !o.json {
		fmt.Fprintln(o.out, "confirmed")
	}
	return err
}

// printForGood is for a change that needs no confirmation. One that does may be
// in force already, and is not there to stay because of this.
func (o *options) printForGood(a agent.Applied, done bool) error {
	if o.json {
		return o.printJSON(appliedToJSON(a))
	}
	if err := o.printPlan(a.Changes, "nothing to do"); err != nil {
		return err
	}
	if done && !a.Changes.Empty() {
		fmt.Fprintln(o.out, "done: rules and sets equal the plan now")
	}
	if !a.Until.IsZero() {
		fmt.Fprintf(o.out, "but what is in force goes back at %s, unless `pghardend confirm` is said before\n", a.Until.Format(time.RFC3339))
	}
	return nil
}

// appliedJSON is planJSON and until when the change has to be confirmed.
type appliedJSON struct {
	planJSON
	Until *time.Time `json:"confirm_until,omitempty"`
}

func appliedToJSON(a agent.Applied) appliedJSON {
	out := appliedJSON{planJSON: planToJSON(a.Changes)}
	if !a.Until.IsZero() {
		out.Until = &a.Until
	}
	return out
}

func (o *options) printApplied(a agent.Applied) error {
	if o.json {
		return o.printJSON(appliedToJSON(a))
	}
	if err := o.printPlan(a.Changes, "no rule or set differs"); err != nil {
		return err
	}
	if a.Until.IsZero() {
		_, err := fmt.Fprintln(o.out, "there is nothing to confirm")
		return err
	}
	who := "this command waits for that"
	if a.ByDaemon {
		who = "the daemon waits for that"
	}
	_, err := fmt.Fprintf(o.out, "in force until %s, unless `pghardend confirm` is said before; %s\n", a.Until.Format(time.RFC3339), who)
	return err
}
