package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	maxAlarms = 64 // that wait to be looked at
	maxBlamed = 4  // of alarms that are served together
)

// When a resource is looked at after an alarm. A look costs a thousand times
// what a reflex does, and its commands can make one wait that comes meanwhile, so
// it waits for the end of a burst.
const (
	quiet     = 20 * time.Millisecond  // after the last alarm
	latest    = time.Second            // after the first
	lookGap   = time.Second            // after the look before
	repairGap = 250 * time.Millisecond // the same, where no reflex puts back
)

// Alarm asks for Reflex, or a look, at once. It never blocks; alarms beyond those
// that fit into a queue are merged into one full look.
func (l *Loop) Alarm(a Alarm) {
	select {
	case l.alarms <- a:
	default:
		l.Trigger(Trigger{Reason: "too many alarms"})
	}
}

// held are the alarms of one resource that are served together.
type held struct {
	at    time.Time // of the first
	who   []func() *Culprit
	until time.Time // zero: now
}

// merge adds an alarm; h may be nil.
func (h *held) merge(a Alarm) *held {
	if h == nil {
		h = &held{at: a.At}
	}
	if a.Who != nil && len(h.who) < maxBlamed {
		h.who = append(h.who, a.Who)
	}
	return h
}

// and are the alarms of both; either may be nil.
func (h *held) and(later *held) *held {
	if h == nil || later == nil {
		return cmp.Or(h, later)
	}
	both := *h
	both.who = append(slices.Clone(h.who), later.who...)
	both.who = both.who[:min(len(both.who), maxBlamed)]
	return &both
}

// culprit is who made the first alarm whose maker is known. The others are named
// beside, since any of them may have been it.
func (h *held) culprit() (who *Culprit, beside string) {
	if h == nil {
		return nil, ""
	}
	var others []string
	for _, f := range h.who {
		c := f()
		switch {
		case c == nil:
		case who == nil:
			who = c
		case c.Command != who.Command:
			others = append(others, c.String())
		}
	}
	if len(others) == 0 {
		return who, ""
	}
	return who, "changes came at the same time from " + strings.Join(others, ", ") + "\n"
}

// heed takes an alarm, and those that came with it, and serves what need not wait.
func (l *Loop) heed(ctx context.Context, a Alarm) {
	for {
		if l.keeps(a.Resource) { // else its first look is still to come, or it is left to others
			p := l.part(a.Resource)
			p.alarms++
			p.held = p.held.merge(a)
		}
		select {
		case a = <-l.alarms:
			continue
		default:
		}
		break
	}
	l.serveHeld(ctx)
}

func (l *Loop) keeps(resource string) bool {
	return slices.ContainsFunc(l.desired.Resources, func(r Resource) bool { return r.Name() == resource })
}

// serveHeld serves the alarms that need not wait any more.
func (l *Loop) serveHeld(ctx context.Context) {
	for _, r := range l.desired.Resources {
		p := l.part(r.Name())
		if p.held == nil || ctx.Err() != nil {
			continue
		}
		now := time.Now()
		if wait := p.damper.wait(now); wait > 0 {
			p.held.until = now.Add(wait)
			continue
		}
		h := p.held
		p.held = nil
		l.serve(ctx, r, p, h)
	}
}

// serve answers the alarms of one resource.
func (l *Loop) serve(ctx context.Context, r Resource, p *part, h *held) {
	began := time.Now()
	reflexive, ok := r.(Reflexive)
	if !ok {
		p.blame = h
		p.wantNow(began)
		return
	}
	plan, err := reflexive.Reflex(context.WithoutCancel(ctx)) // a write that began is finished
	now := time.Now()
	repaired := plan != nil && !plan.Empty()
	if repaired {
		p.reflexes++
		p.damper.repaired(now)
		p.wantSoon(now)
		l.reflexed(r.Name(), p, h, plan, began, now)
	}
	if err != nil {
		l.reflexFailed(r.Name(), p, err)
		if !repaired {
			p.blame = h
		}
		p.wantNow(now)
		return
	}
	p.failed = ""
	if !repaired {
		p.damper.looked(now)
		p.wantSoon(now)
	}
}

// reflexed publishes what a reflex put back.
func (l *Loop) reflexed(name string, p *part, h *held, plan Plan, found, now time.Time) {
	who, beside := h.culprit()
	l.lastID++
	e := Event{
		ID: l.lastID, Resource: name, Cause: CauseDrift, Trigger: reasonEvent, What: text(plan) + beside,
		Since: cmp.Or(h.at, p.right.at), Found: found, Who: who,
	}
	p.fights.add(now, who)
	l.restored(e, repairedAt(plan, now))

	snap := *l.snapshot.Load()
	old := snap.Problems
	snap.Problems = l.withConflicts(old, old, now)
	snap.Events = l.events
	l.logChanges(old, snap.Problems)
	l.snapshot.Store(&snap)
}

// repairedAt is now, unless the plan knows better.
func repairedAt(plan Plan, now time.Time) time.Time {
	if r, ok := plan.(Timed); ok {
		return r.Repaired()
	}
	return now
}

// reflexFailed says so once, since the look that follows may be as good.
func (l *Loop) reflexFailed(name string, p *part, err error) {
	if text := fmt.Sprint(err); text != p.failed {
		p.failed = text
		l.log.Info("cannot put back at once, so all of it is compared", "resource", name, "because", text)
	}
}

// aside runs f in a goroutine, since it may take long, and serves alarms until it
// has ended.
func (l *Loop) aside(ctx context.Context, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	for {
		l.setTimer(l.nextHeld())
		select {
		case <-done:
			select { // what came while f ran has overtaken it
			case a := <-l.alarms:
				l.heed(ctx, a)
			default:
			}
			return
		case a := <-l.alarms:
			l.heed(ctx, a)
		case <-l.timer.C:
			l.serveHeld(ctx)
		}
	}
}

// nextHeld is when alarms that are held back are due; zero if there are none.
func (l *Loop) nextHeld() time.Time {
	var next time.Time
	for _, r := range l.desired.Resources {
		if p := l.part(r.Name()); p.held != nil {
			next = earlier(next, p.held.until)
		}
	}
	return next
}
