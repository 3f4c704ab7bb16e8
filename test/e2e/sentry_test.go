package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// A commit is answered before the command that made it gets to close its socket,
// which would have the next commit wait; our own are not answered.
func TestF01_CommitIsAnsweredBeforeItsMakerGoesOn(t *testing.T) {
	const edits = 20
	b := fwNew(t, firewall.BackendNFT)
	var mu sync.Mutex
	var open, gone []string
	var sentry *firewall.Sentry
	fwMust(t, b.node.Do(func() (err error) {
		sentry, err = b.fw.OpenSentry(func(c firewall.Commit) {
			sockets := socketsOf(c.Process())
			mu.Lock()
			defer mu.Unlock()
			if sockets > 0 {
				open = append(open, c.Command)
			} else {
				gone = append(gone, c.Command)
			}
		}, nil)
		return err
	}))
	b.reconcile()
	for range edits / 2 {
		b.sh("iptables-nft -I INPUT -j ACCEPT; iptables-nft -D INPUT -j ACCEPT")
	}
	fwMust(t, sentry.Close())
	t.Logf("answered in time %v, and too late %v", open, gone)
	if len(open) <= edits/2 { // it does what it can: another thread of real time may be on that CPU
		t.Errorf("%d of %d commits were answered while their socket was open", len(open), edits)
	}
	for _, command := range append(open, gone...) {
		if command != "iptables-nft" {
			t.Errorf("a commit of %s was answered", command)
		}
	}
}

func socketsOf(pid int) (n int) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

// Nothing is left of a sentry that is closed: no thread of real-time priority.
func TestSentryEnds(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	before := realTimeThreads(t)
	for range 3 {
		var sentry *firewall.Sentry
		fwMust(t, b.node.Do(func() (err error) {
			sentry, err = b.fw.OpenSentry(func(firewall.Commit) {}, nil)
			return err
		}))
		if realTimeThreads(t) <= before {
			t.Error("no thread has real-time priority")
		}
		fwMust(t, sentry.Close())
		fwMust(t, testbed.Await(t.Context(), "the threads to end", func(context.Context) error {
			if n := realTimeThreads(t); n > before {
				return fmt.Errorf("%d threads have real-time priority, %d before", n, before)
			}
			return nil
		}))
	}
}

func realTimeThreads(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	fwMust(t, err)
	for _, e := range entries {
		data, err := os.ReadFile("/proc/self/task/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		if f := strings.Fields(rest); len(f) > 38 && f[38] == "1" { // policy, the 41st: SCHED_FIFO
			n++
		}
	}
	return n
}
