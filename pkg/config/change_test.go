package config

import (
	"fmt"
	"strings"
	"testing"
)

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
		"part of the control plane": peersOf(t, "a", strings.Replace(someNetworks, "10.0.0.0/24", "10.0.0.128/25, 10.9.0.0/24", 1), "n0", "n1", "n2", "n3", "n4"),
	} {
		if err := CheckChange(Config{}, old, next); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := CheckChange(Config{}, Peers{}, old); err != nil {
		t.Errorf("the first list: %v", err)
	}
	if err := CheckChange(Config{}, peersOf(t, "a", "", "n0", "n1"), peersOf(t, "a", "", "n0")); err != nil {
		t.Errorf("exactly half: %v", err)
	}
	if err := CheckChange(Config{}, peersOf(t, "a", "networks: {control_plane: []}\n", "n0"), peersOf(t, "a", "", "n0")); err != nil {
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
		{"another control plane", peersOf(t, "a", strings.Replace(someNetworks, "10.0.0.0/24", "10.9.0.0/24", 1), names...),
			"peers.yaml:10: networks.control_plane: none of 1 entry known so far is left of the network, operators would be locked out; " +
				"keep the old ones beside the new ones until operators come from these; if it is meant, " + forced},
		{"network gone", peersOf(t, "a", "networks:\n  control_plane: [10.0.0.0/24]\n", names...),
			"peers.yaml:9: networks.applications: the network had 2 entries and is gone, the list looks cut off; put it back; if it is meant, write `applications: []`"},
		{"everything", peersOf(t, "b", "", "n0"),
			"peers.yaml:1: networks.applications: the network had 2 entries and is gone, the list looks cut off; put it back; if it is meant, write `applications: []`\n" +
				"peers.yaml:1: networks.control_plane: the network had 1 entry and is gone, the list looks cut off; put it back, operators would be locked out; if it is meant, " + forced + "\n" +
				"peers.yaml:2: instance: this is the list of instance b, not of a; put the list of a there; if the instance was renamed, " + forced + "\n" +
				"peers.yaml:3: nodes: only 1 of the 5 nodes known so far are in the list (it has 1); complete the list; if they are really gone, " + forced},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { checkRefusal(t, CheckChange(Config{}, old, tt.next), tt.want) })
	}
}

func TestF13_NetworkShrunk(t *testing.T) {
	list := func(network string, n int) Peers {
		cidrs := make([]string, n)
		for i := range cidrs {
			cidrs[i] = fmt.Sprintf("10.60.%d.0/24", i)
		}
		return peersOf(t, "a", "networks: {"+network+": ["+strings.Join(cidrs, ", ")+"]}\n", "n0")
	}
	host, siblings := Config{}, Config{Firewall: Firewall{Scope: ScopeSiblings}}
	tests := []struct {
		name     string
		config   Config
		network  string
		was, has int
		refused  bool
	}{
		{"two of five", host, "applications", 5, 2, true},
		{"one of four", host, "control_plane", 4, 1, true},
		{"half", host, "applications", 4, 2, false},
		{"three of five", host, "backup", 5, 3, false},
		{"one of three", host, "applications", 3, 1, false},
		{"emptied in so many words", host, "applications", 5, 0, false},
		{"more", host, "applications", 4, 9, false},
		{"siblings that nobody asks for", host, "siblings", 9, 1, false},
		{"siblings that are kept out", siblings, "siblings", 9, 1, true},
	}
	for _, tt := range tests {
		err := CheckChange(tt.config, list(tt.network, tt.was), list(tt.network, tt.has))
		if !tt.refused {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		checkRefusal(t, err, fmt.Sprintf("peers.yaml:5: networks.%s: the network had %d entries and has %d now, the list looks cut off; complete it; if they are really gone, %s",
			tt.network, tt.was, tt.has, forced))
	}
	if err := CheckChange(host, list("control_plane", 4), list("control_plane", 0)); err == nil {
		t.Error("a control plane may not be emptied")
	}
}

// In scope siblings one wrong digit in the list would let all siblings in.
func TestF13_SiblingsUncovered(t *testing.T) {
	siblings, host := Config{Firewall: Firewall{Scope: ScopeSiblings}}, Config{Firewall: Firewall{Scope: ScopeHost}}
	list := func(entries string) Peers {
		return peersOf(t, "a", "networks: {siblings: ["+entries+"]}\n", "n0", "n1")
	}
	old := list("10.20.0.0/16, 10.30.0.0/16")
	for entries, refused := range map[string]bool{
		"10.2.0.0/16, 10.30.0.0/16": true, "10.30.0.0/16": true, "10.20.0.1/32": true,
		"10.20.0.0/24": false, "10.0.0.0/8": false, "10.20.0.0/24, 10.40.0.0/16": false,
	} {
		if err := CheckChange(host, old, list(entries)); err != nil {
			t.Errorf("%s, where it keeps nobody out: %v", entries, err)
		}
		err := CheckChange(siblings, old, list(entries))
		if (err != nil) != refused {
			t.Errorf("%s: %v", entries, err)
		}
	}
	checkRefusal(t, CheckChange(siblings, old, list("10.2.0.0/16")), "peers.yaml:6: networks.siblings: 10.20.0.0/16, where node n0 is, is not in the network "+
		"any more: whoever else is there would be let in; put it back; if it is meant, "+forced)
	if err := CheckChange(siblings, list("10.30.0.0/16"), list("10.40.0.0/16")); err != nil {
		t.Errorf("no node was there: %v", err)
	}
}

// wideFix is what to do about a network that is too wide.
const wideFix = "; list those who are really meant; if it is meant, name the network in firewall.accept_wide of the configuration, or " + forced

// The nodes of peersOf are 10.20.0.1 and so on.
func TestF13_NetworkTakesInStrangers(t *testing.T) {
	const siblings = "  siblings: [10.20.0.0/22, \"fd00:20::/32\"]\n"
	list := func(lines string) Peers { return peersOf(t, "a", "networks:\n"+siblings+lines, "n0", "n1") }
	tests := []struct{ name, lines, want string }{
		{"swallows the siblings", "  applications: [10.50.0.0/16, 10.0.0.0/8]\n",
			"peers.yaml:8: networks.applications[1]: 10.0.0.0/8 contains 10.20.0.0/22 of the network siblings, where other tenants are" + wideFix},
		{"the siblings themselves", "  control_plane: [10.20.0.0/22]\n",
			"peers.yaml:8: networks.control_plane[0]: 10.20.0.0/22 is part of 10.20.0.0/22 in the network siblings, where other tenants are" + wideFix},
		{"a part of them", "  backup:\n    - 10.50.0.0/16\n    - 10.20.1.0/24\n",
			"peers.yaml:10: networks.backup[1]: 10.20.1.0/24 is part of 10.20.0.0/22 in the network siblings, where other tenants are" + wideFix},
		{"one sibling", "  applications: [10.20.0.66/32]\n",
			"peers.yaml:8: networks.applications[0]: 10.20.0.66/32 is part of 10.20.0.0/22 in the network siblings, where other tenants are" + wideFix},
		{"IPv6", "  applications: [\"fd00:20:1::/48\"]\n",
			"peers.yaml:8: networks.applications[0]: fd00:20:1::/48 is part of fd00:20::/32 in the network siblings, where other tenants are" + wideFix},
		{"a subnet of resolvers", "  dns: [10.20.0.48/28]\n",
			"peers.yaml:8: networks.dns[0]: 10.20.0.48/28 is part of 10.20.0.0/22 in the network siblings, where other tenants are" + wideFix},
		{"link-local", "  applications: [\"fe80::/64\"]\n",
			"peers.yaml:8: networks.applications[0]: fe80::/64 has link-local addresses (fe80::/10), which any host on the link can give itself" + wideFix},
		{"link-local in a wide one", "  backup: [169.254.7.7/32]\n  control_plane: [169.0.0.0/8]\n",
			"peers.yaml:8: networks.backup[0]: 169.254.7.7/32 has link-local addresses (169.254.0.0/16), which any host on the link can give itself" + wideFix + "\n" +
				"peers.yaml:9: networks.control_plane[0]: 169.0.0.0/8 has link-local addresses (169.254.0.0/16), which any host on the link can give itself" + wideFix},
		{"several", "  applications: [10.20.0.0/30, 10.20.1.0/24, 10.20.2.0/24]\n  ntp: [10.0.0.0/9]\n",
			"peers.yaml:8: networks.applications[0]: 10.20.0.0/30 is part of 10.20.0.0/22 in the network siblings, where other tenants are (and 2 more of the network are too wide)" + wideFix + "\n" +
				"peers.yaml:9: networks.ntp[0]: 10.0.0.0/9 contains 10.20.0.0/22 of the network siblings, where other tenants are" + wideFix},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			next := list(tt.lines)
			checkRefusal(t, CheckChange(Config{}, list(""), next), tt.want)
			checkRefusal(t, CheckChange(Config{}, Peers{}, next), tt.want) // the very first list
			if err := CheckChange(Config{}, next, next); err != nil {
				t.Errorf("accepted once, but not again: %v", err)
			}
			all := Config{Firewall: Firewall{AcceptWide: []string{"applications", "control_plane", "backup", "dns", "ntp"}}}
			if err := CheckChange(all, Peers{}, next); err != nil {
				t.Errorf("in spite of accept_wide: %v", err)
			}
		})
	}
	other := Config{Firewall: Firewall{AcceptWide: []string{"backup"}}}
	checkRefusal(t, CheckChange(other, Peers{}, list(tests[0].lines)), tests[0].want)
	moved := list("  backup: [10.0.0.0/8]\n") // what one network has is new in another
	checkRefusal(t, CheckChange(Config{}, moved, list("  backup: [10.0.0.0/8]\n"+tests[0].lines)),
		"peers.yaml:9: networks.applications[1]: 10.0.0.0/8 contains 10.20.0.0/22 of the network siblings, where other tenants are"+wideFix)
	for _, lines := range []string{
		"  applications: [10.50.0.0/16, 10.20.4.0/22]\n  control_plane: [10.0.0.0/24, \"fd00:21::/32\"]\n", // beside them
		"  control_plane: [10.20.0.2/32]\n", // a node
		"  dns: [10.20.0.253/32]\n  ntp: [\"fd00:20::123/128\"]\n",
		"  metadata: [10.20.3.254/32]\n",
		"  dns: [169.254.169.253/32, \"fe80::53/128\"]\n  ntp: [169.254.169.123/32]\n  metadata: [\"fe80::a9fe:a9fe/128\"]\n",
	} {
		if err := CheckChange(Config{}, Peers{}, list(lines)); err != nil {
			t.Errorf("%s: %v", lines, err)
		}
	}
}

func TestF13_NetworkContainsNodes(t *testing.T) {
	list := func(networks string) Peers { return peersOf(t, "a", "networks: {"+networks+"}\n", "n0", "n1") }
	for _, network := range []string{"applications", "dns", "control_plane", "ours"} {
		want := "peers.yaml:6: networks." + network + "[1]: 10.20.0.0/16 contains 10.20.0.1 of node n0, it looks too wide" + wideFix
		checkRefusal(t, CheckChange(Config{}, Peers{}, list(network+": [10.0.0.0/24, 10.20.0.0/16]")), want)
	}
	for _, networks := range []string{"applications: [10.20.0.1/32, 10.20.0.2/32]", "dns: [10.20.0.1/32, 10.20.0.53/32]", "siblings: [10.20.0.0/16]", "applications: [10.20.1.0/24]"} {
		if err := CheckChange(Config{}, Peers{}, list(networks)); err != nil {
			t.Errorf("%s: %v", networks, err)
		}
	}
	_, err := ParsePeers("peers.yaml", []byte(head+oneNode+"networks:\n  metadata:\n    - 169.254.169.0/24\n    - 10.20.0.0/16\n"))
	checkRefusal(t, err, "peers.yaml:8: networks.metadata[1]: 10.20.0.0/16 contains 10.20.1.10 of node pg-0, which would be cut off; "+
		"list the addresses of the metadata service alone, such as 169.254.169.254/32")
}
