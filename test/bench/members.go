package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
)

// rounds is how often each thing is timed; an odd number has a middle.
const rounds = 11

var sizes = []int{5, 1000, 10000}

// result is what a network of some size costs.
type result struct {
	addresses int
	rules     int           // of both families, in our chains
	full      time.Duration // apply: from no rules at all
	change    time.Duration // apply: one address more or less
	idle      time.Duration // apply: nothing to do
}

// benchMembers measures what the number of addresses costs.
func benchMembers(ctx context.Context, out io.Writer, h *testbed.Host, backend string) error {
	var results []result
	for _, n := range sizes {
		r, err := measure(ctx, h, backend, n)
		if err != nil {
			return fmt.Errorf("cannot measure %d addresses on %s: %w", n, backend, err)
		}
		results = append(results, r)
	}
	return show(out, backend, results)
}

// measure times the one-shot command as an operator runs it, the start of the process and the reading of both files included.
func measure(ctx context.Context, h *testbed.Host, backend string, n int) (result, error) {
	r := result{addresses: n}
	cfg := testbed.AgentConfig{Backend: backend, Peers: peers(h, n)}
	a, err := testbed.NewAgent(ctx, h, cfg)
	if err != nil {
		return r, err
	}
	if r.full, err = median(func() (time.Duration, error) {
		if _, err := command(ctx, a, "teardown"); err != nil {
			return 0, err
		}
		return command(ctx, a, "apply")
	}); err != nil {
		return r, err
	}
	if r.rules, err = countRules(ctx, h, backend); err != nil {
		return r, err
	}
	more := 0
	if r.change, err = median(func() (time.Duration, error) {
		more = 1 - more
		if err := a.WritePeers(peers(h, n+more)); err != nil {
			return 0, err
		}
		return command(ctx, a, "apply")
	}); err != nil {
		return r, err
	}
	if r.idle, err = median(func() (time.Duration, error) { return command(ctx, a, "apply") }); err != nil {
		return r, err
	}
	_, err = command(ctx, a, "teardown")
	return r, err
}

// peers is an instance whose applications come from n addresses, half of them IPv6.
func peers(h *testbed.Host, n int) testbed.Peers {
	return testbed.Peers{
		Instance: "orders-prod",
		Nodes:    []testbed.Peer{testbed.PeerOf(h, "pgpool")},
		Networks: map[string][]string{"control_plane": {"10.0.0.0/24", "fd00:10::/64"}, "applications": testbed.ManyPrefixes(n)},
	}
}

func command(ctx context.Context, a *testbed.Agent, args ...string) (time.Duration, error) {
	began := time.Now()
	r, err := a.CLI(ctx, args...)
	took := time.Since(began)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("pghardend %s: exit code %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return took, err
}

func countRules(ctx context.Context, h *testbed.Host, backend string) (int, error) {
	n := 0
	for _, tool := range []string{"iptables", "ip6tables"} {
		out, err := h.Run(ctx, tool+"-"+backend+"-save")
		if err != nil {
			return 0, err
		}
		n += strings.Count(out, "-A PGHARDEND-")
	}
	return n, nil
}

func median(f func() (time.Duration, error)) (time.Duration, error) {
	var all []time.Duration
	for range rounds {
		d, err := f()
		if err != nil {
			return 0, err
		}
		all = append(all, d)
	}
	return medianOf(all), nil
}

func show(out io.Writer, backend string, results []result) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%s, median of %d\trules\tapply, from nothing\tapply, one address\tapply, no change\t\n", backend, rounds)
	first := results[0]
	for _, r := range results {
		fmt.Fprintf(w, "%d addresses\t%d\t%s\t%s\t%s\t\n", r.addresses, r.rules,
			timed(r.full, first.full), timed(r.change, first.change), timed(r.idle, first.idle))
	}
	return w.Flush()
}

// timed shows a duration and its ratio to that of the smallest network.
func timed(d, first time.Duration) string {
	return fmt.Sprintf("%d ms (×%.1f)", d.Milliseconds(), float64(d)/float64(first))
}
