package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestConfigCgroup(t *testing.T) {
	preferred := Cgroup{Mode: CgroupPreferred, CPUWeight: 100}
	for text, want := range map[string]Cgroup{
		"oom_score_adj: 0":               preferred,
		"cgroup: {}":                     preferred,
		"cgroup: {mode: off}":            {Mode: CgroupOff},
		"cgroup: {mode: required}":       {Mode: CgroupRequired, CPUWeight: 100},
		"cgroup: {tasks_max: unlimited}": {Mode: CgroupPreferred, CPUWeight: 100, TasksUnlimited: true},
		"cgroup: {memory_max: 8G}":       {Mode: CgroupPreferred, CPUWeight: 100, MemoryMax: 8 << 30},
		"cgroup: {memory_max: 16777216}": {Mode: CgroupPreferred, CPUWeight: 100, MemoryMax: 16 << 20},
		`cgroup: {memory_max: "1T"}`:     {Mode: CgroupPreferred, CPUWeight: 100, MemoryMax: 1 << 40},
		"cgroup: {cpu_weight: 1, io_weight: 10000, memory_high: 16384K, memory_max: 16M, tasks_max: 32}": {Mode: CgroupPreferred,
			CPUWeight: 1, IOWeight: 10000, MemoryHigh: 16 << 20, MemoryMax: 16 << 20, TasksMax: 32},
	} {
		if diff := cmp.Diff(want, mustParseConfig(t, withKey(text)).Services[0].Cgroup); diff != "" {
			t.Errorf("%s: -want +got\n%s", text, diff)
		}
	}
	agent := mustParseConfig(t, "version: 1\nnode: pg-0\nagent: {oom_score_adj: -900, cgroup: {mode: required, memory_max: 200M}}\n").Agent
	want := Cgroup{Mode: CgroupRequired, CPUWeight: 1000, MemoryMax: 200 << 20}
	if agent.OOMScoreAdj == nil || *agent.OOMScoreAdj != -900 || agent.Cgroup != want {
		t.Errorf("%+v", agent)
	}
}

func TestF18_ConfigCgroupRefused(t *testing.T) {
	const key = "pghardend.yaml:8: services.postgres.cgroup"
	const shape = "; write a number of bytes from 16M on, with K, M, G or T for powers of 1024, such as 8G"
	refusesConfig(t, []refusal{
		{"unknown key", withKey("cgroup: {memory: 8G}"), key + ".memory: unknown key; known keys here: mode, cpu_weight, io_weight, memory_high, memory_max, tasks_max"},
		{"unknown mode", withKey("cgroup: {mode: on}"), key + ".mode: \"on\" is unknown; known values: required, preferred, off"},
		{"weight", withKey("cgroup: {cpu_weight: 10001}"), key + ".cpu_weight: 10001 is out of range; write a whole number from 1 to 10000"},
		{"too few tasks", withKey("cgroup: {tasks_max: 31}"), key + ".tasks_max: 31 is out of range; write a whole number from 32 to 4194304"},
		{"too little memory", withKey("cgroup: {memory_max: 8M}"), key + ".memory_max: \"8M\" is too little for anything to start" + shape},
		{"too much memory", withKey("cgroup: {memory_max: 9999999T}"), key + ".memory_max: \"9999999T\" is not a number of bytes" + shape},
		{"fraction", withKey("cgroup: {memory_max: 1.5G}"), key + ".memory_max: \"1.5G\" is not a number of bytes" + shape},
		{"small letter", withKey("cgroup: {memory_max: 8g}"), key + ".memory_max: \"8g\" is not a number of bytes" + shape},
		{"a list", withKey("cgroup: {memory_max: [8G]}"), key + ".memory_max: is not a number of bytes" + shape},
		{"high above max", withKey("cgroup: {memory_high: 2G, memory_max: 1G}"), key + ".memory_high: is above memory_max and would never matter; lower memory_high or raise memory_max"},
		{"off, but something", withKey("cgroup: {mode: off, tasks_max: 100}"), key + ".tasks_max: has no effect with mode: off; remove it, or write mode: preferred"},
	})
}
