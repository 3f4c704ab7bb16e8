package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
)

// A drift is one way to change what the daemon keeps.
type drift struct {
	name  string
	do    []string // the command that does it
	tidy  []string // removes what is foreign and stays; may be empty
	times int
}

const (
	told = 167 // drifts of each kind that the kernel tells of: 1,002 in all
)

var drifts = []drift{
	{name: "jump deleted", do: []string{"iptables-nft", "-D", "INPUT", "1"}, times: told},
	{name: "IPv6 jump deleted", do: []string{"ip6tables-nft", "-D", "OUTPUT", "1"}, times: told},
	{name: "chain flushed", do: []string{"iptables-nft", "-F", "PGHARDEND-IN"}, times: told},
	{name: "rule edited", do: []string{"iptables-nft", "-R", "PGHARDEND-IN", "3", "-j", "ACCEPT"}, times: told},
	{name: "ACCEPT on top", do: []string{"iptables-nft", "-I", "INPUT", "-j", "ACCEPT"}, tidy: []string{"iptables-nft", "-D", "INPUT", "-j", "ACCEPT"}, times: told},
	{name: "nft flush ruleset", do: []string{"nft", "flush", "ruleset"}, times: told},
}

// pause is between a repair and the next drift: the look that follows each repair is over then, and damping, which is for
// tools that fight us, does not set in.
func pause() {
	time.Sleep(160*time.Millisecond + rand.N(100*time.Millisecond)) //nolint:forbidigo // drifts come at any time, and not when something is ready for them
}

// benchWindow measures for how long each kind of drift is open.
func benchWindow(ctx context.Context, out io.Writer, h *testbed.Host) (err error) {
	a, err := settled(ctx, h, testbed.AgentConfig{Backend: "nft", Peers: peers(h, sizes[0])})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave(ctx, a)) }()
	seen, err := watchCommits(h)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, seen.close()) }()
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "nft, from the foreign commit to ours\ttimes\tp50\tp99\tmax\tabove 5 ms\t\n")
	var all []time.Duration
	for _, d := range drifts {
		times, err := windows(ctx, h, seen, d)
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		if r, err := a.CLI(ctx, "plan"); err != nil || r.Code != 0 {
			return errors.Join(fmt.Errorf("after all of %q there is still something to do: %s", d.name, r.Stdout), err)
		}
		row(w, d.name, times)
		all = append(all, times...)
	}
	row(w, "all", all)
	if n := seen.lost.Load(); n > 0 {
		return fmt.Errorf("%d commits were lost, so the numbers are not to be trusted", n)
	}
	return w.Flush()
}

func windows(ctx context.Context, h *testbed.Host, seen *commits, d drift) ([]time.Duration, error) {
	var all []time.Duration
	for range d.times {
		seen.drop()
		if _, err := h.Run(ctx, d.do[0], d.do[1:]...); err != nil {
			return nil, err
		}
		open, err := seen.window()
		if err != nil {
			return nil, err
		}
		all = append(all, open)
		pause()
		if len(d.tidy) > 0 {
			if _, err := h.Run(ctx, d.tidy[0], d.tidy[1:]...); err != nil {
				return nil, err
			}
			pause()
		}
	}
	return all, nil
}

// bound is what 99 % of all windows are to be within.
const bound = 5 * time.Millisecond

// row prints percentiles of all times: nearest rank.
func row(w io.Writer, name string, times []time.Duration) {
	times = slices.Sorted(slices.Values(times))
	rank := func(p int) string {
		return fmt.Sprintf("%.2f ms", float64(times[max(0, (len(times)*p+99)/100-1)].Microseconds())/1000)
	}
	above := 0
	for _, t := range times {
		if t > bound {
			above++
		}
	}
	fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%.1f %%\t\n", name, len(times), rank(50), rank(99), rank(100), 100*float64(above)/float64(len(times)))
}

// settled is an agent whose daemon runs and has nothing to do.
func settled(ctx context.Context, h *testbed.Host, cfg testbed.AgentConfig) (*testbed.Agent, error) {
	a, err := testbed.StartAgent(ctx, h, cfg)
	if err != nil {
		return nil, err
	}
	return a, a.Await(ctx, "a daemon with nothing to do", func(ctx context.Context) error {
		r, err := a.CLI(ctx, "status")
		if err == nil && r.Code != 0 {
			err = errors.New(r.Stdout + r.Stderr)
		}
		return err
	})
}

// leave ends the daemon and removes its rules.
func leave(ctx context.Context, a *testbed.Agent) error {
	_, err := a.Stop(ctx)
	if err != nil {
		return err
	}
	_, err = command(ctx, a, "teardown")
	return err
}
