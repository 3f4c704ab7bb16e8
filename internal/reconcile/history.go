package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	maxEvents = 64
	maxText   = 32 << 10 // bytes of one plan, so that the history of a large instance stays small
)

// text is a plan for people, cut between two lines if it is very long.
func text(p Plan) string {
	s := p.String()
	if len(s) <= maxText {
		return s
	}
	cut := strings.LastIndexByte(s[:maxText], '\n') + 1
	return fmt.Sprintf("%s… and %d more lines\n", s[:cut], strings.Count(s[cut:], "\n"))
}

// record appends an event. One that repeats a failure which is still open takes
// that one's place, so that a long failure does not push all else out.
func record(events []Event, e Event) []Event {
	events = slices.Clone(events) // readers of older snapshots keep theirs
	for i := len(events) - 1; i >= 0; i-- {
		o := events[i]
		if o.Resource == e.Resource && o.Repaired.IsZero() && o.What == e.What {
			e.Since, e.Found = o.Since, o.Found
			events = slices.Delete(events, i, i+1)
			break
		}
	}
	events = append(events, e)
	return events[max(0, len(events)-maxEvents):]
}

// settle closes the open events of a resource that was seen to be right now.
func settle(events []Event, resource string, now time.Time) []Event {
	open := func(e Event) bool { return e.Resource == resource && e.Repaired.IsZero() }
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

// problem records err, keeping the time of an earlier problem of the same kind.
func (s *Snapshot) problem(what string, err error, old []Problem) {
	p := Problem{What: what, Text: err.Error(), Since: time.Now()}
	if i := slices.IndexFunc(old, func(o Problem) bool { return o.What == what }); i >= 0 {
		p.Since = old[i].Since
	}
	s.Problems = append(s.Problems, p)
}

// logChanges says once what went wrong and once that it is well again.
func (l *Loop) logChanges(old, now []Problem) {
	for _, p := range now {
		if !slices.ContainsFunc(old, func(o Problem) bool { return o.What == p.What && o.Text == p.Text }) {
			l.log.Error("degraded", "what", p.What, "reason", p.Text)
		}
	}
	for _, o := range old {
		if !slices.ContainsFunc(now, func(p Problem) bool { return p.What == o.What }) {
			l.log.Info("well again", "what", o.What)
		}
	}
}
