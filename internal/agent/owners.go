package agent

import (
	"context"
	"time"

	"github.com/prometheus/procfs"
)

const (
	maxParents = 32               // of a process, up to that of its service
	ownerFor   = 10 * time.Second // in which a pid is taken to be the same process
	maxOwners  = 1024
)

// owners says which service a process belongs to. A process that is denied
// something is mostly denied it often, so an answer is kept for a while. One
// goroutine uses it.
type owners struct {
	roots   func() map[int]string   // pids of services
	program func(exe string) string // whose program it is; empty if nobody's
	known   map[int]owner
}

type owner struct {
	service string
	at      time.Time
}

func newOwners(roots func() map[int]string, program func(exe string) string) *owners {
	return &owners{roots: roots, program: program, known: map[int]owner{}}
}

// processOwners are the services that run now, by pid.
func (a *Agent) processOwners() map[int]string {
	roots := map[int]string{}
	for _, s := range a.serviceStates() {
		if s.PID != 0 {
			roots[s.PID] = s.Name
		}
	}
	return roots
}

// programOwner is the service whose program exe is, if it is that of one alone.
func (a *Agent) programOwner(exe string) string {
	owner := ""
	for _, s := range a.desired.Load().Services {
		switch {
		case len(s.Command) == 0 || s.Command[0] != exe:
		case owner != "":
			return ""
		default:
			owner = s.Service
		}
	}
	return owner
}

// of is empty for a process of no service. One that has ended already, as does
// who is killed for what it tried, is known by its program.
func (o *owners) of(ctx context.Context, pid int, exe string) string {
	now := time.Now()
	if was, ok := o.known[pid]; ok && now.Sub(was.at) < ownerFor {
		return was.service
	}
	if len(o.known) >= maxOwners {
		clear(o.known)
	}
	service, found := serviceAbove(ctx, o.roots(), pid)
	if !found {
		service = o.program(exe)
	}
	o.known[pid] = owner{service, now}
	return service
}

// serviceAbove goes from a process to its parents. found is false if that cannot
// be done any more; otherwise the service is empty for a process of none.
func serviceAbove(ctx context.Context, roots map[int]string, pid int) (service string, found bool) {
	for range maxParents {
		if service, ok := roots[pid]; ok {
			return service, true
		}
		if pid <= 1 || ctx.Err() != nil {
			return "", true
		}
		proc, err := procfs.NewProc(pid)
		if err != nil {
			return "", false
		}
		stat, err := proc.Stat()
		if err != nil {
			return "", false
		}
		pid = stat.PPID
	}
	return "", true
}
