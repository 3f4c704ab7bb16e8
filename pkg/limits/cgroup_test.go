package limits

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Lines of real machines: Debian 12, the same with systemd.unified_cgroup_hierarchy=0,
// and a container that has one group of its own.
const (
	mountsV2 = "24 18 0:21 / /proc rw - proc proc rw\n30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
	mountsV1 = "25 24 0:22 / /sys/fs/cgroup/unified rw shared:8 - cgroup2 cgroup2 rw\n" +
		"26 24 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
		"27 24 0:24 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
		"28 24 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
		"29 24 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
	mountsContainer = "40 39 0:26 /docker/f00 /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
)

var wantAll = Cgroup{CPUWeight: 100, IOWeight: 100, MemoryHigh: 1 << 30, MemoryMax: 2 << 30, TasksMax: 300}

func mustSight(t *testing.T, mounts, own, controllers string) CgroupSight {
	t.Helper()
	var s CgroupSight
	var err error
	if s.V1, s.V2, err = ParseCgroupMounts(mounts); err != nil {
		t.Fatal(err)
	}
	if s.Own, err = ParseCgroupMembership(own); err != nil {
		t.Fatal(err)
	}
	s.Controllers, s.Weighing = strings.Fields(controllers), true
	return s
}

// planText has one line for each group and setting that a plan has or lacks.
func planText(p CgroupPlan) string {
	var b strings.Builder
	for _, g := range p.Groups {
		fmt.Fprintf(&b, "v%d %s base %s\n", g.Version, g.Dir, g.Base)
		for _, s := range g.Settings {
			fmt.Fprintf(&b, "  %s %s\n", s.File, s.Value)
		}
	}
	for _, m := range p.Missing {
		fmt.Fprintf(&b, "no %s\n", m)
	}
	return b.String()
}

func TestPlanCgroup(t *testing.T) {
	systemd := func(s CgroupSight, delegated string) CgroupSight {
		s.Systemd, s.Delegated = true, delegated
		return s
	}
	const unit = "/system.slice/pghardend.service"
	v2 := mustSight(t, mountsV2, "0::"+unit+"/agent\n", "cpuset cpu io memory pids")
	v1 := mustSight(t, mountsV1, "12:pids:/\n7:cpu,cpuacct:/\n5:memory:/box\n1:name=systemd:/\n0::/\n", "")
	idle := v2
	idle.Weighing = false
	const all = "  cpu.weight 100\n  io.weight default 100\n  memory.high 1073741824\n  memory.max 2147483648\n  pids.max 300\n"
	for name, c := range map[string]struct {
		sight CgroupSight
		want  string
	}{
		// The kernel would take the weight and do nothing with it.
		"v2, no disk with weights": {systemd(idle, unit),
			"v2 /sys/fs/cgroup" + unit + "/pghardend/service.pg base /sys/fs/cgroup" + unit + "\n" +
				"  cpu.weight 100\n  memory.high 1073741824\n  memory.max 2147483648\n  pids.max 300\nno io_weight: " + noWeights + "\n"},
		"v2, delegated": {systemd(v2, unit),
			"v2 /sys/fs/cgroup" + unit + "/pghardend/service.pg base /sys/fs/cgroup" + unit + "\n" + all},
		// The agent has moved itself; its groups are where they were.
		"v2, from within": {systemd(mustSight(t, mountsV2, "0::"+unit+"/pghardend/agent\n", "cpu io memory pids"), unit),
			"v2 /sys/fs/cgroup" + unit + "/pghardend/service.pg base /sys/fs/cgroup" + unit + "\n" + all},
		"v2, not delegated":           {systemd(v2, ""), "v2 /sys/fs/cgroup" + unit + "/agent base \n" + all},
		"v2, delegated whole":         {systemd(mustSight(t, mountsV2, "0::"+unit+"\n", "cpu io memory pids"), unit), "v2 /sys/fs/cgroup" + unit + " base \n" + all},
		"v2, no systemd, in the root": {mustSight(t, mountsV2, "0::/\n", "cpu io memory pids"), "v2 /sys/fs/cgroup/pghardend/service.pg base /sys/fs/cgroup\n" + all},
		"v2, fewer controllers":       {mustSight(t, mountsV2, "0::/\n", "cpu"), "v2 /sys/fs/cgroup/pghardend/service.pg base /sys/fs/cgroup\n  cpu.weight 100\n" + lacks("io_weight io", "memory_high memory", "memory_max memory", "tasks_max pids")},
		"v1, each in a hierarchy of its own": {v1, "v1 /sys/fs/cgroup/cpu,cpuacct/pghardend/service.pg base /sys/fs/cgroup/cpu,cpuacct\n  cpu.shares 1024\n" +
			"v1 /sys/fs/cgroup/memory/box/pghardend/service.pg base /sys/fs/cgroup/memory/box\n  memory.limit_in_bytes 2147483648\n" +
			"v1 /sys/fs/cgroup/pids/pghardend/service.pg base /sys/fs/cgroup/pids\n  pids.max 300\n" +
			lacks("io_weight io") + "no memory_high: control groups of version 1 have no such setting\n"},
		"a container that sees its own": {mustSight(t, mountsContainer, "3:pids:/docker/f00\n", ""), "v1 /sys/fs/cgroup/pids/pghardend/service.pg base /sys/fs/cgroup/pids\n  pids.max 300\n" +
			lacks("cpu_weight cpu", "io_weight io", "memory_high memory", "memory_max memory")},
		"a container that does not": {mustSight(t, mountsContainer, "3:pids:/\n", ""), lacks("cpu_weight cpu", "io_weight io", "memory_high memory", "memory_max memory") +
			"no tasks_max: its group /pghardend/service.pg is not below what is mounted at /sys/fs/cgroup/pids\n"},
		"outside of its namespace": {mustSight(t, mountsV2, "0::/../..\n", "cpu io memory pids"),
			"no cpu_weight: the group /../.. is not below what is mounted at /sys/fs/cgroup\n"},
		"nothing": {CgroupSight{}, lacks("cpu_weight cpu", "io_weight io", "memory_high memory", "memory_max memory", "tasks_max pids")},
	} {
		got := planText(PlanCgroup(wantAll, c.sight, "pghardend", "service.pg"))
		if name == "outside of its namespace" { // each for itself says the same
			got, _, _ = strings.Cut(got, "no io_weight")
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
	if got := planText(PlanCgroup(Cgroup{}, v2, "pghardend", "x")); got != "" {
		t.Errorf("nothing wanted: %s", got)
	}
}

// lacks are the lines for settings and their controllers.
func lacks(pairs ...string) string {
	var b strings.Builder
	for _, pair := range pairs {
		name, controller, _ := strings.Cut(pair, " ")
		fmt.Fprintf(&b, "no %s: the kernel, the container or the service manager offers no controller %s\n", name, controller)
	}
	return b.String()
}

func TestCgroupRevise(t *testing.T) {
	sight := mustSight(t, mountsV1, "12:pids:/\n5:memory:/\n", "")
	p := PlanCgroup(Cgroup{TasksMax: 300, MemoryMax: 1 << 30, MemoryHigh: 1 << 20}, sight, "pghardend", "service.pg")
	got := planText(p.Revise(Cgroup{TasksMax: 400, MemoryHigh: 1 << 20, CPUWeight: 5}))
	want := "v1 /sys/fs/cgroup/pids/pghardend/service.pg base /sys/fs/cgroup/pids\n  pids.max 400\n" +
		"no cpu_weight: it was not asked for when the process was started: restart the service\n" +
		"no memory_high: control groups of version 1 have no such setting\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestCgroupHolds(t *testing.T) {
	for _, c := range []struct {
		s      CgroupSetting
		got    string
		orLess bool
		want   bool
	}{
		{CgroupSetting{Controller: "pids", Value: "300"}, "300\n", false, true},
		{CgroupSetting{Controller: "pids", Value: "300"}, "max\n", false, false},
		{CgroupSetting{Controller: "pids", Value: "300"}, "200\n", false, false},
		{CgroupSetting{Controller: "pids", Value: "300"}, "200\n", true, true},
		{CgroupSetting{Controller: "pids", Value: "300"}, "301\n", true, false},
		{CgroupSetting{Controller: "cpu", Value: "100"}, "50\n", true, false},
		{CgroupSetting{Controller: "memory", Value: "16777217"}, "16777216\n", false, true}, // whole pages
		{CgroupSetting{Controller: "memory", Value: "16777216"}, "16781312\n", false, false},
		{CgroupSetting{Controller: "memory", Value: "16777216"}, "max\n", true, false},
		{CgroupSetting{Controller: "io", Value: "default 100"}, "default 100\n8:0 200\n", false, true},
	} {
		if got := c.s.holds(c.got, 4096, c.orLess); got != c.want {
			t.Errorf("%+v and %q, or less: %v: %v", c.s, c.got, c.orLess, got)
		}
	}
}

func TestParseCgroupRefuses(t *testing.T) {
	for _, text := range []string{"x\n", "1:pids\n", "1:pids:relative\n", "\n"} {
		if got, err := ParseCgroupMembership(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
	for _, text := range []string{"x\n", "1 2 3 / - cgroup2 cgroup2\n", "30 23 0:26 / /sys rw -\n"} {
		if v1, v2, err := ParseCgroupMounts(text); err == nil {
			t.Errorf("%q: %v %v", text, v1, v2)
		}
	}
	// One below another mount is not reached; the later one is.
	v1, _, err := ParseCgroupMounts(mountsContainer + "41 39 0:26 / /a\\040b rw - cgroup cgroup rw,pids\n42 39 0:26 /x /c rw - cgroup cgroup rw,pids\n")
	if err != nil || v1["pids"].Point != "/a b" {
		t.Errorf("%v %v", v1, err)
	}
}

func FuzzParseCgroup(f *testing.F) {
	for _, mounts := range []string{mountsV1, mountsV2, mountsContainer} {
		f.Add(mounts, "12:pids:/docker/f00\n0::/system.slice/pghardend.service/agent\n", "pghardend")
	}
	f.Fuzz(func(t *testing.T, mounts, own, name string) {
		var s CgroupSight
		var err error
		if s.V1, s.V2, err = ParseCgroupMounts(mounts); err != nil {
			return
		}
		if s.Own, err = ParseCgroupMembership(own); err != nil {
			return
		}
		s.Controllers = controllers
		p := PlanCgroup(wantAll, s, "pghardend", "service."+name)
		settings := len(p.Missing)
		for _, g := range p.Groups {
			settings += len(g.Settings)
			if len(g.Settings) == 0 || g.Base == "" {
				t.Errorf("%+v", g)
			}
		}
		if settings != 5 { // each is there or missing, and none is lost
			t.Errorf("%d settings in\n%s", settings, planText(p))
		}
	})
}
