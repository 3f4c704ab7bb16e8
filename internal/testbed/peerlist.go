package testbed

import (
	"fmt"
	"maps"
	"slices"
)

// Clone copies the list deeply.
func (p Peers) Clone() Peers {
	c := Peers{Instance: p.Instance, Nodes: slices.Clone(p.Nodes), Networks: maps.Clone(p.Networks)}
	for i := range c.Nodes {
		c.Nodes[i].Addresses = slices.Clone(c.Nodes[i].Addresses)
	}
	for name := range c.Networks {
		c.Networks[name] = slices.Clone(c.Networks[name])
	}
	return c
}

// Without returns the list without some nodes. Pure.
func (p Peers) Without(nodes ...string) Peers {
	c := p.Clone()
	c.Nodes = slices.DeleteFunc(c.Nodes, func(n Peer) bool { return slices.Contains(nodes, n.Name) })
	return c
}

// With returns the list with one more node at its end. Pure.
func (p Peers) With(n Peer) Peers {
	c := p.Clone()
	c.Nodes = append(c.Nodes, n)
	return c
}

// WithNetwork returns the list with a network replaced or added. Pure.
func (p Peers) WithNetwork(name string, prefixes ...string) Peers {
	c := p.Clone()
	if c.Networks == nil {
		c.Networks = map[string][]string{}
	}
	if prefixes == nil {
		prefixes = []string{} // an empty list, not a missing one
	}
	c.Networks[name] = prefixes
	return c
}

// WithoutNetwork returns the list without a network. Pure.
func (p Peers) WithoutNetwork(name string) Peers {
	c := p.Clone()
	delete(c.Networks, name)
	return c
}

// ManyPrefixes returns n addresses as prefixes, half of each family, in ranges that no host of an instance has: for lists
// of realistic size. n is at most 1 << 16. Pure.
func ManyPrefixes(n int) []string {
	list := make([]string, 0, n)
	for i := range n {
		if i%2 == 0 {
			list = append(list, fmt.Sprintf("10.77.%d.%d/32", i>>9&0xff, i>>1&0xff))
		} else {
			list = append(list, fmt.Sprintf("fd00:77::%x/128", i))
		}
	}
	return list
}
