package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// A service that something else starts (a unit of its own, Patroni) is looked for
// each second while it is not there: whoever starts it tells nobody. It is adopted
// on the same conditions as one of an earlier daemon, watched and, when asked, stopped.

// Note leaves a record of the calling process, which is about to become the
// service by execve, so that the daemon finds one that has no data directory, too.
func Note(ctx context.Context, spec Spec) error {
	p, err := openProcess(ctx, os.Getpid())
	if err != nil {
		return fmt.Errorf("cannot note the process of service %s: %w", spec.Name, err)
	}
	defer p.close()
	r := record{Service: spec.Name, DataDir: spec.DataDir, PID: p.pid, Start: p.start, Exe: serviceExe(ctx, spec)}
	if err := writeRecord(ctx, spec.RecordFile, r); err != nil {
		return fmt.Errorf("cannot note the process of service %s: %w", spec.Name, err)
	}
	return nil
}

// lookByLaunch finds a service without a data directory whose launch had no privileges,
// and so could leave no note: what it has left is root's all the same.
func (k *keeper) lookByLaunch(ctx context.Context) (found, error) {
	data, err := readOwn(ctx, k.spec.LaunchFile, maxRecord)
	if errors.Is(err, os.ErrNotExist) || len(data) == 0 && err == nil {
		return found{}, nil
	}
	if err != nil {
		return found{}, fmt.Errorf("cannot read the record of the launch: %w", err)
	}
	var r struct {
		PID   int    `json:"pid"`
		Start uint64 `json:"start_ticks"`
		Boot  string `json:"boot_id"`
	}
	boot, err := bootID(ctx)
	if err != nil {
		return found{}, err
	}
	if json.Unmarshal(data, &r) != nil || r.PID <= 0 || r.PID > maxPID || r.Boot != boot {
		return found{}, nil //nolint:nilerr // half-written, or of another boot
	}
	return k.lookByRecord(ctx, record{PID: r.PID, Start: r.Start})
}

// outside waits until somebody has started the service.
func (k *keeper) outside(ctx context.Context) phase {
	k.drop()
	k.again, k.wanted = false, false
	k.set(StateWaiting, k.reason)
	return k.lookAgain(ctx)
}

// lookAgain is the next look for a service that is not there or not as it should be.
func (k *keeper) lookAgain(ctx context.Context) phase {
	timer := time.NewTimer(slowTick)
	defer timer.Stop()
	refused := errors.New("something else starts it (start: external): start its unit")
	k.answer(&k.starters, refused)
	k.answer(&k.stoppers, nil)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			return k.find
		case r := <-k.requests:
			if r.kind == requestStart {
				r.reply <- refused
			} else {
				r.reply <- nil // nothing of ours runs
			}
		}
	}
}
