package firewall

import (
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// ownKept is how many of our commands are remembered: more than can run
	// before the event of the first is read.
	ownKept = 32
	// ownFor is how long: a pid is not used again so soon, and an event of a
	// command that has ended is read at once.
	ownFor = commandTimeout + time.Second
	// commandName is what the kernel keeps of a command's name, TASK_COMM_LEN less a NUL.
	commandName = 15
)

// ownCommits knows which commits are ours. Several goroutines may use it. The
// zero value is ready.
type ownCommits struct {
	mu       sync.Mutex
	commands [ownKept]ownCommand // a ring
	next     int
	ports    []uint32 // of Reflexes
}

// ownCommand is a command, or a socket that is used but once.
type ownCommand struct {
	pid  int
	port uint32
	name string
	at   time.Time
}

// remember adds to the ring. The lock is held.
func (o *ownCommits) remember(c ownCommand) {
	c.at = time.Now()
	o.commands[o.next] = c
	o.next = (o.next + 1) % ownKept
}

// portOnce makes the commits ours that come from a socket within the next
// moments, also after it was closed.
func (o *ownCommits) portOnce(port uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.remember(ownCommand{port: port})
}

// start starts a command and remembers it. The lock is held meanwhile, so that
// an event cannot be read before its command is known.
func (o *ownCommits) start(cmd *exec.Cmd) error {
	if strings.HasSuffix(cmd.Path, "-save") {
		return cmd.Start() // never commits, so no event need wait for it
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	name := filepath.Base(cmd.Path)
	o.remember(ownCommand{pid: cmd.Process.Pid, name: name[:min(len(name), commandName)]})
	return nil
}

// addPort makes commits from a netlink port ours.
func (o *ownCommits) addPort(port uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ports = append(o.ports, port)
}

// dropPort ends that: the kernel may give the port to somebody else.
func (o *ownCommits) dropPort(port uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, p := range o.ports {
		if p == port {
			o.ports = append(o.ports[:i], o.ports[i+1:]...)
			return
		}
	}
}

// has says whether c was made by a command or from a port of ours.
func (o *ownCommits) has(c Commit) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range o.ports {
		if p == c.Port {
			return true
		}
	}
	for _, cmd := range o.commands {
		// The port stands for the pid where our pid namespace is not the first.
		same := cmd.port == 0 && cmd.name == c.Command && (cmd.pid == c.PID || (!c.firstPIDs && uint32(cmd.pid) == c.Port))
		if (same || cmd.port != 0 && cmd.port == c.Port) && c.At.Sub(cmd.at) < ownFor {
			return true
		}
	}
	return false
}
