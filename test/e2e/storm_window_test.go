package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
)

// stormWindow is a time in which packets of a family may get in.
type stormWindow struct {
	from, to time.Time
	edit     *stormEdit
	seen     time.Time // what the daemon found from then on took it into account
}

// windows finds those of each family. They begin with an edit: on nft with its commit, else with its command. They end with
// what shows that the daemon has put it back: its own commit by netlink, a repair that was found after the edit, or an empty plan.
func (s *storm) windows(t *testing.T) (all [2][]stormWindow) {
	t.Helper()
	var open [2][]stormWindow
	var times []struct {
		at time.Time
		do func()
	}
	at := func(when time.Time, do func()) {
		times = append(times, struct {
			at time.Time
			do func()
		}{when, do})
	}
	opened := func(e *stormEdit, from, seen time.Time) {
		for f, opens := range e.opens {
			if opens {
				at(from, func() { open[f] = append(open[f], stormWindow{from: from, edit: e, seen: seen}) })
			}
		}
	}
	closed := func(to time.Time, by func(w stormWindow) bool) {
		at(to, func() {
			for f := range open {
				open[f] = slices.DeleteFunc(open[f], func(w stormWindow) bool {
					if !by(w) {
						return false
					}
					w.to = to
					all[f] = append(all[f], w)
					return true
				})
			}
		})
	}
	var restores []time.Time
	restored := func(e control.Event) bool {
		return slices.ContainsFunc(restores, func(at time.Time) bool { return at.After(e.Found) && at.Before(e.Repaired) })
	}
	byPID := map[int]*stormEdit{}
	for _, e := range s.edits {
		byPID[e.pid] = e
		if s.backend == "legacy" || e.set != "" {
			opened(e, e.started.Add(-stormSlack), e.ended)
		}
	}
	for i, c := range s.heard {
		switch e := byPID[c.port]; {
		case e != nil && !c.at.Before(e.started) && e.set == "":
			opened(e, c.at.Add(-stormSlack), c.at)
		case c.command == "pghardend":
			closed(stormRun(s.heard[i:]), func(w stormWindow) bool { return w.edit.set == "" && w.seen.Before(c.at) })
		case stormRestore(c.command):
			restores = append(restores, c.at)
		default:
			t.Errorf("nobody knows who committed: %+v", c)
		}
	}
	for _, e := range s.told {
		if e.Trigger == "event" && !restored(e) {
			continue // answered by netlink, and told of later
		}
		closed(e.Repaired, func(w stormWindow) bool { return !e.Found.Before(w.seen) })
	}
	for _, c := range s.calm {
		closed(c, func(stormWindow) bool { return true })
	}
	slices.SortStableFunc(times, func(a, b struct {
		at time.Time
		do func()
	}) int {
		return a.at.Compare(b.at)
	})
	for _, x := range times {
		x.do()
	}
	return all
}

// stormRestore says whether a command is one by which the daemon writes all that differs.
func stormRestore(command string) bool {
	return strings.HasPrefix(command, "iptables-nft-re") || strings.HasPrefix(command, "ip6tables-nft-r")
}

// stormRun is the end of a repair of several tables, of which each has a commit.
func stormRun(commits []stormCommit) time.Time {
	end := commits[0].at
	for _, c := range commits {
		if c.at.Sub(end) > stormSlack {
			break
		}
		if c.command == "pghardend" {
			end = c.at
		}
	}
	return end
}

// onlyInside checks that each packet that got in did so in a window, and tells how many.
func (s *storm) onlyInside(t *testing.T, windows [2][]stormWindow, times [2][]time.Time, sent int, took time.Duration) {
	t.Helper()
	inside, outside := 0, 0
	for f, list := range windows {
		for _, at := range times[f] {
			if slices.ContainsFunc(list, func(w stormWindow) bool { return !at.Before(w.from) && !at.After(w.to) }) {
				inside++
				continue
			}
			if outside++; outside <= 5 {
				t.Errorf("a packet of ipv%d got in at %s, when nothing was open; around it:\n%s", 4+2*f, at.Format(stormClock), s.around(at, list))
			}
		}
	}
	t.Logf("sent %d packets of four floods, %d got in: %d inside windows, %d outside (slack %s)", sent, inside+outside, inside, outside, stormSlack)
	t.Logf("open in all: IPv4 %s, IPv6 %s of %s", stormUnion(windows[0]), stormUnion(windows[1]), took.Round(time.Millisecond))
	both := slices.Concat(windows[0], windows[1])
	for _, row := range []struct {
		name      string
		set, slow bool
	}{{"rules, slow edits", false, true}, {"sets, slow edits", true, true}, {"rules, storm", false, false}, {"sets, storm", true, false}} {
		stormSpans(t, row.name, both, func(w stormWindow) bool { return (w.edit.set != "") == row.set && w.edit.slow == row.slow })
	}
	if outside > 0 {
		t.Errorf("%d packets got in outside of all windows", outside)
	}
	if inside == 0 {
		t.Error("nothing got in at all, so the windows were not tested")
	}
}

// stormSpans tells how long some of the windows were.
func stormSpans(t *testing.T, name string, list []stormWindow, which func(stormWindow) bool) {
	t.Helper()
	var spans []time.Duration
	for _, w := range list {
		if which(w) {
			spans = append(spans, w.to.Sub(w.from)-stormSlack)
		}
	}
	if len(spans) == 0 {
		return
	}
	slices.Sort(spans)
	t.Logf("%d windows of %s: median %s, nine of ten at most %s, longest %s", len(spans), name, spans[len(spans)/2].Round(10*time.Microsecond),
		spans[len(spans)*9/10].Round(10*time.Microsecond), spans[len(spans)-1].Round(10*time.Microsecond))
}

const stormClock = "15:04:05.000000"

// around names what happened next to a time.
func (s *storm) around(at time.Time, list []stormWindow) string {
	near := func(from, to time.Time) bool {
		return to.After(at.Add(-100*time.Millisecond)) && from.Before(at.Add(10*time.Millisecond))
	}
	var lines []string
	add := func(from time.Time, format string, args ...any) {
		lines = append(lines, from.Format(stormClock)+" "+fmt.Sprintf(format, args...))
	}
	for _, e := range s.edits {
		if near(e.started, e.ended) {
			add(e.started, "edit until %s, code %d: %q", e.ended.Format(stormClock), e.code, e.script)
		}
	}
	for _, c := range s.heard {
		if near(c.at, c.at) {
			add(c.at, "commit of %s (%d)", c.command, c.port)
		}
	}
	for _, e := range s.told {
		if near(e.Found, e.Repaired) {
			add(e.Found, "%s until %s: %.200q", e.Trigger, e.Repaired.Format(stormClock), e.What)
		}
	}
	for _, w := range list {
		if near(w.from, w.to) {
			add(w.from, "window until %s by %q", w.to.Format(stormClock), w.edit.script)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// stormUnion is how long at least one window was open.
func stormUnion(list []stormWindow) (sum time.Duration) {
	list = slices.SortedFunc(slices.Values(list), func(a, b stormWindow) int { return a.from.Compare(b.from) })
	var until time.Time
	for _, w := range list {
		from := w.from
		if from.Before(until) {
			from = until
		}
		if w.to.After(from) {
			sum += w.to.Sub(from)
			until = w.to
		}
	}
	return sum.Round(time.Millisecond)
}
