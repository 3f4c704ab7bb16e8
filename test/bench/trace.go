package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/pghardend/pghardend/pkg/trace"
)

// Tracing is switched on and off so often, and each time that many rounds of calls are made.
const (
	traceTurns  = 12
	traceRounds = 12
)

// benchTrace compares system calls while denials are traced with the same calls while they are not. What is traced is the
// host's every call, whether of a service or not: these threads are of none.
func benchTrace(ctx context.Context, out io.Writer, list []*contender) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "with denials.trace, median of %d pairs\t%s\t%s\t\n", traceTurns*traceRounds, calls[0].name, calls[len(calls)-1].name)
	more := map[*contender]map[string][]float64{}
	for _, c := range list {
		more[c] = map[string][]float64{}
	}
	for range traceTurns {
		off, err := traceTurn(ctx, list, false)
		if err != nil {
			return err
		}
		on, err := traceTurn(ctx, list, true)
		if err != nil {
			return err
		}
		for i, c := range list {
			for j, call := range calls {
				for k := range traceRounds {
					at := (k*len(calls)+j)*len(list) + i
					more[c][call.name] = append(more[c][call.name], on[at]-off[at])
				}
			}
		}
	}
	for _, c := range list {
		fmt.Fprintf(w, "%s\t%+.0f ns\t%+.0f ns\t\n", c.name, medianOf(more[c][calls[0].name]), medianOf(more[c][calls[len(calls)-1].name]))
	}
	return w.Flush()
}

// traceTurn are the times of some rounds, in ns for each call.
func traceTurn(ctx context.Context, list []*contender, traced bool) (times []float64, err error) {
	if traced {
		members, err := trace.OpenMembers(ctx)
		if err != nil {
			return nil, err
		}
		denials, err := trace.OpenDenials(ctx, members)
		if err != nil {
			return nil, errors.Join(err, members.Close())
		}
		defer func() { _ = errors.Join(denials.Close(), members.Close()) }() // the kernel ends them with this process at the latest
	}
	for range traceRounds {
		for _, call := range calls {
			for _, c := range list {
				times = append(times, c.time(call))
			}
		}
	}
	return times, nil
}
