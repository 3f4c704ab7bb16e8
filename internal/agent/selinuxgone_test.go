package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/audit"
)

// F30: who was answered once and is denied now has no domain any more, and ends.
func TestF30_DomainGone(t *testing.T) {
	g := newDomainGone()
	ended := make(chan struct{})
	g.patience, g.exit = time.Millisecond, func() { close(ended) }
	g.heed(os.ErrPermission) // a domain that may not ask at all: not ours
	g.heed(nil)
	g.heed(errors.New("something else"))
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := g.await(ctx); err != nil {
		t.Fatal(err)
	}
	g.heed(os.ErrPermission)
	g.heed(os.ErrPermission)
	if err := g.await(t.Context()); !errors.Is(err, errDomainGone) {
		t.Errorf("%v", err)
	}
	<-ended // also where an end in good order is denied
}

// Who loads a policy is written down while the daemon still can, and told of by the next daemon unless this one has found that policy right.
func TestF30_NoteOfALoad(t *testing.T) {
	w, _ := testSELinuxWatch(t, landlockConfig("postgres", pgCommand, selinuxOn)+"runtime_dir: "+t.TempDir()+"\n")
	a := &Agent{events: newEvents(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler)), log: slog.New(slog.DiscardHandler)}
	a.desired.Store(w.desired())
	told := func() []string {
		a.tellOfLoad()
		events, err := a.Events(t.Context(), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		var who []string
		for _, e := range events {
			if e.Resource != selinuxName || e.Kind != reconcile.CauseDrift || e.Repaired.IsZero() || !strings.Contains(e.What, "the module was removed") {
				t.Errorf("%+v", e)
			}
			who = append(who, e.Who.Command)
		}
		return who
	}
	load := func(permission, command string) {
		w.granted(t.Context(), audit.AVC{At: time.Now(), Granted: true, Permissions: []string{permission}, PID: 1 << 30, Command: command})
	}
	load("setenforce", "setenforce")
	if got := told(); len(got) > 0 {
		t.Errorf("told of %v", got)
	}
	load("load_policy", "harmless")
	w.settled(0) // a look that ended before the load did
	w.settled(1)
	if got := told(); len(got) > 0 {
		t.Errorf("told of %v", got)
	}
	load("load_policy", "load_policy")
	w.settled(0)
	if got := told(); len(got) != 1 || got[0] != "load_policy" {
		t.Errorf("told of %v", got)
	}
	if got := told(); len(got) != 1 {
		t.Errorf("told again: %v", got)
	}
}

// A load is recorded as it begins and announced when it has ended.
func TestSELinuxCulpritOfALongLoad(t *testing.T) {
	w, alarms := testSELinuxWatch(t, landlockConfig("postgres", pgCommand, selinuxOn)+"runtime_dir: "+t.TempDir()+"\n")
	now := time.Now()
	w.granted(t.Context(), audit.AVC{At: now.Add(-20 * time.Second), Granted: true, Permissions: []string{"load_policy"}, PID: 1 << 30, Command: "load_policy"})
	w.raise(t.Context(), now, "load_policy", "setbool")
	if who := (<-alarms).Who(); who == nil || who.Command != "load_policy" {
		t.Errorf("%+v", who)
	}
}
