package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/config"
)

// The daemon's unit lets it write neither to the mounts of services nor to control
// groups, change no owners and raise no thread to real time. Where it is not permitted
// one of these, it asks for pghardend-repair.service, by writing to repairFile, for
// which pghardend-repair.path looks. What is put back is what the configuration in
// force asks for, whatever a request says.
const (
	repairFile = "repair" // in runtime_dir
	repairUnit = "pghardend-repair"
)

// keptByLoop is what a resource that others may put back has to be.
type keptByLoop interface {
	reconcile.Resource
	reconcile.Peeker
}

// delegated is a resource that the repair unit puts back where the daemon may not.
type delegated struct {
	keptByLoop
	ask   func(request string) error
	again func(wait time.Duration) // looks at the resource after that time
}

// delegate wraps a resource. Only the packaged unit's runtime_dir is looked at by systemd.
func (a *Agent) delegate(dir string, r keptByLoop) reconcile.Resource {
	if dir != config.DefaultRuntimeDir {
		return r
	}
	return delegated{
		keptByLoop: r,
		ask:        func(request string) error { return a.repairs.ask(dir, serviceRequest(a.running(nil))+request) },
		again: func(wait time.Duration) {
			time.AfterFunc(wait, func() { a.loop.Alarm(reconcile.Alarm{Resource: r.Name()}) })
		},
	}
}

// promote asks for the priority of the threads that answer rule changes.
func (a *Agent) promote() error {
	dir := a.desired.Load().Config.RuntimeDir
	if dir != config.DefaultRuntimeDir {
		return unix.EPERM
	}
	return a.repairs.ask(dir, "")
}

// repairLooks is when a repair that was asked for is looked at, besides each tick that
// sees a change: a program starts and looks at all processes of all services.
var repairLooks = [...]time.Duration{200 * time.Millisecond, time.Second, 4 * time.Second}

// Apply implements reconcile.Resource. It does not wait for the other unit, since rules
// must not: it fails until a later look finds all in order.
func (d delegated) Apply(ctx context.Context, p reconcile.Plan) error {
	err := d.keptByLoop.Apply(ctx, p)
	if !notPermitted(err) {
		return err
	}
	if askErr := d.ask(ownerRequest(p)); askErr != nil {
		return errors.Join(err, askErr)
	}
	for _, wait := range repairLooks {
		d.again(wait)
	}
	return &reconcile.AskedError{
		Whom: repairUnit + ".service",
		Err: fmt.Errorf("%w\n%s.service was asked to do it, which is permitted that; if it stays as it is: `systemctl status %[2]s.path %[2]s.service`",
			err, repairUnit),
	}
}

// notPermitted: by capabilities, a system call filter, or a read-only file system.
func notPermitted(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES)
}

// ownerRequest names the descriptors whose owners differ: only what this daemon has
// seen right is put back, see filesResource, and nobody else knows what that was.
func ownerRequest(p reconcile.Plan) string {
	plan, ok := p.(filePlan)
	if !ok {
		return ""
	}
	var b strings.Builder
	for _, c := range plan.changes {
		if c.have.uid != c.want.uid && c.kept.file != nil {
			fmt.Fprintf(&b, "owner %d %s\n", c.kept.file.Fd(), c.kept.path)
		}
	}
	return b.String()
}

// serviceRequest says which services run: with a wrong owner, none is found any more by
// its data directory.
func serviceRequest(list []runningService) string {
	var b strings.Builder
	for _, svc := range list {
		fmt.Fprintf(&b, "service %d %s\n", svc.pid, svc.name)
	}
	return b.String()
}

// repairs is what was asked for last. The zero value is ready.
type repairs struct {
	mu   sync.Mutex
	last string
	at   time.Time
}

// repairPause is how long the same is not asked for again: the other unit is at it.
const repairPause = time.Second

// ask writes, which systemd hears of when the file is closed. The first line
// says who asks. A request that another one overwrites is made again.
func (r *repairs) ask(runtimeDir, request string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == request && time.Since(r.at) < repairPause {
		return nil
	}
	r.last, r.at = request, time.Now()
	path := filepath.Join(runtimeDir, repairFile)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		_, err = fmt.Fprintf(file, "agent %d\n%s", os.Getpid(), request)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		return fmt.Errorf("cannot ask for %s.service: %w", repairUnit, err)
	}
	return nil
}
