package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	conflictSpan  = time.Minute
	conflictAbove = 10   // repairs within conflictSpan
	maxFights     = 1024 // kept of a conflictSpan; the damping allows few more
)

// fights are the repairs of one resource's drift within the last conflictSpan,
// oldest first.
type fights struct {
	list []fight
	on   bool // a conflict was seen, and conflictSpan has not passed since the last
}

type fight struct {
	at  time.Time
	who *Culprit // nil: unknown
}

func (f fight) command() string {
	if f.who == nil {
		return ""
	}
	return f.who.Command
}

func (f *fights) add(now time.Time, who *Culprit) {
	f.list = append(f.list, fight{at: now, who: who})
	f.list = slices.Delete(f.list, 0, max(0, len(f.list)-maxFights))
}

// over says whether a conflict that was on has ended.
func (f *fights) over(now time.Time) bool {
	return f.on && now.Sub(f.list[len(f.list)-1].at) >= conflictSpan
}

// conflict says how often who (nil: unknown) made us repair lately, if that is a
// conflict. Repairs whose culprit is not known count for the one who leads.
func (f *fights) conflict(now time.Time) (who *Culprit, times int, ok bool) {
	f.list = slices.DeleteFunc(f.list, func(x fight) bool { return now.Sub(x.at) >= conflictSpan })
	if len(f.list) == 0 {
		f.list, f.on = nil, false
		return nil, 0, false
	}
	counts := map[string]int{}
	for _, x := range f.list {
		counts[x.command()]++
	}
	unknown, most := counts[""], 0
	for _, x := range slices.Backward(f.list) { // the latest of the leader
		if n := counts[x.command()]; x.command() != "" && n > most {
			who, most = x.who, n
		}
	}
	f.on = f.on || unknown+most > conflictAbove
	return who, unknown + most, f.on
}

// conflictText is what an operator has to know to end a conflict.
func conflictText(resource string, who *Culprit, times int) string {
	name, remedy := "something unknown", "`pghardend events` shows what is changed: find the program and"
	if who != nil {
		name, remedy = who.String(), "`pghardend events` shows what it changes:"
	}
	return fmt.Sprintf("%s changed %s back %d times in the last minute; it is put right each time, but no longer at once. %s stop it, or configure it to leave alone what is ours",
		name, resource, times, remedy)
}

// String is the culprit in one line.
func (c Culprit) String() string {
	var parts []string
	if c.PID != 0 {
		parts = append(parts, fmt.Sprintf("pid %d", c.PID))
	}
	if c.UID >= 0 {
		parts = append(parts, fmt.Sprintf("uid %d", c.UID))
	}
	if c.Exe != "" {
		parts = append(parts, c.Exe)
	}
	if c.Parent != "" {
		parts = append(parts, "by "+c.Parent)
	}
	name := c.Command
	if name == "" {
		name = "an unknown command"
	}
	if len(parts) == 0 {
		return name
	}
	return name + " (" + strings.Join(parts, ", ") + ")"
}

// withConflicts is problems with the conflicts as they are now. Those of old are
// as old as they were.
func (l *Loop) withConflicts(problems, old []Problem, now time.Time) []Problem {
	all := slices.DeleteFunc(slices.Clone(problems), func(p Problem) bool { return p.What == ProblemConflict })
	for _, r := range l.desired.Resources {
		name := r.Name()
		if who, times, ok := l.part(name).fights.conflict(now); ok {
			all = add(all, Problem{What: ProblemConflict, Resource: name, Text: conflictText(name, who, times), Since: now}, old)
		}
	}
	return all
}
