package config

import (
	"fmt"
	"net/netip"
	"slices"

	"go.yaml.in/yaml/v3"
)

// The roles a node can have. Master and standby are no roles: they swap.
const (
	RolePostgres = "postgres"
	RolePgpool   = "pgpool"
)

var roles = []string{RolePostgres, RolePgpool}

// Peers is a peer list: who belongs to the instance and who may talk to it.
type Peers struct {
	File     string                    // the file it was read from, for messages
	Instance string                    // id of the tenant's instance
	Nodes    []Node                    // in the order of the file; names and addresses are unique
	Networks map[string][]netip.Prefix // masked, sorted, unique within a network; an empty list is legal

	lines   lineIndex
	entries map[string]map[netip.Prefix]string // by network: the key of each entry, since Networks are sorted
}

// Node is one VM of the instance.
type Node struct {
	Name      string       // an RFC 1123 label
	Role      string       // RolePostgres or RolePgpool
	Addresses []netip.Addr // at least one; IPv4 and IPv6, without zone
}

// Where returns "file:line" of a dotted key such as nodes[1].addresses[0] or
// networks.control_plane, or of its nearest parent that the file has.
func (p Peers) Where(key string) string { return p.lines.where(p.File, key) }

// ParsePeers reads a peer list. file is only used in messages.
func ParsePeers(file string, data []byte) (Peers, error) {
	w, root := newWalker(file, data)
	r := peersReader{walker: w, names: map[string]string{}, addresses: map[netip.Addr]string{}}
	r.peers = Peers{File: file, Networks: map[string][]netip.Prefix{}, lines: w.lines, entries: map[string]map[netip.Prefix]string{}}
	if root != nil {
		r.file(root)
		r.checkMetadata()
	}
	if len(w.problems) > 0 {
		return Peers{}, joined(w.problems)
	}
	return r.peers, nil
}

// peersReader builds Peers while it walks. names and addresses hold the key of
// the first node that has them.
type peersReader struct {
	*walker
	peers     Peers
	names     map[string]string
	addresses map[netip.Addr]string
}

var (
	instanceID  = form{first: letters + digits, rest: letters + digits + "._-", last: letters + digits, most: 63}
	nodeLabel   = form{first: lower + digits, rest: lower + digits + "-", last: lower + digits, most: 63}
	networkName = form{first: lower, rest: lower + digits + "_-", most: 24}
)

const (
	nodeLabelText    = "a node name (an RFC 1123 label: at most 63 of a-z, 0-9 and -, no - at either end)"
	instanceIDText   = "an instance id (at most 63 letters, digits, dots, - and _, a letter or digit at either end)"
	networkNameText  = "not a network name (a letter a-z, then at most 23 of a-z, 0-9, _ and -)"
	exampleNodes     = "nodes: [{name: pg-0, role: postgres, addresses: [10.20.1.10]}]"
	exampleAddresses = "addresses: [10.20.1.10]"
)

func (r *peersReader) file(root *yaml.Node) {
	r.mapping("", root, []field{
		{"version", true, "version: 1", r.version},
		{"instance", true, "instance: orders-prod", func(key string, n *yaml.Node) {
			r.peers.Instance, _ = r.matching(key, n, instanceID, instanceIDText, "orders-prod")
		}},
		{"nodes", true, exampleNodes, r.nodes},
		{"networks", false, "", func(key string, n *yaml.Node) { r.entries(key, n, "control_plane: [10.0.0.0/24]", r.network) }},
	})
}

func (r *peersReader) nodes(key string, n *yaml.Node) {
	if r.items(key, n, "{name: pg-0, role: postgres, addresses: [10.20.1.10]}", r.node) == 0 {
		r.report(key, "the list is empty", "list all nodes of the instance, this one included")
	}
}

func (r *peersReader) node(key string, n *yaml.Node) {
	var node Node
	r.mapping(key, n, []field{
		{"name", true, "name: pg-0", func(key string, n *yaml.Node) { node.Name = r.nodeName(key, n) }},
		{"role", true, "role: postgres", func(key string, n *yaml.Node) { node.Role = r.oneOf(key, n, roles) }},
		{"addresses", true, exampleAddresses, func(key string, n *yaml.Node) {
			if r.items(key, n, "10.20.1.10", func(key string, n *yaml.Node) {
				if a, ok := r.address(key, n); ok {
					node.Addresses = append(node.Addresses, a)
				}
			}) == 0 {
				r.report(key, "the node has no address", "write `"+exampleAddresses+"`")
			}
		}},
	})
	r.peers.Nodes = append(r.peers.Nodes, node)
}

func (r *peersReader) nodeName(key string, n *yaml.Node) string {
	name, ok := r.matching(key, n, nodeLabel, nodeLabelText, "pg-0")
	if !ok {
		return ""
	}
	if first, twice := r.names[name]; twice {
		r.report(key, fmt.Sprintf("node %s is here twice, first on line %d", name, r.lines.line(first)), "give every node its own name")
		return ""
	}
	r.names[name] = key
	return name
}

func (r *peersReader) address(key string, n *yaml.Node) (netip.Addr, bool) {
	s, ok := r.text(key, n, "10.20.1.10")
	if !ok {
		return netip.Addr{}, false
	}
	a, problem, fix := parseAddress(s)
	if problem != "" {
		r.report(key, problem, fix)
		return netip.Addr{}, false
	}
	if first, twice := r.addresses[a]; twice {
		r.report(key, fmt.Sprintf("address %s is here twice, first as %s on line %d", a, first, r.lines.line(first)),
			"remove it where it is wrong")
		return netip.Addr{}, false
	}
	r.addresses[a] = key
	return a, true
}

func (r *peersReader) network(name, key string, n *yaml.Node) {
	switch {
	case !networkName.matches(name):
		r.report(key, networkNameText, "write something like control_plane")
	case slices.Contains(roles, name):
		r.report(key, "a network cannot be named like a role", "the nodes of a role are known from nodes:, choose another name")
	case name == "open": // its sets would be those of pghardend's time-boxed openings
		r.report(key, "the name open is taken by the openings of `pghardend open`", "choose another name")
	}
	prefixes := make([]netip.Prefix, 0, len(n.Content)) // there may be thousands
	seen := make(map[netip.Prefix]string, len(n.Content))
	r.items(key, n, "10.0.0.0/24", func(key string, n *yaml.Node) {
		s, ok := r.text(key, n, "10.0.0.0/24")
		if !ok {
			return
		}
		p, problem, fix := parsePrefix(s)
		if problem != "" {
			r.report(key, problem, fix)
			return
		}
		if first, twice := seen[p]; twice {
			r.report(key, fmt.Sprintf("%s is in the list twice, first on line %d", p, r.lines.line(first)), "remove one of the two")
			return
		}
		seen[p] = key
		prefixes = append(prefixes, p)
	})
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	r.peers.Networks[name] = prefixes
	r.peers.entries[name] = seen
}

// checkMetadata: what is sent to the metadata service is dropped before the
// flows are looked at, and a node that counts as one is cut off.
func (r *peersReader) checkMetadata() {
	nodes := nodeAddresses(r.peers)
	for _, p := range r.peers.Networks[networkMetadata] {
		if a, ok := nodes.overlapping(p); ok {
			r.report(r.peers.keyOf(networkMetadata, p), fmt.Sprintf("%s contains %s of node %s, which would be cut off", p, a.Addr(), r.peers.owner(a.Addr())),
				"list the addresses of the metadata service alone, such as 169.254.169.254/32")
		}
	}
}

// keyOf returns the key of an entry of a network.
func (p Peers) keyOf(network string, entry netip.Prefix) string {
	return orElse(p.entries[network][entry], "networks."+network)
}

// owner returns the name of the node that has an address.
func (p Peers) owner(a netip.Addr) string {
	for _, n := range p.Nodes {
		if slices.Contains(n.Addresses, a) {
			return n.Name
		}
	}
	return ""
}

func nodeAddresses(p Peers) prefixSet {
	var list []netip.Prefix
	for _, n := range p.Nodes {
		for _, a := range n.Addresses {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return newPrefixSet(list)
}
