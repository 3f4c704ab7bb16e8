package agent

import (
	"context"
	"fmt"
	"os"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
)

// makeHidden makes the agent's directories before a launch hides them: what is made later, when a daemon
// starts after the service that systemd has started, would be there for it to see.
func makeHidden(ctx context.Context, cfg config.Config, spec launch.Spec) error {
	if spec.Mounts.Off() || os.Geteuid() != 0 {
		return nil // the launch says what it thinks of another user
	}
	for _, d := range []struct{ key, path string }{{"runtime_dir", cfg.RuntimeDir}, {"state_dir", cfg.StateDir}} {
		if err := ownDir(ctx, d.path); err != nil {
			return &launch.Error{Service: spec.Service, Step: launch.StepMounts, Err: fmt.Errorf("%s: cannot make %s, which is to be hidden from the service: %w",
				cfg.Where(d.key), d.path, err)}
		}
	}
	return nil
}
