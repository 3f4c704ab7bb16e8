package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestConfigLandlock(t *testing.T) {
	for text, want := range map[string]Landlock{
		"oom_score_adj: 0":         {Mode: LandlockRequired},
		"landlock: {}":             {Mode: LandlockRequired},
		"landlock: {mode: off}":    {Mode: LandlockOff},
		`landlock: {mode: "off"}`:  {Mode: LandlockOff},
		"landlock: {bind: [5433]}": {Mode: LandlockRequired, Bind: []int{5433}},
		"landlock: {mode: preferred, read: [/srv/ca/], write: [/srv//ts, /tmp], connect: [389, 636]}": {Mode: LandlockPreferred,
			Read: []string{"/srv/ca"}, Write: []string{"/srv/ts", "/tmp"}, Connect: []int{389, 636}},
	} {
		got := mustParseConfig(t, withKey(text)).Services[0].Landlock
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", text, diff)
		}
	}
}

func TestF18_ConfigLandlockRefused(t *testing.T) {
	key := "pghardend.yaml:8: services.postgres.landlock"
	var many []string
	for port := range maxServicePorts + 1 {
		many = append(many, fmt.Sprint(port+1))
	}
	refusesConfig(t, []refusal{
		{"list", withKey("landlock: [required]"), key + ": is a list, not a mapping; write a mapping such as `mode: required`"},
		{"unknown key", withKey("landlock: {writes: [/a]}"), key + ".writes: unknown key; did you mean write?"},
		{"unknown mode", withKey("landlock: {mode: on}"), key + ".mode: \"on\" is unknown; known values: required, preferred, off"},
		{"truth value", withKey("landlock: {mode: true}"), key + ".mode: is a boolean (true), not text; write text such as `required`, or put it in quotes: \"true\""},
		{"relative", withKey("landlock: {read: [ca]}"), key + ".read[0]: \"ca\" is a relative path; write an absolute path such as /srv/ca"},
		{"root", withKey("landlock: {write: [//]}"), key + ".write[0]: \"//\" is the root directory; write an absolute path such as /srv/tablespaces"},
		{"through ..", withKey("landlock: {write: [/srv/../etc]}"), key + ".write[0]: \"/srv/../etc\" leads through ..; write an absolute path such as /srv/tablespaces"},
		{"twice", withKey("landlock: {write: [/srv/a, /srv/a/]}"), key + ".write[1]: /srv/a is in the list twice, first as services.postgres.landlock.write[0] on line 8; remove one of the two"},
		{"in both", withKey("landlock: {read: [/srv/a], write: [/srv/a]}"), key + ".write[0]: \"/srv/a\" is in services.postgres.landlock.read[0] as well; keep it in write, which includes reading, or in read"},
		{"port 0", withKey("landlock: {bind: [0]}"), key + ".bind[0]: 0 is out of range; write a whole number from 1 to 65535"},
		{"port as text", withKey("landlock: {connect: [ldap]}"), key + ".connect[0]: is text (\"ldap\"), not a number; write a whole number from 1 to 65535"},
		{"port twice", withKey("landlock: {connect: [389, 389]}"), key + ".connect[1]: 389 is in the list twice, first as services.postgres.landlock.connect[0] on line 8; remove one of the two"},
		{"too many ports", withKey("landlock: {connect: [" + strings.Join(many, ", ") + "]}"), key + ".connect[64]: more than 64 ports; keep those that the service uses"},
		{"off, but something", withKey("landlock: {mode: off, read: [/srv/a]}"), key + ".read: has no effect with mode: off; remove it, or write mode: required"},
	})
}
