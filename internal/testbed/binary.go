package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

const modulePath = "github.com/pghardend/pghardend"

// programVariable, in the environment, is a program that was built before, by whoever has a test run where there is no Go.
// Its race detector must be as this program's.
const programVariable = "PGHARDEND_TEST_PROGRAM"

// moduleLine finds the module's name in a go.mod.
var moduleLine = regexp.MustCompile(`(?m)^module\s+"?([^\s"]+)`)

var built struct {
	sync.Mutex
	paths map[bool]string // by whether it has the race detector
}

// BuildBinary builds ./cmd/pghardend, once in a process, with the race detector if this program has it, and returns the
// path. The program lies where only root can write.
func BuildBinary(ctx context.Context) (string, error) { return build(ctx, raceEnabled) }

// BuildPlainBinary is BuildBinary without the race detector, which needs more system calls than some profiles allow.
func BuildPlainBinary(ctx context.Context) (string, error) { return build(ctx, false) }

func build(ctx context.Context, race bool) (string, error) {
	if path := (map[bool]string{raceEnabled: os.Getenv(programVariable)})[race]; path != "" {
		return path, nil
	}
	built.Lock()
	defer built.Unlock()
	if path := built.paths[race]; path != "" {
		return path, nil
	}
	r, err := current()
	if err != nil {
		return "", err
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("cannot build pghardend: %w", err)
	}
	root, err := moduleRoot(dir)
	if err != nil {
		return "", fmt.Errorf("cannot build pghardend: %w", err)
	}
	names := map[bool]string{raceEnabled: "pghardend", !raceEnabled: "pghardend-plain"}
	path := filepath.Join(r.dir(), "bin", names[race])
	args := []string{"build", "-o", path}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/pghardend")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build pghardend: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if err := os.Chmod(path, 0o755); err != nil { // whatever the umask is
		return "", fmt.Errorf("cannot build pghardend: %w", err)
	}
	if built.paths == nil {
		built.paths = map[bool]string{}
	}
	built.paths[race] = path
	return path, nil
}

// moduleRoot looks for this module's go.mod from dir upwards.
func moduleRoot(dir string) (string, error) {
	for at := dir; ; at = filepath.Dir(at) {
		data, err := os.ReadFile(filepath.Join(at, "go.mod"))
		if err == nil {
			if m := moduleLine.FindSubmatch(data); m != nil && string(m[1]) == modulePath {
				return at, nil
			}
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no go.mod of %s in %s or above; run it inside the repository", modulePath, dir)
		}
	}
}
