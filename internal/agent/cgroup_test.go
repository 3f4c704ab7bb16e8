package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/limits"
)

func TestCgroupSpec(t *testing.T) {
	for text, want := range map[string]struct {
		tasks  uint64
		facts  Facts
		derive bool
	}{
		"    max_connections: 100\n":                                    {476, nil, true},
		"    start_timeout: 60s\n":                                      {0, nil, true}, // the launch finds one
		"    stop_timeout: 60s\n":                                       {2*(500+20) + 256, Facts{"svc": {Clients: 500, WALSenders: 20}}, true},
		"    max_connections: 100\n    cgroup: {tasks_max: 90}\n":       {90, Facts{"svc": {Clients: 500}}, false},
		"    max_connections: 100\n    oom_score_adj: 1\n":              {476, Facts{"svc": {Clients: 500}}, true}, // what the configuration says counts
		"    max_connections: 50\n    cgroup: {tasks_max: unlimited}\n": {0, Facts{"svc": {Clients: 500}}, false},
		"    max_connections: 50\n    cgroup: {mode: off}\n":            {0, Facts{"svc": {Clients: 500}}, false},
	} {
		cfg := landlockConfig("postgres", pgCommand, text)
		d := mustBuild(t, cfg)
		d, err := Build(d.Config, d.Peers, Extra{Facts: want.facts})
		if err != nil {
			t.Fatal(err)
		}
		if c := d.Services[0].Cgroup; c.Want.TasksMax != want.tasks || c.DefaultTasks != want.derive || c.RecordDir != "/run/pghardend/cgroup" || c.Name != "pghardend" {
			t.Errorf("%q: %+v", text, c)
		}
	}
}

// Two agents side by side have groups of their own.
func TestCgroupName(t *testing.T) {
	a, b := mustBuild(t, configHead).Config, mustBuild(t, configHead+"runtime_dir: /tmp/other\n").Config
	if cgroupName(a) != "pghardend" || !strings.HasPrefix(cgroupName(b), "pghardend-") || cgroupName(b) == cgroupName(a) {
		t.Errorf("%s and %s", cgroupName(a), cgroupName(b))
	}
}

// A service that nobody has put into a group is never said to be in one.
func TestF30_StatusShowsCgroups(t *testing.T) {
	for mode, want := range map[string]struct{ reasons, warnings int }{"required": {1, 0}, "preferred": {0, 1}, "off": {0, 0}} {
		s := control.Status{}
		spec := launch.Spec{Service: "pg", Cgroup: launch.Cgroup{Mode: mode, Want: limits.Cgroup{TasksMax: 300}, RecordDir: t.TempDir()}}
		addCgroup(t.Context(), spec, os.Getpid(), &s)
		if len(s.Layers) != 1 || s.Layers[0].Enforced || s.Layers[0].Configured != (mode != "off") || len(s.Reasons) != want.reasons || len(s.Warnings) != want.warnings {
			t.Errorf("%s: %+v", mode, s)
		}
	}
}

// Peek sees that a file says something else than when all was right.
func TestCgroupPeek(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pids.max")
	if err := os.WriteFile(file, []byte("300\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newCgroupsResource(func(list []runningService) []runningService { return list })
	defer r.close()
	if err := r.learn(map[string]bool{file: true}); err != nil || r.Peek(t.Context()) {
		t.Errorf("as it was: %v", err)
	}
	if err := os.WriteFile(file, []byte("max\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !r.Peek(t.Context()) {
		t.Error("a change is not seen")
	}
}
