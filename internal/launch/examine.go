package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// LayerNetfilter is about who may connect.
const LayerNetfilter = "netfilter"

// Subject is a service to examine.
type Subject struct {
	Spec  Spec
	First int // the process that the others descend from; 0 if it does not run
	Ports Ports
}

// Process is what was read of one process of a service.
type Process struct {
	Service     string   `json:"service"`
	PID         int      `json:"pid"`
	Parent      int      `json:"parent"`
	Role        string   `json:"role"` // first, descendant, asked or stray
	Program     string   `json:"program"`
	Threads     int      `json:"threads"`
	Cgroup      string   `json:"cgroup"`
	OOMScoreAdj int      `json:"oom_score_adj"`
	Label       string   `json:"label,omitempty"`   // of the security module, if there is one
	Filters     []string `json:"filters,omitempty"` // digests, the one loaded first at the beginning; of those that were asked for
	Listens     []string `json:"listens"`
}

// Examined is one service.
type Examined struct {
	Processes []Process
	Findings  []Finding
}

// Examine looks at every process of the services and compares it with their
// Specs: all that Verify does, and who is there at all, threads, filters,
// namespaces, cgroup, OOM score, environment and open ports. It has to be told
// of all services, since what is one's is no stray of another; the results are
// in their order.
//
// A process belongs to a service if it descends from the first one, or else if
// it holds the data directory, listens on the service's port, runs its program
// or has its user: then it is a stray, which is a finding, and is compared too.
//
// Filters are read from the kernel (see sandbox.LoadedFilters) for the first
// process, strays, processes of several threads, and whoever has another number of filters
// than the first; for all others the number says the same, see inheritedFilter.
// With deep they are read for all.
func Examine(ctx context.Context, subjects []Subject, deep bool) ([]Examined, error) {
	x, err := newExaminer(ctx, subjects, deep)
	if err != nil {
		return nil, err
	}
	out := make([]Examined, len(subjects))
	for i, kins := range families(x.houses, x.around) {
		if out[i], err = x.service(ctx, i, kins); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// examiner is what one Examine has read once for all.
type examiner struct {
	subjects []Subject
	deep     bool
	houses   []household
	ids      []Identity
	around   surroundings
	tables   map[string]socketTable // by network namespace
}

func newExaminer(ctx context.Context, subjects []Subject, deep bool) (*examiner, error) {
	x := &examiner{subjects: subjects, deep: deep, tables: map[string]socketTable{}}
	var dirs []string
	for _, s := range subjects {
		if fault := specFault(s.Spec); fault != nil {
			return nil, fmt.Errorf("cannot verify service %s: %w", s.Spec.Service, fault)
		}
		if s.Spec.DataDir != "" {
			dirs = append(dirs, s.Spec.DataDir)
		}
	}
	all, err := takeCensus(ctx, dirs)
	if err != nil {
		return nil, err
	}
	self, ok := all[os.Getpid()]
	if !ok {
		return nil, errors.New("cannot find this process in /proc: mount the procfs of its own PID namespace there")
	}
	x.around = surroundings{all: all, self: self}
	own, err := x.table(ctx, self)
	if err != nil {
		return nil, err
	}
	x.around.listen = own.byHolder(all, self.netns)
	for _, s := range subjects {
		if err := x.addHousehold(ctx, s); err != nil {
			return nil, fmt.Errorf("cannot verify service %s: %w", s.Spec.Service, err)
		}
	}
	return x, nil
}

func (x *examiner) addHousehold(ctx context.Context, s Subject) error {
	id, err := intendedIdentity(ctx, s.Spec)
	if err != nil {
		return err
	}
	h := household{first: s.First, user: id.User, uid: id.UID, dataDir: s.Spec.DataDir, ports: s.Ports.Own, program: program{path: s.Spec.Command[0]}}
	if err := unix.Stat(h.program.path, &h.program.stat); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot stat %s: %w", h.program.path, err)
	}
	if first, ok := x.around.all[s.First]; ok {
		// Its own if its parent has another: the agent's or a login's is no service's.
		if parent, ok := x.around.all[first.status.PPID]; ok && parent.cgroup != first.cgroup && x.around.self.cgroup != first.cgroup {
			h.cgroup = first.cgroup
		}
	}
	x.houses, x.ids = append(x.houses, h), append(x.ids, id)
	return nil
}

// table reads the sockets of the network namespace of a process, once.
func (x *examiner) table(ctx context.Context, l look) (socketTable, error) {
	if t, ok := x.tables[l.netns]; ok {
		return t, nil
	}
	t, err := readSockets(ctx, l.status.PID)
	if err != nil {
		return t, fmt.Errorf("cannot read the sockets of %s: %w", l.netns, err)
	}
	x.tables[l.netns] = t
	return t, nil
}

func (x *examiner) service(ctx context.Context, i int, kins []kin) (Examined, error) {
	s := x.subjects[i]
	out := Examined{Processes: []Process{}, Findings: []Finding{}}
	want, err := profileDigest(s.Spec)
	if err != nil {
		return out, err
	}
	if s.First != 0 && !slices.ContainsFunc(kins, func(k kin) bool { return k.pid == s.First }) {
		return out, fmt.Errorf("cannot verify process %d of service %s: %w", s.First, s.Spec.Service, ErrVanished)
	}
	for _, k := range kins {
		p, findings, err := x.process(ctx, i, k, want)
		if isGone(err) && k.pid != s.First {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("cannot verify process %d of service %s: %w", k.pid, s.Spec.Service, err)
		}
		out.Processes = append(out.Processes, p)
		out.Findings = append(out.Findings, findings...)
	}
	unheld, err := x.unheld(ctx, i)
	if err != nil {
		return out, err
	}
	if len(unheld) > 0 {
		out.Findings = append(out.Findings, Finding{PID: s.First, Layer: LayerNetfilter, Check: "sockets", Want: "held by a process",
			Got: "made by user " + x.houses[i].user + ", and no process has it open as such: " + strings.Join(unheld, ", ")})
	}
	return out, nil
}

// unheld looks again before it believes it: files and sockets were not read at
// the same moment.
func (x *examiner) unheld(ctx context.Context, i int) ([]string, error) {
	h, ports := x.houses[i], x.subjects[i].Ports
	t, err := x.table(ctx, x.around.self)
	if err != nil {
		return nil, err
	}
	found := t.unheld(x.around.all, h.uid, ports)
	if len(found) == 0 {
		return nil, nil
	}
	if t, err = readSockets(ctx, os.Getpid()); err != nil {
		return nil, err
	}
	all, err := takeCensus(ctx, nil)
	if err != nil {
		return nil, err
	}
	again := t.unheld(all, h.uid, ports)
	return slices.DeleteFunc(found, func(s string) bool { return !slices.Contains(again, s) }), nil
}

// process examines one process. That it was one and the same all the time is for
// verifyAs to say, and the start time in the end.
func (x *examiner) process(ctx context.Context, i int, k kin, digest string) (Process, []Finding, error) {
	s, l := x.subjects[i], x.around.all[k.pid]
	p := Process{Service: s.Spec.Service, PID: k.pid, Parent: l.status.PPID, Role: k.role, Program: shown(l.program.path),
		Cgroup: cgroupText(l.cgroup), Listens: []string{}}
	findings := []Finding{familyFinding(k, x.houses[i], x.around.all)}
	own, err := verifyAs(ctx, s.Spec, x.ids[i], k.pid)
	if err != nil {
		return p, nil, err
	}
	findings = append(findings, own...)
	more, err := x.filters(ctx, i, k, digest, &p)
	if err != nil {
		return p, nil, err
	}
	findings = append(findings, more...)
	first, ok := x.around.all[s.First]
	if !ok || k.role != RoleDescendant {
		first = l
	}
	findings = append(findings, checkPlace(k.pid, l, first, x.around.self)...)
	if p.OOMScoreAdj, err = readOOMScore(ctx, k.pid); err != nil {
		return p, nil, err
	}
	if p.Label, err = readLabel(k.pid); err != nil {
		return p, nil, err
	}
	if k.role == RoleFirst {
		findings = append(findings, checkOOMScore(ctx, s.Spec, k.pid, p.OOMScoreAdj)...)
		f, err := checkEnvironment(k.pid, p.OOMScoreAdj, x.ids[i], s.Spec.variables())
		if err != nil {
			return p, nil, err
		}
		findings = append(findings, f)
	}
	t, err := x.table(ctx, l)
	if err != nil {
		return p, nil, err
	}
	f, listens := checkListening(k.pid, l, t, s.Ports, s.Spec.Capabilities&rawCapability != 0)
	p.Listens = append(p.Listens, listens...)
	if id, err := identify(ctx, k.pid); err != nil || id.Start != l.start {
		return p, nil, ErrVanished
	}
	return p, append(findings, f), nil
}

// rawCapability is that of raw and packet sockets, capabilities(7).
const rawCapability = sandbox.CapSet(1) << unix.CAP_NET_RAW

// filters compares threads, and filters in the way that Examine says.
func (x *examiner) filters(ctx context.Context, i int, k kin, digest string, p *Process) ([]Finding, error) {
	now, err := sandbox.ReadStatus(ctx, k.pid)
	if err != nil {
		return nil, err
	}
	threads, tids, err := checkThreads(ctx, now)
	if err != nil {
		return nil, err
	}
	p.Threads = len(tids)
	out := []Finding{checkTracer(ctx, now, x.around), threads}
	if first, ok := x.around.all[x.subjects[i].First]; ok && k.role == RoleDescendant && !x.deep && len(tids) == 1 {
		if f := inheritedFilter(k.pid, first.status, now); f.OK {
			return append(out, f), nil
		}
	}
	if now.Seccomp != unix.SECCOMP_MODE_FILTER && len(tids) == 1 {
		return append(out, finding(k.pid, layerSeccomp, "filter", digest, "none")), nil
	}
	f, loaded, err := checkFilter(ctx, k.pid, tids, digest)
	for _, one := range loaded {
		p.Filters = append(p.Filters, one.Digest)
	}
	return append(out, f), err
}
