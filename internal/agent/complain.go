package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/learn"
)

// maxComplaints of one service are kept and told; the rest is counted. A service
// that is attacked could go on for ever.
const maxComplaints = 200

// complainRetry is the time after which a recorder that failed is tried again.
const complainRetry = time.Minute

// complainWatch tells what the profiles of services whose mode is complain would
// have denied. It records the services' processes and judges what they do, since
// nothing in the kernel denies or logs it.
type complainWatch struct {
	agent *Agent
	log   *slog.Logger
	moved chan struct{} // holds a token while a configuration has not been looked at

	mu    sync.Mutex
	heard map[string]*complaints // by service
}

// complaints are those of one service.
type complaints struct {
	told    []string // different ones
	more    int      // that were not kept
	lost    uint64   // reports
	failure error    // why nothing is recorded
}

func newComplainWatch(a *Agent) *complainWatch {
	return &complainWatch{agent: a, log: a.log, moved: make(chan struct{}, 1), heard: map[string]*complaints{}}
}

// accepted tells of a new configuration. It never blocks.
func (w *complainWatch) accepted() {
	select {
	case w.moved <- struct{}{}:
	default:
	}
}

// run follows the configuration until ctx is done: one recorder for each service
// that complains.
func (w *complainWatch) run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	running := map[string]context.CancelFunc{}
	for {
		d := w.agent.desired.Load()
		for _, spec := range d.Services {
			cancel, is := running[spec.Service]
			switch on := spec.Complain.At(time.Now()); {
			case on && !is:
				w.log.Warn("a service is NOT confined by seccomp and Landlock: its mode is complain", "service", spec.Service, "until", spec.Complain.Until)
				one, cancel := context.WithCancel(ctx)
				running[spec.Service] = cancel
				all.Go(func() { w.keep(one, spec) })
			case !on && is:
				cancel()
				delete(running, spec.Service)
			}
		}
		var tick <-chan time.Time // none wakes up a daemon without such a service
		if len(running) > 0 {
			tick = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			for _, cancel := range running {
				cancel()
			}
			return nil
		case <-w.moved:
		case <-tick:
		}
	}
}

// keep records a service until ctx is done.
func (w *complainWatch) keep(ctx context.Context, spec launch.Spec) {
	w.agent.events.note(control.KindComplain, fmt.Sprintf("service %s: %s", spec.Service, spec.Complain.Text()))
	for ctx.Err() == nil {
		err := w.record(ctx, spec)
		if ctx.Err() != nil {
			return
		}
		w.log.Warn("what would be denied is not known", "service", spec.Service, "error", err)
		w.with(spec.Service, func(c *complaints) { c.failure = err })
		select {
		case <-ctx.Done():
		case <-time.After(complainRetry):
		}
	}
}

func (w *complainWatch) record(ctx context.Context, spec launch.Spec) error {
	judge, err := newJudge(ctx, spec)
	if err != nil {
		return err
	}
	cfg := w.agent.desired.Load().Config
	i := slices.IndexFunc(cfg.Services, func(s config.Service) bool { return s.Name == spec.Service })
	if i < 0 {
		return errors.New("it is not in the configuration any more")
	}
	r, err := recordService(ctx, cfg, cfg.Services[i], spec, func(a learn.Act) { w.judge(spec, judge, a) })
	if err != nil {
		return err
	}
	defer r.recorder.Close()
	w.with(spec.Service, func(c *complaints) { c.failure = nil })
	return r.until(ctx, time.Now(), func(p LearnProgress) {
		w.with(spec.Service, func(c *complaints) { c.lost = p.Lost })
	})
}

// judge tells of an act that would be denied, once.
func (w *complainWatch) judge(spec launch.Spec, judge learn.Judge, a learn.Act) {
	var what string
	switch {
	case a.Call.Name != "":
		if judge.Call(a.Call) {
			return
		}
		what = "seccomp: would be denied: " + a.Call.String()
	case a.Path != "":
		place := learn.Place(a.Path, spec.DataDir)
		if judge.File(a.Access, place) {
			return
		}
		what = fmt.Sprintf("landlock: would be denied: %s %q", a.Access, place)
	default:
		if judge.Port(a.Port, a.Listen) {
			return
		}
		what = fmt.Sprintf("landlock: would be denied: connect to port %d", a.Port)
		if a.Listen {
			what = fmt.Sprintf("landlock: would be denied: bind to port %d", a.Port)
		}
	}
	fresh := false
	w.with(spec.Service, func(c *complaints) {
		switch {
		case slices.Contains(c.told, what):
		case len(c.told) >= maxComplaints:
			c.more++
		default:
			fresh = true
			c.told = append(c.told, what)
		}
	})
	if fresh {
		w.agent.events.note(control.KindComplain, fmt.Sprintf("service %s: %s (process %d)", spec.Service, what, a.PID))
	}
}

func (w *complainWatch) with(service string, f func(*complaints)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.heard[service]
	if !ok {
		c = &complaints{}
		w.heard[service] = c
	}
	f(c)
}

// shownComplaints are in a status; events have all.
const shownComplaints = 5

// addTo puts the mode of a service into a status: its layers are not enforced, and
// that is a reason to be degraded.
func (w *complainWatch) addTo(spec launch.Spec, s *control.Status) {
	if !spec.Complain.At(time.Now()) {
		return
	}
	for i, l := range s.Layers {
		if l.Subject == spec.Service && (l.Name == "seccomp" || l.Name == launch.LayerLandlock) && l.Configured {
			s.Layers[i].Enforced, s.Layers[i].Mode, s.Layers[i].Detail = false, launch.ModeComplain, spec.Complain.Text()
		}
	}
	s.Reasons = append(s.Reasons, fmt.Sprintf("service %s: %s; write mode: enforce and restart it to confine it", spec.Service, spec.Complain.Text()))
	if w == nil {
		return
	}
	w.with(spec.Service, func(c *complaints) {
		if c.failure != nil {
			s.Warnings = append(s.Warnings, fmt.Sprintf("service %s: what would be denied is not known: %v", spec.Service, c.failure))
		}
		if c.lost > 0 || c.more > 0 {
			s.Warnings = append(s.Warnings, fmt.Sprintf("service %s: more would be denied than is told: %d reports of the kernel were lost, %d acts not kept", spec.Service, c.lost, c.more))
		}
		for _, what := range c.told[max(0, len(c.told)-shownComplaints):] {
			s.Warnings = append(s.Warnings, fmt.Sprintf("service %s: %s", spec.Service, what))
		}
		if n := len(c.told); n > shownComplaints {
			s.Warnings = append(s.Warnings, fmt.Sprintf("service %s: %d different acts would be denied; `pghardend events` lists them", spec.Service, n))
		}
	})
}

// withoutComplaints leaves the findings that are not there because of the mode,
// which has a line of its own.
func withoutComplaints(findings []launch.Finding) []launch.Finding {
	return slices.DeleteFunc(slices.Clone(findings), launch.Finding.Complaining)
}
