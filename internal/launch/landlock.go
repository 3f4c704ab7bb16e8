package launch

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pghardend/pghardend/pkg/mac"
)

// The modes of Landlock.
const (
	LandlockOff       = "off"       // the same as ""
	LandlockPreferred = "preferred" // without, if the kernel has none
	LandlockRequired  = "required"
)

// Landlock says how a service is confined by Landlock.
type Landlock struct {
	Mode string
	// Rules lack what is executed: the program, the helpers, their interpreters
	// and their loaders are added.
	Rules mac.RuleSet
	// RecordDir is where Exec leaves for Verify what was probed, as the kernel
	// shows nothing of it; "" for nowhere.
	RecordDir string
}

// landlockStage is what the checks prepared for the step.
type landlockStage struct {
	spec    Spec
	ruleset *mac.Ruleset // nil where the kernel has none and that is accepted
	record  *os.File     // nil if there is nowhere to write to
	launch  launchRecord
}

// checkLandlock makes the rules and opens the paths, which changes nothing yet.
func checkLandlock(ctx context.Context, spec Spec) (*landlockStage, error) {
	switch spec.Landlock.Mode {
	case "", LandlockOff:
		return nil, nil
	case LandlockPreferred, LandlockRequired:
	default:
		return nil, fmt.Errorf("landlock mode %q: use %s, %s or %s", spec.Landlock.Mode, LandlockRequired, LandlockPreferred, LandlockOff)
	}
	stage := &landlockStage{spec: spec, launch: launchRecord{Rules: spec.Landlock.Rules.Digest()}}
	ruleset, err := openRules(ctx, spec)
	if errors.Is(err, mac.ErrUnsupported) {
		if spec.Landlock.Mode == LandlockPreferred {
			return stage, nil
		}
		return nil, fmt.Errorf("%w; or set services.%s.landlock.mode to %s to start without this layer", err, spec.Service, LandlockPreferred)
	}
	if err != nil {
		return nil, err
	}
	stage.ruleset = ruleset
	plan := ruleset.Plan()
	stage.launch.ABI = plan.ABI
	stage.launch.Enforced, stage.launch.Missing = mac.Names(plan.Enforced), plan.Missing
	return stage, nil
}

func openRules(ctx context.Context, spec Spec) (*mac.Ruleset, error) {
	abi, err := mac.ABI()
	if err != nil {
		return nil, err
	}
	score, err := oomScore(spec)
	if err != nil {
		return nil, err
	}
	paths, err := executables(spec)
	if err != nil {
		return nil, err
	}
	set := spec.Landlock.Rules
	set.Rules = append([]mac.Rule{}, set.Rules...)
	for _, path := range paths {
		set.Rules = append(set.Rules, mac.Rule{Path: path, Access: mac.Execute})
	}
	plan, err := mac.Compile(set, abi, score != 0)
	if err != nil {
		return nil, err
	}
	if plan.ScopesAbstract() && strings.HasPrefix(os.Getenv("NOTIFY_SOCKET"), "@") {
		return nil, fmt.Errorf("NOTIFY_SOCKET is the abstract socket %s, which Landlock keeps the service from, so nobody would learn that it is ready: "+
			"have the service manager use a path", os.Getenv("NOTIFY_SOCKET"))
	}
	return plan.Open(ctx)
}

// oomScore is what the service will have.
func oomScore(spec Spec) (int, error) {
	if spec.OOMScoreAdj != nil {
		return *spec.OOMScoreAdj, nil
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, fmt.Errorf("cannot read oom_score_adj: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// executables are the files that execve has to open: the program and the helpers,
// the interpreters of scripts, and the loaders of all of them.
func executables(spec Spec) ([]string, error) {
	var paths []string
	add := func(path string) error {
		loader, err := elfLoader(path)
		if loader == "" || err != nil {
			paths = append(paths, path)
			return err
		}
		paths = append(paths, path, loader)
		return nil
	}
	if err := add(spec.Command[0]); err != nil {
		return nil, err
	}
	for _, helper := range spec.Helpers {
		name, script, err := readInterpreter(candidate{"helper", helper, "services." + spec.Service + ".helpers"})
		if err != nil {
			return nil, err
		}
		program := helper
		if script {
			paths = append(paths, helper)
			if program, err = followLinks(name); err != nil {
				return nil, err
			}
		}
		if err := add(program); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// elfLoader is the file that an ELF program names as its interpreter, elf(5);
// nothing if it is linked statically.
func elfLoader(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", fmt.Errorf("cannot look for the dynamic loader of %s: %w: only ELF programs and scripts can be run under Landlock", path, err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz == 0 || p.Filesz > 4096 {
			continue
		}
		name := make([]byte, p.Filesz)
		if _, err := p.ReadAt(name, 0); err != nil {
			return "", fmt.Errorf("cannot read the name of the dynamic loader of %s: %w", path, err)
		}
		return strings.TrimRight(string(name), "\x00"), nil
	}
	return "", nil
}

// close gives back what Check has opened.
func (s *landlockStage) close() {
	if s != nil {
		s.ruleset.Close()
	}
}

// openRecord is called while still root, who alone may write where records are.
// Without a record the service is as confined as with one; it is only that
// nobody can say so afterwards, and Verify tells.
func (s *landlockStage) openRecord(ctx context.Context) {
	if s == nil || s.spec.Landlock.RecordDir == "" {
		return
	}
	file, identity, err := createRecord(ctx, s.spec.Landlock.RecordDir, s.spec.Service, os.Getpid())
	if err == nil {
		s.record, s.launch.processID = file, identity
	}
}

// enforce restricts the calling thread and tries whether it is restricted.
func (s *landlockStage) enforce() error {
	if s == nil {
		return nil
	}
	if s.ruleset != nil {
		probe := mac.NewProbe(s.ruleset.Plan(), s.spec.DataDir)
		defer probe.Close()
		if err := s.ruleset.Restrict(); err != nil {
			return err
		}
		var err error
		if s.launch.Probed, err = probe.Check(); err != nil {
			return err
		}
	}
	s.launch.Time = time.Now().UTC().Truncate(time.Second)
	s.launch.write(s.record)
	return nil
}
