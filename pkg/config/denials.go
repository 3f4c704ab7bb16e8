package config

import "go.yaml.in/yaml/v3"

// Denials says how the daemon hears of what is denied to services.
type Denials struct {
	Trace bool // by BPF programs, which make each system call of the host a bit slower; default true
}

func (r *configReader) denials(key string, n *yaml.Node) {
	r.mapping(key, n, []field{{"trace", false, "trace: true", r.boolean}})
}
