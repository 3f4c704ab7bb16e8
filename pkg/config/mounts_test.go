package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestConfigMounts(t *testing.T) {
	for text, want := range map[string]Mounts{
		"oom_score_adj: 0":    {Mode: MountsRequired},
		"mounts: {}":          {Mode: MountsRequired},
		"mounts: {mode: off}": {Mode: MountsOff},
		"mounts: {mode: preferred, exec: [/opt//a/, /srv/b.so]}": {Mode: MountsPreferred, Exec: []string{"/opt/a", "/srv/b.so"}},
	} {
		if diff := cmp.Diff(want, mustParseConfig(t, withKey(text)).Services[0].Mounts); diff != "" {
			t.Errorf("%s: -want +got\n%s", text, diff)
		}
	}
}

func TestF18_ConfigMountsRefused(t *testing.T) {
	key := "pghardend.yaml:8: services.postgres.mounts"
	refusesConfig(t, []refusal{
		{"list", withKey("mounts: [required]"), key + ": is a list, not a mapping; write a mapping such as `mode: required`"},
		{"unknown key", withKey("mounts: {exe: [/a]}"), key + ".exe: unknown key; did you mean exec?"},
		{"unknown mode", withKey("mounts: {mode: on}"), key + ".mode: \"on\" is unknown; known values: required, preferred, off"},
		{"relative", withKey("mounts: {exec: [lib]}"), key + ".exec[0]: \"lib\" is a relative path; write an absolute path such as /opt/extensions"},
		{"root", withKey("mounts: {exec: [/]}"), key + ".exec[0]: \"/\" is the root directory; write an absolute path such as /opt/extensions"},
		{"twice", withKey("mounts: {exec: [/a, /a/]}"), key + ".exec[1]: /a is in the list twice, first as services.postgres.mounts.exec[0] on line 8; remove one of the two"},
		{"off, but something", withKey("mounts: {mode: off, exec: [/a]}"), key + ".exec: has no effect with mode: off; remove it, or write mode: required"},
	})
}
