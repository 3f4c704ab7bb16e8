package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/journal"
	"github.com/pghardend/pghardend/internal/reconcile"
)

// events joins what happens in the loop with the journal. run, note and err may be
// called from any goroutine, the others from the loop's.
type events struct {
	journal   *journal.Journal
	conflicts map[string]string // by resource: what was said when it began
	openings  map[string]bool   // by id: whether it was open; nil before the first look
}

// newEvents takes up the journal of state_dir. One that cannot be used is a
// reason to be degraded (err), none to protect nobody.
func newEvents(ctx context.Context, stateDir string, log *slog.Logger) *events {
	if err := ownDir(ctx, stateDir); err != nil {
		log.Warn("state_dir cannot be used", "error", err)
	}
	return &events{journal: journal.Open(ctx, stateDir, log), conflicts: map[string]string{}}
}

// run writes the journal until ctx is done.
func (e *events) run(ctx context.Context) error { return e.journal.Run(ctx) }

// err says why the journal is not on disk; nil if it is.
func (e *events) err() error { return e.journal.Err() }

// note writes down what is no drift. kind is one of control's. It never blocks.
func (e *events) note(kind, what string) {
	e.journal.Append(journal.Record{Kind: kind, What: what})
}

// record takes what the loop reports, when it begins and when it has ended. It
// never blocks.
func (e *events) record(x reconcile.Event) {
	kind := x.Cause
	if x.Restart {
		kind = control.KindRestart
	}
	e.journal.Append(journal.Record{
		Kind: kind, ID: x.ID, Resource: x.Resource, Cause: x.Cause, Trigger: x.Trigger, What: x.What,
		Since: x.Since, Found: x.Found, Repaired: x.Repaired, OpenMS: x.OpenMS,
		Who: (*journal.Culprit)(x.Who), Restart: x.Restart, Error: x.Error, Asked: x.Asked,
	})
}

// pass notes conflicts that begin or end. It never blocks.
func (e *events) pass(s reconcile.Snapshot) {
	now := map[string]string{}
	for _, p := range s.Problems {
		if p.What != reconcile.ProblemConflict {
			continue
		}
		now[p.Resource] = p.Text
		if _, known := e.conflicts[p.Resource]; !known {
			e.journal.Append(journal.Record{Kind: control.KindConflict, Resource: p.Resource, What: p.Text, Found: p.Since})
		}
	}
	for resource := range e.conflicts {
		if _, still := now[resource]; !still {
			e.journal.Append(journal.Record{Kind: control.KindConflict, Resource: resource, What: "nobody changes it again and again any more"})
		}
	}
	e.conflicts = now
}

// opened notes openings that were made or ended since the last call. Those that
// an earlier daemon left were noted by it. It never blocks.
func (e *events) opened(list []control.Opening) {
	seen := map[string]bool{}
	for _, o := range list {
		open := o.Ended.IsZero()
		was, known := e.openings[o.ID]
		seen[o.ID] = open
		what := fmt.Sprintf("%s: %v to %s port %d", o.ID, o.From, o.Proto, o.Port)
		if e.openings == nil {
			continue
		}
		if !known {
			e.note(control.KindOpening, fmt.Sprintf("%s opened until %s by %s: %s", what, o.Until.Round(0).UTC().Format(time.RFC3339), o.By, o.Reason))
		}
		if !open && (was || !known) {
			e.note(control.KindOpening, fmt.Sprintf("%s closed: %s", what, o.EndedBy))
		}
	}
	e.openings = seen
}

// Events implements control.Backend.
func (a *Agent) Events(ctx context.Context, after uint64, limit int) ([]control.Event, error) {
	return eventsOf(a.events.journal.Since(ctx, after, limit)), ctx.Err()
}

// Follow implements control.Backend.
func (a *Agent) Follow(ctx context.Context, after uint64, limit int) (<-chan control.Event, error) {
	records, err := a.events.journal.Subscribe(ctx, after, limit)
	if errors.Is(err, journal.ErrTooMany) {
		return nil, fmt.Errorf("%w: %w; end some of them", control.ErrRefused, err)
	}
	if err != nil {
		return nil, err
	}
	ch := make(chan control.Event)
	go func() {
		defer close(ch)
		for r := range records {
			select {
			case ch <- eventOf(r):
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch, nil
}

// Events lists the last events that a daemon has left in state_dir; a limit of 0
// means all.
func Events(ctx context.Context, configFile string, limit int) ([]control.Event, error) {
	dir := stateDir(ctx, configFile)
	records, err := journal.Read(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the events in %s: %w%s", dir, err, rootHint(err))
	}
	if limit > 0 {
		records = records[max(0, len(records)-limit):]
	}
	return eventsOf(records), nil
}

func eventsOf(records []journal.Record) []control.Event {
	var list []control.Event
	for _, r := range records {
		list = append(list, eventOf(r))
	}
	return list
}

func eventOf(r journal.Record) control.Event {
	return control.Event{
		Seq: r.Seq, At: r.At, Boot: r.Boot, PID: r.PID, Kind: r.Kind, Lost: r.Lost,
		Drift: control.Drift{
			ID: r.ID, Resource: r.Resource, Cause: r.Cause, Trigger: r.Trigger, What: r.What,
			Since: r.Since, Found: r.Found, Repaired: r.Repaired, OpenMS: r.OpenMS,
			Who: (*control.Culprit)(r.Who), Restart: r.Restart, Error: r.Error, Asked: r.Asked,
		},
	}
}

func driftOf(e reconcile.Event) control.Drift {
	return control.Drift{
		ID: e.ID, Resource: e.Resource, Cause: e.Cause, Trigger: e.Trigger, What: e.What,
		Since: e.Since, Found: e.Found, Repaired: e.Repaired, OpenMS: e.OpenMS,
		Who: (*control.Culprit)(e.Who), Restart: e.Restart, Error: e.Error, Asked: e.Asked,
	}
}

// Metrics implements control.Backend.
func (a *Agent) Metrics() http.Handler { return a.metrics.handler() }
