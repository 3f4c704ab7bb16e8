package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	maxEvents = 64
	maxOther  = maxEvents / 2 // of them that are no drift, if there is that much drift
	maxFought = maxEvents / 4 // drift of one resource, if there is that of others
	maxText   = 32 << 10      // bytes of one plan, so that the history of a large instance stays small
)

// text is a plan for people, cut between two lines if it is very long.
func text(p Plan) string { return bounded(p.String()) }

func bounded(s string) string {
	if len(s) <= maxText {
		return s
	}
	cut := strings.LastIndexByte(s[:maxText], '\n') + 1
	return fmt.Sprintf("%s… and %d more lines\n", s[:cut], strings.Count(s[cut:], "\n"))
}

// record appends an event. One that repeats a failure which is still open takes
// that one's place, so that a long failure does not push all else out.
// What needs a restart stays as it was first seen.
func record(events []Event, e Event) []Event {
	same := func(o Event) bool {
		return o.Resource == e.Resource && o.Repaired.IsZero() && o.Restart == e.Restart && o.What == e.What
	}
	if e.Restart && slices.ContainsFunc(events, same) {
		return events
	}
	events = slices.Clone(events) // readers of older snapshots keep theirs
	for i := len(events) - 1; i >= 0; i-- {
		if o := events[i]; same(o) {
			e.ID, e.Since, e.Found = o.ID, o.Since, o.Found
			events = slices.Delete(events, i, i+1)
			break
		}
	}
	events = append(events, e)
	if len(events) > maxEvents {
		i := dispensable(events)
		events = slices.Delete(events, i, i+1)
	}
	return events
}

// dispensable is the index of the event to forget first. Many changes of the
// desired state must not push out the drift, nor much drift what is still open, nor
// a resource that a service's own user may change all the time that of the others.
func dispensable(events []Event) int {
	other, most := 0, ""
	drifts := map[string]int{}
	for _, e := range events {
		if e.Cause != CauseDrift {
			other++
			continue
		}
		if drifts[e.Resource]++; drifts[e.Resource] > drifts[most] {
			most = e.Resource
		}
	}
	oldest := func(meant func(Event) bool) int {
		return slices.IndexFunc(events[:len(events)-1], func(e Event) bool { return !e.Repaired.IsZero() && meant(e) })
	}
	i := -1
	switch {
	case other > maxOther:
		i = oldest(func(e Event) bool { return e.Cause != CauseDrift })
	case drifts[most] > maxFought:
		i = oldest(func(e Event) bool { return e.Cause == CauseDrift && e.Resource == most })
	}
	if i < 0 && other <= maxOther {
		i = oldest(func(Event) bool { return true })
	}
	return max(0, i)
}

// settle closes the open events of a resource that was seen to be right now, but
// for the one whose text is still what needs a restart.
func settle(events []Event, resource, stuck string, now time.Time) []Event {
	return finish(events, now, func(e Event) bool {
		return e.Resource == resource && (!e.Restart || e.What != stuck)
	})
}

// finish closes the open events that are meant.
func finish(events []Event, now time.Time, meant func(Event) bool) []Event {
	open := func(e Event) bool { return e.Repaired.IsZero() && meant(e) }
	if !slices.ContainsFunc(events, open) {
		return events
	}
	events = slices.Clone(events)
	for i, e := range events {
		if !open(e) {
			continue
		}
		from := e.Found
		if e.Cause == CauseDrift && !e.Since.IsZero() {
			from = e.Since
		}
		events[i].Repaired = now
		events[i].OpenMS = float64(now.Sub(from).Microseconds()) / 1000
	}
	return events
}

// remember makes events the history, and tells of those that are new or over.
func (l *Loop) remember(events []Event) {
	old := l.events
	l.events = events
	if l.opts.OnEvent == nil {
		return
	}
	for _, e := range events {
		i := slices.IndexFunc(old, func(o Event) bool { return o.ID == e.ID })
		if i < 0 || old[i].Repaired.IsZero() && !e.Repaired.IsZero() {
			l.opts.OnEvent(e)
		}
	}
}

// problem records err, keeping the time of an earlier problem of the same kind.
func (s *Snapshot) problem(what string, err error, old []Problem) {
	s.Problems = add(s.Problems, Problem{What: what, Text: err.Error(), Since: time.Now()}, old)
}

// add appends p, which is as old as what old says of the same.
func add(problems []Problem, p Problem, old []Problem) []Problem {
	if i := slices.IndexFunc(old, p.same); i >= 0 {
		p.Since = old[i].Since
	}
	return append(problems, p)
}

// logChanges says once what went wrong and once that it is well again. The count
// of a conflict is no news.
func (l *Loop) logChanges(old, now []Problem) {
	for _, p := range now {
		known := func(o Problem) bool { return o.same(p) && (o.Text == p.Text || p.What == ProblemConflict) }
		if !slices.ContainsFunc(old, known) {
			l.log.Error("degraded", "what", p.What, "reason", p.Text)
		}
	}
	for _, o := range old {
		if !slices.ContainsFunc(now, o.same) {
			l.log.Info("well again", "what", o.What)
		}
	}
}
