package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/pkg/firewall"
)

// F15: what is left for a boot with nothing good.
func TestF15_ControlPlaneIsSalvaged(t *testing.T) {
	const broken = "services: ["
	for name, tt := range map[string]struct {
		config, peers string
		list          string
	}{
		"peers broken":  {"", goodPeers + "  - {\n", "[10.0.0.0/24 fd00:10::/64]"},
		"config broken": {broken, goodPeers, "[10.0.0.0/24 fd00:10::/64]"},
		"both broken":   {broken, goodPeers + "  - {\n", "[10.0.0.0/24 fd00:10::/64]"},
		"peers lost":    {"", "-", "[]"},
		"nothing in it": {broken, "version: 1\n", "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFiles(t)
			f.write(f.config, f.configText()+tt.config)
			f.write(f.peers, tt.peers)
			if tt.peers == "-" {
				f.remove(f.peers)
			}
			cfg, list, err := salvage(t.Context(), f.config)
			if err != nil || fmt.Sprint(list) != tt.list || cfg.StateDir != f.state || cfg.RuntimeDir != f.run {
				t.Errorf("%v, %+v, %v", list, cfg, err)
			}
		})
	}
	t.Run("a list that others could write", func(t *testing.T) {
		f := newFiles(t)
		f.chmod(f.peers, 0o666)
		if _, list, err := salvage(t.Context(), f.config); err != nil || len(list) > 0 {
			t.Errorf("%v, %v", list, err)
		}
	})
}

// Only rows that come from the control plane are left, with what the configuration says of their ports.
func TestF15_ControlPlaneAlone(t *testing.T) {
	f := newFiles(t)
	f.write(f.config, f.configText()+"flows:\n  ssh: {ports: [2222]}\nfirewall: {scope: siblings}\n")
	cfg, list, err := salvage(t.Context(), f.config)
	if err != nil {
		t.Fatal(err)
	}
	d, err := buildControlPlane(cfg, list)
	if err != nil {
		t.Fatal(err)
	}
	var inbound []string
	for _, flow := range d.Firewall.Flows {
		inbound = append(inbound, fmt.Sprint(flow.Name, flow.Ports, flow.From))
	}
	if got, want := strings.Join(inbound, " "), "pcp[9898] [control_plane] ssh[2222] [control_plane] echo[] [control_plane]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if d.Firewall.Scope == firewall.ScopeSiblings {
		t.Error("the rest is left to the host's own firewall")
	}
}

// At any other time than a boot the host stays as it is.
func TestNothingGoodIsNoChangeLater(t *testing.T) {
	if booting(t.Context()) {
		t.Fatal("this machine boots just now")
	}
	f := newFiles(t)
	f.write(f.peers, "version: 1\n")
	for what, apply := range map[string]func(context.Context, string, bool) (Applied, error){"apply": Apply, "apply --boot": ApplyAtBoot} {
		a, err := apply(t.Context(), f.config, false)
		contains(t, err, "peers.yaml:1: nodes: missing", "nothing was applied", "there is no last good configuration in "+filepath.Join(f.state))
		if !a.Changes.Empty() {
			t.Errorf("%s: %v", what, a.Changes)
		}
	}
}
