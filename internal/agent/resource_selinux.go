package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/mac"
)

const selinuxName = "selinux"

// selinuxResource keeps what the domains of services rest on: enforcing mode, the
// policy module, that no domain of ours is permissive, booleans, types of ports and
// labels of files. Without SELinux in the kernel there is nothing to keep; what a
// service that requires it lacks is for its launch and for status.
//
// Enforcing mode is put back if the host's own configuration asks for it or this
// daemon has seen it in force: a host that was never enforcing may well be one that
// nobody can log in to once it is.
//
// What changes the policy itself takes seconds and more, so it is done beside the
// loop, see selinuxJob.
type selinuxResource struct {
	want func() selinuxWant
	host *mac.SELinux
	job  selinuxJob
	disk patient // data directories are on it
	hung bool
	seen bool // enforcing, by this daemon

	asked func(error)        // takes whether the kernel answers
	found func(loads uint32) // all to be right

	status *os.File // nil: there is none
	buf    [mac.StatusSize]byte
	right  []byte // status of the last look that found nothing
	labels []keptLabel
	moved  bool // what the last peek found
}

// keptLabel is a path and the label that it had when all was right.
type keptLabel struct{ path, label string }

func newSELinuxResource(want func() selinuxWant, done func()) *selinuxResource {
	return &selinuxResource{want: want, host: mac.HostSELinux(), job: selinuxJob{done: done}, asked: func(error) {}, found: func(uint32) {}}
}

func (r *selinuxResource) Name() string { return selinuxName }

// Plan implements reconcile.Resource.
func (r *selinuxResource) Plan(ctx context.Context) (reconcile.Plan, error) {
	r.right, r.labels = nil, r.labels[:0]
	before := r.readStatus()
	mode, err := r.host.Mode(ctx)
	r.asked(err)
	if err != nil || !mode.Enabled {
		return selinuxPlan{}, err
	}
	r.seen = r.seen || mode.Enforcing
	want := r.want()
	p := selinuxPlan{want: want, enforce: !mode.Enforcing && (r.seen || mac.HostEnforces(ctx))}
	errs := []error{r.planDomains(ctx, want, &p), r.planBooleans(ctx, want, &p)}
	if !p.module {
		errs = append(errs, r.planPorts(ctx, want, &p), r.planLabels(ctx, want, &p))
	}
	if err = errors.Join(errs...); err == nil && p.Empty() {
		r.found(mode.Loads)
		r.right = before
	}
	return p, err
}

// planDomains asks with the role of files, which may have any type.
func (r *selinuxResource) planDomains(ctx context.Context, want selinuxWant, p *selinuxPlan) error {
	for _, domain := range slices.Concat(want.domains, want.others) {
		c := mac.Context{User: "system_u", Role: "object_r", Type: domain, Level: noLevel}
		known, err := r.host.Known(ctx, c)
		if err != nil {
			return err
		}
		if !known {
			p.module = p.module || slices.Contains(want.domains, domain)
			p.missing = append(p.missing, domain)
			continue
		}
		decision, err := r.host.Decide(ctx, c, c, "process")
		if err != nil {
			return err
		}
		if decision.Permissive {
			p.permissive = append(p.permissive, domain)
		}
	}
	return nil
}

func (r *selinuxResource) planBooleans(ctx context.Context, want selinuxWant, p *selinuxPlan) error {
	for name, on := range want.booleans {
		have, err := r.host.Boolean(ctx, name)
		if errors.Is(err, os.ErrNotExist) && p.module {
			continue // it comes with the module
		}
		if err != nil {
			return fmt.Errorf("selinux.booleans: %w", err)
		}
		if have != on {
			if p.booleans == nil {
				p.booleans = map[string]bool{}
			}
			p.booleans[name] = on
		}
	}
	return nil
}

// basePorts have their type by the distribution's policy, unless something else was
// set on this host.
var basePorts = []mac.PortType{{Proto: "tcp", Port: 5432, Type: "postgresql_port_t"}}

func (r *selinuxResource) planPorts(ctx context.Context, want selinuxWant, p *selinuxPlan) error {
	if len(want.ports) == 0 {
		return nil
	}
	local, err := mac.LocalPorts(ctx)
	if err != nil {
		return err
	}
	for _, port := range want.ports {
		at := slices.IndexFunc(local, func(have mac.PortType) bool { return have.Proto == port.Proto && have.Port == port.Port })
		switch {
		case at >= 0 && local[at].Type == port.Type, at < 0 && slices.Contains(basePorts, port):
		case at >= 0:
			p.ports = append(p.ports, portChange{port, "type " + local[at].Type})
		default:
			p.ports = append(p.ports, portChange{port, "no type of ours"})
		}
	}
	return nil
}

// planLabels looks at files by way of the disk's own goroutine.
func (r *selinuxResource) planLabels(ctx context.Context, want selinuxWant, p *selinuxPlan) error {
	type found struct {
		changes []labelChange
		kept    []keptLabel
		err     error
	}
	answer := make(chan found, 1)
	ok := r.ask(func() {
		var f found
		f.changes, f.kept, f.err = lookAtLabels(ctx, want.labels)
		answer <- f
	})
	if !ok {
		return errSlowDisk
	}
	f := <-answer
	p.labels, r.labels = f.changes, f.kept
	return f.err
}

var errSlowDisk = errors.New("a disk does not answer, so nothing is known of labels: see `dmesg`; all else is kept")

// ask is filesResource's.
func (r *selinuxResource) ask(f func()) bool { return r.askFor(diskPatience, f) }

func (r *selinuxResource) askFor(patience time.Duration, f func()) bool {
	wait := diskPatience
	if r.hung {
		wait = 0
	}
	r.hung = !r.disk.free(wait) || !r.disk.do(f, patience)
	return !r.hung
}

// maxInside bounds what is looked at in a data directory, where 30 names are usual.
const maxInside = 256

// lookAtLabels compares. Of what lies in a directory only files with one name and
// directories count; what is missing is not for us to make.
func lookAtLabels(ctx context.Context, wanted []wantedLabel) (changes []labelChange, kept []keptLabel, err error) {
	var errs []error
	for _, w := range wanted {
		look := func(path, typ string) {
			want := w.context(typ)
			have, err := mac.FileLabel(ctx, path)
			switch {
			case errors.Is(err, os.ErrNotExist):
			case errors.Is(err, mac.ErrNoLabel):
				changes = append(changes, labelChange{w, path, "none", want})
			case err != nil:
				errs = append(errs, fmt.Errorf("%s: %w", w.what, err))
			case differs(have, want):
				changes = append(changes, labelChange{w, path, have.String(), want})
			default:
				kept = append(kept, keptLabel{path, have.String()})
			}
		}
		look(w.path, w.typ)
		if !w.inside {
			continue
		}
		names, err := labelledNames(w.path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s: %w", w.what, err))
		}
		for _, name := range names {
			look(filepath.Join(w.path, name), w.typeOf(name))
		}
	}
	return changes, kept, errors.Join(errs...)
}

// labelledNames are the files and directories in a directory.
func labelledNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, _ := d.ReadDir(maxInside) // io.EOF of an empty one; what cannot be read is found the next time
	var names []string
	for _, e := range entries {
		var st unix.Stat_t
		if !e.IsDir() && (!e.Type().IsRegular() || unix.Lstat(filepath.Join(dir, e.Name()), &st) != nil || st.Nlink != 1) {
			continue
		}
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names, nil
}

// readStatus is nil where there is nothing to read.
func (r *selinuxResource) readStatus() []byte {
	if r.status == nil {
		file, err := os.Open(r.host.StatusFile())
		if err != nil {
			return nil
		}
		r.status = file
	}
	n, err := rawRead(int(r.status.Fd()), r.buf[:])
	if err != nil || n < mac.StatusSize {
		return nil
	}
	return bytes.Clone(r.buf[:n])
}

// Peek implements reconcile.Peeker: the kernel's status, which counts changes of mode,
// policy and booleans, and the labels that were right.
func (r *selinuxResource) Peek(ctx context.Context) bool {
	if r.right == nil {
		return r.status != nil
	}
	n, err := rawRead(int(r.status.Fd()), r.buf[:])
	if err != nil || !bytes.Equal(r.buf[:n], r.right) || r.hung || !r.disk.free(0) {
		return true
	}
	moved := func() {
		r.moved = slices.ContainsFunc(r.labels, func(k keptLabel) bool { return !mac.HasLabel(ctx, k.path, k.label) })
	}
	return !r.disk.do(moved, peekPatience) || r.moved
}

// Apply implements reconcile.Resource. What is quick is done at once.
func (r *selinuxResource) Apply(ctx context.Context, plan reconcile.Plan) error {
	p, ok := plan.(selinuxPlan)
	if !ok {
		return fmt.Errorf("cannot apply a %T to SELinux", plan)
	}
	var errs []error
	if p.enforce {
		errs = append(errs, r.host.Enforce(ctx))
	}
	if len(p.booleans) > 0 {
		errs = append(errs, r.host.SetBooleans(ctx, p.booleans))
	}
	if len(p.labels) > 0 {
		done := make(chan error, 1)
		if r.askFor(p.patience(), func() { done <- p.relabel(ctx) }) {
			errs = append(errs, <-done)
		} else {
			errs = append(errs, errSlowDisk)
		}
	}
	if p.slow() {
		errs = append(errs, r.job.run(ctx, p))
	}
	return errors.Join(errs...)
}

func (r *selinuxResource) close() {
	if r.status != nil {
		r.status.Close()
	}
	r.disk.close()
}

// selinuxPlan is what differs.
type selinuxPlan struct {
	want       selinuxWant
	enforce    bool
	module     bool     // is to be loaded
	missing    []string // domains that the policy does not know
	permissive []string // domains
	booleans   map[string]bool
	ports      []portChange
	labels     []labelChange
}

type portChange struct {
	want mac.PortType
	have string
}

type labelChange struct {
	of         wantedLabel
	path, have string
	want       mac.Context
}

// slow says whether the policy is to be built anew.
func (p selinuxPlan) slow() bool { return p.module || len(p.permissive)+len(p.ports) > 0 }

// Empty says whether all is as it should be.
func (p selinuxPlan) Empty() bool {
	return !p.enforce && !p.slow() && len(p.missing)+len(p.booleans)+len(p.labels) == 0
}

// String has one line for each difference.
func (p selinuxPlan) String() string {
	var b strings.Builder
	if p.enforce {
		b.WriteString("SELinux is permissive, want enforcing\n")
	}
	if p.module {
		fmt.Fprintf(&b, "the SELinux policy does not know %s: load the module %s\n", strings.Join(p.missing, ", "), p.want.module)
	}
	for _, domain := range p.permissive {
		fmt.Fprintf(&b, "the SELinux domain %s is permissive, want enforcing\n", domain)
	}
	for name, on := range p.booleans {
		fmt.Fprintf(&b, "the SELinux boolean %s is %t, want %t\n", name, !on, on)
	}
	for _, c := range p.ports {
		fmt.Fprintf(&b, "port %d/%s has %s, want type %s\n", c.want.Port, c.want.Proto, c.have, c.want.Type)
	}
	for _, c := range p.labels {
		fmt.Fprintf(&b, "%s %s: has label %s, want %s\n", c.of.what, c.path, c.have, c.want)
	}
	b.WriteString(p.Unrepairable())
	return b.String()
}

// Unrepairable implements reconcile.Unrepairable: domains that are no module of ours.
func (p selinuxPlan) Unrepairable() string {
	if p.module || len(p.missing) == 0 {
		return ""
	}
	return fmt.Sprintf("the SELinux policy does not know %s, which services.NAME.selinux.type names: load its module (semodule -i)\n", strings.Join(p.missing, ", "))
}

// Repairable implements reconcile.Unrepairable.
func (p selinuxPlan) Repairable() bool {
	return p.enforce || p.slow() || len(p.booleans)+len(p.labels) > 0
}
