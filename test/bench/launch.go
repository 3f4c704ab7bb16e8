package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"os/user"
	"strings"
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
	var bare, confined spent
	for range launches {
		if err := bare.add(h.CommandAs(ctx, u, launched)); err != nil {
			return fmt.Errorf("without confinement: %w", err)
		}
		if err := confined.add(a.Command(ctx, "exec", "--service", "probe")); err != nil {
			return err
		}
	}
	for _, x := range []struct {
		what           string
		confined, bare []float64
	}{{"from the start to its end", confined.wall, bare.wall}, {"CPU time until then", confined.cpu, bare.cpu}} {
		with, without := medianOf(x.confined), medianOf(x.bare)
		fmt.Fprintf(out, "%s, %s, median of %d: %.1f ms by exec --service, %.1f ms bare: %.1f ms more\n", launched, x.what, launches, with, without, with-without)
	}
	return nil
}

// spent is what commands took, in milliseconds.
type spent struct{ wall, cpu []float64 }

func (s *spent) add(cmd *exec.Cmd) error {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, stderr.String())
	}
	s.wall = append(s.wall, milliseconds(time.Since(began)))
	s.cpu = append(s.cpu, milliseconds(cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()))
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
