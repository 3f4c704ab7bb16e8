package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// Applied is what Apply did, and what ApplyPending tells as soon as the change is
// in force.
type Applied struct {
	Changes  Changes
	Until    time.Time // zero: there is nothing to confirm
	ByDaemon bool      // the daemon waits for the confirmation, and not this process
}

// lookForConfirm is how often a process without a daemon looks for the file that
// `confirm` writes.
const lookForConfirm = 100 * time.Millisecond

// ApplyPending is Apply with a way back: unless somebody confirms the change in
// time, the state before is put back. With a daemon it returns at once. Without
// one it waits until the change is confirmed, which is no error, or put back,
// which is; ctx puts it back at once. tell is called once, before the wait.
func ApplyPending(ctx context.Context, configFile string, r control.ApplyRequest, tell func(Applied) error) error {
	if err := checkWithin(r.ConfirmWithin); err != nil {
		return err
	}
	d, in, err := loadInput(ctx, configFile)
	if err != nil {
		return fmt.Errorf("%w\nnothing was applied", err)
	}
	release, err := lockFor(ctx, d.Config)
	if errors.Is(err, ErrLocked) {
		applied, daemonErr := applyByDaemon(ctx, d, r)
		switch {
		case errors.Is(daemonErr, control.ErrNoDaemon):
			return err
		case daemonErr != nil:
			return daemonErr
		}
		return tell(applied)
	}
	if err != nil {
		return err
	}
	defer release()
	if !r.Force {
		if err := checkAgainstLastGood(ctx, d, in); err != nil {
			return fmt.Errorf("%w\nnothing was applied", err)
		}
	}
	if d, err = withExtra(ctx, d, configFile); err != nil {
		return err
	}
	back, err := findWayBack(ctx, d, in)
	if err != nil {
		return fmt.Errorf("nothing was applied: %w", err)
	}
	return applyHeld(ctx, d, in, back, r.ConfirmWithin, tell)
}

// wayBack is the state that an unconfirmed change gives way to.
type wayBack struct {
	last    *Desired // the last good one; nil: there is none
	lastIn  input
	nothing bool // there were no rules of ours at all
}

// findWayBack looks before anything is changed. The rules of a last good state
// that is not known cannot be put back, so that is refused.
func findWayBack(ctx context.Context, d Desired, in input) (wayBack, error) {
	fw, err := firewall.Open(ctx, d.Config.Firewall.Backend)
	if err != nil {
		return wayBack{}, err
	}
	got, err := fw.Observe(ctx)
	if err != nil {
		return wayBack{}, err
	}
	back := wayBack{nothing: firewall.TeardownPlan(got).Empty()}
	good, goodIn, err := loadLastGood(ctx, d.Config.StateDir, in.configFile)
	switch {
	case err == nil && good.Config.Firewall.Backend != d.Config.Firewall.Backend:
		return wayBack{}, fmt.Errorf("%s: firewall.backend was %s until now, and there is no way back between backends; `pghardend apply` changes it for good",
			d.Config.Where("firewall.backend"), good.Config.Firewall.Backend)
	case err == nil:
		if good, err = withExtra(ctx, good, filepath.Join(d.Config.StateDir, lastGoodDir, acceptedConfig)); err != nil {
			return wayBack{}, err
		}
		back.last, back.lastIn = &good, goodIn
	case !back.nothing:
		return wayBack{}, fmt.Errorf("there are rules of ours, but what they were made from is not known (%w), so they could not be put back; `pghardend apply` changes them for good", err)
	}
	return back, nil
}

// same says whether in is what there is a way back to.
func (b wayBack) same(in input) bool { return !b.nothing && b.last != nil && b.lastIn.equal(in) }

// applyHeld changes the kernel and waits. The caller holds the lock.
func applyHeld(ctx context.Context, d Desired, in input, back wayBack, within time.Duration, tell func(Applied) error) error {
	dir := d.Config.StateDir
	now := time.Now()
	until := now.Add(within)
	if !back.same(in) {
		err := errors.Join(forgetPending(ctx, dir),
			writePending(ctx, dir, pendingRecord{State: pendingWaits, Input: in.hash(), Since: now, Until: until}))
		if err != nil {
			return fmt.Errorf("nothing was applied, since it cannot be recorded that the change has to be confirmed: %w", err)
		}
	}
	changes, err := applyRules(ctx, d, always)
	switch {
	case err != nil && back.same(in):
		return errors.Join(tell(Applied{Changes: changes}), err)
	case err != nil:
		return fmt.Errorf("%w\n%w", err, back.take(ctx, d, in))
	case back.same(in), changes.Empty():
		return errors.Join(save(ctx, d.Config, in), tell(Applied{Changes: changes}))
	}
	if err := tell(Applied{Changes: changes, Until: until}); err != nil {
		return fmt.Errorf("%w\n%w", err, back.take(ctx, d, in))
	}
	if err := awaitConfirm(ctx, dir, in.hash(), within); err != nil {
		return fmt.Errorf("%w\n%w", err, back.take(ctx, d, in))
	}
	return save(context.WithoutCancel(ctx), d.Config, in)
}

var (
	errNotInTime = errors.New("nobody confirmed the change in time")
	errPutBack   = errors.New("the state before is back")
)

// awaitConfirm returns nil once `confirm` has written its file.
func awaitConfirm(ctx context.Context, dir, hash string, within time.Duration) error {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	look := time.NewTicker(lookForConfirm)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return errors.New("interrupted before the change was confirmed")
		case <-deadline.C:
			return errNotInTime
		case <-look.C:
			text, err := config.ReadFile(ctx, filepath.Join(dir, confirmedFile))
			if err == nil && string(text) == hash {
				return nil
			}
		}
	}
}

// take puts the state before back, however hard it is tried to end us, and
// returns what came of it.
func (b wayBack) take(ctx context.Context, d Desired, in input) error {
	ctx = context.WithoutCancel(ctx)
	if err := b.restore(ctx, d); err != nil {
		return fmt.Errorf("the state before could NOT be put back: %w", err)
	}
	dir := d.Config.StateDir
	var err error
	if b.last == nil || b.lastIn.equal(in) {
		err = forgetPending(ctx, dir)
	} else { // or the next daemon would take it
		err = writePending(ctx, dir, pendingRecord{State: pendingRejected, Input: in.hash(), Since: time.Now()})
	}
	if err != nil {
		return fmt.Errorf("%w, but a daemon that starts now may take the change: %w", errPutBack, err)
	}
	return errPutBack
}

func (b wayBack) restore(ctx context.Context, d Desired) error {
	if !b.nothing {
		_, err := applyRules(ctx, *b.last, always)
		return err
	}
	fw, err := firewall.Open(ctx, d.Config.Firewall.Backend)
	if err != nil {
		return err
	}
	got, err := fw.Observe(ctx)
	return errors.Join(err, fw.Apply(ctx, firewall.TeardownPlan(got)))
}

// confirmPatience is how long the process that waits may take to take notice.
const confirmPatience = 10 * time.Second

// Confirm keeps a change that would go back, be it the daemon that waits or the
// process that applied it.
func Confirm(ctx context.Context, configFile string) error {
	_, err := control.NewClient(RuntimeDir(ctx, configFile)).Confirm(ctx)
	if !errors.Is(err, control.ErrNoDaemon) {
		return err
	}
	dir := stateDir(ctx, configFile)
	rec, err := readPending(ctx, dir)
	switch {
	case err != nil:
		return fmt.Errorf("cannot confirm: %w", err)
	case rec == nil:
		return fmt.Errorf("no change waits for confirmation (%s has none, and no daemon is running)", dir)
	case rec.State == pendingRejected || rec.left(time.Now()) <= 0:
		return errors.New("too late: the change was not confirmed in time; `pghardend apply --confirm-within 2m` tries it again")
	}
	held, err := lock(ctx, RuntimeDir(ctx, configFile))
	if err == nil {
		held.Close()
		return errors.New("the process that waited for it is gone, so the change is in force but not kept; `pghardend apply --force` keeps it")
	}
	if !errors.Is(err, ErrLocked) {
		return fmt.Errorf("cannot confirm: %w", err)
	}
	if err := replaceFile(ctx, filepath.Join(dir, confirmedFile), []byte(rec.Input)); err != nil {
		return fmt.Errorf("cannot confirm: %w", err)
	}
	return awaitNotice(ctx, dir)
}

// awaitNotice waits until the process that waits has taken the confirmation.
func awaitNotice(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, confirmPatience)
	defer cancel()
	look := time.NewTicker(lookForConfirm)
	defer look.Stop()
	for {
		_, err := os.Lstat(filepath.Join(dir, pendingFile))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		rec, err := readPending(ctx, dir)
		if err == nil && rec != nil && rec.State == pendingRejected {
			return errors.New("too late: the change is put back; `pghardend apply --confirm-within 2m` tries it again")
		}
		select {
		case <-ctx.Done():
			return errors.New("the process that waits for the confirmation does not take notice; see what it says")
		case <-look.C:
		}
	}
}
