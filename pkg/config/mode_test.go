package config

import (
	"testing"
	"time"
)

func TestConfigMode(t *testing.T) {
	for text, want := range map[string]Service{
		"oom_score_adj: 0": {Mode: ModeEnforce},
		"mode: enforce":    {Mode: ModeEnforce},
		"mode: complain":   {Mode: ModeComplain},
	} {
		got := mustParseConfig(t, withKey(text)).Services[0]
		if got.Mode != want.Mode || !got.ComplainUntil.IsZero() {
			t.Errorf("%s: %q until %s", text, got.Mode, got.ComplainUntil)
		}
	}
	got := mustParseConfig(t, withKey("mode: complain\n    complain_until: \"2030-01-31T18:00:00+01:00\"")).Services[0]
	if want := time.Date(2030, 1, 31, 17, 0, 0, 0, time.UTC); !got.ComplainUntil.Equal(want) {
		t.Errorf("until %s, want %s", got.ComplainUntil, want)
	}
}

func TestF18_ConfigModeRefused(t *testing.T) {
	key := "pghardend.yaml:8: services.postgres."
	until := "pghardend.yaml:9: services.postgres.complain_until: "
	fix := "; write a time with its zone in quotes such as \"2030-01-31T18:00:00Z\""
	refusesConfig(t, []refusal{
		{"unknown", withKey("mode: complian"), key + "mode: \"complian\" is unknown; did you mean complain?"},
		{"date only", withKey("mode: complain\n    complain_until: \"2030-01-31\""), until + "\"2030-01-31\" is not a time (RFC 3339)" + fix},
		{"no quotes", withKey("mode: complain\n    complain_until: 2030-01-31T18:00:00Z"), until + "\"2030-01-31T18:00:00Z\" is not in quotes" + fix},
		{"without complain", withKey("complain_until: \"2030-01-31T18:00:00Z\""), key + "complain_until: has no effect without mode: complain; remove it, or write mode: complain"},
	})
}

func TestStart(t *testing.T) {
	for start, external := range map[string]bool{"": false, "start: agent": false, "start: external": true} {
		c, err := ParseConfig("c.yaml", []byte("version: 1\nservices:\n  a:\n    profile: generic\n    user: nobody\n    command: [/bin/a]\n    "+start+"\n"), "pg-0")
		if err != nil || c.Services[0].External != external {
			t.Errorf("%q: external %v, %v", start, c.Services, err)
		}
	}
	if _, err := ParseConfig("c.yaml", []byte("version: 1\nservices:\n  a: {profile: generic, user: nobody, command: [/bin/a], start: unit}\n"), "pg-0"); err == nil {
		t.Error("start: unit is taken")
	}
}
