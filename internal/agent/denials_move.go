package agent

import (
	"context"
	"os"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/culprit"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/trace"
)

// moved has the loop look at control groups at once, since a process of a service was put into another: else the
// full look finds that, half a minute later. A service that is launched moves itself, which
// costs one look that finds nothing.
func (d *denials) moved(ctx context.Context, e trace.Event, who *control.Culprit) {
	if e.PID == os.Getpid() { // it was put back
		return
	}
	c := reconcile.Culprit(culprit.Look(ctx, e.PID, e.Command))
	c.UID, c.Parent = who.UID, who.Parent // by the kernel, whether it is still there or not
	d.alarm(reconcile.Alarm{Resource: cgroupsName, At: time.Now(), Who: func() *reconcile.Culprit { return &c }})
}
