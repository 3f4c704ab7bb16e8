package config

import (
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The modes of SELinux.
const (
	SELinuxRequired  = "required"
	SELinuxPreferred = "preferred"
	SELinuxOff       = "off"
)

// The SELinux module's file, as the packages install it.
const defaultSELinuxModule = "/usr/share/selinux/packages/pghardend.pp"

// SELinux is what all services share, and what of the policy is kept.
type SELinux struct {
	Mode     string          // SELinuxRequired, SELinuxPreferred or SELinuxOff, for services that do not say; default off
	Level    string          // MCS level of services that do not say, such as s0:c12,c34; default s0
	Module   string          // absolute path of the module that is loaded if the policy does not have it
	Booleans map[string]bool // that are kept; may be nil
}

// ServiceSELinux is how one service is confined by SELinux.
type ServiceSELinux struct {
	Mode  string // as in SELinux
	Type  string // the domain; empty: that of the profile
	Level string // as in SELinux
}

var (
	selinuxType = form{first: letters + "_", rest: letters + digits + "_.", most: 128}
	// selinuxBoolean: keys of a mapping are read in lower case, and no policy has others.
	selinuxBoolean = form{first: lower + "_", rest: lower + digits + "_", most: 128}
)

func (r *configReader) selinux(key string, n *yaml.Node) {
	r.mapping(key, n, []field{
		{"mode", false, "mode: " + SELinuxRequired, r.selinuxMode},
		{"level", false, "", r.selinuxLevel},
		{"module", false, "", func(key string, n *yaml.Node) { r.path(key, n, defaultSELinuxModule) }},
		{"booleans", false, "", func(key string, n *yaml.Node) {
			r.entries(key, n, "pghardend_postgres_jit: true", func(name, key string, n *yaml.Node) {
				if !selinuxBoolean.matches(name) {
					r.report(key, quote(name)+" is not the name of an SELinux boolean", "`getsebool -a` lists them")
				}
				r.boolean(key, n)
			})
		}},
	})
}

func (r *configReader) serviceSELinux(key string, n *yaml.Node) {
	r.mapping(key, n, []field{
		{"mode", false, "mode: " + SELinuxRequired, r.selinuxMode},
		{"type", false, "", func(key string, n *yaml.Node) {
			r.matching(key, n, selinuxType, "an SELinux type", "pghardend_postgres_t")
		}},
		{"level", false, "", r.selinuxLevel},
	})
}

func (r *configReader) selinuxMode(key string, n *yaml.Node) {
	r.oneOf(key, n, []string{SELinuxRequired, SELinuxPreferred, SELinuxOff})
}

func (r *configReader) selinuxLevel(key string, n *yaml.Node) {
	if s, ok := r.text(key, n, "s0:c12,c34"); ok && !isSELinuxLevel(s) {
		r.report(key, quote(s)+" is not an SELinux level", "write something like s0:c12,c34")
	}
}

// isSELinuxLevel says whether s is one sensitivity with or without categories, as s0:c12,c34 or s0:c0.c1023.
func isSELinuxLevel(s string) bool {
	sensitivity, categories, some := strings.Cut(s, ":")
	if !isNumbered(sensitivity, 's', 2) {
		return false
	}
	for c := range strings.SplitSeq(strings.ReplaceAll(categories, ".", ","), ",") {
		if some && !isNumbered(c, 'c', 4) {
			return false
		}
	}
	return true
}

// isNumbered says whether s is a letter and at most so many digits.
func isNumbered(s string, letter byte, most int) bool {
	return len(s) > 1 && len(s) <= 1+most && s[0] == letter && strings.Trim(s[1:], digits) == ""
}

type rawSELinux struct {
	Mode     string          `mapstructure:"mode"`
	Level    string          `mapstructure:"level"`
	Module   string          `mapstructure:"module"`
	Booleans map[string]bool `mapstructure:"booleans"`
}

type rawServiceSELinux struct {
	Mode  string `mapstructure:"mode"`
	Type  string `mapstructure:"type"`
	Level string `mapstructure:"level"`
}

func (raw rawSELinux) settings() SELinux {
	return SELinux{
		Mode: orElse(raw.Mode, SELinuxOff), Level: orElse(raw.Level, "s0"),
		Module: filepath.Clean(orElse(raw.Module, defaultSELinuxModule)), Booleans: raw.Booleans,
	}
}

// within fills in what holds for all services.
func (raw rawServiceSELinux) within(all SELinux) ServiceSELinux {
	return ServiceSELinux{Mode: orElse(raw.Mode, all.Mode), Type: raw.Type, Level: orElse(raw.Level, all.Level)}
}
