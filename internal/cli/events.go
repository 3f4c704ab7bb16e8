package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/control"
)

const (
	shownEvents = 20
	shownWidth  = 100 // characters of what happened; --json has all
)

func newEvents(o *options) *cobra.Command {
	request := control.EventsRequest{Limit: shownEvents}
	c := o.jsonFlag(&cobra.Command{
		Use:   "events [--follow] [--limit N]",
		Short: "Show what was not as it should be, and who did it",
		Long: "Show what was not as it should be, for how long and by whose hand. With --json, each\n" +
			"line is an object. Where no daemon runs, this shows what the last one has left.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if request.Limit < 0 {
				return fmt.Errorf("--limit is %d; give a number from 1, or 0 for all", request.Limit)
			}
			return o.showEvents(cmd.Context(), request)
		},
	})
	c.Flags().BoolVar(&request.Follow, "follow", false, "go on with those that come, until interrupted")
	c.Flags().IntVar(&request.Limit, "limit", shownEvents, "so many, the last ones; 0: all")
	return c
}

func (o *options) showEvents(ctx context.Context, request control.EventsRequest) error {
	client := control.NewClient(agent.RuntimeDir(ctx, o.config))
	if request.Follow {
		err := client.Events(ctx, request, o.printEvent)
		if errors.Is(err, context.Canceled) {
			err = nil // interrupted, which is how it ends
		}
		return withoutTeller(err)
	}
	limit := request.Limit
	if !o.json {
		request.Limit *= 2 // most are told of twice, which takes one row
	}
	var list []control.Event
	err := client.Events(ctx, request, func(e control.Event) error {
		list = append(list, e)
		return nil
	})
	if errors.Is(err, control.ErrNoDaemon) {
		fmt.Fprintf(plainWriter{o.errOut}, "pghardend: %v; these events are what the last one has left\n", err)
		list, err = agent.Events(ctx, o.config, request.Limit)
	}
	if err != nil {
		return err
	}
	if !o.json {
		return printEvents(o.out, list, limit)
	}
	for _, e := range list {
		if err := o.printEvent(e); err != nil {
			return err
		}
	}
	return nil
}

// withoutTeller says what there is where nobody can be followed.
func withoutTeller(err error) error {
	if errors.Is(err, control.ErrNoDaemon) {
		return fmt.Errorf("cannot follow: %w; start it (systemctl start pghardend); without --follow, the last events are shown", err)
	}
	return err
}

// printEvent prints one event as it comes.
func (o *options) printEvent(e control.Event) error {
	if o.json {
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(o.out, "%s\n", line)
		return err
	}
	cells := eventCells(e)
	_, err := fmt.Fprintf(o.out, "%-25s  %-14s  %-12s  %s\n", cells[0], cells[1], cells[2], strings.TrimRight(strings.Join(cells[3:], "  "), " "))
	return err
}

func printEvents(out io.Writer, list []control.Event, limit int) error {
	list = merged(list)
	if limit > 0 {
		list = list[max(0, len(list)-limit):]
	}
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "no events")
		return err
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TIME\tKIND\tOPEN\tWHAT\tWHO")
	for _, e := range list {
		fmt.Fprintln(w, strings.Join(eventCells(e), "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(table.String()) { // most have no culprit, only room for one
		if _, err := fmt.Fprintln(out, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// merged leaves one record of each drift: the last, in place of the first.
func merged(list []control.Event) []control.Event {
	type key struct {
		boot string
		pid  int
		id   uint64
	}
	at := map[key]int{}
	var out []control.Event
	for _, e := range list {
		k := key{e.Boot, e.PID, e.ID}
		i, told := at[k]
		switch {
		case e.Kind == control.KindDaemon:
			clear(at) // a daemon counts from 1 again, and in a container has the same pid
			out = append(out, e)
		case e.ID == 0:
			out = append(out, e)
		case told:
			e.Lost += out[i].Lost
			out[i] = e
		default:
			at[k] = len(out)
			out = append(out, e)
		}
	}
	return out
}

// eventCells are time, kind, how long, what and who.
func eventCells(e control.Event) []string {
	at := e.At
	if !e.Found.IsZero() {
		at = e.Found
	}
	what := gist(e.What)
	if e.Resource != "" {
		what = e.Resource + ": " + what
	}
	if e.Lost > 0 {
		what += fmt.Sprintf(" (%d events before this are lost)", e.Lost)
	}
	who := ""
	if e.Who != nil {
		who = e.Who.String()
	}
	return []string{at.Local().Format(time.RFC3339), oneLine(e.Kind), openFor(e), oneLine(what), oneLine(who)}
}

// openFor is how long it was not as it should be; nothing where that says nothing.
func openFor(e control.Event) string {
	switch {
	case e.ID == 0:
		return ""
	case e.Restart:
		return "restart"
	case e.Repaired.IsZero():
		return "NOT RESTORED"
	}
	return ms(e.OpenMS)
}

// ms is a time for people.
func ms(n float64) string {
	if n < 10 {
		return strconv.FormatFloat(math.Round(n*10)/10, 'f', -1, 64) + " ms"
	}
	if n < 10_000 {
		return fmt.Sprintf("%.0f ms", n)
	}
	return time.Duration(n * float64(time.Millisecond)).Round(time.Second).String()
}

// gist is the first line of a text, and how many like it follow: lines that are
// indented explain the one above.
func gist(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	first, more := lines[0], 0
	for _, l := range lines[1:] {
		if !strings.HasPrefix(l, " ") {
			more++
		}
	}
	if r := []rune(first); len(r) > shownWidth {
		first = string(r[:shownWidth]) + "…"
	}
	if more > 0 {
		first += fmt.Sprintf(" (and %d more)", more)
	}
	return first
}

// oneLine keeps a name that somebody has chosen from making up lines and columns.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if controls(r) || r == '\u2028' || r == '\u2029' {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
