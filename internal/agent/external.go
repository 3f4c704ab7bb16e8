package agent

import (
	"context"
	"os"

	"github.com/pghardend/pghardend/internal/supervise"
	"github.com/pghardend/pghardend/pkg/config"
)

// noteExternal tells the daemon of a service that it does not start itself. One with
// a data directory is found without.
func noteExternal(ctx context.Context, cfg config.Config, service string, extra []string) error {
	if len(extra) > 0 && extra[0] == questionFlag {
		return nil // a question of ours, no launch
	}
	if os.Geteuid() != 0 {
		return nil // the record of a launch without privileges says it
	}
	for _, svc := range cfg.Services {
		if svc.Name != service || !svc.External {
			continue
		}
		if err := supervise.Note(ctx, superviseSpec(cfg, svc)); err != nil && svc.DataDir == "" {
			return err
		}
	}
	return nil
}

func whoStarts(svc config.Service) string {
	if svc.External {
		return "external"
	}
	return "agent"
}
