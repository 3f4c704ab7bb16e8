package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

const filesName = "files"

// filesResource keeps modes and owners: those of the data directories of running
// services, of the two files that the daemon obeys, and of the directories of its
// own.
//
// Only what this daemon has seen right is put back, on a descriptor that it has
// kept since: root must never chown or chmod what a path leads to after the
// service's user moved something else there. What was wrong from the start stays
// as it is, and is refused or reported by whoever needs it. There is one
// exception, a data directory that belongs to its service already: its mode may
// be put right, since its owner could do that as well. Nothing is done below a
// directory.
type filesResource struct {
	running func([]runningService) []runningService
	config  func() config.Config
	stirred func() uint64 // as fileWatch's; nil: there is none

	disk patient
	hung bool // the last look had no answer from a disk

	// Of the functions that disk runs.
	list   []runningService // that running fills, again and again
	looked []lookedService  // at the last look
	kept   []*keptPath
	at     atomic.Pointer[keptPath] // what is looked at right now

	peek    func() // of this value, made once
	differs bool   // what it found
	calm    uint64 // what stirred said when it found nothing
}

// How long the loop waits for a disk, in a tick and in a look. Cached as what is
// looked at is, it mostly takes microseconds.
const (
	peekPatience = 100 * time.Millisecond
	diskPatience = 2 * time.Second
)

// lookedService tells one start of a service from another.
type lookedService struct {
	name string
	pid  int
}

// newFilesResource is given what counts now: the services that are ready, and
// the configuration in force.
func newFilesResource(running func([]runningService) []runningService, cfg func() config.Config) *filesResource {
	r := &filesResource{running: running, config: cfg}
	r.peek = func() { r.differs = r.peeks() }
	return r
}

func (r *filesResource) Name() string { return filesName }

// Plan implements reconcile.Resource. A disk that hangs holds up nothing else: it
// is for people, as is all that is not put back.
func (r *filesResource) Plan(ctx context.Context) (reconcile.Plan, error) {
	found := make(chan fileLook, 1)
	if !r.ask(func() { found <- r.look(ctx) }) {
		return filePlan{faults: []string{r.hangs()}}, nil
	}
	l := <-found
	return l.plan, l.err
}

// fileLook is what one look found.
type fileLook struct {
	plan filePlan
	err  error
}

// ask runs f, and does not wait again for a disk that has had its time.
func (r *filesResource) ask(f func()) bool {
	wait := diskPatience
	if r.hung {
		wait = 0
	}
	r.hung = !r.disk.free(wait) || !r.disk.do(f, diskPatience)
	return !r.hung
}

func (r *filesResource) hangs() string {
	what := "the files"
	if k := r.at.Load(); k != nil {
		what = k.what + " " + k.path
	}
	return what + ": its disk does not answer, so nothing is known of modes and owners: see `dmesg`; all else is kept"
}

func (r *filesResource) look(ctx context.Context) fileLook {
	var p filePlan
	var errs []error
	r.list = r.running(r.list[:0])
	wanted, err := r.wanted(ctx)
	errs = append(errs, err)
	r.take(wanted)
	for _, k := range r.kept {
		if err := ctx.Err(); err != nil {
			return fileLook{err: fmt.Errorf("cannot look at modes and owners: %w", err)}
		}
		r.at.Store(k)
		if err := k.look(&p); err != nil {
			errs = append(errs, err)
		}
	}
	return fileLook{p, errors.Join(errs...)}
}

// wanted are the paths to keep now, none of them open yet.
func (r *filesResource) wanted(ctx context.Context) ([]*keptPath, error) {
	cfg := r.config()
	list := []*keptPath{
		{what: "configuration", path: cfg.File, kind: unix.S_IFREG},
		{what: "peer list", path: cfg.PeersFile, kind: unix.S_IFREG},
	}
	for _, d := range []struct{ what, path string }{
		{"directory of the configuration", filepath.Dir(cfg.File)}, {"directory of the peer list", filepath.Dir(cfg.PeersFile)},
		{"runtime_dir", cfg.RuntimeDir}, {"state_dir", cfg.StateDir},
	} {
		if !slices.ContainsFunc(list, func(k *keptPath) bool { return k.path == d.path }) {
			list = append(list, &keptPath{what: d.what, path: d.path, kind: unix.S_IFDIR})
		}
	}
	var errs []error
	r.looked = r.looked[:0]
	for _, svc := range r.list {
		r.looked = append(r.looked, lookedService{svc.name, svc.pid})
		if svc.spec.DataDir == "" {
			continue
		}
		status, err := sandbox.ReadStatus(ctx, svc.pid)
		if errors.Is(err, os.ErrProcessDone) {
			continue // is for its supervisor
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("service %s: %w", svc.name, err))
			continue
		}
		list = append(list, &keptPath{
			what: "data directory of service " + svc.name, path: svc.spec.DataDir, kind: unix.S_IFDIR,
			pid: svc.pid, uid: status.UIDs[0],
		})
	}
	return list, errors.Join(errs...)
}

// take goes on keeping what is wanted and was kept, and closes the rest. A data
// directory is looked at anew with each start of its service, which checks it.
func (r *filesResource) take(wanted []*keptPath) {
	old := r.kept
	r.kept = wanted
	for i, k := range wanted {
		at := slices.IndexFunc(old, func(o *keptPath) bool { return o.what == k.what && o.path == k.path && o.pid == k.pid })
		if at >= 0 {
			wanted[i] = old[at]
			old = slices.Delete(old, at, at+1)
		}
	}
	for _, k := range old {
		k.drop()
	}
}

// Apply implements reconcile.Resource.
func (r *filesResource) Apply(_ context.Context, p reconcile.Plan) error {
	plan, ok := p.(filePlan)
	if !ok {
		return fmt.Errorf("cannot apply a %T to files", p)
	}
	done := make(chan error, 1)
	if !r.ask(func() { done <- r.putBack(plan) }) {
		return errors.New(r.hangs())
	}
	return <-done
}

func (r *filesResource) putBack(p filePlan) error {
	var errs []error
	for _, c := range p.changes {
		r.at.Store(c.kept)
		if err := c.apply(); err != nil {
			errs = append(errs, fmt.Errorf("cannot put back %s %s: %w", c.kept.what, c.kept.path, err))
		}
	}
	return errors.Join(errs...)
}

// Peek implements reconcile.Peeker: one stat(2) for each path, as long as nobody
// tells of changes.
func (r *filesResource) Peek(context.Context) bool {
	if r.hung || !r.disk.free(0) {
		return true
	}
	var now uint64
	if r.stirred != nil {
		now = r.stirred()
	}
	if now != 0 && now == r.calm {
		return r.others()
	}
	if !r.disk.do(r.peek, peekPatience) || r.differs {
		return true
	}
	r.calm = now
	return false
}

// others says whether other paths are to be looked at than at the last look.
func (r *filesResource) others() bool {
	r.list = r.running(r.list[:0])
	same := slices.EqualFunc(r.list, r.looked, func(a runningService, b lookedService) bool { return a.name == b.name && a.pid == b.pid })
	return !same || len(r.kept) == 0
}

func (r *filesResource) peeks() bool {
	return r.others() || slices.ContainsFunc(r.kept, func(k *keptPath) bool {
		r.at.Store(k)
		return k.differs()
	})
}

// close gives the descriptors back.
func (r *filesResource) close() {
	r.ask(func() { r.take(nil) })
	r.disk.close()
}

// filePlan is what differs in modes and owners.
type filePlan struct {
	changes []fileChange
	faults  []string // what is not put back, and why
}

// Empty says whether all is as it should be, also what is not put back.
func (p filePlan) Empty() bool { return len(p.changes)+len(p.faults) == 0 }

// String has one line for each difference.
func (p filePlan) String() string {
	var b strings.Builder
	for _, c := range p.changes {
		if c.have.uid != c.want.uid {
			fmt.Fprintf(&b, "%s %s: belongs to uid %d, want uid %d\n", c.kept.what, c.kept.path, c.have.uid, c.want.uid)
		}
		if c.have.mode != c.want.mode {
			fmt.Fprintf(&b, "%s %s: has mode %04o, want %04o\n", c.kept.what, c.kept.path, c.have.mode, c.want.mode)
		}
	}
	b.WriteString(p.Unrepairable())
	return b.String()
}

// Unrepairable implements reconcile.Unrepairable: it is what is left to people.
func (p filePlan) Unrepairable() string {
	var b strings.Builder
	for _, text := range p.faults {
		fmt.Fprintf(&b, "%s\n", text)
	}
	return b.String()
}

// Repairable implements reconcile.Unrepairable.
func (p filePlan) Repairable() bool { return len(p.changes) > 0 }
