package limits

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Cgroup is what a control group is to have, in the terms of version 2
// (Documentation/admin-guide/cgroup-v2.rst). A zero leaves a setting as it is.
type Cgroup struct {
	CPUWeight  uint64 // share of the CPUs among siblings, 1 to 10000; the kernel's default is 100
	IOWeight   uint64 // the same for disks, as far as their scheduler has weights
	MemoryHigh uint64 // bytes; above it the group is slowed down and reclaimed from
	MemoryMax  uint64 // bytes; above it the OOM killer works in the group alone
	TasksMax   uint64 // processes and threads; fork fails above it
}

// Versions of control groups. Each controller is in a hierarchy of one of them.
const (
	CgroupV1 = 1
	CgroupV2 = 2
)

// CgroupSetting is one file of one group.
type CgroupSetting struct {
	Name       string `json:"name"` // as in the configuration: tasks_max …
	Controller string `json:"controller"`
	File       string `json:"file"`
	Value      string `json:"value"` // as the kernel shows it
}

// CgroupGroup is one group of one hierarchy. What is version 2 has one group for
// all controllers.
type CgroupGroup struct {
	Version   int             `json:"version"`
	Hierarchy string          `json:"hierarchy"` // a controller of version 1; "" is version 2
	Path      string          `json:"path"`      // as /proc/PID/cgroup has it
	Dir       string          `json:"dir"`       // absolute
	Settings  []CgroupSetting `json:"settings"`

	// Base is the group below which ours are made; "" where the group is the service
	// manager's, whose settings are compared and never written.
	Base string `json:"base"`
}

// CgroupMissing is a setting that cannot be had, and why.
type CgroupMissing struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

func (m CgroupMissing) String() string { return m.Name + ": " + m.Reason }

// CgroupPlan is what to make and to enter, in an order that may be carried out.
type CgroupPlan struct {
	Groups  []CgroupGroup
	Missing []CgroupMissing
}

// CgroupMount is where a hierarchy is mounted, and which group of it.
type CgroupMount struct{ Point, Root string }

// CgroupSight is what a process sees of control groups.
type CgroupSight struct {
	V1 map[string]CgroupMount // by controller, and name=systemd
	V2 *CgroupMount
	// Controllers are those that version 2 has for groups below Base.
	Controllers []string
	Own         map[string]string // the process's groups, by controller; "" is version 2

	Systemd   bool   // it manages this machine
	Weighing  bool   // some disk's scheduler goes by weights
	Delegated string // the nearest group, from the process's own up, that systemd has delegated; "" for none
}

// controllers are those of version 2 that settings are of.
var controllers = []string{"cpu", "io", "memory", "pids"}

// noWeights: the kernel takes a weight for any disk, and goes by it only where something
// schedules by weights (Documentation/block/bfq-iosched.rst, cgroup-v2.rst on io.cost.qos). Of a disk that comes later
// the next launch knows.
const noWeights = "no disk goes by weights: choose bfq in /sys/block/DISK/queue/scheduler, or switch on io.cost.qos, and restart the service"

// nesting is the weight of the group around ours where no service manager made
// one: ten processes' worth, since one more level must not leave the services with
// less of the CPUs than they had as processes among others.
const nesting = 1000

// PlanCgroup finds the groups for a member (a service, or the agent) of the agent
// called name, as seen by a process of that agent. It is pure.
func PlanCgroup(want Cgroup, sight CgroupSight, name, member string) CgroupPlan {
	var p CgroupPlan
	for _, controller := range controllers {
		wanted := want.settings(CgroupV2, controller)
		if len(wanted) == 0 {
			continue
		}
		group, reason := sight.group(controller, name, member)
		if reason != "" {
			for _, s := range wanted {
				p.Missing = append(p.Missing, CgroupMissing{s.Name, reason})
			}
			continue
		}
		if controller == "io" && !sight.Weighing {
			p.Missing = append(p.Missing, CgroupMissing{"io_weight", noWeights})
			continue
		}
		group.Settings = want.settings(group.Version, controller)
		for _, s := range wanted {
			if !slices.ContainsFunc(group.Settings, func(have CgroupSetting) bool { return have.Name == s.Name }) {
				p.Missing = append(p.Missing, CgroupMissing{s.Name, "control groups of version 1 have no such setting"})
			}
		}
		p.add(group)
	}
	return p
}

func (p *CgroupPlan) add(g CgroupGroup) {
	if len(g.Settings) == 0 {
		return
	}
	for i := range p.Groups {
		if p.Groups[i].Dir == g.Dir {
			p.Groups[i].Settings = append(p.Groups[i].Settings, g.Settings...)
			return
		}
	}
	p.Groups = append(p.Groups, g)
}

// group is the member's group in the hierarchy of a controller, or the reason why
// there is none.
func (s CgroupSight) group(controller, name, member string) (CgroupGroup, string) {
	g := CgroupGroup{Version: CgroupV1, Hierarchy: controller}
	if controller == "io" {
		g.Hierarchy = "blkio"
	}
	mount, ok := s.V1[g.Hierarchy]
	if !ok {
		if s.V2 == nil || !slices.Contains(s.Controllers, controller) {
			return g, "the kernel, the container or the service manager offers no controller " + controller
		}
		g.Version, g.Hierarchy, mount = CgroupV2, "", *s.V2
	}
	own, ok := s.Own[g.Hierarchy]
	if !ok {
		return g, "the process is in no group of the controller " + controller
	}
	base := ownBase(own, name)
	if s.Systemd {
		if s.Delegated == "" {
			base = "" // systemd alone may write here
		} else if g.Version == CgroupV2 {
			base = s.Delegated
		}
		// A unit that was delegated whole: with controllers on for groups below it,
		// systemd could not start the agent there again beside running services.
		if g.Version == CgroupV2 && base == own {
			base = ""
		}
	}
	g.Path = own
	if base != "" {
		g.Path = path.Join(base, name, member)
	}
	if g.Dir, ok = mount.dir(g.Path); !ok {
		return g, "its group " + g.Path + " is not below what is mounted at " + mount.Point
	}
	if base != "" {
		g.Base, ok = mount.dir(base)
	}
	if !ok {
		return g, "the group " + base + " is not below what is mounted at " + mount.Point
	}
	return g, ""
}

// ownBase is a process's group, or what the groups of its agent are in.
func ownBase(own, name string) string {
	if i := strings.Index(own+"/", "/"+name+"/"); i >= 0 {
		return path.Clean("/" + own[:i])
	}
	return own
}

// dir is the directory of a group.
func (m CgroupMount) dir(group string) (string, bool) {
	rest, ok := strings.CutPrefix(group+"/", strings.TrimSuffix(m.Root, "/")+"/")
	if strings.HasPrefix(group, "/..") { // outside of the process's namespace
		ok = false
	}
	return path.Join(m.Point, rest), ok
}

// settings are the files of one controller.
func (c Cgroup) settings(version int, controller string) []CgroupSetting {
	var list []CgroupSetting
	add := func(name, file string, value uint64) {
		list = append(list, CgroupSetting{name, controller, file, strconv.FormatUint(value, 10)})
	}
	v1 := version == CgroupV1
	switch {
	case controller == "cpu" && c.CPUWeight > 0 && v1:
		// As systemd has it: the default of the one is the default of the other.
		add("cpu_weight", "cpu.shares", max(2, c.CPUWeight*1024/100))
	case controller == "cpu" && c.CPUWeight > 0:
		add("cpu_weight", "cpu.weight", c.CPUWeight)
	case controller == "io" && c.IOWeight > 0 && v1:
		add("io_weight", "blkio.bfq.weight", bfqWeight(c.IOWeight))
	case controller == "io" && c.IOWeight > 0:
		list = append(list, CgroupSetting{"io_weight", controller, "io.weight", "default " + strconv.FormatUint(c.IOWeight, 10)})
	case controller == "pids" && c.TasksMax > 0:
		add("tasks_max", "pids.max", c.TasksMax)
	case controller == "memory":
		if c.MemoryHigh > 0 && !v1 { // the soft limit of version 1 is something else
			add("memory_high", "memory.high", c.MemoryHigh)
		}
		if c.MemoryMax > 0 && v1 {
			add("memory_max", "memory.limit_in_bytes", c.MemoryMax)
		} else if c.MemoryMax > 0 {
			add("memory_max", "memory.max", c.MemoryMax)
		}
	}
	return list
}

// bfqWeight spreads 1..10000 over the 1..1000 of the BFQ scheduler, with 100 for 100.
func bfqWeight(w uint64) uint64 {
	if w <= 100 {
		return w
	}
	return 100 + (w-100)*900/9900
}

// holds says whether a file that reads got has what the setting asks for. Limits of
// memory are whole pages to the kernel. A group of the service manager's may be
// stricter.
func (s CgroupSetting) holds(got string, pageSize uint64, orLess bool) bool {
	got, _, _ = strings.Cut(strings.TrimSpace(got), "\n") // io.weight has lines for disks after the default
	if got == s.Value {
		return true
	}
	want, err := strconv.ParseUint(s.Value, 10, 64)
	have, haveErr := strconv.ParseUint(got, 10, 64)
	if err != nil || haveErr != nil {
		return false
	}
	if s.Controller == "memory" {
		want, have = want/pageSize, have/pageSize
	}
	return have == want || orLess && have < want && (s.Controller == "memory" || s.Controller == "pids")
}

// ParseCgroupMounts reads the hierarchies from the text of /proc/PID/mountinfo,
// proc_pid_mountinfo(5). Of one that is mounted more than once, the last mount of
// its root counts: an earlier one may lie below another mount.
func ParseCgroupMounts(mountinfo string) (v1 map[string]CgroupMount, v2 *CgroupMount, err error) {
	v1 = map[string]CgroupMount{}
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		f, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(kind) < 2 {
			return nil, nil, fmt.Errorf("%q is no line of mountinfo", strings.TrimSpace(line))
		}
		m := CgroupMount{Root: unescape(f[3]), Point: unescape(f[4])}
		switch kind[0] {
		case "cgroup2":
			if v2 == nil || v2.Root != "/" || m.Root == "/" {
				v2 = &m
			}
		case "cgroup":
			for _, option := range strings.Split(kind[len(kind)-1], ",") {
				if have, ok := v1[option]; !ok || have.Root != "/" || m.Root == "/" {
					v1[option] = m // options that are no controllers do no harm
				}
			}
		}
	}
	return v1, v2, nil
}

// unescape undoes the escapes of mountinfo.
func unescape(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}

// ParseCgroupMembership reads the text of /proc/PID/cgroup, cgroups(7): the groups
// by controller, "" for version 2.
func ParseCgroupMembership(text string) (map[string]string, error) {
	own := map[string]string{}
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			return nil, fmt.Errorf("%q is no line of /proc/PID/cgroup", strings.TrimSpace(line))
		}
		for _, controller := range strings.Split(f[1], ",") {
			own[controller] = f[2]
		}
	}
	return own, nil
}

// Revise is a plan that was carried out, with the settings that are wanted now. A
// controller that was not asked for then has no group to write to.
func (p CgroupPlan) Revise(want Cgroup) CgroupPlan {
	out := CgroupPlan{}
	missing := func(name string) (string, bool) {
		i := slices.IndexFunc(p.Missing, func(m CgroupMissing) bool { return m.Name == name })
		if i < 0 {
			return "it was not asked for when the process was started: restart the service", false
		}
		return p.Missing[i].Reason, true
	}
	for _, controller := range controllers {
		group := slices.IndexFunc(p.Groups, func(g CgroupGroup) bool {
			return slices.ContainsFunc(g.Settings, func(s CgroupSetting) bool { return s.Controller == controller })
		})
		for _, s := range want.settings(CgroupV2, controller) {
			reason, known := missing(s.Name)
			if group < 0 || known {
				out.Missing = append(out.Missing, CgroupMissing{s.Name, reason})
				continue
			}
			g := p.Groups[group]
			g.Settings = slices.DeleteFunc(want.settings(g.Version, controller), func(o CgroupSetting) bool { return o.Name != s.Name })
			out.add(g)
		}
	}
	return out
}

// Without is the plan if none of its groups can be had.
func (p CgroupPlan) Without(reason string) CgroupPlan {
	out := CgroupPlan{Missing: slices.Clone(p.Missing)}
	for _, g := range p.Groups {
		out.miss(g.Settings, reason)
	}
	return out
}
