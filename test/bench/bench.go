package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/pghardend/pghardend/internal/testbed"
)

// A part is one thing that is measured; its name picks it on the command line.
type part struct {
	name string
	run  func(ctx context.Context, out io.Writer, h *testbed.Host) error
}

func parts() []part {
	on := func(f func(context.Context, io.Writer, *testbed.Host, string) error) func(context.Context, io.Writer, *testbed.Host) error {
		return func(ctx context.Context, out io.Writer, h *testbed.Host) error {
			for _, backend := range []string{"nft", "legacy"} {
				if err := f(ctx, out, h, backend); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return []part{
		{"start", benchStart},
		{"members", on(benchMembers)},
		{"change", benchChange},
		{"window", benchWindow},
		{"storm", benchStorm},
		{"idle", on(benchIdle)},
		{"pgbench", benchPgbench},
		{"filter", benchFilter},
		{"launch", benchLaunch},
	}
}

// bench runs the parts that are named, or all.
func bench(ctx context.Context, out io.Writer, names []string) (err error) {
	for _, name := range names {
		if !slices.ContainsFunc(parts(), func(p part) bool { return p.name == name }) {
			return fmt.Errorf("there is no part %q", name)
		}
	}
	bed, err := testbed.New(ctx, "bench", []testbed.HostSpec{{Name: "pool-0", Addresses: []string{"10.20.1.20/24", "fd00:20:1::20/64"}}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.Close()) }() //nolint:contextcheck // removes even if ctx is done
	for _, p := range parts() {
		if len(names) > 0 && !slices.Contains(names, p.name) {
			continue
		}
		if err := p.run(ctx, out, bed.Host("pool-0")); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Fprintln(out)
	}
	return nil
}

// medianOf is between the two in the middle where there are two.
func medianOf[T ~int64 | ~float64](all []T) T {
	sorted, n := slices.Sorted(slices.Values(all)), len(all)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
