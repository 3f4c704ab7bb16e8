package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/pkg/config"
)

// recent is for how long a change that the daemon took up by itself can still be
// put under confirmation: it does so within a second, before its author has
// typed `apply --confirm-within`.
const recent = 2 * time.Minute

// confirmation is the part of fileSource that puts a change back which nobody
// confirms. What is in force meanwhile is not kept as last good.
type confirmation struct {
	waits    *waiting
	before   *former
	rejected string // hash of an input that was put back
	err      error  // why the record of it could not be written or read

	orders order
	shown  atomic.Pointer[control.Pending]
}

// waiting is a change that is in force until it is confirmed or put back.
type waiting struct {
	base   Desired // the state to go back to
	baseIn input
	since  time.Time
	until  time.Time // by the monotonic clock
}

// former is the state before the changes of the last moments.
type former struct {
	state Desired
	in    input
	at    time.Time // of the first of them
}

// order is what the loop's next passes have to do for who asked. The source's
// goroutine takes it and leaves the answer there.
type order struct {
	mu      sync.Mutex
	current *request
}

type request struct {
	apply   bool          // an operator asked for the files' state
	within  time.Duration // a change has to be confirmed in this time
	confirm string        // who confirms; empty: nobody
	err     error         // the answer to confirm
}

func (o *order) give(r *request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.current = r
}

func (o *order) get() request {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.current == nil {
		return request{}
	}
	return *o.current
}

// answer ends what was asked of confirm.
func (o *order) answer(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.current != nil {
		o.current.confirm, o.current.err = "", err
	}
}

var errNothingToConfirm = fmt.Errorf("%w: no change waits for confirmation", control.ErrRefused)

// change makes d the current state, for good or until it is put back.
func (s *fileSource) change(ctx context.Context, d Desired, in input) error {
	asked := s.conf.orders.get()
	switch {
	case s.conf.waits != nil && in.equal(s.conf.waits.baseIn): // its author has taken it back
		s.conf.waits = nil
		s.recordPending(ctx)
	case asked.within > 0 || s.conf.waits != nil:
		if err := s.wait(ctx, former{state: s.current, in: s.currentIn}, in, asked.within); err != nil {
			return err
		}
	default:
		s.remember(asked.apply)
		s.forgive(ctx)
	}
	s.accept(ctx, d, in)
	return nil
}

// remember keeps the state before the changes of the last moments. One that an
// operator asked for without any condition is meant to stay.
func (s *fileSource) remember(meant bool) {
	b := s.conf.before
	switch {
	case meant:
		s.conf.before = nil
	case b == nil || time.Since(b.at) > recent:
		s.conf.before = &former{state: s.current, in: s.currentIn, at: time.Now()}
	}
}

// hold is for an input that is in force already.
func (s *fileSource) hold(ctx context.Context) error {
	asked := s.conf.orders.get()
	b := s.conf.before
	switch {
	case !asked.apply:
		return nil
	case asked.within == 0:
		if s.conf.waits == nil {
			s.conf.before = nil
		}
		return nil
	case s.conf.waits != nil && time.Until(s.conf.waits.until) > asked.within-settleTime:
		return nil // the pass before this one has done it
	case s.conf.waits != nil:
		return s.wait(ctx, former{}, s.currentIn, asked.within)
	case b == nil, time.Since(b.at) > recent, b.in.equal(s.currentIn):
		return nil // nothing has changed
	}
	return s.wait(ctx, *b, s.currentIn, asked.within)
}

// wait begins, or goes on, to wait for the confirmation of in. All that a
// restart needs is on disk before the change is in force.
func (s *fileSource) wait(ctx context.Context, base former, in input, within time.Duration) error {
	now := time.Now()
	w := waiting{base: base.state, baseIn: base.in, since: now, until: now.Add(within)}
	if old := s.conf.waits; old != nil {
		w.base, w.baseIn, w.since = old.base, old.baseIn, old.since
		if within == 0 {
			w.until = old.until
		}
	}
	dir := s.current.Config.StateDir
	err := saveInput(ctx, filepath.Join(dir, lastGoodDir), w.baseIn)
	if err == nil {
		err = writePending(ctx, dir, pendingRecord{State: pendingWaits, Input: in.hash(), Since: w.since, Until: w.until})
	}
	if err != nil {
		return fmt.Errorf("a change that has to be confirmed was not taken, since a restart of the daemon would forget that: %w", err)
	}
	s.conf.waits, s.conf.rejected, s.conf.before = &w, "", nil
	s.log.Warn("a change waits for confirmation", "until", w.until.Format(time.RFC3339), "confirm", "pghardend confirm")
	return nil
}

// decide confirms a change, or puts one back whose time is up.
func (s *fileSource) decide(ctx context.Context) {
	asked := s.conf.orders.get()
	switch w := s.conf.waits; {
	case asked.confirm != "" && w == nil:
		s.conf.orders.answer(errNothingToConfirm)
	case asked.confirm != "":
		s.conf.waits, s.conf.before = nil, nil
		s.saveErr = s.save(ctx)
		s.recordPending(ctx)
		s.log.Info("the change is confirmed", "by", asked.confirm)
		s.conf.orders.answer(errors.Join(s.saveErr, s.conf.err))
	case w != nil && time.Until(w.until) <= 0:
		s.goBack(ctx, *w)
	}
	s.show()
}

// goBack restores the state before. The files still hold the change, which is
// not taken again until they change or somebody insists.
func (s *fileSource) goBack(ctx context.Context, w waiting) {
	s.log.Warn("nobody confirmed the change in time, so it is put back", "since", w.since.Format(time.RFC3339))
	s.conf.waits, s.conf.rejected = nil, s.currentIn.hash()
	s.recordPending(ctx)
	back, err := s.rebuilt(w.base)
	if err != nil {
		back = w.base // it was good without the openings of today
	}
	s.accept(ctx, back, w.baseIn)
	s.inputErr = errors.Join(goodStays(errNotConfirmed), err)
}

// A plain apply is what a boot unit runs, so it is not enough to take a change
// that has cut its author off.
var errNotConfirmed = errors.New("the change of the files was not confirmed in time and is put back; " +
	"`pghardend apply --confirm-within 2m` tries it again, `pghardend apply --force` keeps it, or change the files")

// checkConfirmed refuses, for a command that works without a daemon, files that
// nobody has confirmed.
func checkConfirmed(ctx context.Context, stateDir string, in input) error {
	if good, err := readLastGood(ctx, stateDir, in.configFile); err != nil || in.equal(good) {
		return nil //nolint:nilerr // nothing to go back to
	}
	rec, err := readPending(ctx, stateDir)
	switch {
	case err != nil:
		return errors.Join(errNotConfirmed, err)
	case rec != nil && rec.Input == in.hash():
		return errNotConfirmed
	}
	return nil
}

// forgive lets an input that was put back count again.
func (s *fileSource) forgive(ctx context.Context) {
	if s.conf.rejected != "" {
		s.conf.rejected = ""
		s.recordPending(ctx)
	}
}

// recordPending brings the record on disk to what holds.
func (s *fileSource) recordPending(ctx context.Context) {
	dir, c := s.current.Config.StateDir, &s.conf
	switch {
	case c.waits != nil:
		c.err = writePending(ctx, dir, pendingRecord{State: pendingWaits, Input: s.currentIn.hash(), Since: c.waits.since, Until: c.waits.until})
	case c.rejected != "":
		c.err = writePending(ctx, dir, pendingRecord{State: pendingRejected, Input: c.rejected, Since: time.Now()})
	default:
		c.err = forgetPending(ctx, dir)
	}
	if c.err != nil {
		c.err = fmt.Errorf("cannot record which change is confirmed; is the disk full or read-only? %w", c.err)
	}
}

func (s *fileSource) show() {
	w := s.conf.waits
	if w == nil {
		s.conf.shown.Store(nil)
		return
	}
	s.conf.shown.Store(&control.Pending{Since: w.since, Until: w.until})
}

// resume goes on where an earlier daemon left off. d and in are the files as
// they are, unless err says what is wrong with them. It returns the error that
// keeps them from being in force.
func (s *fileSource) resume(ctx context.Context, d Desired, in input, err error) error {
	dir := stateDir(ctx, s.configFile)
	if kept, keptErr := readLastGood(ctx, dir, s.configFile); err == nil && keptErr == nil && kept.equal(in) {
		return nil // nothing has changed
	}
	good, goodIn, goodErr := loadLastGood(ctx, dir, s.configFile)
	rec, recErr := readPending(ctx, dir)
	if goodErr != nil || in.equal(goodIn) || rec == nil && recErr == nil {
		if err != nil {
			return err
		}
		return checkAgainstLastGood(ctx, d, in) // nothing to go back to, or nothing has changed
	}
	left := time.Duration(0)
	if recErr == nil && rec.State == pendingWaits {
		left = rec.left(time.Now())
	}
	same := recErr != nil || rec.Input == in.hash() // if in doubt, what is kept was confirmed
	switch {
	case err != nil && recErr == nil: // the change is not in force any more
		s.conf.rejected = rec.Input
		return err
	case err != nil:
		return err
	case same && left <= 0:
		s.conf.rejected = in.hash()
		return errors.Join(errNotConfirmed, recErr)
	case left <= 0:
		return checkAgainstLastGood(ctx, d, in)
	}
	if !same { // who asked for the change may have accepted what looks wrong, but not this
		if err := checkAgainstLastGood(ctx, d, in); err != nil {
			s.conf.rejected = rec.Input
			return err
		}
	}
	s.conf.waits = &waiting{base: good, baseIn: goodIn, since: rec.Since, until: time.Now().Add(left)}
	return nil
}

// checkWithin says what is wrong with a time to confirm in; 0 is none.
func checkWithin(d time.Duration) error {
	if d == 0 {
		return nil
	}
	if err := checkTime("--confirm-within", d, minConfirm, maxConfirm); err != nil {
		return fmt.Errorf("%w: %w", control.ErrRefused, err)
	}
	return nil
}

// checkNext guards a change at run time and at a restart alike.
func checkNext(old *Desired, next Desired) error {
	var was config.Peers
	if old != nil {
		was = old.Peers
	}
	return errors.Join(config.CheckChange(next.Config, was, next.Peers), checkLockOut(old, next))
}
