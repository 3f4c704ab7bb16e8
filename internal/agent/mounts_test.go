package agent

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/mounts"
)

func TestMountsSpec(t *testing.T) {
	m := mustBuild(t, landlockConfig("postgres", pgCommand, "    landlock: {write: [/srv/ts]}\n    mounts: {exec: [/opt/ext]}\n")).Services[0].Mounts
	if m.Mode != launch.MountsRequired {
		t.Errorf("mode %s", m.Mode)
	}
	for _, c := range []struct {
		list []string
		want []string
	}{
		{m.Paths.Exec, []string{"/usr/lib64", "/lib64", "/opt/ext"}}, {m.Paths.ReadOnly, []string{"/etc", "/usr"}},
		{m.Paths.Write, []string{"/var/lib/postgresql/15/main", "/dev/shm", "/run/postgresql", "/srv/ts"}},
		{m.Paths.Devices, []string{"/dev/null"}}, {m.Paths.Hide, []string{"/run/pghardend", "/var/lib/pghardend", "/run/user"}},
	} {
		for _, want := range c.want {
			if !slices.Contains(c.list, want) {
				t.Errorf("%s is not in %v", want, c.list)
			}
		}
	}
	if off := mustBuild(t, landlockConfig("postgres", pgCommand, "    mounts: {mode: off}\n")).Services[0].Mounts; !off.Off() || off.Paths.Exec != nil {
		t.Errorf("%+v", off)
	}
}

// F30: who has the host's mounts is not called enforced, whether that is accepted or not.
func TestF30_StatusShowsMounts(t *testing.T) {
	for mode, want := range map[string]struct {
		configured        bool
		reasons, warnings int
		detail            string
	}{
		"required":  {true, 1, 0, "namespace is the host's, not of its own"},
		"preferred": {true, 0, 1, "it has the host's mounts, and mounts.mode is preferred"},
		"off":       {false, 0, 0, "switched off"},
	} {
		spec := launch.Spec{Service: "pg", Command: []string{"/usr/bin/true"}, Mounts: launch.Mounts{Mode: mode, Paths: mounts.Spec{}}}
		state, err := launch.ReadMounts(t.Context(), spec, os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		findings := state.Findings(os.Getpid())
		s := control.Status{Layers: serviceLayers("pg", 1, findings), Reasons: failures("pg", findings)}
		addMounts(t.Context(), spec, os.Getpid(), &s)
		if len(s.Layers) != 1 || s.Layers[0].Enforced || s.Layers[0].Configured != want.configured || !strings.Contains(s.Layers[0].Detail, want.detail) {
			t.Errorf("%s: %+v", mode, s.Layers)
		}
		if len(s.Reasons) != want.reasons || len(s.Warnings) != want.warnings {
			t.Errorf("%s: reasons %q, warnings %q", mode, s.Reasons, s.Warnings)
		}
	}
}
