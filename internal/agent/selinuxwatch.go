package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/culprit"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/audit"
	"github.com/pghardend/pghardend/pkg/mac"
)

// selinuxWatch hears of what others change of SELinux, and of what it denies. The
// kernel tells of a new mode or policy by netlink, without saying who it was; that is
// in the records that policies/selinux has made of it (auditallow), a moment later.
type selinuxWatch struct {
	alarm   func(reconcile.Alarm)
	desired func() *Desired
	log     *slog.Logger

	mu   sync.Mutex
	acts []selinuxAct  // the last ones, oldest first
	news chan struct{} // closed with each one more

	gone  *domainGone
	noted notedLoad
}

// selinuxAct is something that was done and recorded.
type selinuxAct struct {
	at          time.Time
	permissions []string
	who         reconcile.Culprit
}

const (
	maxActs = 16
	// actAge is how much earlier than a notification its record may be, and
	// actPatience how much later. A load is recorded as it begins, and takes a second
	// or two, many on a slow machine; no two are under way at once.
	actAge      = time.Second
	loadAge     = time.Minute
	actPatience = 50 * time.Millisecond
)

func newSELinuxWatch(a *Agent) *selinuxWatch {
	return &selinuxWatch{
		alarm: a.loop.Alarm, desired: a.desired.Load, log: a.log, news: make(chan struct{}), gone: newDomainGone(),
	}
}

// hear follows the kernel's notifications. A kernel without SELinux has none.
func (w *selinuxWatch) hear(ctx context.Context) (err error) {
	defer func() { w.gone.heed(err) }()
	mode, err := mac.HostSELinux().Mode(ctx)
	w.gone.heed(err)
	if err == nil && !mode.Enabled {
		<-ctx.Done() // it cannot be switched on without a boot
		return nil
	}
	watcher, err := mac.WatchPolicy()
	if err != nil {
		return err
	}
	defer func() { _ = watcher.Close() }() // it only listened
	for {
		change, err := watcher.Next(ctx)
		if err != nil {
			return err
		}
		switch {
		case !w.wanted() || change.Mode && change.Enforcing:
		case change.Mode:
			w.raise(ctx, change.At, "setenforce")
		default:
			w.raise(ctx, change.At, "load_policy", "setbool")
		}
	}
}

// wanted says whether the resource is among those of the loop.
func (w *selinuxWatch) wanted() bool { return !wantSELinux(*w.desired()).none() }

func (w *selinuxWatch) raise(ctx context.Context, at time.Time, permissions ...string) {
	w.alarm(reconcile.Alarm{Resource: selinuxName, At: at, Who: func() *reconcile.Culprit {
		return w.who(ctx, at, permissions)
	}})
}

// who waits for the record, which comes by way of a thread of the kernel's.
func (w *selinuxWatch) who(ctx context.Context, at time.Time, permissions []string) *reconcile.Culprit {
	patience := time.NewTimer(actPatience)
	defer patience.Stop()
	for {
		act, news := w.last(at, permissions)
		if act != nil {
			return &act.who
		}
		select {
		case <-news:
		case <-patience.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (w *selinuxWatch) last(at time.Time, permissions []string) (*selinuxAct, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, act := range slices.Backward(w.acts) {
		ours := slices.ContainsFunc(act.permissions, func(p string) bool { return slices.Contains(permissions, p) })
		age := actAge
		if slices.Contains(act.permissions, "load_policy") {
			age = loadAge
		}
		if ours && at.Sub(act.at) < age {
			return &act, w.news
		}
	}
	return nil, w.news
}

// granted is a record of something that the policy allows and records. Labels of files
// are changed without a notification, so there it is the alarm.
func (w *selinuxWatch) granted(ctx context.Context, r audit.AVC) {
	if r.PID == os.Getpid() || !w.wanted() {
		return
	}
	act := selinuxAct{r.At, r.Permissions, reconcile.Culprit(culprit.Look(ctx, r.PID, r.Command))}
	w.mu.Lock()
	w.acts = append(w.acts, act)
	if len(w.acts) > maxActs {
		w.acts = w.acts[1:]
	}
	close(w.news)
	w.news = make(chan struct{})
	w.mu.Unlock()
	w.noteLoad(ctx, act)
	if slices.Contains(r.Permissions, "relabelfrom") {
		w.alarm(reconcile.Alarm{Resource: selinuxName, At: r.At, Who: func() *reconcile.Culprit { return &act.who }})
	}
}

// hearAVC takes records of SELinux's decisions.
func (d *denials) hearAVC(ctx context.Context, r audit.AVC) {
	if r.Granted {
		d.selinux.granted(ctx, r)
		return
	}
	service := d.selinux.serviceOf(r)
	if service == "" {
		return
	}
	d.metrics.metrics.DeniedSELinux(service, r.Class)
	d.tell(ctx, control.Denial{Service: service, What: avcText(r), Who: &control.Culprit{PID: r.PID, UID: -1, Command: printable(r.Command)}}, 1)
}

// serviceOf is the service whose domain and level a record has.
func (w *selinuxWatch) serviceOf(r audit.AVC) string {
	source, err := mac.ParseContext(r.Source)
	if err != nil {
		return ""
	}
	for _, spec := range w.desired().Services {
		if !spec.SELinux.Off() && launch.HasLabel(spec.SELinux, source) {
			return spec.Service
		}
	}
	return ""
}

// avcText is one line, the same for the same thing denied.
func avcText(r audit.AVC) string {
	verb := "denied"
	if r.Permissive {
		verb = "would have denied, were it not permissive,"
	}
	text := fmt.Sprintf("SELinux %s %s on %s", verb, strings.Join(r.Permissions, " "), r.Class)
	if r.Path != "" {
		text += " " + printable(r.Path)
	}
	if r.Port != 0 {
		text += fmt.Sprintf(" port %d", r.Port)
	}
	if target, err := mac.ParseContext(r.Target); err == nil {
		text += " (" + target.Type + ")"
	}
	return text
}
