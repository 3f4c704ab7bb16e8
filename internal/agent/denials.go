package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/journal"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/audit"
	"github.com/pghardend/pghardend/pkg/sandbox"
	"github.com/pghardend/pghardend/pkg/trace"
)

// What tells of denials.
const (
	denialsTraced  = "trace"
	denialsAudited = "audit"
	denialsUnheard = "none"
)

// denials tells of what services tried and may not: executions and system calls.
// The kernel's tracepoints tell of both; audit records tell of killed processes, and
// where there is no tracing of all denied calls, but of no execution. Several
// goroutines use it.
type denials struct {
	trace   bool // denials.trace
	spec    func(service string) (launch.Spec, bool)
	selinux *selinuxWatch
	metrics *agentMetrics
	append  func(journal.Record)
	alarm   func(reconcile.Alarm)
	log     *slog.Logger

	mu      sync.Mutex
	roots   map[string]int // pids of services
	names   []string       // of services, by their numbers
	members *trace.Members // nil: there is no tracing
	traced  *trace.Denials
	counted map[trace.Count]uint64 // by what, with no Count
	audited bool
	why     string // no tracing
	told    denialLog
	seen    map[trace.Count]uint64 // by what, with no Count: how many system calls were told of
	timer   *time.Timer
}

func newDenials(a *Agent) *denials {
	return &denials{
		trace: a.desired.Load().Config.Denials.Trace, metrics: a.metrics, append: a.events.journal.Append, log: a.log,
		alarm: func(x reconcile.Alarm) { a.loop.Alarm(x) }, // the loop is made later
		spec:  func(name string) (launch.Spec, bool) { return a.desired.Load().service(name) },
		roots: map[string]int{}, counted: map[trace.Count]uint64{}, seen: map[trace.Count]uint64{},
	}
}

// run listens until ctx is done. Nothing else depends on it.
func (d *denials) run(ctx context.Context) error {
	var both sync.WaitGroup
	both.Go(func() {
		d.metrics.keep(ctx, slog.LevelInfo, "audit records of denials are not heard", func() error { return d.hearAudit(ctx) })
	})
	both.Go(func() {
		d.metrics.keep(ctx, slog.LevelWarn, "denials are not traced", func() error { return d.hearTrace(ctx) })
	})
	both.Wait()
	return nil
}

// begun is told of each process that a service begins as.
func (d *denials) begun(ctx context.Context, service string, pid int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.roots[service] = pid
	d.follow(ctx, service, pid)
}

// follow has the kernel tell of a service's processes. What a process starts while its
// children are listed is found the next time, or has inherited it.
func (d *denials) follow(ctx context.Context, service string, root int) {
	if d.members == nil {
		return
	}
	number := d.number(service)
	seen := map[int]bool{}
	for news := true; news; {
		news = false
		pids, err := launch.Tree(ctx, root)
		if err != nil {
			return // it has ended
		}
		for _, pid := range pids {
			if seen[pid] {
				continue
			}
			seen[pid], news = true, true
			if err := d.members.Follow(ctx, pid, number); err != nil && !errors.Is(err, os.ErrProcessDone) && pid == root {
				d.log.Warn("what is denied to a service is not told of", "service", service, "error", err)
			}
		}
	}
}

func (d *denials) number(service string) uint32 {
	for i, name := range d.names {
		if name == service {
			return uint32(i)
		}
	}
	d.names = append(d.names, service)
	return uint32(len(d.names) - 1)
}

func (d *denials) name(number uint32) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if int(number) >= len(d.names) {
		return ""
	}
	return d.names[number]
}

// hearTrace returns nil when there is nothing more to hear.
func (d *denials) hearTrace(ctx context.Context) error {
	if !d.trace {
		d.silent("denials.trace is false")
		<-ctx.Done()
		return nil
	}
	traced, err := d.openTrace(ctx)
	if unsupported := (*trace.UnsupportedError)(nil); errors.As(err, &unsupported) {
		d.silent(err.Error())
		d.log.Warn("blocked executions are not told of", "error", err)
		<-ctx.Done() // it will not be otherwise
		return nil
	}
	if err != nil {
		return err
	}
	defer d.closeTrace()
	for {
		e, err := traced.Next(ctx)
		if err != nil {
			return err
		}
		d.event(ctx, e)
	}
}

func (d *denials) silent(why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.why = why
}

func (d *denials) openTrace(ctx context.Context) (*trace.Denials, error) {
	members, err := trace.OpenMembers(ctx)
	if err != nil {
		return nil, err
	}
	traced, err := trace.OpenDenials(ctx, members)
	if err != nil {
		return nil, errors.Join(err, members.Close())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.members, d.traced, d.why = members, traced, ""
	if err := traced.Moves(); err != nil {
		d.log.Info("processes that are moved to another control group are found by the full look only", "because", err)
	}
	for service, pid := range d.roots {
		d.follow(ctx, service, pid)
	}
	return traced, nil
}

func (d *denials) closeTrace() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(d.traced.Close(), d.members.Close()); err != nil {
		d.log.Debug("cannot end tracing", "error", err)
	}
	d.members, d.traced, d.why = nil, nil, "it has ended"
	clear(d.counted)
	clear(d.seen)
}

// event is one that the kernel reports.
func (d *denials) event(ctx context.Context, e trace.Event) {
	service := d.name(e.Service)
	if service == "" {
		return
	}
	who := &control.Culprit{PID: e.PID, UID: e.UID, Command: printable(e.Command), Parent: fmt.Sprintf("%s (%d)", printable(e.Of), e.Parent)}
	switch e.Kind {
	case trace.KindMove:
		d.moved(ctx, e, who)
	case trace.KindExec:
		d.tell(ctx, control.Denial{Service: service, What: blockedText(e.Path, e.Errno), Who: who}, 1)
	case trace.KindSyscall:
		name, ours := d.denied(service, e.Number, e.Errno)
		what := trace.Count{Kind: e.Kind, Service: e.Service, Number: e.Number, Errno: e.Errno}
		n := e.Count - d.seen[what]
		d.seen[what] = e.Count
		if ours && n > 0 && n < 1<<63 { // two CPUs may report in the other order
			d.tell(ctx, control.Denial{Service: service, What: deniedText(name, e.Errno), Who: who}, n)
		}
	}
}

// unknownCall is the name of all system calls without one.
const unknownCall = "unknown"

// denied says whether the service's seccomp profile answers a call so. The kernel
// answers EPERM for reasons of its own as well.
func (d *denials) denied(service string, number int, errno syscall.Errno) (name string, ours bool) {
	name, known := sandbox.SyscallName(number)
	if !known {
		name = unknownCall
	}
	spec, ok := d.spec(service)
	return name, ok && spec.Seccomp.Answers(name, errno)
}

func blockedText(path string, errno syscall.Errno) string {
	if path == "" {
		return fmt.Sprintf("the execution of a program was blocked (%s)", unix.ErrnoName(errno))
	}
	return fmt.Sprintf("the execution of %s was blocked (%s)", printable(path), unix.ErrnoName(errno))
}

func deniedText(call string, errno syscall.Errno) string {
	return fmt.Sprintf("the system call %s was denied by the seccomp profile (%s)", call, unix.ErrnoName(errno))
}

// tell makes an event, unless the same was told of lately.
func (d *denials) tell(ctx context.Context, x control.Denial, n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before, event := d.told.add(x, n, time.Now())
	if event {
		d.write(x.Service, againText(x.What, before), x.Who)
	}
	if d.timer == nil && d.told.pending() {
		d.timer = time.AfterFunc(toldAgain, func() { d.tellRest(ctx) })
	}
}

// tellRest tells of what was denied since the last event.
func (d *denials) tellRest(ctx context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.timer = nil
	if ctx.Err() != nil {
		return
	}
	for _, x := range d.told.untold(time.Now()) {
		d.write(x.Service, againText(x.What, x.since), x.Who)
	}
	if d.told.pending() {
		d.timer = time.AfterFunc(toldAgain, func() { d.tellRest(ctx) })
	}
}

func (d *denials) write(service, what string, who *control.Culprit) {
	d.append(journal.Record{Kind: control.KindDenied, Resource: service, What: what, Who: (*journal.Culprit)(who)})
	d.log.Warn("denied", "service", service, "what", what, "by", who.String())
}

// hearAudit has a watch of its own: alarms has one only where audit is what
// tells of rules.
func (d *denials) hearAudit(ctx context.Context) error {
	watcher, err := audit.Watch()
	if watcher == nil {
		return err
	}
	defer func() { _ = watcher.Close() }() // it only listened
	if errors.Is(err, audit.ErrElsewhere) {
		return err // any other is about records of rules
	}
	d.hearing(true)
	defer d.hearing(false)
	for {
		record, err := watcher.Next(ctx)
		switch {
		case errors.Is(err, audit.ErrOverrun):
			d.metrics.lost()
		case err != nil:
			return err
		case record.Denial != nil:
			d.record(ctx, *record.Denial)
		case record.AVC != nil:
			d.hearAVC(ctx, *record.AVC)
		}
	}
}

func (d *denials) hearing(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.audited = on
}

// record is a denial that the kernel wrote an audit record of. What tracing tells of
// as well is left to it: that is all but who was killed.
func (d *denials) record(ctx context.Context, x audit.Denial) {
	d.mu.Lock()
	tracing := d.members != nil
	d.mu.Unlock()
	if tracing && x.Action == audit.ActionErrno {
		return
	}
	service, name := d.metrics.denied(ctx, x)
	if service == "" {
		return
	}
	what := fmt.Sprintf("the system call %s was denied by the seccomp profile (%s)", name, x.Action)
	if x.Action == audit.ActionErrno {
		spec, ok := d.spec(service)
		if !ok || !spec.Seccomp.Answers(name, unix.EPERM) {
			return // that it is unknown is normal
		}
		what = deniedText(name, unix.EPERM)
	}
	d.tell(ctx, control.Denial{Service: service, What: what, Who: &control.Culprit{
		PID: x.PID, UID: x.UID, Command: printable(x.Command), Exe: printable(x.Exe),
	}}, 1)
}
