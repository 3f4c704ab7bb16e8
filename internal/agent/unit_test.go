package agent

import (
	"os"
	"strings"
	"testing"
)

// The unit takes nothing from the agent that it needs to put things back: without
// some of these it runs, but slower, or has to leave drift to people.
func TestUnitLeavesTheAgentWhatItNeeds(t *testing.T) {
	data, err := os.ReadFile("../../packaging/systemd/pghardend.service")
	if err != nil {
		t.Fatal(err)
	}
	var taken []string
	for line := range strings.Lines(string(data)) {
		if list, ok := strings.CutPrefix(strings.TrimSpace(line), "CapabilityBoundingSet="); ok {
			if list, ok = strings.CutPrefix(list, "~"); !ok {
				t.Fatalf("not a list of what is taken: %s", line)
			}
			taken = append(taken, strings.Fields(list)...)
		}
		if strings.HasPrefix(line, "RestrictRealtime=yes") || strings.HasPrefix(line, "PrivateNetwork=yes") {
			t.Errorf("the unit has %s", line)
		}
	}
	if len(taken) == 0 {
		t.Fatal("the unit takes no capability, so this test looks in the wrong place")
	}
	for name, what := range map[string]string{
		"CAP_NET_ADMIN":    "rules, sets and announced changes",
		"CAP_NET_RAW":      "the commands of the legacy backend",
		"CAP_AUDIT_READ":   "changes in the legacy backend, and denied syscalls",
		"CAP_BPF":          "tracing denials, and what complain mode lets pass",
		"CAP_PERFMON":      "tracing denials, and what complain mode lets pass",
		"CAP_SYS_NICE":     "answering a commit at once",
		"CAP_SYS_RESOURCE": "raising a hard limit again",
		"CAP_SYS_PTRACE":   "reading who made a change",
		"CAP_CHOWN":        "owners of directories",
		"CAP_FOWNER":       "modes of directories that somebody else owns",
	} {
		for _, gone := range taken {
			if gone == name {
				t.Errorf("the unit takes %s, which is for %s", name, what)
			}
		}
	}
}
