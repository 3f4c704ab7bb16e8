package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// otherInterval is how often it is looked for rules in the backend that is not
// in use.
const otherInterval = 25 * time.Second

// ruleWatch is what the firewall's resources of one desired state after the other
// share: the means to look at the rules without a command, and to put them back.
// The mutex is there because a look may go on while the loop repairs.
type ruleWatch struct {
	fw  *firewall.Firewall
	log *slog.Logger

	mu     sync.Mutex
	reflex *firewall.Reflex     // nil: there is none
	early  firewall.Repair      // by answer, for the loop to report
	legacy *firewall.LegacyPeek // nil: there is none

	other   atomic.Pointer[firewall.OtherRules]
	otherAt time.Time // by the one look that is under way
}

// newRuleWatch opens what the backend and our rights allow. Without it the rules
// are read by commands in each tick.
func newRuleWatch(fw *firewall.Firewall, log *slog.Logger) *ruleWatch {
	w := &ruleWatch{fw: fw, log: log}
	var err error
	if fw.Backend() == firewall.BackendNFT {
		w.reflex, err = fw.OpenReflex()
	} else {
		w.legacy, err = fw.OpenLegacyPeek()
	}
	if err != nil {
		w.reflex, w.legacy = nil, nil
		log.Warn("rules can be looked at by commands only, which takes longer", "error", err)
	}
	return w
}

// tickInterval leaves room for the repair where looking is what finds drift: with
// the legacy backend it is to be over within the interval.
func tickInterval(interval time.Duration, backend string) time.Duration {
	if backend == firewall.BackendNFT {
		return interval
	}
	return interval * 9 / 10
}

func (w *ruleWatch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reflex != nil {
		_ = w.reflex.Close()
	}
	if w.legacy != nil {
		_ = w.legacy.Close()
	}
}

// ruleDigest is what a cheap look sees; one that is not whole says nothing. It never
// is while an opening is in force, whose end the kernel writes into a set.
type ruleDigest struct {
	sets   firewall.Digest
	legacy uint64
	whole  bool
}

// digest of the sets, and of legacy rules; nft's have a generation.
func (w *ruleWatch) digest() ruleDigest {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reflex == nil && w.legacy == nil {
		return ruleDigest{}
	}
	var d ruleDigest
	var setsErr, legacyErr error
	d.sets, setsErr = w.fw.SetsPeek()
	if w.legacy != nil {
		d.legacy, legacyErr = w.legacy.Peek()
	}
	d.whole = setsErr == nil && legacyErr == nil && d.sets != 0
	return d
}

// changed says whether the rules may differ from those of a look that found
// nothing and before which the digest was taken.
func (w *ruleWatch) changed(then ruleDigest) bool {
	if !then.whole {
		return true
	}
	w.mu.Lock()
	moved := w.reflex != nil && (!w.reflex.Learned() || w.reflex.Changed())
	w.mu.Unlock()
	return moved || w.digest() != then
}

// learn takes the image that repair puts back. What other tools did to their own
// rules meanwhile leaves the image of ours as it is, so a look that was overtaken
// by them does not cost it.
func (w *ruleWatch) learn(want firewall.Ruleset, got firewall.Observed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reflex == nil || w.reflex.Learned() && (got.Generation == 0 || !w.reflex.Changed()) {
		return
	}
	if err := w.reflex.Learn(want, got); err != nil {
		w.log.Debug("no image of the rules was taken", "error", err)
	}
}

// forget is for a plan that is about to be applied.
func (w *ruleWatch) forget(p firewall.Plan) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reflex != nil {
		w.reflex.Forget(p)
	}
}

// answer puts back what somebody changed, ahead of the loop, which gets an alarm of
// it and gets the outcome from repair.
func (w *ruleWatch) answer() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reflex != nil {
		w.early, _ = w.repairNow() // the loop tries again, and sees the error
	}
}

// recall is for a plan that could not be applied.
func (w *ruleWatch) recall() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reflex != nil {
		w.reflex.Recall()
	}
}

// repair puts back what somebody changed. Its outcome is also that of answer.
func (w *ruleWatch) repair() (firewall.Repair, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reflex == nil {
		return firewall.Repair{}, firewall.ErrNoReflex
	}
	done, err := w.repairNow()
	w.early = firewall.Repair{}
	return done, err
}

// repairNow adds to what has been put back and not yet been reported.
func (w *ruleWatch) repairNow() (firewall.Repair, error) {
	done, err := w.reflex.Repair()
	if w.early.Empty() {
		return done, err
	}
	if done.Empty() {
		return w.early, err
	}
	done.Changes = slices.Concat(w.early.Changes, done.Changes)
	done.Foreign = slices.Concat(w.early.Foreign, done.Foreign)
	return done, err
}

// lookAtOther asks once in a while what the other backend holds. It is for one
// goroutine at a time, as Plan is.
func (w *ruleWatch) lookAtOther(ctx context.Context) {
	if now := time.Now(); now.Sub(w.otherAt) >= otherInterval {
		w.otherAt = now
		other, err := w.fw.OtherBackend(ctx)
		if err != nil {
			w.log.Debug("cannot look at the rules of the other backend", "error", err)
			return
		}
		w.other.Store(&other)
	}
}

// firewallResource makes the rules one resource of the loop.
type firewallResource struct {
	fw      *firewall.Firewall
	made    *buildMark // the state that it is for
	want    firewall.Ruleset
	watch   *ruleWatch
	written func() // called after each Apply or Reflex that put something back

	right ruleDigest // from before the last look that found nothing
}

func (r *firewallResource) Name() string { return firewallName }

func (r *firewallResource) Plan(ctx context.Context) (reconcile.Plan, error) {
	before := r.watch.digest()
	got, err := r.fw.Observe(ctx)
	plan := firewall.Diff(r.want, got)
	if err != nil || !plan.Empty() {
		before = ruleDigest{}
	} else {
		r.watch.learn(r.want, got)
		r.watch.lookAtOther(ctx) // not while ours are to be written
	}
	r.right = before
	return plan, err
}

// Peek implements reconcile.Peeker.
func (r *firewallResource) Peek(context.Context) bool { return r.watch.changed(r.right) }

// Reflex implements reconcile.Reflexive. It puts back what was in force last,
// which is not what is wanted while a new desired state is on its way.
func (r *firewallResource) Reflex(context.Context) (reconcile.Plan, error) {
	repair, err := r.watch.repair()
	if !repair.Empty() {
		r.written()
	}
	return repair, err
}

func (r *firewallResource) Apply(ctx context.Context, p reconcile.Plan) error {
	plan, ok := p.(firewall.Plan)
	if !ok {
		return fmt.Errorf("cannot apply a %T to the firewall", p)
	}
	r.watch.forget(plan)
	if err := r.fw.Apply(ctx, plan); err != nil {
		r.watch.recall()
		return err
	}
	r.written()
	return nil
}
