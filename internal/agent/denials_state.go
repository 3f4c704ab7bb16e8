package agent

import (
	"context"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/pkg/trace"
)

// count adds to the metrics what the kernel has counted since the last call.
func (d *denials) count(ctx context.Context) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.traced == nil {
		return
	}
	list, err := d.traced.Counts(ctx)
	if err != nil {
		d.log.Warn("not all denials are in the metrics", "error", err)
	}
	for _, c := range list {
		what := c
		what.Count = 0
		n := c.Count - d.counted[what]
		if c.Kind == trace.KindMove || n == 0 || int(c.Service) >= len(d.names) {
			continue
		}
		d.counted[what] = c.Count
		service := d.names[c.Service]
		if c.Kind == trace.KindExec {
			d.metrics.metrics.Blocked(n, service)
		} else if name, ours := d.denied(service, c.Number, c.Errno); ours {
			d.metrics.metrics.Denied(n, service, name)
		}
	}
}

// state is for status. warnings say what nobody is told of.
func (d *denials) state() (s control.Denials, warnings []string) {
	s = control.Denials{Source: denialsUnheard, Last: []control.Denial{}}
	if d == nil {
		return s, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s.Last = d.told.last()
	switch {
	case d.members != nil:
		s.Source = denialsTraced
		if events, children, err := d.members.Lost(); err == nil && events+children > 0 {
			warnings = append(warnings, lostText(events, children))
		}
	case d.why == "": // it begins
	case d.audited:
		s.Source = denialsAudited
		warnings = append(warnings, "blocked executions are not told of, denied system calls by audit alone: "+d.why+d.hint())
	default:
		warnings = append(warnings, "neither blocked executions nor denied system calls are told of: "+d.why)
	}
	return s, warnings
}

// hint is for a kernel that permits no tracing: filters make audit records only if
// they are loaded for it.
func (d *denials) hint() string {
	if !d.trace {
		return ""
	}
	return "; set denials.trace to false and restart services, or audit tells of killed processes only"
}

func lostText(events, children uint64) string {
	return fmt.Sprintf("%d denials were counted but not told of, %d processes of services are not followed", events, children)
}

// printable is a name or path that somebody has chosen.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
