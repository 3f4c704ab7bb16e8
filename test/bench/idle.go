package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"

	"github.com/pghardend/pghardend/internal/testbed"
)

const (
	settleFor = 5 * time.Second  // until what the start left behind is done with
	idleFor   = 60 * time.Second // two full looks are in it
)

// cost is what a process has used so far.
type cost struct {
	cpu      time.Duration // of its threads
	commands time.Duration // of the commands that it executed and that have ended
	wakeups  uint64        // how often a thread of it went to sleep, and so woke up
}

// benchIdle measures what the daemon costs while nothing happens.
func benchIdle(ctx context.Context, out io.Writer, h *testbed.Host, backend string) (err error) {
	a, err := settled(ctx, h, testbed.AgentConfig{Backend: backend, Peers: peers(h, sizes[0])})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leave(ctx, a)) }()
	time.Sleep(settleFor) //nolint:forbidigo // what has to be over cannot be seen
	before, err := used(a.PID())
	if err != nil {
		return err
	}
	time.Sleep(idleFor) //nolint:forbidigo // this is what is measured
	after, err := used(a.PID())
	if err != nil {
		return err
	}
	percent := func(d time.Duration) float64 { return 100 * float64(d) / float64(idleFor) }
	status, err := memory(a.PID())
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s, idle for %s: %.3f %% of a core, and %.3f %% for the commands of full looks; %.1f wake-ups a second; RSS %.1f MiB (%.1f MiB of it not from files)\n",
		backend, idleFor, percent(after.cpu-before.cpu), percent(after.commands-before.commands),
		float64(after.wakeups-before.wakeups)/idleFor.Seconds(), mib(status.VmRSS), mib(status.RssAnon))
	return nil
}

func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }

func memory(pid int) (procfs.ProcStatus, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return procfs.ProcStatus{}, err
	}
	return p.NewStatus()
}

// used sums up the threads: schedstat counts nanoseconds, stat only ticks.
func used(pid int) (cost, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return cost{}, err
	}
	stat, err := p.Stat()
	if err != nil {
		return cost{}, err
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere
	c := cost{commands: time.Duration(stat.CUTime+stat.CSTime) * tick}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return cost{}, err
	}
	for _, task := range tasks {
		data, err := os.ReadFile(filepath.Join(task, "schedstat"))
		if err != nil {
			return cost{}, err
		}
		ran, err := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64)
		if err != nil {
			return cost{}, err
		}
		c.cpu += time.Duration(ran)
		if data, err = os.ReadFile(filepath.Join(task, "status")); err != nil {
			return cost{}, err
		}
		_, rest, _ := strings.Cut(string(data), "\nvoluntary_ctxt_switches:")
		line, _, _ := strings.Cut(rest, "\n")
		n, err := strconv.ParseUint(strings.TrimSpace(line), 10, 64)
		if err != nil {
			return cost{}, err
		}
		c.wakeups += n
	}
	return c, nil
}

// benchStart measures the time from the start of the daemon to its last rule, where there was none.
func benchStart(ctx context.Context, out io.Writer, h *testbed.Host) (err error) {
	seen, err := watchCommits(h)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, seen.close()) }()
	a, err := testbed.NewAgent(ctx, h, testbed.AgentConfig{Backend: "nft", Peers: peers(h, sizes[0])})
	if err != nil {
		return err
	}
	took, err := median(func() (time.Duration, error) {
		seen.drop()
		began := time.Now()
		if err := a.Start(); err != nil { //nolint:contextcheck // the daemon outlives ctx
			return 0, err
		}
		placed, err := seen.last(time.Second)
		if err != nil {
			return 0, err
		}
		return placed.at.Sub(began), leave(ctx, a)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "nft, from the start of the process to the last rule in place, median of %d: %.0f ms\n", rounds, float64(took.Microseconds())/1000)
	return nil
}
