package config

import (
	"regexp"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

// Sysctl says which network sysctls are kept.
type Sysctl struct {
	Manage bool     // default true
	Set    []string // "key=value", added to the built-in ones or in their place
	Leave  []string // keys, or patterns as in sysctl.d(5), that stay as they are
}

// sysctlKey is a key or pattern of sysctl.d(5), which takes dots or slashes
// between components; a leading - there makes a key optional. An interface's name
// may hold whatever is not a blank or a slash.
var sysctlKey = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^-?net[./][^\s=]+$`) })

const maxSysctlKey = 255 // bytes

const sysctlExample = "net.ipv4.conf.all.log_martians"

func (r *configReader) sysctl(key string, n *yaml.Node) {
	r.mapping(key, n, []field{
		{"manage", false, "manage: true", r.boolean},
		{"set", false, "", func(key string, n *yaml.Node) { r.unique(key, n, sysctlExample+"=0", r.sysctlSet) }},
		{"leave", false, "", func(key string, n *yaml.Node) { r.unique(key, n, sysctlExample, r.sysctlLeave) }},
	})
}

// sysctlSet returns the key of one setting.
func (r *configReader) sysctlSet(key string, n *yaml.Node) string {
	s, ok := r.text(key, n, sysctlExample+"=0")
	if !ok {
		return ""
	}
	name, value, found := strings.Cut(s, "=")
	name, value = strings.TrimSpace(name), strings.TrimSpace(value)
	if !found || value == "" {
		r.report(key, quote(s)+" is not key=value", "write something like "+sysctlExample+"=0")
		return ""
	}
	return r.sysctlKey(key, name)
}

func (r *configReader) sysctlLeave(key string, n *yaml.Node) string {
	s, ok := r.text(key, n, sysctlExample)
	if !ok {
		return ""
	}
	return r.sysctlKey(key, s)
}

func (r *configReader) sysctlKey(key, name string) string {
	if len(name) > maxSysctlKey || !sysctlKey().MatchString(name) {
		r.report(key, quote(name)+" is not the key of a network sysctl", "write something like "+sysctlExample+"; other sysctls belong into sysctl.d(5)")
		return ""
	}
	return name
}
