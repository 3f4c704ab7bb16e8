package limits

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fakeV2 is a hierarchy of version 2 as Documentation/admin-guide/cgroup-v2.rst
// has it: which controllers a group has, what a group with processes may not have,
// when a group can be removed. The machines on which these tests run may have
// version 1; test/e2e shows that on the kernel.
type fakeV2 struct {
	t       *testing.T
	systemd bool
	groups  map[string]*fakeGroup // by path
	of      map[int]string        // the group of a process
	refused map[string]error      // by file, what a write answers
	deaf    bool                  // writes have no effect
	disk    string                // the schedulers of the only one
	cost    string                // io.cost.qos
}

type fakeGroup struct {
	subtree   []string
	delegated bool
	files     map[string]string
}

const fakeRoot = "/sys/fs/cgroup"

// fakeDefaults are the files of the controllers.
var fakeDefaults = map[string]map[string]string{
	"cpu": {"cpu.weight": "100"}, "io": {"io.weight": "default 100"},
	"memory": {"memory.max": "max", "memory.high": "max"}, "pids": {"pids.max": "max"},
}

func newFakeV2(t *testing.T, groups ...string) *fakeV2 {
	f := &fakeV2{t: t, groups: map[string]*fakeGroup{"/": {subtree: []string{"cpu", "io", "memory", "pids"}}}, of: map[int]string{}, refused: map[string]error{}}
	for _, g := range groups {
		if err := f.mkdir(fakeRoot + g); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f *fakeV2) split(path string) (group, file string) {
	rest := strings.TrimPrefix(path, fakeRoot)
	if _, ok := f.groups[rest]; ok {
		return rest, ""
	}
	return filepath.Dir(rest), filepath.Base(rest)
}

func (f *fakeV2) populated(group string) bool {
	for _, g := range f.of {
		if g == group {
			return true
		}
	}
	return false
}

func (f *fakeV2) controllers(group string) []string {
	if group == "/" {
		return []string{"cpu", "io", "memory", "pids"}
	}
	return f.groups[filepath.Dir(group)].subtree
}

func (f *fakeV2) read(path string) (string, error) {
	switch {
	case path == "/proc/self/mountinfo":
		return mountsV2, nil
	case path == "/sys/block/vda/queue/scheduler":
		return f.disk + "\n", nil
	case path == fakeRoot+"/io.cost.qos":
		return f.cost + "\n", nil
	case strings.HasPrefix(path, "/proc/"):
		pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
		group, ok := f.of[pid]
		if !ok {
			return "", os.ErrNotExist
		}
		return "0::" + group + "\n", nil
	}
	group, file := f.split(path)
	g, ok := f.groups[group]
	if !ok {
		return "", os.ErrNotExist
	}
	if file == "cgroup.controllers" {
		return strings.Join(f.controllers(group), " ") + "\n", nil
	}
	if text, ok := g.files[file]; ok {
		return text + "\n", nil
	}
	for _, c := range f.controllers(group) {
		if text, ok := fakeDefaults[c][file]; ok {
			return text + "\n", nil
		}
	}
	return "", os.ErrNotExist
}

func (f *fakeV2) write(path, text string) error {
	if err := f.refused[path]; err != nil {
		return err
	}
	if f.deaf {
		return nil
	}
	group, file := f.split(path)
	g, ok := f.groups[group]
	if !ok {
		return os.ErrNotExist
	}
	switch file {
	case "cgroup.procs":
		if len(g.subtree) > 0 && group != "/" {
			return unix.EBUSY
		}
		pid, err := strconv.Atoi(text)
		f.of[pid] = group
		return err
	case "cgroup.subtree_control":
		c := strings.TrimPrefix(text, "+")
		if !slices.Contains(f.controllers(group), c) {
			return unix.ENOENT
		}
		if group != "/" && f.populated(group) {
			return unix.EBUSY
		}
		if !slices.Contains(g.subtree, c) {
			g.subtree = append(g.subtree, c)
		}
		return nil
	}
	if _, err := f.read(path); err != nil {
		return err
	}
	g.files[file] = text
	return nil
}

func (f *fakeV2) mkdir(path string) error {
	group := strings.TrimPrefix(path, fakeRoot)
	if _, ok := f.groups[group]; ok {
		return nil
	}
	if _, ok := f.groups[filepath.Dir(group)]; !ok {
		return os.ErrNotExist
	}
	f.groups[group] = &fakeGroup{files: map[string]string{}}
	return nil
}

func (f *fakeV2) rmdir(path string) error {
	group := strings.TrimPrefix(path, fakeRoot)
	if _, ok := f.groups[group]; !ok {
		return unix.ENOENT
	}
	for other := range f.groups {
		if strings.HasPrefix(other, group+"/") {
			return unix.EBUSY
		}
	}
	if f.populated(group) {
		return unix.EBUSY
	}
	delete(f.groups, group)
	return nil
}

func (f *fakeV2) children(path string) ([]string, error) {
	if path == "/run/systemd/system" && f.systemd {
		return nil, nil
	}
	if path == "/sys/block" {
		return []string{"vda"}, nil
	}
	return nil, os.ErrNotExist
}

func (f *fakeV2) delegated(path string) bool {
	g, ok := f.groups[strings.TrimPrefix(path, fakeRoot)]
	return ok && g.delegated
}

const fakeUnit = "/system.slice/pghardend.service"

func (f *fakeV2) plan(pid int, want Cgroup, member string) CgroupPlan {
	f.t.Helper()
	sight, err := lookCgroups(context.Background(), f, pid)
	if err != nil {
		f.t.Fatal(err)
	}
	return PlanCgroup(want, sight, "pghardend", member)
}

// A unit that systemd has delegated, with a subgroup for its main process.
func TestCgroupDelegated(t *testing.T) {
	ctx := context.Background()
	f := newFakeV2(t, "/system.slice", fakeUnit, fakeUnit+"/agent")
	f.systemd = true
	f.groups["/system.slice"].subtree = []string{"cpu", "memory", "pids"}
	f.groups[fakeUnit].delegated = true
	const daemon, service = 10, 20
	f.of[daemon], f.of[service] = fakeUnit+"/agent", fakeUnit+"/agent"

	agent := f.plan(daemon, Cgroup{CPUWeight: 1000}, "agent").makeAround(ctx, f, daemon)
	if err := agent.enter(ctx, f, daemon); err != nil || len(agent.Missing) > 0 {
		t.Fatalf("%v %v", err, agent.Missing)
	}
	made := f.plan(service, Cgroup{CPUWeight: 100, MemoryMax: 1 << 30, TasksMax: 300, IOWeight: 50}, "service.pg").make(ctx, f)
	if err := made.enter(ctx, f, service); err != nil {
		t.Fatal(err)
	}
	want := "v2 /sys/fs/cgroup" + fakeUnit + "/pghardend/service.pg base /sys/fs/cgroup" + fakeUnit + "\n  cpu.weight 100\n  memory.max 1073741824\n  pids.max 300\n" + lacks("io_weight io")
	if diff := cmp.Diff(want, planText(made)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if f.of[service] != fakeUnit+"/pghardend/service.pg" || f.of[daemon] != fakeUnit+"/pghardend/agent" {
		t.Errorf("%v", f.of)
	}
	// systemd starts the agent again beside the running service.
	if err := f.write(fakeRoot+fakeUnit+"/agent/cgroup.procs", "11"); err != nil {
		t.Errorf("the unit can not be started again: %v", err)
	}
	if again := f.plan(11, Cgroup{TasksMax: 300}, "service.pg"); again.Groups[0].Dir != made.Groups[0].Dir {
		t.Errorf("the group of a service is elsewhere for another daemon: %+v", again.Groups)
	}

	f.groups[fakeUnit+"/pghardend/service.pg"].files["pids.max"] = "max"
	readings, err := made.observe(ctx, f)
	if err != nil || len(readings) != 3 || readings[2].OK || readings[2].Got != "max" || !readings[0].OK {
		t.Errorf("%+v %v", readings, err)
	}
	f.of[service] = "/system.slice"
	if out, err := made.outside(ctx, f, service); err != nil || len(out) != 1 || out[0].Got != "/system.slice" {
		t.Errorf("%+v %v", out, err)
	}
	f.of[service] = made.Groups[0].Path + "/below" // is bounded all the same
	if out, err := made.outside(ctx, f, service); err != nil || len(out) != 0 {
		t.Errorf("%+v %v", out, err)
	}
	delete(f.of, service)
	if _, err := made.outside(ctx, f, service); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a process that has ended: %v", err)
	}
	if err := made.remove(ctx, f); err != nil {
		t.Error(err)
	}
	if _, ok := f.groups[fakeUnit+"/pghardend"]; !ok {
		t.Error("the agent's group is gone with that of the service")
	}
}

// What is not ours to write is not written to, and says what to do.
func TestF30_CgroupNotDelegated(t *testing.T) {
	ctx := context.Background()
	for name, whole := range map[string]bool{"not delegated": false, "delegated, and the agent in the unit's own group": true} {
		f := newFakeV2(t, "/system.slice", fakeUnit)
		f.systemd = true
		f.groups["/system.slice"].subtree = []string{"pids"}
		f.groups[fakeUnit].delegated = whole
		f.of[10] = fakeUnit
		made := f.plan(10, Cgroup{TasksMax: 300}, "service.pg").make(ctx, f)
		if len(made.Groups) > 0 || len(made.Missing) != 1 || !strings.Contains(made.Missing[0].Reason, "DelegateSubgroup=agent (systemd 254), or start the service in a unit of its own with TasksMax=300") {
			t.Errorf("%s: %s", name, planText(made))
		}
		if len(f.groups) != 3 || f.groups[fakeUnit].files["pids.max"] != "" {
			t.Errorf("%s: something was written: %+v", name, f.groups)
		}
		f.groups[fakeUnit].files["pids.max"] = "200" // TasksMax=200
		made = f.plan(10, Cgroup{TasksMax: 300}, "service.pg").make(ctx, f)
		if err := made.enter(ctx, f, 10); err != nil || len(made.Missing) > 0 || made.Groups[0].Path != fakeUnit {
			t.Errorf("%s: a unit with a bound of its own: %v %s", name, err, planText(made))
		}
	}
}

// In a container without a service manager the agent makes room for controllers,
// and who has not made room is told.
func TestCgroupContainer(t *testing.T) {
	ctx := context.Background()
	f := newFakeV2(t, "/box")
	f.of[10] = "/box"
	alone := f.plan(10, Cgroup{TasksMax: 300}, "agent")
	if made := alone.make(ctx, f); len(made.Groups) != 0 || !strings.Contains(made.Missing[0].Reason, "a group with processes of its own can have none") {
		t.Errorf("%s", planText(made))
	}
	if made := alone.makeAround(ctx, f, 10); len(made.Missing) != 0 || made.enter(ctx, f, 10) != nil || f.of[10] != "/box/pghardend/agent" {
		t.Errorf("%s %v", planText(made), f.of)
	}
}

// A setting that the kernel refuses, or takes and does not keep, is missing.
func TestCgroupRefused(t *testing.T) {
	ctx := context.Background()
	f := newFakeV2(t)
	f.of[10] = "/"
	plan := f.plan(10, Cgroup{TasksMax: 300, MemoryMax: 1 << 30}, "service.pg")
	f.refused[fakeRoot+"/pghardend/service.pg/pids.max"] = unix.EPERM
	made := plan.make(ctx, f)
	if len(made.Groups) != 1 || len(made.Groups[0].Settings) != 1 || len(made.Missing) != 1 || made.Missing[0].Name != "tasks_max" {
		t.Errorf("%s", planText(made))
	}
	if none := made.Without("gone"); len(none.Groups) != 0 || len(none.Missing) != 2 {
		t.Errorf("%s", planText(none))
	}
	// One that is there and empty is made anew.
	f.groups["/pghardend/service.pg"].files["memory.high"] = "1"
	delete(f.refused, fakeRoot+"/pghardend/service.pg/pids.max")
	if made := plan.make(ctx, f); len(made.Missing) > 0 || f.groups["/pghardend/service.pg"].files["memory.high"] != "" {
		t.Errorf("%s", planText(made))
	}
	f.refused[fakeRoot+"/pghardend/service.pg/cgroup.procs"] = unix.ENOSPC
	if err := plan.enter(ctx, f, 10); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	// A kernel that only says that it did.
	f.refused, f.deaf = map[string]error{}, true
	if err := plan.enter(ctx, f, 10); err == nil || !strings.Contains(err.Error(), "is in the control group / after it was moved to /pghardend/service.pg") {
		t.Errorf("%v", err)
	}
	if made := plan.make(ctx, f); !strings.Contains(planText(made), "pids.max is max after it was set to 300") {
		t.Errorf("%s", planText(made))
	}
}

func TestDefaultTasks(t *testing.T) {
	if n, err := DefaultTasks(context.Background()); err != nil || n < 100 || n > 4<<20 {
		t.Errorf("%d %v", n, err)
	}
}

// A weight is asked for only where something goes by it.
func TestLookCgroupsWeighing(t *testing.T) {
	for _, c := range []struct {
		disk, cost string
		want       bool
	}{
		{"none [mq-deadline] kyber bfq", "", false},
		{"none mq-deadline kyber [bfq]", "", true},
		{"[none]", "8:0 enable=0 ctrl=auto", false},
		{"[none]", "8:0 enable=0 ctrl=auto\n8:16 enable=1 ctrl=user", true},
	} {
		f := newFakeV2(t)
		f.disk, f.cost, f.of[7] = c.disk, c.cost, "/"
		s, err := lookCgroups(t.Context(), f, 7)
		if err != nil || s.Weighing != c.want {
			t.Errorf("%q, %q: %v %v", c.disk, c.cost, s.Weighing, err)
		}
	}
}
