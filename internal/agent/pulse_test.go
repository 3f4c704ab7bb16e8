package agent

import (
	"context"
	"log/slog"
	"testing"
	"time"
)

func TestPulseBeatsUntilTheEnd(t *testing.T) {
	for name, run := range map[string]func(p pulse, ctx context.Context, tick func()){
		"timerfd": pulse.run, "timer of Go's": pulse.fall,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			began, ticks := time.Now(), 0
			run(pulse{10 * time.Millisecond, slog.New(slog.DiscardHandler)}, ctx, func() {
				if ticks++; ticks == 5 {
					cancel()
				}
			})
			if took := time.Since(began); ticks != 5 || took < 50*time.Millisecond {
				t.Errorf("%d ticks in %v", ticks, took)
			}
		})
	}
}

// Whoever waits for the next beat does not wait for it when the daemon ends.
func TestPulseEndsAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	began := time.Now()
	pulse{time.Hour, slog.New(slog.DiscardHandler)}.run(ctx, func() { t.Error("a tick") })
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}
