package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"time"

	"github.com/pghardend/pghardend/internal/cli"
	"github.com/pghardend/pghardend/internal/testbed"
)

const (
	stormDrifts = 300 // at least
	stormFor    = 20 * time.Second
	stormTop    = 15 // functions of the profile that are shown
	// heldBack is longer than a repair takes, and shorter than the least that damping holds one back.
	heldBack = 8 * time.Millisecond

	// profiled makes this program the daemon, under a profile: its first argument, before a file and the daemon's own.
	profiled = "daemon"
)

// storm is what a shell does again and again: four drifts, of which each finds something to change whether or not the
// one before was put back.
const storm = `
end=$(( $(date +%%s) + %d )); n=0
while [ $n -lt %d ] || [ $(date +%%s) -lt $end ]; do
	iptables-nft -F PGHARDEND-IN
	ip6tables-nft -I INPUT -j ACCEPT; ip6tables-nft -D INPUT -j ACCEPT
	iptables-nft -R PGHARDEND-OUT 1 -j ACCEPT
	nft insert rule ip6 filter PGHARDEND-IN counter accept
	n=$((n + 5))
done 2>/dev/null # a chain may be empty
`

// daemon runs the command line under a CPU profile.
func daemon(args []string) int {
	f, err := os.Create(args[0])
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: cannot profile: %v\n", err)
		return 1
	}
	code := cli.Run(append([]string{"pghardend"}, args[1:]...))
	pprof.StopCPUProfile()
	if err := f.Close(); err != nil {
		fmt.Fprintf(os.Stderr, "bench: cannot profile: %v\n", err)
		return 1
	}
	return code
}

// benchStorm shows what the daemon's time goes into while somebody fights it.
func benchStorm(ctx context.Context, out io.Writer, h *testbed.Host) (err error) {
	a, profile, err := profiledAgent(ctx, h)
	if err != nil {
		return err
	}
	seen, err := watchCommits(h)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, seen.close()) }()
	told := make(chan stormCount)
	stop := make(chan struct{})
	go func() { told <- seen.count(stop) }()
	before, err := used(a.PID())
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := h.Run(ctx, "sh", "-c", fmt.Sprintf(storm, int(stormFor.Seconds()), stormDrifts)); err != nil {
		return err
	}
	took := time.Since(began)
	if err := a.Await(ctx, "an empty plan after the storm", func(ctx context.Context) error {
		_, err := command(ctx, a, "plan")
		return err
	}); err != nil {
		return err
	}
	close(stop)
	n := <-told
	after, err := used(a.PID())
	if err != nil {
		return err
	}
	if lost := seen.lost.Load(); lost > 0 {
		return fmt.Errorf("%d commits were lost, so the numbers are not to be trusted", lost)
	}
	fmt.Fprintf(out, "nft, %d drifts in %.1f s, one shell's pace: %d repairs, %d of them within %s of the drift, %d held back, which put back %d drifts; %.1f %% of a core, and %.1f %% for commands\n",
		n.foreign, took.Seconds(), n.atOnce+n.late, n.atOnce, heldBack, n.late, n.waited,
		100*(after.cpu-before.cpu).Seconds()/took.Seconds(), 100*(after.commands-before.commands).Seconds()/took.Seconds())
	if err := leave(ctx, a); err != nil {
		return err
	}
	return top(ctx, out, profile)
}

// profiledAgent starts this program as the daemon.
func profiledAgent(ctx context.Context, h *testbed.Host) (a *testbed.Agent, profile string, err error) {
	if a, err = testbed.NewAgent(ctx, h, testbed.AgentConfig{Backend: "nft", Peers: peers(h, sizes[0])}); err != nil {
		return nil, "", err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	profile = filepath.Join(a.Dir, "cpu.profile")
	named := filepath.Join(a.Dir, "pghardend") // the kernel tells of commits by this name
	if err := os.Symlink(self, named); err != nil {
		return nil, "", err
	}
	script := filepath.Join(a.Dir, "profiled")
	text := fmt.Sprintf("#!/bin/sh\nexec %s %s %s \"$@\"\n", named, profiled, profile)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil { //nolint:gosec // it is run
		return nil, "", err
	}
	ordinary := a.Binary
	a.Binary = script
	err = a.Start() //nolint:contextcheck // the daemon outlives ctx
	a.Binary = ordinary
	if err != nil {
		return nil, "", err
	}
	return a, profile, a.Await(ctx, "a daemon with nothing to do", func(ctx context.Context) error {
		_, err := command(ctx, a, "status")
		return err
	})
}

// stormCount counts commits.
type stormCount struct {
	foreign      int
	atOnce, late int // ours: within heldBack of the first foreign one since the last of ours, or after
	waited       int // foreign ones that late repairs were for
}

// count follows the commits until stop.
func (c *commits) count(stop <-chan struct{}) (n stormCount) {
	var first time.Time
	open := 0
	for {
		select {
		case <-stop:
			return n
		case got, ok := <-c.seen:
			switch {
			case !ok:
				return n
			case !got.ours():
				n.foreign++
				if open++; open == 1 {
					first = got.at
				}
			case open == 0: // the rest of a repair in several steps
			case got.at.Sub(first) < heldBack:
				n.atOnce++
				open = 0
			default:
				n.late++
				n.waited += open
				open = 0
			}
		}
	}
}

// top shows where the time went, and which of our functions it was for.
func top(ctx context.Context, out io.Writer, profile string) error {
	for _, more := range [][]string{nil, {"-cum", "-show=^github.com/pghardend"}} {
		args := append([]string{"tool", "pprof", "-top", "-nodecount=" + strconv.Itoa(stormTop)}, more...)
		text, err := exec.CommandContext(ctx, "go", append(args, profile)...).Output() //nolint:gosec // nobody else writes the profile
		if err != nil {
			return fmt.Errorf("cannot read the profile: %w", err)
		}
		if _, err := out.Write(text); err != nil {
			return err
		}
	}
	return nil
}
