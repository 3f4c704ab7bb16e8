package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	maxLooks  = 4 // at one resource that reflexes overtake, then the last one counts
	maxWrites = 3 // of one resource in one pass while alarms say that somebody else writes
)

// round is what a pass is for.
type round struct {
	Trigger
	load  bool // ask the source first
	all   bool // visit every resource; otherwise those that are due
	asked bool // somebody waits, so nothing is held back
}

func fullRound(t Trigger) round { return round{Trigger: t, load: true, all: true} }

// says whether there is a problem with what.
func (s *Snapshot) says(what string) bool {
	return slices.ContainsFunc(s.Problems, func(p Problem) bool { return p.What == what })
}

// keep takes over what was wrong with what is not looked at now.
func (s *Snapshot) keep(old []Problem, what ...string) {
	for _, p := range old {
		if slices.Contains(what, p.What) {
			s.Problems = append(s.Problems, p)
		}
	}
}

// pass brings resources to their desired state. It is not whole, and not
// published, if shutdown cut it short: what failed then says nothing.
func (l *Loop) pass(ctx context.Context, t round) (whole bool) {
	snap := *l.snapshot.Load()
	old := snap.Problems
	snap.Problems = nil
	snap.Passes++
	before := l.desired
	if t.load {
		l.load(ctx, t, &snap, old)
	} else {
		snap.keep(old, problemInput, problemNothing)
	}
	t.asked = t.asked || l.desired.Generation != before.Generation
	every := true
	for _, r := range l.desired.Resources {
		if ctx.Err() != nil {
			break
		}
		if t.asked || l.wants(r.Name(), t, before) {
			l.visit(ctx, r, t, &snap, old)
		} else {
			snap.keep(old, r.Name())
			every = false
		}
	}
	if ctx.Err() != nil {
		return false
	}
	for i, p := range snap.Problems {
		snap.Problems[i].Aside = slices.Contains(l.opts.Aside, p.What)
	}
	if every {
		snap.LastFull = time.Now()
	}
	l.publish(snap)
	l.schedule(t, snap, time.Now())
	return true
}

// load asks the source what is desired.
func (l *Loop) load(ctx context.Context, t round, snap *Snapshot, old []Problem) {
	var desired Desired
	var err error
	l.aside(ctx, func() { desired, err = l.source.Load(ctx, t.Force) })
	l.desired = desired
	if snap.Passes == 1 {
		l.first = desired.Generation
	}
	if err != nil {
		snap.problem(problemInput, err, old)
	}
	if len(desired.Resources) == 0 { // or "every resource is right" would hold
		snap.problem(problemNothing, errors.New("there is no desired state, so nothing is enforced"), old)
	}
}

// wants says whether a resource is to be visited. One that somebody keeps
// changing waits for its time.
func (l *Loop) wants(name string, t round, before Desired) bool {
	p, now := l.part(name), time.Now()
	fresh := !slices.ContainsFunc(before.Resources, func(r Resource) bool { return r.Name() == name })
	if !t.all && !fresh && !p.isDue(now) {
		return false
	}
	if wait := p.damper.wait(now); wait > 0 {
		p.due = now.Add(wait)
		return false
	}
	return true
}

func (l *Loop) publish(snap Snapshot) {
	now := time.Now()
	old := l.snapshot.Load().Problems // a reflex may have published meanwhile
	snap.Problems = l.withConflicts(snap.Problems, old, now)
	snap.Events = l.events
	snap.Generation, snap.LastPass = l.desired.Generation, now
	if snap.Clean() {
		snap.LastClean = now
	}
	l.logChanges(old, snap.Problems)
	l.looked()
	l.snapshot.Store(&snap)
	if snap.Enforced() {
		select {
		case <-l.enforced:
		default:
			close(l.enforced)
		}
	}
	if l.onPass != nil {
		l.onPass(l.Snapshot())
	}
}

// visit handles one resource and writes what came of it into snap.
func (l *Loop) visit(ctx context.Context, r Resource, t round, snap *Snapshot, old []Problem) {
	name := r.Name()
	p := l.part(name)
	reason := t.Reason
	if !t.all && p.why != "" {
		reason = p.why
	}
	plan, looked, err := l.look(ctx, r, p)
	if !applicable(plan) {
		if p.due.IsZero() { // else an alarm came during the look
			p.blame = nil
		}
		switch {
		case errors.Is(err, ErrNotDue):
			snap.keep(old, name)
		case err != nil:
			snap.problem(name, errors.Join(err, stuckError(plan)), old)
		default:
			l.settled(p, r, plan, looked, reason, snap, old)
		}
		return
	}
	if ctx.Err() != nil {
		return
	}
	event := l.newEvent(p, name, text(plan), reason)
	blame := p.blamed(plan)
	// A write that began is finished and read back, whatever else ends: it may
	// consist of several steps.
	left, looked, again, err := l.write(context.WithoutCancel(ctx), r, p, plan)
	for _, plan := range again {
		event.What += text(plan)
		blame = blame.and(p.blamed(plan))
	}
	switch {
	case blame != nil:
		event.Trigger = reasonEvent
	case event.Trigger == reasonEvent: // found beside what was announced
		event.Trigger = reasonVerify
	}
	if blame == nil && !applicable(left) {
		blame = p.blamed(plan) // announced while it was put right: a tick was faster
	}
	var beside string
	event.Who, beside = blame.culprit()
	event.What = bounded(event.What) + beside
	if err != nil {
		event.Error = err.Error()
		if asked := (*AskedError)(nil); errors.As(err, &asked) {
			event.Asked = asked.Whom
		}
		l.remember(record(l.events, event))
		snap.problem(name, err, old)
		return
	}
	now := time.Now()
	if event.Cause == CauseDrift {
		p.damper.repaired(now)
		p.fights.add(now, event.Who)
	}
	l.restored(event, now)
	l.settled(p, r, left, looked, reason, snap, old)
}

// look calls Plan. What it saw before a reflex put something back is no basis
// for a write, so it is asked again then.
func (l *Loop) look(ctx context.Context, r Resource, p *part) (plan Plan, at time.Time, err error) {
	for range maxLooks {
		at = time.Now() // before the look, so that Event.Since is never too late
		before := p.reflexes
		p.look(at)
		l.aside(ctx, func() { plan, err = r.Plan(ctx) })
		if p.reflexes == before || ctx.Err() != nil {
			break
		}
	}
	return plan, at, err
}

// write applies plan and looks again. What differs then is an error, unless an
// alarm says that somebody else wrote meanwhile: then it is written as well.
// again are the plans after the first, but those that say the same.
func (l *Loop) write(ctx context.Context, r Resource, p *part, plan Plan) (left Plan, at time.Time, again []Plan, err error) {
	for n := range maxWrites {
		if n > 0 {
			if text(left) != text(plan) {
				again = append(again, left)
			}
			plan = left
		}
		alarms := p.alarms
		err = r.Apply(ctx, plan)
		var lookErr error
		left, at, lookErr = l.look(ctx, r, p)
		err = errors.Join(err, lookErr)
		if !applicable(left) {
			return left, at, again, err
		}
		if p.alarms == alarms {
			break
		}
	}
	return left, at, again, errors.Join(err, fmt.Errorf("%s still differs after it was written:\n%s", r.Name(), text(left)))
}

// settled notes that a resource is as it can be without a restart. plan may name
// what is not.
func (l *Loop) settled(p *part, r Resource, plan Plan, looked time.Time, reason string, snap *Snapshot, old []Problem) {
	name, stuck, now := r.Name(), stuckText(plan), time.Now()
	events := l.events
	if stuck != "" {
		event := l.newEvent(p, name, stuck, reason)
		event.Restart = true
		events = record(events, event)
		snap.Problems = add(snap.Problems, Problem{What: name, Text: stuck, Since: now, Restart: true}, old)
	}
	l.remember(settle(events, name, stuck, now))
	p.saw(sight{at: looked, generation: l.desired.Generation})
}

func (l *Loop) newEvent(p *part, name, what, reason string) Event {
	l.lastID++
	return Event{ID: l.lastID, Resource: name, Cause: l.cause(p), Trigger: reason, What: what, Since: p.right.at, Found: time.Now()}
}

// restored records an event that was over at a time.
func (l *Loop) restored(e Event, at time.Time) {
	events := record(l.events, e)
	id := events[len(events)-1].ID // it may have been known
	l.remember(finish(events, at, func(o Event) bool { return o.ID == id }))
	e = l.events[len(l.events)-1]
	who := ""
	if e.Who != nil {
		who = e.Who.String()
	}
	l.log.Info("restored", "resource", e.Resource, "cause", e.Cause, "trigger", e.Trigger, "what", e.What, "who", who, "open_ms", e.OpenMS)
}

// cause says why a resource is not as desired. One that was not yet right since
// the start or since a change has not drifted, however many passes ago that was.
func (l *Loop) cause(p *part) string {
	switch {
	case p.steady(l.desired.Generation):
		return CauseDrift
	case !p.ever && l.desired.Generation == l.first:
		return CauseStart
	default:
		return CauseChange
	}
}

// stuckText is what of a plan needs a restart.
func stuckText(p Plan) string {
	u, ok := p.(Unrepairable)
	if !ok {
		return ""
	}
	return strings.TrimSpace(u.Unrepairable())
}

func stuckError(p Plan) error {
	if stuck := stuckText(p); stuck != "" {
		return errors.New(stuck)
	}
	return nil
}

// applicable says whether there is anything in a plan that Apply can do.
func applicable(p Plan) bool {
	if p == nil || p.Empty() {
		return false
	}
	u, ok := p.(Unrepairable)
	return !ok || u.Repairable()
}
