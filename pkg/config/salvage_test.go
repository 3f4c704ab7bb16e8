package config

import (
	"fmt"
	"testing"
)

func TestSalvageControlPlane(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"nodes are wrong":       {"version: 1\nnodes: 7\nnetworks: {control_plane: [10.0.0.0/24, fd00:9::/64]}\n", "[10.0.0.0/24 fd00:9::/64]"},
		"a bad entry among":     {"networks:\n  control_plane: [10.0.0.0/33, 0.0.0.0/0, 10.0.0.1/24, 10.0.0.0/24, {a: b}]\n", "[10.0.0.0/24]"},
		"twice":                 {"networks: {control_plane: [10.0.0.0/24, 10.0.0.0/24]}\n", "[10.0.0.0/24]"},
		"no YAML before it":     {"version: 1\nnodes:\n  - {name: pg-0, role\nnetworks:\n  control_plane: [10.0.0.0/24]\n  dns: [10.9.0.0/24]\n", "[10.0.0.0/24]"},
		"no YAML, a block list": {"}}\nnetworks:\n  control_plane:\n  - 10.0.0.0/24\n  - 10.1.0.0/24\n  dns:\n  - 10.9.0.0/24\n", "[10.0.0.0/24 10.1.0.0/24]"},
		"no YAML, a deep list":  {"}}\nnetworks:\n  control_plane:\n    - 10.0.0.0/24\n  dns: [10.9.0.0/24]\n", "[10.0.0.0/24]"},
		"cut off in the list":   {"networks:\n  control_plane: [10.0.0.0/24, 10.1.", "[]"},
		"a comment":             {"}}\n# control_plane: [10.0.0.0/24]\n", "[]"},
		"another network":       {"networks: {dns: [10.9.0.0/24]}\n", "[]"},
		"a mapping":             {"networks: {control_plane: {10.0.0.0/24: 10.1.0.0/24}}\n", "[]"},
		"empty":                 {"", "[]"},
		"no text":               {"\x00\xff", "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := fmt.Sprint(SalvageControlPlane([]byte(tt.text))); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

func FuzzSalvageControlPlane(f *testing.F) {
	f.Add([]byte("networks:\n  control_plane: [10.0.0.0/24]\n"))
	f.Add([]byte("}}\n control_plane:\n - 10.0.0.0/24\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, p := range SalvageControlPlane(data) {
			if _, problem, _ := parsePrefix(p.String()); problem != "" {
				t.Errorf("%s: %s", p, problem)
			}
		}
	})
}
