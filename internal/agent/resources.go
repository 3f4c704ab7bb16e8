package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/firewall"
	"github.com/pghardend/pghardend/pkg/sysctl"
)

// Names of resources.
const (
	firewallName    = "firewall"
	connectionsName = "connections"
)

// resources are what the loop keeps, in this order: what the kernel believes of
// a packet's source first, then the rules, and connections last, since one that
// is cut while its rule still stands comes back.
func (a *Agent) resources(d Desired) []reconcile.Resource {
	var list []reconcile.Resource
	if d.Config.Sysctl.Manage {
		list = append(list, &sysctlResource{want: d.Sysctls})
	}
	list = append(list, &firewallResource{fw: a.fw, want: d.Rules, written: a.rulesWritten})
	if a.looks.due(d, time.Now()) {
		list = append(list, &connectionsResource{want: d, looked: a.looks.done})
	}
	return list
}

// rulesWritten asks for one more pass: whoever got in before the rules were put
// back is still connected.
func (a *Agent) rulesWritten() {
	if a.looks.again(time.Now()) {
		a.loop.Trigger(reconcile.Trigger{Reason: "rules written"})
	}
}

// firewallResource makes the rules one resource of the loop.
type firewallResource struct {
	fw      *firewall.Firewall
	want    firewall.Ruleset
	written func() // called after each Apply that worked
}

func (r *firewallResource) Name() string { return firewallName }

func (r *firewallResource) Plan(ctx context.Context) (reconcile.Plan, error) {
	got, err := r.fw.Observe(ctx)
	return firewall.Diff(r.want, got), err
}

func (r *firewallResource) Apply(ctx context.Context, p reconcile.Plan) error {
	plan, ok := p.(firewall.Plan)
	if !ok {
		return fmt.Errorf("cannot apply a %T to the firewall", p)
	}
	if err := r.fw.Apply(ctx, plan); err != nil {
		return err
	}
	r.written()
	return nil
}

// sysctlResource makes the network sysctls one resource of the loop.
type sysctlResource struct {
	want []sysctl.Setting
}

func (r *sysctlResource) Name() string { return "sysctl" }

func (r *sysctlResource) Plan(ctx context.Context) (reconcile.Plan, error) {
	got, err := sysctl.Observe(ctx, r.want)
	return sysctl.Diff(r.want, got), leaveHint(err)
}

func (r *sysctlResource) Apply(ctx context.Context, p reconcile.Plan) error {
	plan, ok := p.(sysctl.Plan)
	if !ok {
		return fmt.Errorf("cannot apply a %T to sysctls", p)
	}
	return leaveHint(sysctl.Apply(ctx, plan))
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
	want   Desired
	looked func(Desired, time.Time) // called after a look that found none
}

func (r *connectionsResource) Name() string { return connectionsName }

func (r *connectionsResource) Plan(ctx context.Context) (reconcile.Plan, error) {
	at := time.Now()
	cuts, err := unwanted(ctx, r.want)
	if err == nil && cuts.Empty() {
		r.looked(r.want, at)
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

// lookInterval bounds for how long a connection may live that got in by a way
// that nobody has thought of. againInterval keeps a tool that fights us over the
// rules from making us look all the time.
const (
	lookInterval  = 30 * time.Second
	againInterval = time.Second
)

// looks knows when connections are to be looked at: a busy host tracks a
// million, so not in each pass. The loop's goroutine owns it. The zero value is
// ready.
type looks struct {
	made  *buildMark // the state that the last look was made for; nil: look again
	at    time.Time  // when that was
	open  int        // openings in force then
	asked time.Time  // when again was last true
}

func (l *looks) due(d Desired, now time.Time) bool {
	return l.made == nil || l.made != d.made || now.Sub(l.at) >= lookInterval ||
		l.open != len(stillOpen(d.Firewall.Openings, now))
}

// done is told of a look that found nothing.
func (l *looks) done(d Desired, at time.Time) {
	l.made, l.at, l.open = d.made, at, len(stillOpen(d.Firewall.Openings, at))
}

// again makes a look due, and says whether that is worth a pass of its own.
func (l *looks) again(now time.Time) bool {
	l.made = nil
	if now.Sub(l.asked) < againInterval {
		return false
	}
	l.asked = now
	return true
}
