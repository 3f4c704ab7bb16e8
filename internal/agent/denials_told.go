package agent

import (
	"fmt"
	"slices"
	"time"

	"github.com/pghardend/pghardend/internal/control"
)

const (
	toldAgain    = time.Minute // what is denied again and again is told of once in this time
	maxTold      = 20          // different things of one service in this time, each of which is told
	keptDenials  = 64
	shownDenials = 16
)

// denialLog remembers what was denied lately, and says what is worth an event.
type denialLog struct {
	list []*toldDenial // by time of the last, oldest first
}

type toldDenial struct {
	control.Denial
	at    time.Time // of the last event
	since uint64    // denials that no event has told of
}

// add takes n denials. event is false for what was told of less than a while ago;
// otherwise before is how many there were since then, these not included.
func (t *denialLog) add(d control.Denial, n uint64, now time.Time) (before uint64, event bool) {
	e := t.find(d.Service, d.What)
	if e == nil && t.many(d.Service, now) {
		d.What = "more that is denied, of many kinds"
		e = t.find(d.Service, d.What)
	}
	if e == nil {
		d.First = now
		e = &toldDenial{Denial: d}
	} else {
		t.list = slices.DeleteFunc(t.list, func(x *toldDenial) bool { return x == e })
	}
	e.Last, e.Who, e.Count, e.since = now, d.Who, e.Count+n, e.since+n
	t.list = append(t.list, e)
	if len(t.list) > keptDenials {
		t.list = t.list[1:]
	}
	if !e.at.IsZero() && now.Sub(e.at) < toldAgain {
		return 0, false
	}
	before, e.since, e.at = e.since-n, 0, now
	return before, true
}

// untold are those that an event is due for, as nothing came since to make one.
func (t *denialLog) untold(now time.Time) []toldDenial {
	var due []toldDenial
	for _, e := range t.list {
		if e.since > 0 && now.Sub(e.at) >= toldAgain {
			due = append(due, *e)
			e.since, e.at = 0, now
		}
	}
	return due
}

func (t *denialLog) pending() bool {
	return slices.ContainsFunc(t.list, func(e *toldDenial) bool { return e.since > 0 })
}

func (t *denialLog) find(service, what string) *toldDenial {
	for _, e := range t.list {
		if e.Service == service && e.What == what {
			return e
		}
	}
	return nil
}

// many says whether a service was denied so many different things that no more is told
// of each.
func (t *denialLog) many(service string, now time.Time) bool {
	n := 0
	for _, e := range t.list {
		if e.Service == service && now.Sub(e.First) < toldAgain {
			n++
		}
	}
	return n >= maxTold
}

func (t *denialLog) last() []control.Denial {
	list := []control.Denial{}
	for _, e := range t.list[max(0, len(t.list)-shownDenials):] {
		list = append(list, e.Denial)
	}
	return list
}

// againText is what an event says that tells of n.
func againText(what string, n uint64) string {
	if n == 0 {
		return what
	}
	return fmt.Sprintf("%s; %d more times since the last event", what, n)
}
