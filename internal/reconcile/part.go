package reconcile

import "time"

// part is what the loop remembers of one resource: times, and no kernel state.
type part struct {
	right    sight
	ever     bool // right was set
	damper   damper
	fights   fights
	alarms   uint64 // that were heard
	reflexes uint64 // that put something back
	held     *held  // alarms to be served by a reflex, nil: none
	blame    *held  // alarms to be served by the next look, nil: none
	failed   string // what the last reflex that failed said

	due    time.Time // when a look is wanted; zero: none is
	why    string    // reason for it
	wanted time.Time // since when
	served time.Time // begin of the last look after an alarm
}

// sight is when, and compared with what, a resource was last seen to be right.
type sight struct {
	at         time.Time
	generation uint64
}

func (l *Loop) part(name string) *part {
	p, ok := l.parts[name]
	if !ok {
		p = &part{damper: newDamper()}
		l.parts[name] = p
	}
	return p
}

// want asks for a look at a time.
func (p *part) want(at time.Time, why string) {
	if p.due.IsZero() || at.Before(p.due) {
		p.due, p.why = at, why
	}
}

// wantNow asks for a look after an alarm that no reflex could serve.
func (p *part) wantNow(now time.Time) {
	p.want(later(now, p.served.Add(repairGap)), reasonEvent)
}

// wantSoon asks for a look when no further alarms come, and not too often.
func (p *part) wantSoon(now time.Time) {
	if p.wanted.IsZero() {
		p.wanted = now
	}
	at := later(now.Add(quiet), p.served.Add(lookGap))
	at = earlier(at, p.wanted.Add(latest))
	if p.due.IsZero() || p.why == reasonVerify { // this one may be put off
		p.due, p.why = at, reasonVerify
		return
	}
	p.want(at, reasonVerify)
}

// look notes that a look begins, which serves all wishes for one.
func (p *part) look(now time.Time) {
	if p.why == reasonEvent || p.why == reasonVerify {
		p.served = now
	}
	p.due, p.why, p.wanted = time.Time{}, "", time.Time{}
}

func (p *part) isDue(now time.Time) bool { return isDue(p.due, now) }

// saw notes that the resource was right.
func (p *part) saw(s sight) { p.right, p.ever = s, true }

// steady says whether the resource was right with the desired state that is
// still in force.
func (p *part) steady(generation uint64) bool { return p.ever && p.right.generation == generation }

// blamed are the alarms that a plan may be due to, if any. They are for one plan.
func (p *part) blamed(plan Plan) *held {
	h := p.blame
	p.blame = nil
	if a, ok := plan.(Announced); ok && !a.Announced() {
		return nil // somebody else's change was
	}
	return h
}
