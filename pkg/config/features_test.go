package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestConfigFeatures(t *testing.T) {
	for text, want := range map[string][]string{
		"oom_score_adj: 0":                 {"auto"},
		"features: auto":                   {"auto"},
		"features: [auto, jit]":            {"auto", "jit"},
		"features: [huge_pages, io_uring]": {"huge_pages", "io_uring"},
		"features: []":                     {},
	} {
		if diff := cmp.Diff(want, mustParseConfig(t, withKey(text)).Services[0].Features); diff != "" {
			t.Errorf("%s: -want +got\n%s", text, diff)
		}
	}
}

func TestF35_ConfigFeaturesRefused(t *testing.T) {
	key := "pghardend.yaml:8: services.postgres.features"
	refusesConfig(t, []refusal{
		{"a word", withKey("features: jit"), key + ": \"jit\" is not a list; write `features: auto`, or a list such as [auto, jit]"},
		{"twice", withKey("features: [jit, jit]"), key + "[1]: jit is in the list twice, first as services.postgres.features[0] on line 8; remove one of the two"},
		{"no name", withKey("features: [JIT]"), key + "[0]: \"JIT\" is not the name of a feature (`pghardend profile show` lists them); write something like jit"},
	})
}
