package main

import (
	"context"
	"fmt"
	"io"
	"os/user"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
)

const (
	launches = 51              // of each kind, in turns; the medians count
	launched = "/usr/bin/true" // ends at once
)

// benchLaunch compares a launch with all layers to a bare execve of the same program as the same user.
func benchLaunch(ctx context.Context, out io.Writer, h *testbed.Host) error {
	u, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	groups, err := testbed.SupplementaryGroups(u)
	if err != nil {
		return err
	}
	a, err := testbed.NewAgent(ctx, h, testbed.AgentConfig{
		Peers:    peers(h, sizes[0]),
		Services: map[string]testbed.Service{"probe": {Profile: "postgres", User: u.Username, Groups: groups, Command: []string{launched}}},
	})
	if err != nil {
		return err
	}
	var bare, confined []float64
	for range launches {
		took, err := milliseconds(func() error { return h.CommandAs(ctx, u, launched).Run() })
		if err != nil {
			return fmt.Errorf("without confinement: %w", err)
		}
		bare = append(bare, took)
		took, err = milliseconds(func() error {
			r, err := a.CLI(ctx, "exec", "--service", "probe")
			if err == nil && r.Code != 0 {
				err = fmt.Errorf("exit code %d: %s", r.Code, r.Stderr)
			}
			return err
		})
		if err != nil {
			return err
		}
		confined = append(confined, took)
	}
	_, err = fmt.Fprintf(out, "%s, from the start to its end, median of %d: %.1f ms by exec --service, %.1f ms bare: %.1f ms more\n",
		launched, launches, medianOf(confined), medianOf(bare), medianOf(confined)-medianOf(bare))
	return err
}

// milliseconds is how long f took.
func milliseconds(f func() error) (float64, error) {
	began := time.Now()
	err := f()
	return float64(time.Since(began).Microseconds()) / 1000, err
}
