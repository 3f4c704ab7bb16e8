package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/reconcile"
)

// ask gives the source an order and makes passes that carry it out. One at a
// time, so that no answer reaches the wrong one.
func (a *Agent) ask(ctx context.Context, r *request, passes int, t reconcile.Trigger) (reconcile.Snapshot, error) {
	select {
	case a.asking <- struct{}{}:
		defer func() { <-a.asking }()
	case <-ctx.Done():
		return reconcile.Snapshot{}, fmt.Errorf("the daemon is busy with an earlier request: %w", ctx.Err())
	}
	a.source.conf.orders.give(r)
	defer a.source.conf.orders.give(nil)
	var snap reconcile.Snapshot
	for range passes {
		var err error
		if snap, err = a.loop.Request(ctx, t); err != nil {
			return snap, err
		}
	}
	return snap, nil
}

func problemsOf(snap reconcile.Snapshot) error {
	var errs []error
	for _, p := range snap.Problems {
		errs = append(errs, errors.New(p.Text))
	}
	return errors.Join(errs...)
}

// Apply implements control.Backend. A changed file counts when it has looked
// the same twice, hence the two passes.
func (a *Agent) Apply(ctx context.Context, r control.ApplyRequest) (control.Status, error) {
	if err := checkWithin(r.ConfirmWithin); err != nil {
		return control.Status{}, err
	}
	snap, err := a.ask(ctx, &request{apply: true, within: r.ConfirmWithin}, 2, reconcile.Trigger{Reason: "apply", Force: r.Force})
	if err != nil {
		return control.Status{}, err
	}
	st, err := a.Status(ctx), problemsOf(snap)
	if err != nil && st.Pending != nil { // or who sees the error only would be surprised later
		err = fmt.Errorf("%w\nthe change is in force until %s, unless `pghardend confirm` is said before", err, st.Pending.Until.Format(time.RFC3339))
	}
	return st, err
}

// Confirm implements control.Backend.
func (a *Agent) Confirm(ctx context.Context, by string) (control.Status, error) {
	r := request{confirm: by}
	if _, err := a.ask(ctx, &r, 1, reconcile.Trigger{Reason: "confirm"}); err != nil {
		return control.Status{}, err
	}
	return a.Status(ctx), r.err
}

// Openings implements control.Backend.
func (a *Agent) Openings(context.Context) []control.Opening { return a.source.openings.all() }

// Open implements control.Backend. It returns when the opening is in the kernel.
func (a *Agent) Open(ctx context.Context, r control.OpenRequest) (control.Opening, error) {
	opened, err := a.source.openings.add(ctx, r, a.desired.Load().Peers)
	if err != nil {
		return opened, err
	}
	if err := a.enforce(ctx, "open"); err != nil {
		return opened, fmt.Errorf("the opening %s is recorded, but not in the rules yet, which is tried again: %w", opened.ID, err)
	}
	return opened, nil
}

// Close implements control.Backend. It returns when the opening is gone from the
// kernel.
func (a *Agent) Close(ctx context.Context, id, by string) (control.Opening, error) {
	closed, err := a.source.openings.end(ctx, id, by)
	if err != nil && closed.Ended.IsZero() {
		return closed, err
	}
	if enforceErr := a.enforce(ctx, "close"); enforceErr != nil {
		err = errors.Join(err, fmt.Errorf("the opening %s has ended, but may still be in the rules, which is tried again: %w", id, enforceErr))
	}
	return closed, err
}

// enforce makes a pass and says whether it left the rules as desired. That a file
// is bad or cannot be written, or a sysctl, is another matter.
func (a *Agent) enforce(ctx context.Context, reason string) error {
	snap, err := a.loop.Request(ctx, reconcile.Trigger{Reason: reason})
	if err != nil {
		return err
	}
	snap.Problems = slices.DeleteFunc(slices.Clone(snap.Problems), func(p reconcile.Problem) bool {
		return p.What != firewallName && p.What != connectionsName
	})
	return problemsOf(snap)
}
