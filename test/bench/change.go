package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// benchChange measures what one address more or less costs a running daemon: what its files say is known, or is not.
func benchChange(ctx context.Context, out io.Writer, h *testbed.Host) error {
	for _, n := range sizes {
		if err := change(ctx, out, h, n); err != nil {
			return fmt.Errorf("%d addresses: %w", n, err)
		}
	}
	return nil
}

func change(ctx context.Context, out io.Writer, h *testbed.Host, n int) (err error) {
	a, err := settled(ctx, h, testbed.AgentConfig{Node: h.Name(), Backend: firewall.BackendNFT, Peers: peers(h, n)})
	if err != nil {
		return err
	}
	whole, err := wholeWay(ctx, h, a, n)
	if err != nil {
		return err
	}
	if _, err := a.Stop(ctx); err != nil {
		return err
	}
	alone, err := difference(ctx, h, a, n)
	if err != nil {
		return err
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	fmt.Fprintf(out, "nft, one address of %d, median of %d: Diff and Apply %.2f ms; from the file to the kernel, by the daemon, %.0f ms\n",
		n, rounds, ms(alone), ms(whole))
	_, err = command(ctx, a, "teardown")
	return err
}

// difference is the time for what the daemon does once it has read the files and the kernel.
func difference(ctx context.Context, h *testbed.Host, a *testbed.Agent, n int) (time.Duration, error) {
	var want [2]firewall.Ruleset
	for more := range want {
		if err := a.WritePeers(peers(h, n+more)); err != nil {
			return 0, err
		}
		d, err := agent.Load(ctx, a.ConfigPath)
		if err != nil {
			return 0, err
		}
		want[more] = d.Rules
	}
	more := rounds % 2 // which the kernel has, after so many turns
	return median(func() (took time.Duration, err error) {
		more = 1 - more
		return took, h.Do(func() error {
			fw, err := firewall.Open(ctx, firewall.BackendNFT)
			if err != nil {
				return err
			}
			got, err := fw.Observe(ctx)
			if err != nil {
				return err
			}
			began := time.Now()
			plan := firewall.Diff(want[more], got)
			if plan.Empty() {
				return errors.New("there is nothing to do")
			}
			err = fw.Apply(ctx, plan)
			took = time.Since(began)
			return err
		})
	})
}

// wholeWay is the time from the replaced file to the kernel. The daemon waits for a file that changed to settle.
func wholeWay(ctx context.Context, h *testbed.Host, a *testbed.Agent, n int) (time.Duration, error) {
	set, last := firewall.SetName("applications", firewall.IPv4), testbed.ManyPrefixes(n + 1)[n]
	if strings.Contains(last, ":") {
		set = firewall.SetName("applications", firewall.IPv6)
	}
	more := 0
	return median(func() (time.Duration, error) {
		more = 1 - more
		began := time.Now()
		if err := a.WritePeers(peers(h, n+more)); err != nil {
			return 0, err
		}
		err := a.Await(ctx, "the address in the set, or not", func(ctx context.Context) error {
			_, err := h.Run(ctx, "ipset", "test", set, last)
			if (err == nil) != (more == 1) {
				return fmt.Errorf("%s in %s: %w", last, set, err)
			}
			return nil
		})
		return time.Since(began), err
	})
}
