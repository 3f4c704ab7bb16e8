package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"

	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
	"github.com/pghardend/pghardend/policies"
)

// firewallSpec is what the rules of one node are made from. The matrix is that
// of the whole instance, so any node's can be derived on any other; limits and
// openings are this node's alone.
func firewallSpec(cfg config.Config, peers config.Peers, node config.Node, extra Extra) (firewall.Spec, error) {
	flows, err := flowsInForce(cfg)
	if err != nil {
		return firewall.Spec{}, err
	}
	return firewall.Spec{
		Role:     node.Role,
		Flows:    limitFlows(flows, cfg, node.Role, extra.Facts),
		Members:  members(peers, node),
		Scope:    cfg.Firewall.Scope,
		Openings: slices.Clone(extra.Openings),
	}, nil
}

// flowsInForce are the built-in rows with what the configuration says about them.
func flowsInForce(cfg config.Config) ([]firewall.Flow, error) {
	base, err := defaultFlows()
	if err != nil {
		return nil, err
	}
	over := map[string]firewall.FlowOverride{}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(cfg.Flows)) {
		over[name] = firewall.FlowOverride(cfg.Flows[name])
		// One by one, since each has a line of its own.
		if _, err := firewall.Customise(base, map[string]firewall.FlowOverride{name: over[name]}); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", cfg.Where("flows."+name), err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	flows, err := firewall.Customise(base, over)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Where("flows"), err)
	}
	return flows, nil
}

func defaultFlows() ([]firewall.Flow, error) {
	const file = "network/flows.yaml"
	data, err := fs.ReadFile(policies.FS, file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the built-in flows: %w", err)
	}
	return firewall.ParseFlows(file, data)
}

// reservedConnections come on top of what a server takes for clients: those for
// superusers and the connections that only carry a cancel request.
const reservedConnections = 10

// New connections of one source a second: five times what the server can hold,
// so that a pool may be filled and refilled at once, but never so few that a
// small server's clients cannot reconnect together, nor more than a rule takes.
const (
	reconnects = 5
	leastRate  = 50
	mostRate   = 1000
)

// queued is how many times its clients a server of the role holds: pgpool lets
// twice as many wait in its backlog (listen_backlog_multiplier), postgres turns
// them away.
func queued(role string) int {
	if role == config.RolePgpool {
		return 3
	}
	return 1
}

// limitFlows says what one source may use of the limited rows that this role
// serves, where the configuration does not: all that the server takes. No honest
// source exceeds that, and one that is not cannot exhaust the host. If nobody
// knows what it takes, a guess at its connections could keep clients out, so
// only their rate is limited.
func limitFlows(flows []firewall.Flow, cfg config.Config, role string, facts Facts) []firewall.Flow {
	flows = slices.Clone(flows)
	c, known := capacity(cfg, role, facts)
	rate := mostRate
	if known {
		rate = min(max(reconnects*c.Clients, leastRate), mostRate)
	}
	for i, f := range flows {
		if !f.Limited || f.Proto != firewall.ProtoTCP || !slices.Contains(f.To, role) {
			continue
		}
		said := cfg.Flows[f.Name]
		if said.Connections == nil && f.Connections == 0 && known {
			flows[i].Connections = queued(role)*c.Clients + c.WALSenders + reservedConnections
		}
		if said.NewPerSecond == nil && f.NewPerSecond == 0 {
			flows[i].NewPerSecond = rate
		}
	}
	return flows
}

// members puts every address into the sets of its role or network. This node's
// own addresses stay out: its packets to itself use the loopback interface, and
// one that claims to come from them on the wire is a lie.
func members(peers config.Peers, self config.Node) map[string][]netip.Prefix {
	m := map[string][]netip.Prefix{}
	for _, n := range peers.Nodes {
		if n.Name == self.Name {
			continue
		}
		for _, a := range n.Addresses {
			m[n.Role] = append(m[n.Role], netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for name, prefixes := range peers.Networks {
		m[name] = slices.Clone(prefixes)
	}
	return m
}
