package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/supervise"
	"github.com/pghardend/pghardend/pkg/config"
)

// A profileWatch notes each start of a service whose features are not those of the
// start before: whoever can write the server's settings has a say in some of them.
// It belongs to the loop's goroutine.
type profileWatch struct {
	seen  map[string]int      // by service: the process that was looked at
	names map[string][]string // its features; a unit's launch does not know those of the one before
	since time.Time           // the first look
}

// look reads the records of launches, which are root's, of processes that are new.
func (w *profileWatch) look(ctx context.Context, d *Desired, states []supervise.Status, events *events) {
	if w.seen == nil {
		w.seen, w.names, w.since = map[string]int{}, map[string][]string{}, time.Now()
	}
	for _, state := range states {
		if state.State != supervise.StateReady || w.seen[state.Name] == state.PID {
			continue
		}
		w.seen[state.Name] = state.PID
		r, ok, err := launch.ReadProfile(ctx, filepath.Join(d.Config.RuntimeDir, profilesDir), state.Name, state.PID)
		if err != nil || !ok {
			continue
		}
		if r.Unit {
			r.Before = w.names[state.Name]
		}
		w.names[state.Name] = append([]string{}, r.Names()...) // nil: not known
		// Of what an earlier daemon started it has told already.
		if !r.Time.Before(w.since.Truncate(time.Second)) {
			if what := featureChange(state.Name, r); what != "" {
				events.note(control.KindProfile, what)
			}
		}
	}
}

// featureChange says what is not as at the start before; "" if nothing, or if no
// start before is known.
func featureChange(service string, r launch.ProfileRecord) string {
	added, gone := without(r.Names(), r.Before), without(r.Before, r.Names())
	if r.Before == nil || len(added)+len(gone) == 0 {
		return ""
	}
	var parts []string
	for _, c := range r.Chosen {
		if slices.Contains(added, c.Feature) {
			parts = append(parts, fmt.Sprintf("with %s (%s)", c.Feature, c.Because))
		}
	}
	if len(gone) > 0 {
		parts = append(parts, "without "+strings.Join(gone, ", "))
	}
	return fmt.Sprintf("service %s started with another profile: %s", service, strings.Join(parts, "; "))
}

// addProfile says what a running service's profile was made of, what its settings
// ask for in vain, and whether the configuration now says something else.
func addProfile(ctx context.Context, cfg config.Config, state supervise.Status, s *control.Status) {
	r, ok, err := launch.ReadProfile(ctx, filepath.Join(cfg.RuntimeDir, profilesDir), state.Name, state.PID)
	i := slices.IndexFunc(cfg.Services, func(c config.Service) bool { return c.Name == state.Name })
	if err != nil || i < 0 {
		return // gone, which the other layers tell
	}
	if !ok {
		s.Warnings = append(s.Warnings, fmt.Sprintf("service %s: the features of its seccomp profile are not known: "+
			"it was started by an older version or by something else: restart it", state.Name))
		return
	}
	svc := cfg.Services[i]
	names := featureList(r.Names())
	for i, l := range s.Layers {
		if l.Subject == state.Name && l.Name == "seccomp" && l.Enforced {
			s.Layers[i].Detail += fmt.Sprintf("; launched with the profile %s and %s", svc.Profile, names)
			if len(ofUnit(r).Chosen) < len(r.Chosen) {
				s.Layers[i].Detail += "; " + noGate
			}
		}
	}
	if problem := featureProblem(svc, r); problem != "" {
		s.Reasons = append(s.Reasons, problem)
	}
	for _, w := range r.Wanted {
		s.Warnings = append(s.Warnings, fmt.Sprintf("service %s: %s; if it shall, see the feature %s in the documentation of services.%s.features",
			state.Name, w.Because, w.Feature, state.Name))
	}
}

// profileDrift compares a launch with what the configuration says by itself: what
// settings chose may change with them.
func profileDrift(svc config.Service, r launch.ProfileRecord) (gone, missing []string) {
	if !slices.Contains(svc.Features, featureOpenExec) {
		r = ofUnit(r)
	}
	var named []string
	for _, name := range svc.Features {
		if name != config.FeaturesAuto {
			named = append(named, name)
		}
	}
	if helpersImplied(svc) {
		named = append(named, featureHelpers)
	}
	for _, name := range without(r.Names(), named) {
		if f, err := readFeature(name); err != nil || f.OptIn() || name == featureHelpers {
			gone = append(gone, name)
		}
	}
	return gone, without(named, r.Names())
}

// featureProblem is profileDrift for people; "" if there is none.
func featureProblem(svc config.Service, r launch.ProfileRecord) string {
	gone, missing := profileDrift(svc, r)
	if len(gone)+len(missing) == 0 {
		return ""
	}
	return fmt.Sprintf("service %s: it was started with %s in its seccomp profile; the configuration now asks for %s more and for %s less: restart it",
		svc.Name, featureList(r.Names()), featureList(missing), featureList(gone))
}

func featureList(names []string) string {
	if len(names) == 0 {
		return "no features"
	}
	return strings.Join(names, ", ")
}
