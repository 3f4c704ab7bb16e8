package launch

import (
	"slices"
	"testing"
)

func TestWithoutIdleOOM(t *testing.T) {
	const file = "PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj"
	for _, tc := range []struct {
		score int
		vars  []string
		want  []string
	}{
		{0, []string{"LANG=C", file, "PG_OOM_ADJUST_VALUE=0"}, []string{"LANG=C"}},
		{0, []string{file}, nil},
		{0, []string{"PG_OOM_ADJUST_VALUE=0"}, []string{"PG_OOM_ADJUST_VALUE=0"}},
		{-900, []string{file, "PG_OOM_ADJUST_VALUE=0"}, []string{file, "PG_OOM_ADJUST_VALUE=0"}},
		{0, []string{file, "PG_OOM_ADJUST_VALUE=500"}, []string{file, "PG_OOM_ADJUST_VALUE=500"}},
	} {
		if got := (environment{vars: tc.vars}).withoutIdleOOM(tc.score).vars; !slices.Equal(got, tc.want) {
			t.Errorf("score %d, %q: %q, want %q", tc.score, tc.vars, got, tc.want)
		}
	}
}
