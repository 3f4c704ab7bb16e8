package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/firewall"
	"github.com/pghardend/pghardend/pkg/sysctl"
)

// Names of resources.
const (
	sysctlName      = "sysctl"
	firewallName    = "firewall"
	connectionsName = "connections"
)

// resources are what the loop keeps, in this order: what the kernel believes of
// a packet's source first, then the rules, then connections, since one that is cut
// while its rule still stands comes back; and what is not of the network last.
func (a *Agent) resources(d Desired) []reconcile.Resource {
	dir := d.Config.RuntimeDir
	var list []reconcile.Resource
	if d.Config.Sysctl.Manage {
		list = append(list, a.sysctlsFor(d.Sysctls))
	}
	list = append(list, a.rulesFor(d), &connectionsResource{want: d, looks: &a.looks},
		a.delegate(dir, a.processes), a.delegate(dir, a.files), a.delegate(dir, a.cgroups))
	if !wantSELinux(d).none() {
		list = append(list, a.selinux)
	}
	return list
}

// rulesWritten asks for a look at connections: whoever got in before the rules
// were put back is still there.
func (a *Agent) rulesWritten() {
	if wait, ok := a.looks.again(time.Now()); ok {
		time.AfterFunc(wait, func() { a.loop.Alarm(reconcile.Alarm{Resource: connectionsName}) })
	}
}

// rulesFor keeps the resource, and with it what its last look saw, until another
// state is built.
func (a *Agent) rulesFor(d Desired) *firewallResource {
	if a.firewall == nil || a.firewall.made != d.made {
		a.firewall = &firewallResource{fw: a.fw, made: d.made, want: d.Rules, watch: a.rules, written: a.rulesWritten}
	}
	return a.firewall
}

// sysctlsFor keeps the resource, and with it the open files, for as long as the
// same is wanted.
func (a *Agent) sysctlsFor(want []sysctl.Setting) *sysctlResource {
	if a.sysctls == nil || !slices.Equal(a.sysctls.want, want) {
		a.sysctls.close()
		a.sysctls = &sysctlResource{want: want, peeker: sysctl.NewPeeker(want)}
	}
	return a.sysctls
}

// sysctlResource makes the network sysctls one resource of the loop.
type sysctlResource struct {
	want   []sysctl.Setting
	peeker *sysctl.Peeker
}

func (r *sysctlResource) Name() string { return sysctlName }

func (r *sysctlResource) Plan(ctx context.Context) (reconcile.Plan, error) {
	got, err := sysctl.Observe(ctx, r.want)
	plan := sysctl.Diff(r.want, got)
	if err == nil && plan.Empty() && r.peeker.Stale(ctx, got) {
		err = r.peeker.Learn(ctx)
	}
	return plan, leaveHint(err)
}

// Peek implements reconcile.Peeker.
func (r *sysctlResource) Peek(ctx context.Context) bool { return r.peeker.Peek(ctx) }

func (r *sysctlResource) Apply(ctx context.Context, p reconcile.Plan) error {
	plan, ok := p.(sysctl.Plan)
	if !ok {
		return fmt.Errorf("cannot apply a %T to sysctls", p)
	}
	return leaveHint(sysctl.Apply(ctx, plan))
}

func (r *sysctlResource) close() {
	if r != nil {
		_ = r.peeker.Close() // files that were only read
	}
}

// leaveHint names the settings that make sysctls optional: in a container they
// are often the host's.
func leaveHint(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w\nif another tool has to set them, name them in sysctl.leave, or write `sysctl: {manage: false}`", err)
}

// connectionsResource cuts what the rules would not let begin now. The rules
// alone do not do that, since they let established connections go on.
type connectionsResource struct {
	want  Desired
	looks *looks
}

func (r *connectionsResource) Name() string { return connectionsName }

func (r *connectionsResource) Plan(ctx context.Context) (reconcile.Plan, error) {
	at := time.Now()
	if !r.looks.due(r.want, at) {
		return nil, reconcile.ErrNotDue
	}
	cuts, err := unwanted(ctx, r.want)
	if err == nil && cuts.Empty() {
		r.looks.done(r.want, at)
	}
	return cuts, err
}

func (r *connectionsResource) Apply(ctx context.Context, p reconcile.Plan) error {
	cuts, ok := p.(firewall.Cuts)
	if !ok {
		return fmt.Errorf("cannot apply a %T to connections", p)
	}
	return firewall.Cut(ctx, cuts.Connections)
}

func unwanted(ctx context.Context, d Desired) (firewall.Cuts, error) {
	all, err := firewall.ObserveConnections(ctx)
	if err != nil {
		return firewall.Cuts{}, err
	}
	spec := d.Firewall
	spec.Openings = stillOpen(spec.Openings, time.Now())
	return firewall.Cuts{Connections: firewall.Unwanted(spec, d.Self.Addresses, all)}, nil
}

// stillOpen leaves out the openings that have ended.
func stillOpen(openings []firewall.Opening, now time.Time) []firewall.Opening {
	var left []firewall.Opening
	for _, o := range openings {
		if o.Until.After(now) {
			left = append(left, o)
		}
	}
	return left
}

// lookInterval is just below the time between two full looks, by default, so that
// each of them comes with a look at connections: that bounds for how long one may
// live that got in by a way that nobody has thought of. againInterval keeps a tool
// that fights us over the rules from making us look all the time.
const (
	lookInterval  = 25 * time.Second
	againInterval = time.Second
)

// looks knows when connections are to be looked at: a busy host tracks a
// million, so not in each pass. The zero value is ready.
type looks struct {
	mu    sync.Mutex // the loop may put rules back while it looks
	made  *buildMark // the state that the last look was made for; nil: look again
	at    time.Time  // when that was
	open  int        // openings in force then
	last  time.Time  // when rules were last put back
	asked time.Time  // when the last look is made that again asked for
}

func (l *looks) due(d Desired, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.made == nil || l.made != d.made || now.Sub(l.at) >= lookInterval ||
		l.open != len(stillOpen(d.Firewall.Openings, now))
}

// done is told of a look that found nothing.
func (l *looks) done(d Desired, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.After(at) {
		return // rules were put back meanwhile
	}
	l.made, l.at, l.open = d.made, at, len(stillOpen(d.Firewall.Openings, at))
}

// again makes a look due, and says in what time it is to be made, unless one is
// on its way.
func (l *looks) again(now time.Time) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.made, l.last = nil, now
	if l.asked.After(now) {
		return 0, false
	}
	wait = max(0, againInterval-now.Sub(l.asked))
	l.asked = now.Add(wait)
	return wait, true
}
