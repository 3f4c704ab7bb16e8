package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// Endpoint is an address at one end of a Path, and what it stands for.
type Endpoint struct {
	Name    string       `json:"name"` // of a node or network; the address if it belongs to no node
	Address netip.Addr   `json:"address"`
	Node    string       `json:"node,omitempty"`    // the node whose address it is
	Network string       `json:"network,omitempty"` // the network that it was taken from
	Of      netip.Prefix `json:"of,omitzero"`       // the network's entry that holds it
}

// metadataAddresses are those that the network has whatever the peer list says.
var metadataAddresses = []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("fd00:ec2::254/128")}

// findEndpoints returns at most one address of each family, IPv4 first.
func findEndpoints(peers config.Peers, flag, text string) ([]Endpoint, error) {
	if i := slices.IndexFunc(peers.Nodes, func(n config.Node) bool { return n.Name == text }); i >= 0 {
		return nodeEndpoints(peers.Nodes[i]), nil
	}
	if _, ok := peers.Networks[text]; ok || text == firewall.NetworkMetadata {
		return networkEndpoints(peers, flag, text)
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %q is neither a node nor a network of %s nor an address; nodes: %s; networks: %s",
			flag, text, peers.File, nodeNames(peers), networkNames(peers))
	}
	addr = addr.Unmap().WithZone("")
	return []Endpoint{{Name: text, Address: addr, Node: nodeAt(peers, addr)}}, nil
}

func nodeEndpoints(n config.Node) []Endpoint {
	var list []Endpoint
	for _, is4 := range []bool{true, false} {
		if i := slices.IndexFunc(n.Addresses, func(a netip.Addr) bool { return a.Is4() == is4 }); i >= 0 {
			list = append(list, Endpoint{Name: n.Name, Address: n.Addresses[i], Node: n.Name})
		}
	}
	return list
}

func nodeAt(peers config.Peers, addr netip.Addr) string {
	for _, n := range peers.Nodes {
		if slices.Contains(n.Addresses, addr) {
			return n.Name
		}
	}
	return ""
}

func networkEndpoints(peers config.Peers, flag, name string) ([]Endpoint, error) {
	prefixes := peers.Networks[name]
	if name == firewall.NetworkMetadata {
		prefixes = slices.Concat(metadataAddresses, prefixes)
	}
	var list []Endpoint
	for _, is4 := range []bool{true, false} {
		if e, ok := representative(peers, name, prefixes, is4); ok {
			list = append(list, e)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: the network %s of %s has no entry that is not a node's, so there is nobody to ask about", flag, name, peers.File)
	}
	return list, nil
}

// maxTries bounds the search for an address that stands for a network.
const maxTries = 1024

// representative is an address of a network that belongs to nothing else: a node
// or a second network would be judged by rows of its own. If all that were
// looked at belong to another network too, the first one has to do.
func representative(peers config.Peers, name string, prefixes []netip.Prefix, is4 bool) (Endpoint, bool) {
	var first *Endpoint
	tries := 0
	for _, p := range prefixes {
		if p.Addr().Is4() != is4 {
			continue
		}
		addr := p.Addr()
		if p.Bits() < addr.BitLen()-1 {
			addr = addr.Next() // the first one is the network's own
		}
		for ; p.Contains(addr) && tries < maxTries; addr = addr.Next() {
			tries++
			if nodeAt(peers, addr) != "" {
				continue
			}
			e := Endpoint{Name: name, Address: addr, Network: name, Of: p}
			if !inOther(peers, name, addr) {
				return e, true
			}
			if first == nil {
				first = &e
			}
		}
	}
	if first == nil {
		return Endpoint{}, false
	}
	return *first, true
}

func inOther(peers config.Peers, name string, addr netip.Addr) bool {
	for other, prefixes := range peers.Networks {
		if other != name && slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return true
		}
	}
	return false
}
