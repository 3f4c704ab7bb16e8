package limits

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupFiles is the little that is asked of the file system, so that what another
// machine's kernel says can be tested here.
type cgroupFiles interface {
	read(path string) (string, error)
	write(path, text string) error // of what is there
	mkdir(path string) error       // what is there already is no error
	rmdir(path string) error
	children(path string) ([]string, error) // names of directories
	delegated(path string) bool
}

// LookCgroups reads what a process sees of control groups. The error wraps
// os.ErrProcessDone if there is no such process.
func LookCgroups(ctx context.Context, pid int) (CgroupSight, error) {
	return lookCgroups(ctx, kernelFiles{}, pid)
}

func lookCgroups(ctx context.Context, fs cgroupFiles, pid int) (CgroupSight, error) {
	var s CgroupSight
	fail := func(err error) (CgroupSight, error) {
		return s, fmt.Errorf("cannot read the control groups of process %d: %w", pid, err)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	// The groups are the other process's, the directories are ours to use.
	mounts, err := fs.read("/proc/self/mountinfo")
	if err != nil {
		return fail(err)
	}
	if s.V1, s.V2, err = ParseCgroupMounts(mounts); err != nil {
		return fail(err)
	}
	if s.Own, err = readMembership(fs, procFile(pid, "cgroup")); err != nil {
		return fail(gone(err))
	}
	s.dropHidden(fs)
	s.Weighing = weighing(fs, s)
	// sd_booted(3)
	if _, err := fs.children("/run/systemd/system"); err == nil {
		s.Systemd = true
		s.Delegated = delegation(fs, s)
	}
	if s.V2 == nil {
		return s, nil
	}
	base := s.Own[""]
	if s.Delegated != "" {
		base = s.Delegated
	}
	if dir, ok := s.V2.dir(base); ok {
		// Where ours is one of the groups below it, that has no other controllers.
		list, err := fs.read(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			return fail(fmt.Errorf("cannot read the controllers of %s: %w", dir, err))
		}
		s.Controllers = strings.Fields(list)
	}
	return s, nil
}

// dropHidden forgets mounts that lie below others, which mountinfo lists all the same.
func (s *CgroupSight) dropHidden(fs cgroupFiles) {
	hidden := func(m CgroupMount, file string) bool {
		_, err := fs.read(filepath.Join(m.Point, file))
		return errors.Is(err, os.ErrNotExist)
	}
	maps.DeleteFunc(s.V1, func(_ string, m CgroupMount) bool { return hidden(m, "notify_on_release") })
	if s.V2 != nil && hidden(*s.V2, "cgroup.controllers") {
		s.V2 = nil
	}
}

func readMembership(fs cgroupFiles, file string) (map[string]string, error) {
	text, err := fs.read(file)
	if err != nil {
		return nil, err
	}
	return ParseCgroupMembership(text)
}

// delegation is the nearest group above a process (or its own) that systemd has
// marked as delegated (Delegate=, systemd.resource-control(5)); "" if there is
// none. The mark is in the hierarchy with which systemd tracks processes.
func delegation(fs cgroupFiles, s CgroupSight) string {
	key := "name=systemd"
	mount, ok := s.V1[key]
	if !ok && s.V2 != nil {
		key, mount, ok = "", *s.V2, true
	}
	if !ok {
		return ""
	}
	for group := s.Own[key]; len(group) > 1; group = filepath.Dir(group) {
		if dir, ok := mount.dir(group); ok && fs.delegated(dir) {
			return group
		}
	}
	return ""
}

// Make makes the groups, writes their settings and reads them back. It returns
// what there is now: a setting that the kernel refused is among those missing,
// with the reason. Groups that are the service manager's are read only.
func (p CgroupPlan) Make(ctx context.Context) CgroupPlan { return p.make(ctx, kernelFiles{}) }

func (p CgroupPlan) make(ctx context.Context, fs cgroupFiles) CgroupPlan {
	made := CgroupPlan{Missing: slices.Clone(p.Missing)}
	for _, g := range p.Groups {
		if err := ctx.Err(); err != nil {
			made.miss(g.Settings, err.Error())
			continue
		}
		if err := g.make(fs); err != nil {
			made.miss(g.Settings, err.Error())
			continue
		}
		have := g
		have.Settings = nil
		for _, s := range g.Settings {
			if err := g.set(fs, s); err != nil {
				made.miss([]CgroupSetting{s}, err.Error())
				continue
			}
			have.Settings = append(have.Settings, s)
		}
		if len(have.Settings) > 0 {
			made.Groups = append(made.Groups, have)
		}
	}
	return made
}

// MakeAround is Make for a process that is in the group below which the others are
// made, and alone there: of version 2, only a group without processes of its own
// can have controllers on for those below it, so the process goes first.
func (p CgroupPlan) MakeAround(ctx context.Context, pid int) CgroupPlan {
	return p.makeAround(ctx, kernelFiles{}, pid)
}

func (p CgroupPlan) makeAround(ctx context.Context, fs cgroupFiles, pid int) CgroupPlan {
	for _, g := range p.Groups {
		if g.Version != CgroupV2 || g.Base == "" || ctx.Err() != nil {
			continue
		}
		// What fails here fails again below, and is reported there.
		_ = fs.mkdir(filepath.Dir(g.Dir))
		_ = fs.mkdir(g.Dir)
		_ = fs.write(filepath.Join(g.Dir, "cgroup.procs"), strconv.Itoa(pid))
	}
	return p.make(ctx, fs)
}

func (p *CgroupPlan) miss(settings []CgroupSetting, reason string) {
	for _, s := range settings {
		p.Missing = append(p.Missing, CgroupMissing{s.Name, reason})
	}
}

// make makes the group and what is above it. One that is there and empty is made
// anew, so that nothing is left of what it was given earlier.
func (g CgroupGroup) make(fs cgroupFiles) error {
	if g.Base == "" {
		return nil
	}
	_ = fs.rmdir(g.Dir) // in use, or not there
	above := g.Base     // the levels between Base and the group, from above
	var needed []string // controllers, for them
	for _, s := range g.Settings {
		if !slices.Contains(needed, "+"+s.Controller) {
			needed = append(needed, "+"+s.Controller)
		}
	}
	rest, err := filepath.Rel(g.Base, g.Dir)
	if err != nil {
		return fmt.Errorf("cannot make control group %s: %w", g.Dir, err)
	}
	for _, name := range strings.Split(rest, "/") {
		if g.Version == CgroupV2 {
			if err := enable(fs, above, needed); err != nil {
				return err
			}
		}
		above = filepath.Join(above, name)
		if err := fs.mkdir(above); err != nil {
			return fmt.Errorf("cannot make control group %s: %w", above, err)
		}
		if above != g.Dir {
			g.widen(fs, above)
		}
	}
	return nil
}

// widen keeps the level between from costing the services CPU time, see nesting.
func (g CgroupGroup) widen(fs cgroupFiles, dir string) {
	for _, s := range (Cgroup{CPUWeight: nesting}).settings(g.Version, "cpu") {
		if g.Version == CgroupV2 || g.Hierarchy == "cpu" {
			_ = fs.write(filepath.Join(dir, s.File), s.Value) // where cpu is not asked for there is none
		}
	}
}

// enable switches controllers of version 2 on for the groups below a directory.
func enable(fs cgroupFiles, dir string, needed []string) error {
	file := filepath.Join(dir, "cgroup.subtree_control")
	for _, c := range needed {
		err := fs.write(file, c)
		switch {
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EOPNOTSUPP):
			return fmt.Errorf("cannot switch on the controller %s below %s: %w: a group with processes of its own can have none "+
				"(in a container: start the agent in a group of its own)", c[1:], dir, err)
		case err != nil:
			return fmt.Errorf("cannot switch on the controller %s below %s: %w", c[1:], dir, err)
		}
	}
	return nil
}

// set writes one setting if it differs, and reads it back.
func (g CgroupGroup) set(fs cgroupFiles, s CgroupSetting) error {
	file := filepath.Join(g.Dir, s.File)
	got, ok, err := g.get(fs, s)
	if err != nil || ok {
		return err
	}
	if g.Base == "" {
		return fmt.Errorf("%s is %s, and the group is the service manager's: %s", file, got, unitHint(s))
	}
	if err := fs.write(file, s.Value); err != nil {
		return fmt.Errorf("cannot write %s to %s: %w", s.Value, file, err)
	}
	if got, ok, err = g.get(fs, s); err == nil && !ok {
		err = fmt.Errorf("%s is %s after it was set to %s", file, got, s.Value)
	}
	return err
}

func (g CgroupGroup) get(fs cgroupFiles, s CgroupSetting) (got string, ok bool, err error) {
	got, err = fs.read(filepath.Join(g.Dir, s.File))
	if err != nil {
		return "", false, fmt.Errorf("cannot read %s of control group %s: %w", s.File, g.Dir, err)
	}
	got, _, _ = strings.Cut(got, "\n")
	return got, s.holds(got, uint64(os.Getpagesize()), g.Base == ""), nil
}

// unitHint says what a unit needs in order to let the agent do it, or to do it itself.
func unitHint(s CgroupSetting) string {
	option := map[string]string{"cpu_weight": "CPUWeight=", "io_weight": "IOWeight=", "memory_high": "MemoryHigh=",
		"memory_max": "MemoryMax=", "tasks_max": "TasksMax="}[s.Name]
	return "give the agent's unit Delegate=yes and DelegateSubgroup=agent (systemd 254), or start the service in a unit of its own with " +
		option + strings.TrimPrefix(s.Value, "default ")
}

// Enter moves a process with all its threads into the groups and reads back that it
// is there. Groups of the service manager's it is in already.
func (p CgroupPlan) Enter(ctx context.Context, pid int) error {
	return p.enter(ctx, kernelFiles{}, pid)
}

func (p CgroupPlan) enter(ctx context.Context, fs cgroupFiles, pid int) error {
	return p.move(ctx, fs, procFile(pid, "cgroup"), func(CgroupGroup) (string, string) { return "cgroup.procs", strconv.Itoa(pid) })
}

// EnterThread moves the calling thread, which must be locked and is to call execve:
// its process is then all there is of it. In version 1 this takes a fraction of a
// millisecond; to move a process, the kernel waits for all CPUs, which takes ten.
func (p CgroupPlan) EnterThread(ctx context.Context) error {
	return p.move(ctx, kernelFiles{}, "/proc/thread-self/cgroup", func(g CgroupGroup) (string, string) {
		if g.Version == CgroupV1 {
			return "tasks", "0"
		}
		return "cgroup.procs", "0" // threads of one process may not be in different groups
	})
}

// move writes to a file of each group, and reads back whether the thread or process
// behind own is there.
func (p CgroupPlan) move(ctx context.Context, fs cgroupFiles, own string, order func(CgroupGroup) (file, text string)) error {
	var errs []error
	for _, g := range p.Groups {
		if err := ctx.Err(); err != nil {
			return err
		}
		if g.Base == "" {
			continue
		}
		file, text := order(g)
		if err := fs.write(filepath.Join(g.Dir, file), text); err != nil {
			errs = append(errs, fmt.Errorf("cannot move a process into control group %s: %w", g.Dir, gone(err)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	out, err := p.outsideOf(fs, own)
	if err == nil && len(out) > 0 {
		err = fmt.Errorf("a process is in the control group %s after it was moved to %s", out[0].Got, out[0].Want)
	}
	return err
}

// CgroupOutside is a group that a process should be in and is not.
type CgroupOutside struct {
	Group     CgroupGroup
	Want, Got string // paths
}

// Outside lists the groups of the plan that a process is not in. The error wraps
// os.ErrProcessDone if there is no such process.
func (p CgroupPlan) Outside(ctx context.Context, pid int) ([]CgroupOutside, error) {
	return p.outside(ctx, kernelFiles{}, pid)
}

func (p CgroupPlan) outside(ctx context.Context, fs cgroupFiles, pid int) ([]CgroupOutside, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return p.outsideOf(fs, procFile(pid, "cgroup"))
}

func (p CgroupPlan) outsideOf(fs cgroupFiles, file string) ([]CgroupOutside, error) {
	own, err := readMembership(fs, file)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", file, gone(err))
	}
	var out []CgroupOutside
	for _, g := range p.Groups {
		// A group that the process made below its own is still within its bounds.
		if got := own[g.Hierarchy]; got != g.Path && !strings.HasPrefix(got, g.Path+"/") {
			out = append(out, CgroupOutside{g, g.Path, got})
		}
	}
	return out, nil
}

// CgroupReading is what the kernel has of one setting.
type CgroupReading struct {
	Group   CgroupGroup
	Setting CgroupSetting
	Got     string
	OK      bool
}

// Observe reads every setting of the plan.
func (p CgroupPlan) Observe(ctx context.Context) ([]CgroupReading, error) {
	return p.observe(ctx, kernelFiles{})
}

func (p CgroupPlan) observe(ctx context.Context, fs cgroupFiles) ([]CgroupReading, error) {
	var list []CgroupReading
	for _, g := range p.Groups {
		for _, s := range g.Settings {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			got, ok, err := g.get(fs, s)
			if err != nil {
				return list, err
			}
			list = append(list, CgroupReading{g, s, got, ok})
		}
	}
	return list, nil
}

// Restore writes one setting again and reads it back.
func (r CgroupReading) Restore(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.Group.set(kernelFiles{}, r.Setting)
}

// Bring moves a process back into a group if it is still the same process.
func (o CgroupOutside) Bring(ctx context.Context, p Process) error {
	return p.while(ctx, func() error { return CgroupPlan{Groups: []CgroupGroup{o.Group}}.Enter(ctx, p.PID) })
}

// Remove removes groups of the plan, and what was made around them, as far as they
// are empty. The error of one that is in use is EBUSY.
func (p CgroupPlan) Remove(ctx context.Context) error { return p.remove(ctx, kernelFiles{}) }

func (p CgroupPlan) remove(ctx context.Context, fs cgroupFiles) error {
	var errs []error
	for _, g := range p.Groups {
		if g.Base == "" || ctx.Err() != nil {
			continue
		}
		if err := fs.rmdir(g.Dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("cannot remove control group %s: %w", g.Dir, err))
			continue
		}
		_ = fs.rmdir(filepath.Dir(g.Dir)) // others may still be in it
	}
	return errors.Join(errs...)
}

// DefaultTasks is the bound of processes where nothing better is known: 15 % of
// what the machine can have, which is systemd's DefaultTasksMax=.
func DefaultTasks(ctx context.Context) (uint64, error) {
	least := Unlimited
	for _, file := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return 0, fmt.Errorf("cannot read how many processes the machine can have: %w", err)
		}
		v, err := parseValue(strings.TrimSpace(string(data)))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		least = min(least, v)
	}
	return max(least*15/100, 1), nil
}

// kernelFiles is the real file system.
type kernelFiles struct{}

func (kernelFiles) read(path string) (string, error) {
	data, err := os.ReadFile(path)
	return string(data), err
}

// write never creates: a file that is not there is a setting the kernel does not have.
func (kernelFiles) write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// mkdir: everybody may read a group, as elsewhere, whatever the umask is.
func (kernelFiles) mkdir(path string) error {
	err := os.Mkdir(path, 0o755)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(path, 0o755)
	}
	return err
}

func (kernelFiles) rmdir(path string) error { return unix.Rmdir(path) }

func (kernelFiles) children(path string) ([]string, error) {
	entries, err := os.ReadDir(path)
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// delegated reads systemd's mark; it is in the namespace of attributes that only
// root can write.
func (kernelFiles) delegated(path string) bool {
	var value [8]byte
	n, err := unix.Getxattr(path, "trusted.delegate", value[:])
	return err == nil && string(value[:n]) == "1"
}
