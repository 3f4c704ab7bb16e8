package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/limits"
)

// The modes of control groups.
const (
	CgroupOff       = "off"       // the same as ""
	CgroupPreferred = "preferred" // as far as the machine has them
	CgroupRequired  = "required"
)

// LayerCgroup is the layer of findings about control groups.
const LayerCgroup = "cgroup"

// Cgroup says what control group a service is put into.
type Cgroup struct {
	Mode string
	Want limits.Cgroup
	// DefaultTasks sets Want.TasksMax to a share of what the machine can have, if it is 0.
	DefaultTasks bool
	Name         string // of the group around those of the agent's services
	// RecordDir is where Exec leaves for ReadCgroup which groups it has made; ""
	// for nowhere.
	RecordDir string
}

// member is the name of a service's group in that of its agent. A service may be
// called agent, which is the agent's own.
func (s Spec) member() string { return "service." + s.Service }

// want is what is wanted on this machine.
func (c Cgroup) want(ctx context.Context) (limits.Cgroup, error) {
	want := c.Want
	if want.TasksMax != 0 || !c.DefaultTasks {
		return want, nil
	}
	var err error
	want.TasksMax, err = limits.DefaultTasks(ctx)
	return want, err
}

// cgroupStage is what the checks prepared for the step.
type cgroupStage struct {
	spec Spec
	plan limits.CgroupPlan
}

// checkCgroup finds the groups, which changes nothing yet. What the kernel thinks
// of them is known only when they are made.
func checkCgroup(ctx context.Context, spec Spec) (*cgroupStage, error) {
	switch spec.Cgroup.Mode {
	case "", CgroupOff:
		return nil, nil
	case CgroupPreferred, CgroupRequired:
	default:
		return nil, fmt.Errorf("cgroup mode %q: use %s, %s or %s", spec.Cgroup.Mode, CgroupRequired, CgroupPreferred, CgroupOff)
	}
	want, err := spec.Cgroup.want(ctx)
	if err != nil {
		return nil, err
	}
	sight, err := limits.LookCgroups(ctx, os.Getpid())
	if err != nil {
		return nil, err
	}
	s := &cgroupStage{spec: spec, plan: limits.PlanCgroup(want, sight, spec.Cgroup.Name, spec.member())}
	return s, s.refuse(s.plan.Missing)
}

// refuse makes an error of what is missing where all is required.
func (s *cgroupStage) refuse(missing []limits.CgroupMissing) error {
	if len(missing) == 0 || s.spec.Cgroup.Mode != CgroupRequired {
		return nil
	}
	return fmt.Errorf("control groups cannot give what services.%[1]s.cgroup asks for: %[2]s; or set services.%[1]s.cgroup.mode to %[3]s to start without",
		s.spec.Service, missingText(missing), CgroupPreferred)
}

// enter makes the groups and moves this thread there, which is what becomes the
// service.
func (s *cgroupStage) enter(ctx context.Context) error {
	if s == nil {
		return nil
	}
	unlock, err := lockGroups(s.spec.Cgroup.RecordDir)
	if err != nil {
		return err
	}
	defer unlock()
	made := s.plan.Make(ctx)
	if err := s.refuse(made.Missing); err != nil {
		return err
	}
	if err := made.EnterThread(ctx); err != nil {
		if s.spec.Cgroup.Mode == CgroupRequired {
			return err
		}
		made = made.Without(err.Error())
	}
	return s.leaveRecord(ctx, made)
}

// cgroupRecord is what a launch leaves of its step.
type cgroupRecord struct {
	processID
	Groups  []limits.CgroupGroup   `json:"groups"`
	Missing []limits.CgroupMissing `json:"unmet"`
	Unit    bool                   `json:"unit,omitempty"` // they are the unit's
}

func readCgroupRecord(path string) (r cgroupRecord, ok bool) {
	data, err := readSmall(path)
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, err == nil
}

// leaveRecord: without it nobody could find the groups again, to keep them and to
// remove them.
func (s *cgroupStage) leaveRecord(ctx context.Context, made limits.CgroupPlan) error {
	if s.spec.Cgroup.RecordDir == "" {
		return nil
	}
	_ = removeGroups(ctx, s.spec) // of an earlier process, elsewhere; those that are in use stay
	file, identity, err := createRecord(ctx, s.spec.Cgroup.RecordDir, s.spec.Service, os.Getpid())
	if err != nil {
		return fmt.Errorf("cannot note the control groups: %w", err)
	}
	data, err := json.Marshal(cgroupRecord{processID: identity, Groups: made.Groups, Missing: made.Missing})
	if err == nil {
		_, err = file.Write(append(data, '\n'))
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("cannot note the control groups: %w", err)
	}
	return nil
}

// CgroupState is what is known of the groups of a running service.
type CgroupState struct {
	Mode  string
	Fault string            // why nothing is known; Plan is empty then
	Plan  limits.CgroupPlan // the groups that its launch made, with what they are to have now
}

// ReadCgroup finds the groups of a service's first process. What the kernel has of
// them is read by Findings.
func ReadCgroup(ctx context.Context, spec Spec, pid int) (CgroupState, error) {
	s := CgroupState{Mode: spec.Cgroup.Mode}
	if s.Off() {
		return s, nil
	}
	id, err := identify(ctx, pid)
	if err != nil {
		return s, fmt.Errorf("cannot identify process %d of service %s: %w", pid, spec.Service, err)
	}
	var record cgroupRecord
	if !readLaunch(spec.Cgroup.RecordDir, spec.Service, id, "cgroup", &record) {
		s.Fault = "no record of its launch: it was started without control groups, by something else or by an older version, or runtime_dir was emptied: restart it"
		return s, nil
	}
	if record.Unit {
		spec.Cgroup = spec.Cgroup.ofUnit()
	}
	want, err := spec.Cgroup.want(ctx)
	s.Plan = limits.CgroupPlan{Groups: record.Groups, Missing: record.Missing}.Revise(want)
	return s, err
}

// Off says whether the service is to run without.
func (s CgroupState) Off() bool { return s.Mode == "" || s.Mode == CgroupOff }

// Findings compares the kernel's view with the plan: which groups the processes are
// in, and what the groups have. A process that has ended is passed over.
func (s CgroupState) Findings(ctx context.Context, pids []int) ([]Finding, error) {
	var out []Finding
	add := func(pid int, check, want, got string, ok bool) {
		out = append(out, Finding{PID: pid, Layer: LayerCgroup, Check: check, Want: want, Got: got, OK: ok})
	}
	if s.Off() || len(pids) == 0 {
		return nil, nil
	}
	optional := s.Mode == CgroupPreferred
	if s.Fault != "" {
		add(pids[0], "launch", "put into its group", s.Fault, optional)
		return out, nil
	}
	readings, err := s.Plan.Observe(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range readings {
		add(pids[0], r.Setting.File, r.Setting.Value, r.Got, r.OK)
	}
	for _, m := range s.Plan.Missing {
		add(pids[0], m.Name, "enforced", "not enforced: "+m.Reason, optional)
	}
	for _, pid := range pids {
		stray, err := s.Plan.Outside(ctx, pid)
		if errors.Is(err, os.ErrProcessDone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, g := range s.Plan.Groups {
			got := g.Path
			for _, o := range stray {
				if o.Group.Dir == g.Dir {
					got = o.Got
				}
			}
			add(pid, strings.TrimSpace("group "+g.Hierarchy), g.Path, got, got == g.Path)
		}
	}
	return out, nil
}

// Text sums the findings up for people, and says whether all that is asked for is
// enforced.
func (s CgroupState) Text(findings []Finding) (text string, enforced bool) {
	switch {
	case s.Off():
		return "switched off (cgroup.mode: off)", false
	case s.Fault != "":
		return s.Fault, false
	case len(s.Plan.Groups) == 0 && len(s.Plan.Missing) == 0:
		return "nothing is asked for", true
	case len(s.Plan.Groups) == 0:
		return missingText(s.Plan.Missing), false
	}
	var have []string
	enforced = len(s.Plan.Missing) == 0
	for _, f := range findings {
		enforced = enforced && f.OK
		if f.OK && !strings.HasPrefix(f.Check, "group") && !strings.HasPrefix(f.Got, "not enforced") {
			have = append(have, f.Check+" "+f.Got)
		}
	}
	text = strings.Join(have, ", ") + ", read from " + s.Plan.Groups[0].Dir + " just now"
	if len(s.Plan.Missing) > 0 {
		text += "; NOT enforced: " + missingText(s.Plan.Missing)
	}
	return text, enforced
}

// missingText names each reason once.
func missingText(missing []limits.CgroupMissing) string {
	var parts []string
	for i, m := range missing {
		if i > 0 && missing[i-1].Reason == m.Reason {
			parts[len(parts)-1] = m.Name + ", " + parts[len(parts)-1]
			continue
		}
		parts = append(parts, m.String())
	}
	return strings.Join(parts, "; ")
}

// RemoveCgroups removes the groups of processes of a service that have ended, and
// the records of them. A group that is still in use stays, with its record.
func RemoveCgroups(ctx context.Context, spec Spec) error {
	if spec.Cgroup.Mode == "" || spec.Cgroup.Mode == CgroupOff {
		return nil
	}
	unlock, err := lockGroups(spec.Cgroup.RecordDir)
	if err != nil {
		return err
	}
	defer unlock()
	return removeGroups(ctx, spec)
}

// lockGroups keeps one from removing a group that another has just made and not
// entered yet: the agent asks a service for its settings by a launch too.
func lockGroups(dir string) (unlock func(), err error) {
	if dir == "" {
		return func() {}, nil
	}
	err = os.MkdirAll(dir, 0o700)
	var file *os.File
	if err == nil {
		file, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	}
	if err == nil {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX) // held for as long as a few writes take
	}
	if err != nil {
		return nil, fmt.Errorf("cannot lock the notes about control groups: %w", err)
	}
	return func() { file.Close() }, nil
}

func removeGroups(ctx context.Context, spec Spec) error {
	paths, err := filepath.Glob(filepath.Join(spec.Cgroup.RecordDir, spec.Service+".*.json"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range paths {
		record, ok := readCgroupRecord(path)
		if !ok || !outdated(ctx, path) {
			continue
		}
		if err := (limits.CgroupPlan{Groups: record.Groups}).Remove(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		_ = os.Remove(path) // it names groups that are gone
	}
	return errors.Join(errs...)
}
