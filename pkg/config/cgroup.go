package config

import (
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The modes of control groups.
const (
	CgroupRequired  = "required"
	CgroupPreferred = "preferred"
	CgroupOff       = "off"
)

// What weighs how much if the file does not say. Services are equal; the agent
// hardly needs the CPUs, but then at once.
const (
	defaultServiceWeight = 100
	defaultAgentWeight   = 1000
)

// Cgroup is a control group's settings, in the terms of version 2. 0 is none.
type Cgroup struct {
	Mode       string // CgroupRequired, CgroupPreferred or CgroupOff; default preferred
	CPUWeight  uint64 // 1 to 10000; default 100, of the agent 1000
	IOWeight   uint64 // 1 to 10000
	MemoryHigh uint64 // bytes
	MemoryMax  uint64 // bytes, from 16M on
	TasksMax   uint64 // 0: the agent derives one for services, and has none itself
	// Unlimited: tasks_max: unlimited.
	TasksUnlimited bool
}

// AgentSettings is what the agent has itself.
type AgentSettings struct {
	Cgroup      Cgroup
	OOMScoreAdj *int // -1000 to 1000; nil: as it was started
}

// A service that is given less cannot be started, or says in an odd way that it
// has not enough.
const (
	minMemory   = 16 << 20
	maxMemory   = math.MaxInt64
	minTasks    = 32 // the launch stage has a dozen threads
	maxTasks    = 4 << 20
	maxWeight   = 10000
	memoryShape = "write a number of bytes from 16M on, with K, M, G or T for powers of 1024, such as 8G"
)

func (r *configReader) agent(key string, n *yaml.Node) {
	r.mapping(key, n, []field{
		{"cgroup", false, "", r.cgroup},
		{"oom_score_adj", false, "", func(key string, n *yaml.Node) { r.whole(key, n, -1000, 1000) }},
	})
}

func (r *configReader) cgroup(key string, n *yaml.Node) {
	mode, given := "", ""
	var high, most uint64
	weight := func(key string, n *yaml.Node) { given = key; r.whole(key, n, 1, maxWeight) }
	r.mapping(key, n, []field{
		{"mode", false, "mode: " + CgroupPreferred, func(key string, n *yaml.Node) {
			mode = r.oneOf(key, n, []string{CgroupRequired, CgroupPreferred, CgroupOff})
		}},
		{"cpu_weight", false, "", weight},
		{"io_weight", false, "", weight},
		{"memory_high", false, "", func(key string, n *yaml.Node) { given = key; high = r.memory(key, n) }},
		{"memory_max", false, "", func(key string, n *yaml.Node) { given = key; most = r.memory(key, n) }},
		{"tasks_max", false, "", func(key string, n *yaml.Node) {
			given = key
			if n.Kind != yaml.ScalarNode || n.Value != unlimited {
				r.whole(key, n, minTasks, maxTasks)
			}
		}},
	})
	if mode == CgroupOff && given != "" {
		r.report(given, "has no effect with mode: off", "remove it, or write mode: "+CgroupPreferred)
	}
	if high > 0 && most > 0 && high > most {
		r.report(key+".memory_high", "is above memory_max and would never matter", "lower memory_high or raise memory_max")
	}
}

func (r *configReader) memory(key string, n *yaml.Node) uint64 {
	if n.Kind != yaml.ScalarNode || refusedFeature(n) {
		r.report(key, "is not a number of bytes", memoryShape)
		return 0
	}
	v, ok := parseMemory(n.Value)
	if !ok {
		r.report(key, quote(n.Value)+" is not a number of bytes", memoryShape)
		return 0
	}
	if v < minMemory {
		r.report(key, quote(n.Value)+" is too little for anything to start", memoryShape)
		return 0
	}
	return v
}

// parseMemory reads bytes, with one of the suffixes of systemd.
func parseMemory(text string) (uint64, bool) {
	shift := 0
	for suffix, bits := range map[string]int{"K": 10, "M": 20, "G": 30, "T": 40} {
		if rest, ok := strings.CutSuffix(text, suffix); ok {
			text, shift = rest, bits
			break
		}
	}
	v, err := strconv.ParseUint(text, 10, 63)
	if err != nil || !decimal(text) || v > maxMemory>>shift {
		return 0, false
	}
	return v << shift, true
}

type rawAgent struct {
	Cgroup      rawCgroup `mapstructure:"cgroup"`
	OOMScoreAdj *int      `mapstructure:"oom_score_adj"`
}

type rawCgroup struct {
	Mode       string `mapstructure:"mode"`
	CPUWeight  uint64 `mapstructure:"cpu_weight"`
	IOWeight   uint64 `mapstructure:"io_weight"`
	MemoryHigh string `mapstructure:"memory_high"`
	MemoryMax  string `mapstructure:"memory_max"`
	TasksMax   string `mapstructure:"tasks_max"`
}

func (raw rawAgent) settings() AgentSettings {
	return AgentSettings{Cgroup: raw.Cgroup.cgroup(defaultAgentWeight), OOMScoreAdj: raw.OOMScoreAdj}
}

func (raw rawCgroup) cgroup(weight uint64) Cgroup {
	c := Cgroup{Mode: orElse(raw.Mode, CgroupPreferred), CPUWeight: raw.CPUWeight, IOWeight: raw.IOWeight}
	if c.Mode == CgroupOff {
		return Cgroup{Mode: CgroupOff}
	}
	if c.CPUWeight == 0 {
		c.CPUWeight = weight
	}
	c.MemoryHigh, _ = parseMemory(raw.MemoryHigh)
	c.MemoryMax, _ = parseMemory(raw.MemoryMax)
	if c.TasksUnlimited = raw.TasksMax == unlimited; !c.TasksUnlimited {
		c.TasksMax, _ = strconv.ParseUint(raw.TasksMax, 10, 64)
	}
	return c
}
