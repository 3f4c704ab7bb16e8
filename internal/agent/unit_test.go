package agent

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// leftBy are the capabilities that files of packaging/systemd leave together.
func leftBy(t *testing.T, files ...string) []string {
	t.Helper()
	var left []string
	for _, name := range files {
		data, err := os.ReadFile("../../packaging/systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if list, ok := strings.CutPrefix(strings.TrimSpace(line), "CapabilityBoundingSet="); ok {
				if strings.HasPrefix(list, "~") {
					t.Fatalf("not a list of what is left: %s", line)
				}
				left = append(left, strings.Fields(list)...)
			}
		}
	}
	return left
}

// The unit takes nothing from the agent that it needs to put things back, and that
// no other unit does for it: without some of these it runs, but slower, or has to leave drift to people.
func TestUnitLeavesTheAgentWhatItNeeds(t *testing.T) {
	wantLeft(t, leftBy(t, "pghardend.service"), map[string]string{
		"CAP_NET_ADMIN":    "rules, sets and announced changes",
		"CAP_NET_RAW":      "names of sets in rules, and the commands of the legacy backend",
		"CAP_AUDIT_READ":   "changes in the legacy backend, and denied syscalls",
		"CAP_BPF":          "tracing denials, and what complain mode lets pass",
		"CAP_PERFMON":      "tracing denials, and what complain mode lets pass",
		"CAP_SYS_RESOURCE": "limits of another user's process",
		"CAP_SYS_PTRACE":   "reading who made a change",
		"CAP_FOWNER":       "modes of directories that somebody else owns",
	})
	wantLeft(t, leftBy(t, "pghardend-repair.service"), map[string]string{
		"CAP_SYS_ADMIN":  "mounts of live services",
		"CAP_SYS_CHROOT": "mounts of live services",
		"CAP_SYS_NICE":   "answering a commit at once",
		"CAP_CHOWN":      "owners of directories",
	})
}

// With the drop-in the agent has what its own repairs and the launch of its services take.
func TestDropInGivesWhatChildrenNeed(t *testing.T) {
	wantLeft(t, leftBy(t, "pghardend.service", childrenDropIn), map[string]string{
		"CAP_NET_ADMIN":    "rules, sets and announced changes",
		"CAP_NET_RAW":      "the commands of the legacy backend",
		"CAP_SETUID":       "the launch: another user",
		"CAP_SETGID":       "the launch: other groups",
		"CAP_SETPCAP":      "the launch: no capabilities",
		"CAP_SYS_ADMIN":    "the launch: mounts",
		"CAP_KILL":         "stopping a service",
		"CAP_AUDIT_READ":   "changes in the legacy backend, and denied syscalls",
		"CAP_BPF":          "tracing denials, and what complain mode lets pass",
		"CAP_PERFMON":      "tracing denials, and what complain mode lets pass",
		"CAP_SYS_RAWIO":    "the launch's way through the exec gate",
		"CAP_SYS_NICE":     "answering a commit at once",
		"CAP_SYS_RESOURCE": "raising a hard limit again",
		"CAP_SYS_PTRACE":   "reading who made a change",
		"CAP_CHOWN":        "owners of directories",
		"CAP_FOWNER":       "modes of directories that somebody else owns",
	})
}

func wantLeft(t *testing.T, left []string, needed map[string]string) {
	t.Helper()
	for name, what := range needed {
		if !slices.Contains(left, name) {
			t.Errorf("the unit takes %s, which is for %s", name, what)
		}
	}
}
