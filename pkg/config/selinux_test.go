package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	defaultSELinux = SELinux{Mode: SELinuxOff, Level: "s0", Module: "/usr/share/selinux/packages/pghardend.pp"}
	noSELinux      = ServiceSELinux{Mode: SELinuxOff, Level: "s0"}
)

func TestConfigSELinux(t *testing.T) {
	for text, want := range map[string]ServiceSELinux{
		"oom_score_adj: 0":          noSELinux,
		"selinux: {}":               noSELinux,
		"selinux: {mode: required}": {Mode: SELinuxRequired, Level: "s0"},
		"selinux: {mode: preferred, level: 's0:c1.c3'}": {Mode: SELinuxPreferred, Level: "s0:c1.c3"},
		"selinux: {type: exporter_t}":                   {Mode: SELinuxOff, Type: "exporter_t", Level: "s0"},
	} {
		if diff := cmp.Diff(want, mustParseConfig(t, withKey(text)).Services[0].SELinux); diff != "" {
			t.Errorf("%s: -want +got\n%s", text, diff)
		}
	}
	all := "selinux: {mode: preferred, level: 's0:c5,c7', module: /opt/p.pp, booleans: {pghardend_postgres_jit: true, x: false}}\n"
	c := mustParseConfig(t, all+withKey("selinux: {mode: required}"))
	want := SELinux{Mode: SELinuxPreferred, Level: "s0:c5,c7", Module: "/opt/p.pp", Booleans: map[string]bool{"pghardend_postgres_jit": true, "x": false}}
	if diff := cmp.Diff(want, c.SELinux); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if diff := cmp.Diff(ServiceSELinux{Mode: SELinuxRequired, Level: "s0:c5,c7"}, c.Services[0].SELinux); diff != "" {
		t.Errorf("a service has what holds for all: -want +got\n%s", diff)
	}
}

func TestF18_ConfigSELinuxRefused(t *testing.T) {
	const key = "pghardend.yaml:8: services.postgres.selinux"
	refusesConfig(t, []refusal{
		{"unknown mode", withKey("selinux: {mode: enforcing}"), key + `.mode: "enforcing" is unknown; known values: required, preferred, off`},
		{"unknown key", withKey("selinux: {label: x}"), key + ".label: unknown key; known keys here: mode, type, level"},
		{"a whole label", withKey("selinux: {type: 'system_u:system_r:x_t:s0'}"), key + `.type: "system_u:system_r:x_t:s0" is not an SELinux type; write something like pghardend_postgres_t`},
		{"a range", withKey("selinux: {level: 's0-s0:c1'}"), key + `.level: "s0-s0:c1" is not an SELinux level; write something like s0:c12,c34`},
		{"module", "version: 1\nnode: pg-0\nselinux: {module: pghardend.pp}\n", `pghardend.yaml:3: selinux.module: "pghardend.pp" is a relative path; write an absolute path such as /usr/share/selinux/packages/pghardend.pp`},
		{"boolean", "version: 1\nnode: pg-0\nselinux: {booleans: {Pg: true}}\n", "pghardend.yaml:3: selinux.booleans.Pg: \"Pg\" is not the name of an SELinux boolean; `getsebool -a` lists them"},
		{"value", "version: 1\nnode: pg-0\nselinux: {booleans: {pg: 2}}\n", "pghardend.yaml:3: selinux.booleans.pg: is a number (2), not true or false; write true or false"},
	})
}
