package agent

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/mac"
	"github.com/pghardend/pghardend/pkg/mounts"
	"github.com/pghardend/pghardend/policies"
)

// mountsSpec is what all services see of a machine, what the configuration adds, and
// as what is written to the data directory and what Landlock grants.
func mountsSpec(cfg config.Config, svc config.Service) (launch.Mounts, error) {
	m := launch.Mounts{Mode: svc.Mounts.Mode}
	if m.Mode == config.MountsOff {
		return m, nil
	}
	system, err := systemMounts()
	if err != nil {
		return m, err
	}
	m.Programs = system.Programs
	if svc.Landlock.Mode == config.LandlockOff {
		// Nobody declares what is executed, so what is not declared has to work.
		m.Paths.Exec, m.Programs = system.Programs, nil
	}
	m.Paths = mounts.Spec{
		Exec: slices.Concat(m.Paths.Exec, system.Exec, svc.Mounts.Exec), ReadOnly: system.ReadOnly, Devices: system.Devices,
		// The control socket, copies of the configuration, what is known of other services.
		Hide: append([]string{cfg.RuntimeDir, cfg.StateDir}, system.Hide...),
	}
	if svc.DataDir != "" {
		m.Paths.Write = append(m.Paths.Write, svc.DataDir)
	}
	// A profile without a policy is told of by landlockSpec, unless Landlock is off.
	if policy, err := landlockPolicy(svc.Profile); err == nil {
		for _, r := range policy.RuleSet(svc.DataDir, "").Rules {
			if r.Access&mac.Write != 0 {
				m.Paths.Write = append(m.Paths.Write, r.Path)
			}
		}
	}
	m.Paths.Write = append(m.Paths.Write, svc.Landlock.Write...)
	return m, nil
}

// systemLayout is policies/mounts/system.yaml.
type systemLayout struct {
	Version  int      `yaml:"version"`
	Exec     []string `yaml:"exec"`
	Programs []string `yaml:"programs"`
	ReadOnly []string `yaml:"read_only"`
	Devices  []string `yaml:"devices"`
	Hide     []string `yaml:"hide"`
}

func systemMounts() (systemLayout, error) {
	const file = "mounts/system.yaml"
	var layout systemLayout
	data, err := fs.ReadFile(policies.FS, file)
	if err == nil {
		dec := yaml.NewDecoder(bytes.NewReader(data))
		dec.KnownFields(true)
		err = dec.Decode(&layout)
	}
	if err == nil && layout.Version != 1 {
		err = fmt.Errorf("version %d: write 1", layout.Version)
	}
	if err != nil {
		return layout, fmt.Errorf("cannot read the built-in %s: %w", file, err)
	}
	return layout, nil
}

// addMounts shows the layer where it has no findings of its own, or none that stand for
// something enforced.
func addMounts(ctx context.Context, spec launch.Spec, pid int, s *control.Status) {
	l := control.Layer{Name: launch.LayerMounts, Subject: spec.Service}
	if spec.Mounts.Off() {
		l.Detail = "switched off (mounts.mode: off)"
		s.Layers = append(s.Layers, l)
		return
	}
	state, err := launch.ReadMounts(ctx, spec, pid)
	if err != nil || !state.Accepted() {
		return // it was just verified, so its findings are there
	}
	at := slices.IndexFunc(s.Layers, func(have control.Layer) bool { return have.Name == l.Name && have.Subject == l.Subject })
	if at < 0 {
		return
	}
	s.Layers[at].Enforced = false
	s.Layers[at].Detail = "it has the host's mounts, and mounts.mode is " + spec.Mounts.Mode
	s.Warnings = append(s.Warnings, fmt.Sprintf("service %s runs without mounts of its own: the kernel was too old for that when it was started (Linux 5.12 is needed)", spec.Service))
}
