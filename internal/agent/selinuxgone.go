package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pghardend/pghardend/internal/journal"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/mac"
)

// A policy without our module leaves this daemon, like its services, without a
// domain: the kernel denies all that needs asking, and what was found out before is
// worth nothing. So it ends. The unit has systemd load the module before it starts
// the next daemon, which finds the note below.
//
// errDomainGone is for whoever runs it in the foreground: by then the kernel may
// already deny writing to the log.
var errDomainGone = errors.New("the SELinux policy that was loaded does not have this agent's domain, so that the kernel lets it do nothing: " +
	"load the module (semodule -i /usr/share/selinux/packages/pghardend.pp), which the agent's unit does as it starts it again")

// domainGone hears of the answers to questions that every domain may ask. Who was
// answered once and is denied now has lost its domain.
type domainGone struct {
	answered atomic.Bool
	once     sync.Once
	told     chan struct{}

	// patience bounds an end in good order, in which any step may be denied.
	patience time.Duration
	exit     func()
}

func newDomainGone() *domainGone {
	return &domainGone{told: make(chan struct{}), patience: 3 * time.Second, exit: func() { os.Exit(1) }} //nolint:forbidigo // main may not come to it: the kernel denies what it waits for
}

func (g *domainGone) heed(err error) {
	if err == nil {
		g.answered.Store(true)
	} else if errors.Is(err, os.ErrPermission) && g.answered.Load() {
		g.once.Do(func() { close(g.told) })
	}
}

// await ends the daemon.
func (g *domainGone) await(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-g.told:
		time.AfterFunc(g.patience, g.exit)
		return errDomainGone
	}
}

// policyNote is the last load of a policy that somebody else began. It is written
// while the load is under way, for the next daemon, and removed when a later policy
// has been found right.
type policyNote struct {
	At  time.Time         `json:"at"`
	Who reconcile.Culprit `json:"who"`
}

// notedLoad is what of a note is kept in memory: how many loads there had been.
type notedLoad struct {
	mu    sync.Mutex
	some  bool
	loads uint32
}

func policyNoteFile(runtimeDir string) string { return filepath.Join(runtimeDir, "policy-load.json") }

// noteLoad writes down who loads a policy, which may be the last that this daemon does.
func (w *selinuxWatch) noteLoad(ctx context.Context, act selinuxAct) {
	if !slices.Contains(act.permissions, "load_policy") {
		return
	}
	mode, err := mac.HostSELinux().Mode(ctx)
	w.gone.heed(err)
	if err != nil {
		return
	}
	data, err := json.Marshal(policyNote{act.at, act.who})
	if err != nil {
		w.log.Warn("who loads a policy cannot be written down", "error", err)
		return
	}
	w.noted.mu.Lock()
	defer w.noted.mu.Unlock()
	if err := replaceFile(ctx, policyNoteFile(w.desired().Config.RuntimeDir), data); err != nil {
		w.log.Warn("who loads a policy cannot be written down", "error", err)
		return
	}
	w.noted.some, w.noted.loads = true, mode.Loads
}

// settled says that all is right after so many loads.
func (w *selinuxWatch) settled(loads uint32) {
	w.noted.mu.Lock()
	defer w.noted.mu.Unlock()
	if w.noted.some && loads != w.noted.loads {
		w.noted.some = false
		_ = os.Remove(policyNoteFile(w.desired().Config.RuntimeDir)) // or the next daemon tells of it, which is no harm
	}
}

// tellOfLoad makes an event of a note that an earlier daemon has left: it did not
// live to find the policy right.
func (a *Agent) tellOfLoad() {
	file := policyNoteFile(a.desired.Load().Config.RuntimeDir)
	data, err := os.ReadFile(file)
	if err != nil {
		return // there is none
	}
	var note policyNote
	if err := json.Unmarshal(data, &note); err != nil {
		a.log.Warn("a note cannot be read", "file", file, "error", err)
	} else {
		now := time.Now()
		a.events.journal.Append(journal.Record{
			Kind: reconcile.CauseDrift, Resource: selinuxName, Cause: reconcile.CauseDrift, Trigger: "start",
			What:  "a policy was loaded and the agent ended before it had found it right: the module was removed, and loaded anew for this start",
			Since: note.At, Found: note.At, Repaired: now, OpenMS: float64(now.Sub(note.At).Milliseconds()), Who: (*journal.Culprit)(&note.Who),
		})
	}
	_ = os.Remove(file) // else it is told of twice
}

// ModuleFault says that SELinux is why no daemon runs, if it is: the kernel's policy
// does not know the domain.
func ModuleFault(ctx context.Context, d Desired) error {
	want := wantSELinux(d)
	mode, err := mac.HostSELinux().Mode(ctx)
	if err != nil || !mode.Enabled || len(want.domains) == 0 {
		return err
	}
	known, err := mac.HostSELinux().Known(ctx, mac.Context{User: "system_u", Role: "object_r", Type: selinuxAgentDomain, Level: noLevel})
	if err != nil || known {
		return err
	}
	return fmt.Errorf("the SELinux policy does not know %s: its module was removed. While it is enforcing, the agent cannot run and services have no domain, "+
		"so that nothing that they ask for is allowed: `systemctl start pghardend` loads the module first, or `semodule -i %s`", selinuxAgentDomain, want.module)
}
