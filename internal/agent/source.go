package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/config"
)

// Names of the copies of the accepted files, in state_dir (for the next boot)
// and in runtime_dir (for the launch stage).
const (
	lastGoodDir    = "last-good"
	acceptedConfig = "pghardend.yaml"
	acceptedPeers  = "peers.yaml"
)

// input is the text of both files.
type input struct {
	configFile string
	config     []byte
	peers      []byte
}

func (i input) equal(o input) bool {
	return bytes.Equal(i.config, o.config) && bytes.Equal(i.peers, o.peers)
}

// readInput reads both files; the config says where the peers are.
func readInput(ctx context.Context, configFile string) (input, config.Config, error) {
	in := input{configFile: configFile}
	data, err := config.ReadFile(ctx, configFile)
	if err != nil {
		return in, config.Config{}, err
	}
	in.config = data
	cfg, err := parseConfig(configFile, data)
	if err != nil {
		return in, config.Config{}, err
	}
	if in.peers, err = config.ReadFile(ctx, cfg.PeersFile); err != nil {
		return in, cfg, err
	}
	return in, cfg, nil
}

func parseConfig(file string, data []byte) (config.Config, error) {
	hostname, err := os.Hostname()
	if err != nil {
		return config.Config{}, fmt.Errorf("cannot ask for the host's name: %w", err)
	}
	return config.ParseConfig(file, data, hostname)
}

// build turns text into desired state.
func (i input) build(cfg config.Config) (Desired, error) {
	peers, err := config.ParsePeers(cfg.PeersFile, i.peers)
	if err != nil {
		return Desired{}, err
	}
	return Build(cfg, peers)
}

// Load reads and checks both files.
func Load(ctx context.Context, configFile string) (Desired, error) {
	d, _, err := loadInput(ctx, configFile)
	return d, err
}

func loadInput(ctx context.Context, configFile string) (Desired, input, error) {
	in, cfg, err := readInput(ctx, configFile)
	if err != nil {
		return Desired{}, in, err
	}
	d, err := in.build(cfg)
	return d, in, err
}

// LoadConfig reads the config alone, for commands that need no peers.
func LoadConfig(ctx context.Context, configFile string) (config.Config, error) {
	data, err := config.ReadFile(ctx, configFile)
	if err != nil {
		return config.Config{}, err
	}
	return parseConfig(configFile, data)
}

// fileSource decides which input counts. It is used by the loop's goroutine
// only.
type fileSource struct {
	configFile string
	log        *slog.Logger
	resources  func(Desired) []reconcile.Resource
	accepted   func(Desired) // called with each state that becomes the current one

	current    Desired
	currentIn  input
	generation uint64
	seen       input // what the files held at the last look
	saveErr    error
}

// newFileSource takes the files as they are or, if they are bad, the last good
// ones of state_dir. It fails if there is neither.
func newFileSource(ctx context.Context, configFile string, log *slog.Logger) (*fileSource, error) {
	s := &fileSource{configFile: configFile, log: log}
	d, in, err := loadInput(ctx, configFile)
	if err == nil {
		err = checkAgainstLastGood(ctx, d)
	}
	if err == nil {
		s.current, s.currentIn, s.seen = d, in, in
		return s, nil
	}
	stateDir := stateDirOf(ctx, configFile)
	good, goodIn, goodErr := loadLastGood(ctx, stateDir, configFile)
	if goodErr != nil {
		return nil, fmt.Errorf("cannot use the configuration, and there is no last good one in %s (%w): %w", stateDir, goodErr, err)
	}
	log.Error("using the last good configuration", "from", stateDir, "because", err)
	s.current, s.currentIn, s.seen = good, goodIn, in
	return s, nil
}

// stateDirOf finds state_dir even if the config cannot be read: systemd names
// it in STATE_DIRECTORY, systemd.exec(5).
func stateDirOf(ctx context.Context, configFile string) string {
	if cfg, err := LoadConfig(ctx, configFile); err == nil {
		return cfg.StateDir
	}
	if dir := os.Getenv("STATE_DIRECTORY"); dir != "" {
		return dir
	}
	return config.DefaultStateDir
}

// loadLastGood reads state_dir's copies as if they were the files themselves.
func loadLastGood(ctx context.Context, stateDir, configFile string) (Desired, input, error) {
	dir := filepath.Join(stateDir, lastGoodDir)
	in := input{configFile: configFile}
	var err error
	if in.config, err = config.ReadFile(ctx, filepath.Join(dir, acceptedConfig)); err != nil {
		return Desired{}, in, err
	}
	if in.peers, err = config.ReadFile(ctx, filepath.Join(dir, acceptedPeers)); err != nil {
		return Desired{}, in, err
	}
	cfg, err := parseConfig(configFile, in.config)
	if err != nil {
		return Desired{}, in, err
	}
	d, err := in.build(cfg)
	return d, in, err
}

// checkAgainstLastGood guards a restart like any other moment: a peer list that
// lost most of its nodes while the daemon was away is as suspicious.
func checkAgainstLastGood(ctx context.Context, d Desired) error {
	good, _, err := loadLastGood(ctx, d.Config.StateDir, d.Config.File)
	if err != nil {
		return nil //nolint:nilerr // none, or one that an other version wrote: nothing to compare with
	}
	return config.CheckChange(good.Peers, d.Peers)
}

// Load implements reconcile.Source.
func (s *fileSource) Load(ctx context.Context, force bool) (reconcile.Desired, error) {
	err := s.refresh(ctx, force)
	switch {
	case s.generation == 0:
		s.accept(s.current, s.currentIn)
	case s.saveErr != nil:
		s.saveErr = s.save()
	}
	return reconcile.Desired{Generation: s.generation, Resources: s.resources(s.current)}, errors.Join(err, s.saveErr)
}

// refresh takes over a changed input once it is good and has settled: a file
// that is being written in place must look the same twice before it counts.
func (s *fileSource) refresh(ctx context.Context, force bool) error {
	in, cfg, err := readInput(ctx, s.configFile)
	settled := in.equal(s.seen)
	s.seen = in
	if err != nil {
		return fmt.Errorf("the last good configuration stays in force: %w", err)
	}
	if in.equal(s.currentIn) || (!settled && !force) {
		return nil
	}
	d, err := in.build(cfg)
	if err == nil {
		err = s.checkChange(d, force)
	}
	if err != nil {
		return fmt.Errorf("the last good configuration stays in force: %w", err)
	}
	s.accept(d, in)
	return nil
}

func (s *fileSource) checkChange(d Desired, force bool) error {
	old := s.current.Config
	for _, fixed := range []struct{ key, was, is string }{
		{"runtime_dir", old.RuntimeDir, d.Config.RuntimeDir},
		{"state_dir", old.StateDir, d.Config.StateDir},
		{"firewall.backend", old.Firewall.Backend, d.Config.Firewall.Backend},
		{"reconcile.interval", old.Reconcile.Interval.String(), d.Config.Reconcile.Interval.String()},
	} {
		if fixed.was != fixed.is {
			return fmt.Errorf("%s: %s cannot change from %s to %s while the daemon runs; restart it", d.Config.Where(fixed.key), fixed.key, fixed.was, fixed.is)
		}
	}
	if force {
		return nil
	}
	return config.CheckChange(s.current.Peers, d.Peers)
}

// accept makes d the current state and keeps copies of its text. A copy that
// cannot be written degrades the daemon but does not hold up the state.
func (s *fileSource) accept(d Desired, in input) {
	s.current, s.currentIn = d, in
	s.generation++
	s.saveErr = s.save()
	s.log.Info("configuration accepted", "generation", s.generation, "nodes", len(d.Peers.Nodes), "services", len(d.Services))
	if s.accepted != nil {
		s.accepted(d)
	}
}

func (s *fileSource) save() error {
	cfg := s.current.Config
	return errors.Join(
		saveInput(filepath.Join(cfg.StateDir, lastGoodDir), s.currentIn),
		saveInput(cfg.RuntimeDir, s.currentIn))
}

func saveInput(dir string, in input) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot keep the accepted configuration: %w", err)
	}
	for name, data := range map[string][]byte{acceptedConfig: in.config, acceptedPeers: in.peers} {
		if err := renameio.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return fmt.Errorf("cannot keep the accepted configuration; is the disk full or read-only? %w", err)
		}
	}
	return nil
}
