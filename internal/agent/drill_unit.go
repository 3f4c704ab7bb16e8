package agent

import (
	"context"
	"path/filepath"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/supervise"
	"github.com/pghardend/pghardend/pkg/config"
)

// unitDrilled is what a drill says of a service that a unit confines.
const unitDrilled = "the service's unit starts it without privileges: like it, the scratch copy has no exec gate and a /proc that can be written to; " +
	"systemd's own filters, which only add to that, are left out, and its mounts are made by the launch"

// startsInUnit says whether the service is launched without privileges, as by the units
// that are packaged. What runs says so; of an external service that does not run the
// weaker is assumed.
func startsInUnit(ctx context.Context, cfg config.Config, service string) bool {
	svc, err := drilledService(cfg, service)
	if err != nil || !svc.External {
		return false
	}
	pid, err := supervise.Find(ctx, superviseSpec(cfg, svc))
	if err != nil || pid == 0 {
		return true
	}
	record, known, err := launch.ReadProfile(ctx, filepath.Join(cfg.RuntimeDir, profilesDir), svc.Name, pid)
	return err != nil || !known || record.Unit
}
