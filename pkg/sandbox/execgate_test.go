package sandbox

import "testing"

// What the launch stage goes by.
func TestExecBelow(t *testing.T) {
	for name := range allFeatures {
		if got := embeddedProfile(t, name).ExecBelow(); got != 4096 {
			t.Errorf("%s: execve below %d", name, got)
		}
		for _, f := range []string{"helpers", "open_exec"} {
			if got := embeddedProfile(t, name, f).ExecBelow(); got != 0 {
				t.Errorf("%s with %s: execve below %d", name, f, got)
			}
		}
	}
}
