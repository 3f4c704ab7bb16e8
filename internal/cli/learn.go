package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/pkg/learn"
)

// learnOptions are the flags of learn.
type learnOptions struct {
	service, merge, output, diff string
	length                       time.Duration
}

func newLearn(o *options) *cobra.Command {
	var l learnOptions
	c := &cobra.Command{
		Use:   "learn --service NAME [--for 10m] [--merge FILE] [--output FILE | --diff PROFILE]",
		Short: "Record what a service uses, as a profile or compared with one (diff: exit 2 if the profile lacks something)",
		Long: "Record the system calls, files, programs and ports that a service uses, by type of process,\n" +
			"until the time is over or this command is interrupted. What the service does when it starts\n" +
			"is recorded if it is started meanwhile.\n" +
			"--output FILE writes the recording, FILE.seccomp.json and FILE.landlock.yaml; without it and --diff\n" +
			"the recording goes to standard output.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if l.service == "" || l.output != "" && l.diff != "" {
				return fmt.Errorf("say which: --service NAME, and --output or --diff, not both; see `%s --help`", cmd.CommandPath())
			}
			return o.learn(cmd.Context(), l)
		},
	}
	c.Flags().StringVar(&l.service, "service", "", "the service to record")
	c.Flags().DurationVar(&l.length, "for", 0, "how long (default: until interrupted)")
	c.Flags().StringVar(&l.merge, "merge", "", "an earlier recording to add to")
	c.Flags().StringVar(&l.output, "output", "", "where to write the recording and the profiles")
	c.Flags().StringVar(&l.diff, "diff", "", "print what this profile lacks and what of it was not used")
	return c
}

func (o *options) learn(ctx context.Context, l learnOptions) error {
	var earlier learn.Recording
	var err error
	if l.merge != "" { // before the time is spent
		if earlier, err = agent.ReadRecording(ctx, l.merge); err != nil {
			return err
		}
	}
	recording, learnErr := agent.Learn(ctx, o.config, l.service, l.length, o.learnProgress())
	if recording.Runs == nil {
		return learnErr
	}
	ctx = context.WithoutCancel(ctx) // an interrupt ends the recording, not the writing
	if l.merge != "" {
		merged, err := agent.MergeRecording(earlier, recording)
		if err != nil {
			return errors.Join(learnErr, err)
		}
		recording = merged
	}
	o.sayComplete(recording)
	return errors.Join(learnErr, o.putRecording(ctx, l, recording))
}

// learnProgress prints a line when something is new, and else now and then.
func (o *options) learnProgress() func(agent.LearnProgress) {
	const silence = 10 * time.Second
	var last agent.LearnProgress
	begun := false
	return func(p agent.LearnProgress) {
		if begun && p.Calls == last.Calls && p.Types == last.Types && p.Lost == last.Lost && p.Elapsed-last.Elapsed < silence {
			return
		}
		last, begun = p, true
		fmt.Fprintf(o.errOut, "recorded %s: %d processes now, %d system calls, %d types of processes that ended, %d reports lost\n",
			p.Elapsed.Round(time.Second), p.Processes, p.Calls, p.Types, p.Lost)
	}
}

// sayComplete says what a recording may lack.
func (o *options) sayComplete(r learn.Recording) {
	if lost, unresolved := r.Lost(); !r.Complete() {
		fmt.Fprintf(o.errOut, "NOT COMPLETE: %d reports of the kernel were lost, %d paths could not be told; record again and --merge\n", lost, unresolved)
	}
	for _, run := range r.Runs {
		if run.Start {
			return
		}
	}
	fmt.Fprintln(o.errOut, "the service was not started while it was recorded: what it needs for that is missing; "+
		"restart it meanwhile, or --merge a recording that has it")
}

func (o *options) putRecording(ctx context.Context, l learnOptions, r learn.Recording) error {
	switch {
	case l.diff != "":
		d, err := agent.DiffRecording(ctx, o.config, l.diff, r)
		if err != nil {
			return err
		}
		fmt.Fprint(o.out, d.String())
		if len(d.Missing) > 0 {
			return &codeError{code: exitChanges}
		}
		return nil
	case l.output != "":
		names, err := agent.WriteRecording(ctx, l.output, r)
		if len(names) > 0 {
			fmt.Fprintf(o.errOut, "written: %s\n", strings.Join(names, ", "))
		}
		return err
	}
	text, err := r.Render()
	if err != nil {
		return err
	}
	_, err = o.out.Write(text)
	return err
}
