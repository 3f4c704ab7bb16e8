package agent

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/config"
)

// A disk that hangs costs the loop a moment once, and is said as long as it lasts.
func TestF22_HangingDiskHoldsUpNothing(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var disk chan struct{} // nil: it does not hang
		cfg := config.Config{
			File: filepath.Join(dir, "pghardend.yaml"), PeersFile: filepath.Join(dir, "peers.yaml"), RuntimeDir: dir, StateDir: dir,
		}
		r := newFilesResource(func(list []runningService) []runningService {
			if disk != nil {
				<-disk
			}
			return list
		}, func() config.Config { return cfg })
		defer r.close()
		look := func(within time.Duration, want string) {
			t.Helper()
			began := time.Now()
			p, err := r.Plan(t.Context())
			if took := time.Since(began); err != nil || took > within {
				t.Fatalf("after %s: %v", took, err)
			}
			if want == "" && !p.Empty() || !strings.Contains(p.(reconcile.Unrepairable).Unrepairable(), want) {
				t.Fatalf("the plan is %q, want %q", p, want)
			}
		}
		look(0, "")
		if r.Peek(t.Context()) {
			t.Fatal("there is nothing to see")
		}
		hangs := make(chan struct{})
		disk = hangs
		began := time.Now()
		if !r.Peek(t.Context()) || time.Since(began) > peekPatience {
			t.Errorf("Peek took %s, or saw nothing", time.Since(began))
		}
		look(diskPatience, "its disk does not answer")
		for range 3 {
			if !r.Peek(t.Context()) {
				t.Error("Peek sees nothing")
			}
			look(0, "its disk does not answer")
		}
		if err := r.Apply(t.Context(), filePlan{}); err == nil || time.Since(began) > peekPatience+diskPatience {
			t.Errorf("Apply: %v after %s", err, time.Since(began))
		}
		close(hangs)
		synctest.Wait()
		look(0, "")
		if r.Peek(t.Context()) {
			t.Error("there is still something to see")
		}
	})
}

// While openings wait for the disk, the loop goes on.
func TestF22_HangingStateDirHoldsUpNoTick(t *testing.T) {
	o := testOpenings(t, t.TempDir())
	o.mu.Lock() // as while they are written
	done := make(chan struct{})
	go func() {
		defer close(done)
		if !o.moved(0, time.Now()) {
			t.Error("nobody knows whether they moved, and moved says no")
		}
		if list, ok := o.settled(); ok {
			t.Errorf("nobody knows of any, and settled has %v", list)
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("the loop waits for the disk")
	}
	o.mu.Unlock()
	<-done
	if list, ok := o.settled(); !ok || len(list) != 0 {
		t.Errorf("%v %v", list, ok)
	}
}
