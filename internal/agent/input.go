package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/pghardend/pghardend/pkg/config"
)

// Names of the copies of the accepted files, in state_dir (for the next boot)
// and in runtime_dir (for the launch stage).
const (
	lastGoodDir    = "last-good"
	acceptedConfig = "pghardend.yaml"
	acceptedPeers  = "peers.yaml"
	acceptedOrigin = "origin" // the path of the file that the copies are of
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
	cfg, err := parseConfig(ctx, configFile, data)
	if err != nil {
		return in, config.Config{}, err
	}
	if in.peers, err = config.ReadFile(ctx, cfg.PeersFile); err != nil {
		return in, cfg, err
	}
	return in, cfg, nil
}

func parseConfig(ctx context.Context, file string, data []byte) (config.Config, error) {
	if err := ctx.Err(); err != nil {
		return config.Config{}, err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return config.Config{}, fmt.Errorf("cannot ask for the host's name: %w", err)
	}
	return config.ParseConfig(file, data, hostname)
}

// notInForce is for people who are told something of files that are.
const notInForce = "the files are not what is in force; `pghardend status` says why"

// notInForce says whether the files differ from the copies of those that were
// accepted last. Where the copies cannot be read, nothing is known.
func (i input) notInForce(ctx context.Context, cfg config.Config) bool {
	accepted, err := config.ReadFile(ctx, filepath.Join(cfg.RuntimeDir, acceptedConfig))
	peers, peersErr := config.ReadFile(ctx, filepath.Join(cfg.RuntimeDir, acceptedPeers))
	return err == nil && peersErr == nil && !i.equal(input{config: accepted, peers: peers})
}

// build turns text into desired state.
func (i input) build(cfg config.Config, extra Extra) (Desired, error) {
	peers, err := config.ParsePeers(cfg.PeersFile, i.peers)
	if err != nil {
		return Desired{}, err
	}
	return Build(cfg, peers, extra)
}

// Load reads and checks both files. What is asked of services is left out.
func Load(ctx context.Context, configFile string) (Desired, error) {
	d, _, err := loadInput(ctx, configFile)
	return d, err
}

func loadInput(ctx context.Context, configFile string) (Desired, input, error) {
	return loaded{}.again(ctx, configFile)
}

// loaded is what was built from an input, without Extra. To build it from thousands
// of addresses takes longer than all else that a start does.
type loaded struct {
	desired Desired
	in      input
}

// again is loadInput where the files may still be the same.
func (l loaded) again(ctx context.Context, configFile string) (Desired, input, error) {
	in, cfg, err := readInput(ctx, configFile)
	if err != nil {
		return Desired{}, in, err
	}
	if l.desired.made != nil && in.equal(l.in) && cfg.File == l.desired.Config.File && cfg.Node == l.desired.Config.Node {
		return l.desired, in, nil
	}
	d, err := in.build(cfg, Extra{})
	return d, in, err
}

// LoadConfig reads the config alone, for commands that need no peers.
func LoadConfig(ctx context.Context, configFile string) (config.Config, error) {
	data, err := config.ReadFile(ctx, configFile)
	if err != nil {
		return config.Config{}, err
	}
	return parseConfig(ctx, configFile, data)
}

// RuntimeDir finds the daemon's runtime_dir even if the config cannot be read:
// that is when an operator wants to ask the daemon most.
func RuntimeDir(ctx context.Context, configFile string) string {
	if cfg, err := LoadConfig(ctx, configFile); err == nil {
		return cfg.RuntimeDir
	}
	return guessDir(ctx, configFile, "runtime_dir", "RUNTIME_DIRECTORY", config.DefaultRuntimeDir)
}

func stateDir(ctx context.Context, configFile string) string {
	if cfg, err := LoadConfig(ctx, configFile); err == nil {
		return cfg.StateDir
	}
	return guessDir(ctx, configFile, "state_dir", "STATE_DIRECTORY", config.DefaultStateDir)
}

// guessDir looks for the key in a config that has errors, then asks systemd,
// which names the unit's directories in its environment, systemd.exec(5).
func guessDir(ctx context.Context, configFile, key, variable, otherwise string) string {
	if data, err := config.ReadFile(ctx, configFile); err == nil {
		line := regexp.MustCompile(`(?m)^` + key + `:[ \t]+["']?(/[^"'#\s]+)["']?[ \t]*(?:#.*)?\r?\n`)
		if found := line.FindSubmatch(data); found != nil {
			return filepath.Clean(string(found[1]))
		}
	}
	if dir, _, _ := strings.Cut(os.Getenv(variable), ":"); dir != "" {
		return dir
	}
	return otherwise
}

// readLastGood reads state_dir's copies of the last good files.
func readLastGood(ctx context.Context, stateDir, configFile string) (input, error) {
	dir := filepath.Join(stateDir, lastGoodDir)
	in := input{configFile: configFile}
	origin, err := config.ReadFile(ctx, filepath.Join(dir, acceptedOrigin))
	if errors.Is(err, fs.ErrNotExist) {
		return in, fmt.Errorf("there is no last good configuration in %s", stateDir)
	}
	if err == nil && string(origin) != configFile {
		// A guess at state_dir may lead to that of another agent on this host.
		err = fmt.Errorf("it is that of %q, not of %s", origin, configFile)
	}
	if err == nil {
		in.config, err = config.ReadFile(ctx, filepath.Join(dir, acceptedConfig))
	}
	if err == nil {
		in.peers, err = config.ReadFile(ctx, filepath.Join(dir, acceptedPeers))
	}
	if err != nil {
		return in, fmt.Errorf("the last good configuration in %s cannot be used (%w)", stateDir, err)
	}
	return in, nil
}

// loadLastGood takes state_dir's copies as if they were the files themselves.
func loadLastGood(ctx context.Context, stateDir, configFile string) (Desired, input, error) {
	in, err := readLastGood(ctx, stateDir, configFile)
	if err != nil {
		return Desired{}, in, err
	}
	cfg, err := parseConfig(ctx, configFile, in.config)
	var d Desired
	if err == nil {
		d, err = in.build(cfg, Extra{})
	}
	if err != nil {
		return Desired{}, in, fmt.Errorf("the last good configuration in %s cannot be used (%w)", stateDir, err)
	}
	return d, in, nil
}

// checkAgainstLastGood guards a restart like any other moment: a peer list that
// lost most of its nodes while the daemon was away is as suspicious. Without a
// last good one, what is suspicious by itself is. The same files are no change.
func checkAgainstLastGood(ctx context.Context, d Desired, in input) error {
	if kept, err := readLastGood(ctx, d.Config.StateDir, d.Config.File); err == nil && kept.equal(in) {
		return nil
	}
	good, _, err := loadLastGood(ctx, d.Config.StateDir, d.Config.File)
	if err != nil { // none, or one that an other version wrote
		return checkNext(nil, d)
	}
	return checkNext(&good, d)
}

// save keeps copies of an accepted input, which needs no confirmation any more.
func save(ctx context.Context, cfg config.Config, in input) error {
	return errors.Join(
		keep(ctx, in, filepath.Join(cfg.StateDir, lastGoodDir), cfg.RuntimeDir),
		forgetPending(ctx, cfg.StateDir))
}

// keep writes copies of an input. What could not be written does not keep the
// rest from being written.
func keep(ctx context.Context, in input, dirs ...string) error {
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, saveInput(ctx, dir, in))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the configuration is in force, but cannot be kept for the next start; is the disk full or read-only? %w", err)
	}
	return nil
}

func saveInput(ctx context.Context, dir string, in input) error {
	if err := ownDir(ctx, dir); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{acceptedPeers, in.peers}, {acceptedConfig, in.config}, {acceptedOrigin, []byte(in.configFile)}} {
		path := filepath.Join(dir, f.name)
		if kept, err := config.ReadFile(ctx, path); err == nil && bytes.Equal(kept, f.data) {
			continue
		}
		if err := replaceFile(ctx, path, f.data); err != nil {
			return err
		}
	}
	return nil
}

// replaceFile writes by rename. The temporary file stays beside the real one,
// since /tmp is everybody's, and the old one's mode is not kept: it may be what
// is wrong with it.
func replaceFile(ctx context.Context, path string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	defer func() { _ = file.Cleanup() }()
	if _, err := file.Write(data); err != nil {
		return err
	}
	return file.CloseAtomicallyReplace()
}
