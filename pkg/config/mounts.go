package config

import (
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// The modes of mounts.
const (
	MountsRequired  = "required"
	MountsPreferred = "preferred"
	MountsOff       = "off"
)

// Mounts is what a service sees of the file system, beyond what holds for all.
type Mounts struct {
	Mode string   // MountsRequired, MountsPreferred or MountsOff; default required
	Exec []string // absolute paths of what it may map as code, beside the system's directories, its program and helpers
}

func (r *configReader) mounts(key string, n *yaml.Node) {
	mode, given := "", ""
	r.mapping(key, n, []field{
		{"mode", false, "mode: " + MountsRequired, func(key string, n *yaml.Node) {
			mode = r.oneOf(key, n, []string{MountsRequired, MountsPreferred, MountsOff})
		}},
		{"exec", false, "", func(key string, n *yaml.Node) {
			given = key
			r.unique(key, n, "/opt/extensions", func(key string, n *yaml.Node) string { return r.path(key, n, "/opt/extensions") })
		}},
	})
	if mode == MountsOff && given != "" {
		r.report(given, "has no effect with mode: off", "remove it, or write mode: required")
	}
}

type rawMounts struct {
	Mode string   `mapstructure:"mode"`
	Exec []string `mapstructure:"exec"`
}

func (raw rawMounts) mounts() Mounts {
	m := Mounts{Mode: orElse(raw.Mode, MountsRequired)}
	for _, path := range raw.Exec {
		m.Exec = append(m.Exec, filepath.Clean(path))
	}
	return m
}
