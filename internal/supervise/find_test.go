package supervise

import (
	"context"
	"strings"
	"testing"
)

func TestFindAndStopRunning(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := newServerRig(t)
	spec := r.spec()
	if pid, err := Find(ctx, spec); pid != 0 || err != nil {
		t.Fatalf("nothing runs, but Find says %d, %v", pid, err)
	}
	d := r.daemon()
	pid := d.await(StateReady).PID
	if found, err := Find(ctx, spec); found != pid || err != nil {
		t.Errorf("Find: %d, %v, want %d", found, err, pid)
	}
	d.kill()
	if err := StopRunning(ctx, spec, nil); err != nil || alive(t, pid) {
		t.Errorf("StopRunning: %v", err)
	}
	if err := StopRunning(ctx, spec, nil); err != nil {
		t.Errorf("StopRunning of nothing: %v", err)
	}

	other := startSleep(t, r.DataDir)
	if err := writePIDFile(r.DataDir, pidFileText(other, r.DataDir, r.dir, "", "ready")); err != nil {
		t.Fatal(err)
	}
	if found, err := Find(ctx, spec); found != 0 || err == nil || !strings.Contains(err.Error(), "already runs") {
		t.Errorf("Find of another's: %d, %v", found, err)
	}
	if err := StopRunning(ctx, spec, nil); err == nil || !alive(t, other) {
		t.Errorf("StopRunning of another's: %v", err)
	}
}
