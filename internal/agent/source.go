package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// settleTime is how soon a changed file is looked at again.
const settleTime = 200 * time.Millisecond

// fileSource decides which input counts. The loop uses it, from one goroutine at a
// time; openings and conf have what others may ask.
type fileSource struct {
	configFile string
	log        *slog.Logger
	resources  func(Desired) []reconcile.Resource
	accepted   func(Desired) // called with each state that becomes the current one
	running    func() uint64 // changes with what runs of the services; may be nil
	watch      *fileWatch    // is told which files count; may be nil

	current    Desired
	currentIn  input
	generation uint64
	supervised map[string]config.Service // as each service's supervisor knows it
	seen       input                     // what the files held at the last look
	inputErr   error                     // what is wrong with the files since they settled
	saveErr    error
	facts      factWatch

	openings *openings
	open     []firewall.Opening // in force at the last look
	openSeen uint64             // their number, see follow
	openUsed uint64             // and that of those in current
	conf     confirmation

	said Facts // what the services said at the last look

	peersFile string // as the config named it at the last look
	trail     trail  // of both files, from before they were read
	calm      uint64 // what watch said when a look found nothing new
	ranThen   uint64 // what running said at the last look
}

// lockedSource is newFileSource for the one process that may write. Which lock
// that takes is in the files, but until it is held somebody else may still change
// what counts, and who does not get it must leave state_dir alone.
func lockedSource(ctx context.Context, configFile string, log *slog.Logger) (s *fileSource, release func(), err error) {
	seen, err := readSource(ctx, configFile, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, nil, err
	}
	if release, err = lockFor(ctx, seen.current.Config); err != nil {
		return nil, nil, err
	}
	s, err = newFileSource(ctx, configFile, log, seen)
	if was := seen.current.Config.RuntimeDir; err == nil && s.current.Config.RuntimeDir != was {
		err = fmt.Errorf("runtime_dir changed from %s to %s just now; start again", was, s.current.Config.RuntimeDir)
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return s, release, nil
}

// newFileSource takes the files as they are or, if they are bad, the last good
// ones of state_dir. It fails if there is neither. seen is an earlier one of the
// same files, or nil; what has not changed since need not be built again.
func newFileSource(ctx context.Context, configFile string, log *slog.Logger, seen *fileSource) (*fileSource, error) {
	s, err := readSource(ctx, configFile, log, seen)
	if err != nil {
		return nil, err
	}
	s.recordPending(ctx)
	s.openings = newOpenings(ctx, s.current.Config.StateDir, log)
	s.show()
	return s, nil
}

// readSource is the part of newFileSource that writes nothing.
func readSource(ctx context.Context, configFile string, log *slog.Logger, seen *fileSource) (*fileSource, error) {
	s := &fileSource{configFile: configFile, log: log, supervised: map[string]config.Service{}, facts: factWatch{reader: newFactReader(log), patience: factPatience}}
	var known loaded
	if seen != nil {
		known = loaded{seen.current, seen.currentIn}
	}
	d, in, err := known.again(ctx, configFile)
	err = s.resume(ctx, d, in, err)
	s.current, s.currentIn, s.seen = d, in, in
	if err != nil {
		dir := stateDir(ctx, configFile)
		good, goodIn, goodErr := loadLastGood(ctx, dir, configFile)
		if goodErr != nil {
			return nil, fmt.Errorf("%w\nnothing is enforced, because %w; correct the files (`pghardend validate` checks them) and start again", err, goodErr)
		}
		log.Error("using the last good configuration", "from", dir, "because", err)
		s.current, s.currentIn = good, goodIn
	}
	return s, nil
}

// Load implements reconcile.Source.
func (s *fileSource) Load(ctx context.Context, force bool) (reconcile.Desired, error) {
	if s.running != nil {
		s.ranThen = s.running() // before the services are asked
	}
	var openErr error
	s.open, s.openSeen, openErr = s.openings.follow(ctx)
	settled := s.refresh(ctx, force)
	s.decide(ctx)
	buildErr := s.update(ctx)
	if s.saveErr != nil {
		s.saveErr = s.save(ctx)
	}
	if s.conf.err != nil {
		s.recordPending(ctx)
	}
	d := reconcile.Desired{Generation: s.generation, Resources: s.resources(s.current), Recheck: s.openings.next()}
	if w := s.conf.waits; w != nil {
		d.Recheck = sooner(d.Recheck, max(time.Until(w.until), time.Millisecond))
	}
	if !settled {
		d.Recheck = sooner(d.Recheck, settleTime)
	}
	return d, errors.Join(s.inputErr, s.saveErr, openErr, s.conf.err, buildErr)
}

// Peek implements reconcile.Peeker: it says whether Load may find another state
// than it did last. What it cannot see is the host's name and pgpool's file, which
// have their turn with the next pass.
func (s *fileSource) Peek(ctx context.Context) bool {
	now := time.Now()
	return s.filesMoved(ctx) || s.facts.answered() || s.openings.moved(s.openSeen, now) ||
		s.running != nil && s.running() != s.ranThen ||
		s.conf.waits != nil && !s.conf.waits.until.After(now)
}

// filesMoved says whether the files may have changed, which is for a look at them
// only as long as nobody tells.
func (s *fileSource) filesMoved(ctx context.Context) bool {
	now := s.watch.stirred()
	if now != 0 && now == s.calm {
		return false
	}
	if !s.trail.same(ctx) {
		return true
	}
	s.calm = now
	return false
}

// sooner is the lesser of two times, of which 0 is never.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b < a {
		return b
	}
	return a
}

// update takes what changed beside the files into the current state: openings,
// and what the services say, which are asked with the accepted configuration.
func (s *fileSource) update(ctx context.Context) error {
	if s.generation == 0 {
		s.accept(ctx, s.current, s.currentIn)
		s.openUsed = 0 // it was built without any
	}
	s.said = s.facts.read(ctx, s.current.Config, filepath.Join(s.current.Config.RuntimeDir, acceptedConfig))
	if s.openUsed == s.openSeen && s.said.equal(s.current.Extra.Facts) {
		return nil
	}
	d, err := s.rebuilt(s.current)
	if err == nil {
		s.accept(ctx, d, s.currentIn)
	}
	return err
}

func (s *fileSource) rebuilt(d Desired) (Desired, error) {
	return Build(d.Config, d.Peers, s.extra())
}

func (s *fileSource) extra() Extra { return Extra{Facts: s.said, Openings: s.open} }

// refresh looks at the files. A change counts, be it for good or bad, once it
// has settled: a file that is being written in place must look the same twice.
func (s *fileSource) refresh(ctx context.Context, force bool) (settled bool) {
	in, cfg, err := s.read(ctx)
	settled = force || in.equal(s.seen) || in.equal(s.currentIn)
	s.seen = in
	if !settled {
		return false
	}
	if err == nil {
		err = s.take(ctx, in, cfg, force)
	}
	s.inputErr = goodStays(err)
	return true
}

// read reads both files and remembers what led to them. The trail is from before,
// so that a change in between shows the next time.
func (s *fileSource) read(ctx context.Context) (input, config.Config, error) {
	if s.peersFile == "" {
		s.peersFile = s.current.Config.PeersFile
	}
	s.trail = followTrail(ctx, s.configFile, s.peersFile)
	in, cfg, err := readInput(ctx, s.configFile)
	if cfg.PeersFile != "" && cfg.PeersFile != s.peersFile {
		s.peersFile = cfg.PeersFile
		s.trail = followTrail(ctx, s.configFile, s.peersFile)
		s.trail.fresh = true
	}
	if s.watch != nil {
		s.watch.watch(ctx, []string{s.configFile, s.peersFile}, s.otherPaths())
	}
	return in, cfg, err
}

// otherPaths are watched for their modes and owners.
func (s *fileSource) otherPaths() []string {
	dirs := []string{s.current.Config.RuntimeDir, s.current.Config.StateDir}
	for _, svc := range s.current.Config.Services {
		if svc.DataDir != "" {
			dirs = append(dirs, svc.DataDir)
		}
	}
	return dirs
}

func goodStays(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("the last good configuration stays in force: %w", err)
}

// take makes a settled input the current one if it is good.
func (s *fileSource) take(ctx context.Context, in input, cfg config.Config, force bool) error {
	insisted := force || s.conf.orders.get().within > 0
	if s.conf.rejected != "" && s.conf.rejected == in.hash() && !insisted {
		return errNotConfirmed
	}
	if in.equal(s.currentIn) {
		s.forgive(ctx)
		return s.hold(ctx)
	}
	d, err := in.build(cfg, s.extra())
	if err != nil {
		return err
	}
	if err := s.checkFixed(d.Config); err != nil {
		return err
	}
	if !force {
		if err := checkNext(&s.current, d); err != nil {
			return err
		}
	}
	return s.change(ctx, d, in)
}

// checkFixed refuses changes of what a running daemon cannot change.
func (s *fileSource) checkFixed(next config.Config) error {
	type fixed struct{ key, was, is string }
	old := s.current.Config
	all := []fixed{
		{"runtime_dir", old.RuntimeDir, next.RuntimeDir},
		{"state_dir", old.StateDir, next.StateDir},
		{"firewall.backend", old.Firewall.Backend, next.Firewall.Backend},
		{"reconcile.interval", old.Reconcile.Interval.String(), next.Reconcile.Interval.String()},
		{"reconcile.full", old.Reconcile.Full.String(), next.Reconcile.Full.String()},
		{"metrics.listen", old.Metrics.Listen, next.Metrics.Listen},
	}
	for _, svc := range next.Services {
		was, ok := s.supervised[svc.Name]
		if !ok {
			continue
		}
		// A supervisor that looked for another program or directory than the
		// launch stage starts would take the service for a stranger.
		key := "services." + svc.Name
		all = append(all,
			fixed{key + ".command", was.Command[0], svc.Command[0]},
			fixed{key + ".data_dir", was.DataDir, svc.DataDir},
			fixed{key + ".start_timeout", was.StartTimeout.String(), svc.StartTimeout.String()},
			fixed{key + ".start", whoStarts(was), whoStarts(svc)},
			fixed{key + ".stop_timeout", was.StopTimeout.String(), svc.StopTimeout.String()})
	}
	var errs []error
	for _, f := range all {
		if f.was != f.is {
			errs = append(errs, fmt.Errorf("%s: %s cannot change from %s to %s while the daemon runs; restart it (services go on)",
				next.Where(f.key), f.key, orNone(f.was), orNone(f.is)))
		}
	}
	return errors.Join(errs...)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// accept makes d the current state and keeps copies of its text. A copy that
// cannot be written degrades the daemon but does not hold up the state.
func (s *fileSource) accept(ctx context.Context, d Desired, in input) {
	s.current, s.currentIn, s.openUsed = d, in, s.openSeen
	s.generation++
	s.saveErr = s.save(ctx)
	for _, svc := range d.Config.Services {
		s.supervised[svc.Name] = svc // and never removed: nor is the supervisor
	}
	s.log.Info("configuration accepted", "generation", s.generation, "nodes", len(d.Peers.Nodes), "services", len(d.Services))
	if s.accepted != nil {
		s.accepted(d)
	}
}

// save keeps what is in force, and what is not confirmed for the launch stage alone.
func (s *fileSource) save(ctx context.Context) error {
	if s.conf.waits != nil {
		return keep(ctx, s.currentIn, s.current.Config.RuntimeDir)
	}
	return keep(ctx, s.currentIn, filepath.Join(s.current.Config.StateDir, lastGoodDir), s.current.Config.RuntimeDir)
}
