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

func TestValidateNames(t *testing.T) {
	const file = "/etc/pghardend/pghardend.yaml"
	peers := peersOf(t, "a", "networks: {siblings: [10.20.0.0/16], batch-jobs: [10.70.0.0/16], metadata: []}\n", "pg-0")
	valid := func(text string) error { return Validate(mustParseConfig(t, top+text), peers) }
	for _, text := range []string{
		"flows: {m: {from: [batch-jobs, control_plane, pgpool], to: [postgres, backup, dns, ntp]}}\n",
		"firewall: {scope: siblings, accept_wide: [batch-jobs, applications]}\n",
	} {
		if err := valid(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	checkRefusal(t, valid("flows:\n  m:\n    to:\n      - postgres\n      - postgre\n    from: [application]\n  a: {from: [workers]}\n"),
		file+`:7: flows.m.to[1]: "postgre" is neither a role nor a network of peers.yaml; did you mean postgres?`+"\n"+
			file+`:8: flows.m.from[0]: "application" is neither a role nor a network of peers.yaml; did you mean applications?`+"\n"+
			file+`:9: flows.a.from[0]: "workers" is neither a role nor a network of peers.yaml; roles and networks: postgres, pgpool, applications, backup, batch-jobs, control_plane, dns, ntp`)
	checkRefusal(t, valid("firewall:\n  accept_wide:\n    - batch_jobs\n    - postgres\n"),
		file+`:5: firewall.accept_wide[0]: "batch_jobs" is not a network of peers.yaml; did you mean batch-jobs?`+"\n"+
			file+`:6: firewall.accept_wide[1]: "postgres" is not a network of peers.yaml; networks: applications, backup, batch-jobs, control_plane, dns, ntp`)
}

func TestValidateScopeSiblings(t *testing.T) {
	const fix = "; list the subnets that are shared with other tenants there, as `siblings: [10.20.0.0/16]`, or write `scope: host`"
	c := mustParseConfig(t, top+"firewall:\n  scope: siblings\n")
	checkRefusal(t, Validate(c, peersOf(t, "a", "", "pg-0")),
		"/etc/pghardend/pghardend.yaml:4: firewall.scope: scope siblings keeps out the network siblings, which peers.yaml does not have"+fix)
	checkRefusal(t, Validate(c, peersOf(t, "a", "networks: {siblings: []}\n", "pg-0")),
		"/etc/pghardend/pghardend.yaml:4: firewall.scope: scope siblings keeps out the network siblings, which is empty in peers.yaml"+fix)
	if err := Validate(mustParseConfig(t, top), peersOf(t, "a", "networks: {siblings: []}\n", "pg-0")); err != nil {
		t.Errorf("scope host needs no siblings: %v", err)
	}
}
