package testvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Network is a bridge in a network namespace of its own, which leads nowhere. The namespace is a host on it as well.
type Network struct {
	Namespace string // for ip netns exec

	mu   sync.Mutex
	taps int
}

// namespaceName is that of the nth network of a process.
var namespaceName = regexp.MustCompile(`^pghvm-([0-9]+)-[0-9]+$`)

var networks struct {
	sync.Mutex
	made int
}

// NewNetwork makes a network, on which the namespace has these addresses, each with its prefix's length. It needs root and iproute2.
func NewNetwork(ctx context.Context, addresses ...string) (*Network, error) {
	sweepNetworks(ctx)
	networks.Lock()
	networks.made++
	n := &Network{Namespace: fmt.Sprintf("pghvm-%d-%d", os.Getpid(), networks.made)}
	networks.Unlock()
	err := tool(ctx, "ip", "netns", "add", n.Namespace)
	if err != nil {
		return nil, err
	}
	// No spanning tree, and no delay before it forwards: a machine is there from its first packet on.
	steps := [][]string{{"link", "set", "lo", "up"}, {"link", "add", "lan", "type", "bridge", "forward_delay", "0", "stp_state", "0"}}
	for _, address := range addresses {
		steps = append(steps, []string{"address", "add", address, "dev", "lan", "nodad"})
	}
	steps = append(steps, []string{"link", "set", "lan", "up"})
	for _, step := range steps {
		if err := tool(ctx, "ip", append([]string{"-n", n.Namespace}, step...)...); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	return n, nil
}

// Close removes the network. Machines on it must be closed before.
func (n *Network) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return tool(ctx, "ip", "netns", "delete", n.Namespace)
}

// tap makes another port of the bridge and returns its name and its number, from 1 on.
func (n *Network) tap(ctx context.Context) (string, int, error) {
	n.mu.Lock()
	n.taps++
	number := n.taps
	n.mu.Unlock()
	name := "tap" + strconv.Itoa(number)
	for _, step := range [][]string{{"tuntap", "add", "dev", name, "mode", "tap"}, {"link", "set", name, "master", "lan", "up"}} {
		if err := tool(ctx, "ip", append([]string{"-n", n.Namespace}, step...)...); err != nil {
			return "", 0, err
		}
	}
	return name, number, nil
}

// sweepNetworks removes those of processes that are gone.
func sweepNetworks(ctx context.Context) {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return
	}
	for _, e := range entries {
		m := namespaceName.FindStringSubmatch(e.Name())
		if m == nil || processLives(m[1]) {
			continue
		}
		if err := tool(ctx, "ip", "netns", "delete", e.Name()); err != nil {
			continue // another process was faster
		}
	}
}

func processLives(pid string) bool {
	n, err := strconv.Atoi(pid)
	return err == nil && !errors.Is(unix.Kill(n, 0), unix.ESRCH)
}

// sweepMachines removes the directories of machines whose process is gone: each has the file pid.
func sweepMachines(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		at := filepath.Join(dir, e.Name())
		pid, err := os.ReadFile(filepath.Join(at, "pid"))
		if err == nil && !processLives(string(pid)) {
			_ = os.RemoveAll(at) // the next boot tries again
		}
	}
}
