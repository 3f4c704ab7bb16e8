package config

import (
	"fmt"
	"maps"
	"slices"
)

// controlPlane is the network that operators come from.
const controlPlane = "control_plane"

// Validate checks a configuration against a peer list: this node must be in it,
// and so must be what flows and firewall settings name. The networks that the
// built-in flows name may be missing, nobody is in them then.
func Validate(c Config, p Peers) error {
	return joined(slices.Concat(checkSelf(c, p), checkScope(c, p), checkNames(c, p)))
}

func checkSelf(c Config, p Peers) []*Error {
	names := make([]string, len(p.Nodes))
	for i, n := range p.Nodes {
		names[i] = n.Name
	}
	if slices.Contains(names, c.Node) {
		return nil
	}
	e := c.problem("node", fmt.Sprintf("this node, %s, is not in %s, which has %s", quote(c.Node), p.File, listNames(names)),
		"add the node there, or write its right name here")
	if near := nearest(c.Node, names); near != "" {
		e.Fix = "did you mean " + near + "? If not, add the node there"
	}
	return []*Error{e}
}

// checkScope: with nobody to keep out, scope siblings would let everybody in.
func checkScope(c Config, p Peers) []*Error {
	if c.Firewall.Scope != ScopeSiblings || len(p.Networks[networkSiblings]) > 0 {
		return nil
	}
	problem := "scope siblings keeps out the network siblings, which " + p.File + " does not have"
	if _, there := p.Networks[networkSiblings]; there {
		problem = "scope siblings keeps out the network siblings, which is empty in " + p.File
	}
	return []*Error{c.problem("firewall.scope", problem,
		"list the subnets that are shared with other tenants there, as `"+networkSiblings+": [10.20.0.0/16]`, or write `scope: "+ScopeHost+"`")}
}

// checkNames refuses names that stand for nobody: a row with a name misspelt
// would silently keep everybody out.
func checkNames(c Config, p Peers) (problems []*Error) {
	networks := slices.Concat(wellKnown, slices.Collect(maps.Keys(p.Networks)))
	networks = slices.DeleteFunc(networks, func(name string) bool { return slices.Contains(notInFlows, name) })
	slices.Sort(networks)
	networks = slices.Compact(networks)
	groups := slices.Concat(roles, networks)
	c.eachGroup(func(key, name string) {
		if !slices.Contains(groups, name) {
			problems = append(problems, c.problem(key, quote(name)+" is neither a role nor a network of "+p.File,
				didYouMean(name, groups, "roles and networks")))
		}
	})
	for i, name := range c.Firewall.AcceptWide {
		if !slices.Contains(networks, name) {
			problems = append(problems, c.problem(fmt.Sprintf("firewall.accept_wide[%d]", i), quote(name)+" is not a network of "+p.File,
				didYouMean(name, networks, "networks")))
		}
	}
	return problems
}

func (c Config) problem(key, problem, fix string) *Error {
	return &Error{File: c.File, Line: c.lines.line(key), Key: key, Problem: problem, Fix: fix}
}
