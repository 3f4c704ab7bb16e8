package supervise

import (
	"context"
	"errors"
	"os"
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

// A service that is being started is waited for, not taken for another's.
func TestFindDuringTheLaunch(t *testing.T) {
	t.Parallel()
	r := newServerRig(t)
	launched := r.file("launched")
	r.Argv = append([]string{self(t), "play-launch", "-await", launched}, r.Argv...)
	d := r.daemon()
	var rec record
	await(t, "the record of the start", func() bool {
		var err error
		rec, err = readRecord(t.Context(), r.Record)
		return err == nil && rec.PID > 0
	})
	short, cancel := context.WithTimeout(t.Context(), 10*startLook)
	defer cancel()
	if pid, err := Find(short, r.spec()); pid != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Find: %d, %v", pid, err)
	}
	if err := os.WriteFile(launched, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if pid, err := Find(t.Context(), r.spec()); pid != rec.PID || err != nil {
		t.Errorf("Find: %d, %v, want %d", pid, err, rec.PID)
	}
	d.await(StateReady)
}
