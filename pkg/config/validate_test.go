package config

import (
	"fmt"
	"strings"
	"testing"
)

// peersOf is a list with the given nodes and networks.
func peersOf(t *testing.T, instance string, networks string, names ...string) Peers {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\ninstance: %s\nnodes:\n", instance)
	for i, name := range names {
		fmt.Fprintf(&b, "  - {name: %s, role: postgres, addresses: [10.20.%d.%d]}\n", name, i/200, i%200+1)
	}
	return mustParsePeers(t, b.String()+networks)
}

const (
	someNetworks = "networks:\n  control_plane: [10.0.0.0/24]\n  applications: [10.50.0.0/16, 10.51.0.0/16]\n  backup: []\n"
	forced       = "`pghardend apply --force` accepts it"
)

func TestValidate(t *testing.T) {
	c := mustParseConfig(t, "version: 1\n# this node\nnode: pg-1\n")
	if err := Validate(c, peersOf(t, "a", "", "pg-0", "pg-1")); err != nil {
		t.Errorf("a node of the list is refused: %v", err)
	}
	checkRefusal(t, Validate(c, peersOf(t, "a", "", "pg-0", "pool")),
		`/etc/pghardend/pghardend.yaml:3: node: this node, "pg-1", is not in peers.yaml, which has pg-0, pool; did you mean pg-0? If not, add the node there`)
	names := make([]string, 12)
	for i := range names {
		names[i] = fmt.Sprintf("standby-%d", i)
	}
	checkRefusal(t, Validate(c, peersOf(t, "a", "", names...)),
		`/etc/pghardend/pghardend.yaml:3: node: this node, "pg-1", is not in peers.yaml, which has standby-0, standby-1, standby-2, standby-3, `+
			`standby-4, standby-5, standby-6, standby-7, standby-8, standby-9 and 2 more; add the node there, or write its right name here`)
}

func TestCheckChangeAccepts(t *testing.T) {
	old := peersOf(t, "a", someNetworks, "n0", "n1", "n2", "n3", "n4")
	for name, next := range map[string]Peers{
		"the same":                 old,
		"three of five":            peersOf(t, "a", someNetworks, "n0", "n1", "n2"),
		"three of five, new ones":  peersOf(t, "a", someNetworks, "x", "n4", "n1", "n2", "y"),
		"more":                     peersOf(t, "a", someNetworks, "n0", "n1", "n2", "n3", "n4", "n5"),
		"an empty network is gone": peersOf(t, "a", strings.Replace(someNetworks, "  backup: []\n", "", 1), "n0", "n1", "n2", "n3", "n4"),
		"a network emptied in so many words": peersOf(t, "a",
			strings.Replace(someNetworks, "[10.50.0.0/16, 10.51.0.0/16]", "[]", 1), "n0", "n1", "n2", "n3", "n4"),
		"another control plane": peersOf(t, "a", strings.Replace(someNetworks, "10.0.0.0/24", "10.9.0.0/24", 1), "n0", "n1", "n2", "n3", "n4"),
	} {
		if err := CheckChange(old, next); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := CheckChange(Peers{}, old); err != nil {
		t.Errorf("the first list: %v", err)
	}
	if err := CheckChange(peersOf(t, "a", "", "n0", "n1"), peersOf(t, "a", "", "n0")); err != nil {
		t.Errorf("exactly half: %v", err)
	}
	if err := CheckChange(peersOf(t, "a", "networks: {control_plane: []}\n", "n0"), peersOf(t, "a", "", "n0")); err != nil {
		t.Errorf("no control plane before nor after: %v", err)
	}
}

func TestCheckChangeRefuses(t *testing.T) {
	names := []string{"n0", "n1", "n2", "n3", "n4"}
	old := peersOf(t, "a", someNetworks, names...)
	tests := []struct {
		name string
		next Peers
		want string
	}{
		{"another instance", peersOf(t, "b", someNetworks, names...),
			"peers.yaml:2: instance: this is the list of instance b, not of a; put the list of a there; if the instance was renamed, " + forced},
		{"two of five", peersOf(t, "a", someNetworks, "n0", "n1"),
			"peers.yaml:3: nodes: only 2 of the 5 nodes known so far are in the list (it has 2); complete the list; if they are really gone, " + forced},
		{"five others", peersOf(t, "a", someNetworks, "x0", "x1", "x2", "x3", "x4"),
			"peers.yaml:3: nodes: only 0 of the 5 nodes known so far are in the list (it has 5); complete the list; if they are really gone, " + forced},
		{"control plane emptied", peersOf(t, "a", strings.Replace(someNetworks, "[10.0.0.0/24]", "[]", 1), names...),
			"peers.yaml:10: networks.control_plane: the network had 1 entry and is empty now, operators would be locked out; put its entries back; if it is meant, " + forced},
		{"control plane gone", peersOf(t, "a", strings.Replace(someNetworks, "  control_plane: [10.0.0.0/24]\n", "", 1), names...),
			"peers.yaml:9: networks.control_plane: the network had 1 entry and is gone, the list looks cut off; put it back, operators would be locked out; if it is meant, " + forced},
		{"network gone", peersOf(t, "a", "networks:\n  control_plane: [10.0.0.0/24]\n", names...),
			"peers.yaml:9: networks.applications: the network had 2 entries and is gone, the list looks cut off; put it back; if it is meant, write `applications: []`"},
		{"everything", peersOf(t, "b", "", "n0"),
			"peers.yaml:1: networks.applications: the network had 2 entries and is gone, the list looks cut off; put it back; if it is meant, write `applications: []`\n" +
				"peers.yaml:1: networks.control_plane: the network had 1 entry and is gone, the list looks cut off; put it back, operators would be locked out; if it is meant, " + forced + "\n" +
				"peers.yaml:2: instance: this is the list of instance b, not of a; put the list of a there; if the instance was renamed, " + forced + "\n" +
				"peers.yaml:3: nodes: only 1 of the 5 nodes known so far are in the list (it has 1); complete the list; if they are really gone, " + forced},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkRefusal(t, CheckChange(old, tt.next), tt.want) })
	}
}
