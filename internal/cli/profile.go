package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
)

func newProfile(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "profile",
		Short: "Show the seccomp profiles",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fmt.Errorf("say what; see `%s --help`", cmd.CommandPath())
		},
	}
	c.AddCommand(newProfileShow(o))
	return c
}

// profileQuestion is what `profile show` is asked.
type profileQuestion struct {
	service, profile, diff string
	features               []string
}

func newProfileShow(o *options) *cobra.Command {
	var q profileQuestion
	c := o.jsonFlag(&cobra.Command{
		Use:   "show (--service NAME | --profile NAME [--features A,B]) [--diff FILE]",
		Short: "Show which system calls a service may make and why (with --diff: exit 2 if they differ)",
		Long: "Show which system calls a service would be allowed if it were started now: each rule with its\n" +
			"reason, and whether it is the base's or a feature's; the features, and what they were chosen for.\n" +
			"With --diff, compare with a file that `profile show --json` has written.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.showProfile(cmd.Context(), q) },
	})
	c.Flags().StringVar(&q.service, "service", "", "the profile of this service, with the features that it would have now")
	c.Flags().StringVar(&q.profile, "profile", "", "a built-in profile")
	c.Flags().StringSliceVar(&q.features, "features", nil, "with --profile: features to add, separated by commas")
	c.Flags().StringVar(&q.diff, "diff", "", "a file written by `profile show --json`: print what changed since")
	return c
}

func (o *options) showProfile(ctx context.Context, q profileQuestion) error {
	report, err := q.ask(ctx, o.config)
	if err != nil {
		return err
	}
	if q.diff != "" {
		return o.diffProfile(q.diff, report)
	}
	if o.json {
		return o.printJSON(report)
	}
	return o.printProfile(report)
}

func (q profileQuestion) ask(ctx context.Context, configFile string) (agent.ProfileReport, error) {
	switch {
	case (q.service == "") == (q.profile == ""):
		return agent.ProfileReport{}, errors.New("say which: --service NAME or --profile NAME; see `pghardend profile show --help`")
	case q.service != "" && len(q.features) > 0:
		return agent.ProfileReport{}, fmt.Errorf("--features goes with --profile; those of a service are in services.%s.features", q.service)
	case q.service != "":
		return agent.ShowService(ctx, configFile, q.service)
	}
	return agent.ShowProfile(q.profile, q.features)
}

func (o *options) diffProfile(file string, now agent.ProfileReport) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var old agent.ProfileReport
	if err := json.Unmarshal(data, &old); err != nil || old.Profile == "" {
		return fmt.Errorf("cannot compare with %s: it is not what `profile show --json` writes: %w", file, err)
	}
	d, err := agent.DiffProfiles(old, now)
	if err != nil {
		return err
	}
	if o.json {
		err = o.printJSON(d)
	} else {
		err = o.printProfileDiff(d)
	}
	if err == nil && !d.Empty() {
		err = &codeError{code: exitChanges}
	}
	return err
}

func (o *options) printProfile(r agent.ProfileReport) error {
	w := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SYSCALL\tACTION\tWHEN\tFROM\tREASON")
	for _, e := range r.Entries {
		when := e.When
		if len(e.Arches) > 0 {
			when = strings.TrimSpace(when + " (" + strings.Join(e.Arches, ", ") + ")")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", e.Syscall, e.Action, when, strings.Join(e.Origins, "+"), e.Reason)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(o.out, "all others: %s\n", r.Default)
	fmt.Fprintf(o.out, "profile %s on %s: %d system calls allowed, %d instructions\n", r.Profile, r.Arch, len(r.Allowed), r.Instructions)
	for _, f := range r.Features {
		fmt.Fprintf(o.out, "feature %s: %s\n", f.Feature, f.Because)
	}
	for _, f := range r.Others {
		optIn := ""
		if f.OptIn {
			optIn = "; only if the configuration names it"
		}
		fmt.Fprintf(o.out, "not chosen: %s: %s%s\n", f.Feature, f.Description, optIn)
	}
	for _, f := range r.Wanted {
		fmt.Fprintf(o.out, "! not allowed: %s: %s\n", f.Feature, f.Because)
	}
	if r.Note != "" {
		fmt.Fprintf(o.out, "note: %s\n", r.Note)
	}
	if r.Fault != "" {
		fmt.Fprintf(o.out, "! %s\n", r.Fault)
	}
	return nil
}

func (o *options) printProfileDiff(d agent.ProfileDiff) error {
	fmt.Fprintf(o.out, "from %s\nto   %s\n", d.From, d.To)
	w := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', 0)
	for _, c := range d.Entries {
		sign := "-"
		if c.Added {
			sign = "+"
		}
		fmt.Fprintf(w, "%s %s\t%s\t%s\t%s\n", sign, c.Entry.Syscall, c.Entry.Action, c.Entry.When, c.Entry.Reason)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if d.DefaultFrom != d.DefaultTo {
		fmt.Fprintf(o.out, "all others: %s, before: %s\n", d.DefaultTo, d.DefaultFrom)
	}
	if d.Empty() {
		fmt.Fprintln(o.out, "the same calls are allowed")
		return nil
	}
	fmt.Fprintf(o.out, "calls allowed now: %s\ncalls not allowed any more: %s\n", listOr(d.AllowedAdded), listOr(d.AllowedRemoved))
	return nil
}

func listOr(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, " ")
}
