package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

const force = "`pghardend apply --force` accepts it"

// minShrinkable is how many entries a network must have had for the loss of more
// than half of them to be suspicious; below, one more or less is half.
const minShrinkable = 4

// CheckChange refuses a new peer list that is valid in itself but looks like
// the wrong file, or like half of the right one: another instance, fewer than
// half of the old nodes (by name), a network that is gone without a word or has
// lost more than half of its entries, no control plane any more or one of which
// nothing is left, with scope siblings a subnet of the nodes that is not among the siblings' any more.
//
// It also refuses a network so wide that it takes in strangers: one that
// overlaps the network siblings or the link-local addresses, which siblings on the
// same link have too, or contains the address of a node among others.
// This is so without an old list, its zero value, as well. Accepted are networks
// of accept_wide, entries that the old list has in the same network, the exact
// address of a node, and single addresses in dns and ntp.
func CheckChange(c Config, old, next Peers) error {
	var problems []*Error
	if old.Instance != "" || len(old.Nodes) > 0 {
		problems = slices.Concat(checkIdentity(old, next), checkLost(old, next), checkShrunk(c, old, next), checkMoved(old, next), checkUncovered(c, old, next))
	}
	return joined(append(problems, checkWide(c, old, next)...))
}

func (p Peers) problem(key, problem, fix string) *Error {
	return &Error{File: p.File, Line: p.lines.line(key), Key: key, Problem: problem, Fix: fix}
}

func checkIdentity(old, next Peers) (problems []*Error) {
	if old.Instance != next.Instance {
		problems = append(problems, next.problem("instance", fmt.Sprintf("this is the list of instance %s, not of %s", next.Instance, old.Instance),
			"put the list of "+old.Instance+" there; if the instance was renamed, "+force))
	}
	if kept := keptNodes(old, next); 2*kept < len(old.Nodes) {
		problems = append(problems, next.problem("nodes",
			fmt.Sprintf("only %d of the %d nodes known so far are in the list (it has %d)", kept, len(old.Nodes), len(next.Nodes)),
			"complete the list; if they are really gone, "+force))
	}
	return problems
}

func checkLost(old, next Peers) (problems []*Error) {
	for _, name := range lostNetworks(old, next) {
		key := "networks." + name
		if _, there := next.Networks[name]; there {
			problems = append(problems, next.problem(key, "the network had "+entries(old, name)+" and is empty now, operators would be locked out",
				"put its entries back; if it is meant, "+force))
			continue
		}
		fix := "put it back; if it is meant, write `" + name + ": []`"
		if name == controlPlane {
			fix = "put it back, operators would be locked out; if it is meant, " + force
		}
		problems = append(problems, next.problem(key, "the network had "+entries(old, name)+" and is gone, the list looks cut off", fix))
	}
	return problems
}

// checkShrunk leaves emptied networks to checkLost. Whether siblings are fewer
// matters only where nobody else is kept out.
func checkShrunk(c Config, old, next Peers) (problems []*Error) {
	for _, name := range slices.Sorted(maps.Keys(old.Networks)) {
		was, left := old.Networks[name], len(next.Networks[name])
		if left == 0 || len(was) < minShrinkable || 2*left >= len(was) || name == networkSiblings && c.Firewall.Scope != ScopeSiblings {
			continue
		}
		problems = append(problems, next.problem("networks."+name, fmt.Sprintf("the network had %s and has %d now, the list looks cut off", entries(old, name), left),
			"complete it; if they are really gone, "+force))
	}
	return problems
}

// checkUncovered: with scope siblings only they are kept out, so a slip in the one
// entry for the subnet that a node shares with them lets all of them in.
func checkUncovered(c Config, old, next Peers) []*Error {
	if c.Firewall.Scope != ScopeSiblings {
		return nil
	}
	was, now := newPrefixSet(old.Networks[networkSiblings]), newPrefixSet(next.Networks[networkSiblings])
	for _, a := range nodeAddresses(next) {
		subnet, shared := was.overlapping(a)
		if _, covered := now.overlapping(a); !shared || covered {
			continue
		}
		return []*Error{next.problem("networks."+networkSiblings,
			fmt.Sprintf("%s, where node %s is, is not in the network any more: whoever else is there would be let in", subnet, next.owner(a.Addr())),
			"put it back; if it is meant, "+force)}
	}
	return nil
}

// checkMoved: a control plane of which nothing is left is as good as none to those
// who are logged in from it.
func checkMoved(old, next Peers) []*Error {
	was, now := old.Networks[controlPlane], next.Networks[controlPlane]
	if len(was) == 0 || len(now) == 0 { // checkLost
		return nil
	}
	left := newPrefixSet(now)
	for _, p := range was {
		if _, ok := left.overlapping(p); ok {
			return nil
		}
	}
	return []*Error{next.problem("networks."+controlPlane, "none of "+entries(old, controlPlane)+" known so far is left of the network, operators would be locked out",
		"keep the old ones beside the new ones until operators come from these; if it is meant, "+force)}
}

func entries(p Peers, network string) string {
	if n := len(p.Networks[network]); n != 1 {
		return fmt.Sprintf("%d entries", n)
	}
	return "1 entry"
}

func keptNodes(old, next Peers) (kept int) {
	names := make(map[string]bool, len(next.Nodes))
	for _, n := range next.Nodes {
		names[n.Name] = true
	}
	for _, n := range old.Nodes {
		if names[n.Name] {
			kept++
		}
	}
	return kept
}

// lostNetworks returns, sorted, the networks that had entries and are no longer
// in the list, and the control plane if it has none left. Other networks may be
// emptied by writing so: that shuts somebody out but nobody in.
func lostNetworks(old, next Peers) (names []string) {
	for name, was := range old.Networks {
		left, there := next.Networks[name]
		if len(was) > 0 && (!there || name == controlPlane && len(left) == 0) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// linkLocal are the addresses that any host on the link can give itself.
var linkLocal = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10")}

// checkWide reports the first too wide entry of each network, and how many more
// there are.
func checkWide(c Config, old, next Peers) (problems []*Error) {
	w := wide{next, newPrefixSet(next.Networks[networkSiblings]), newPrefixSet(linkLocal), nodeAddresses(next)}
	for _, name := range slices.Sorted(maps.Keys(next.Networks)) {
		if slices.Contains(notInFlows, name) || slices.Contains(c.Firewall.AcceptWide, name) {
			continue
		}
		found := w.entries(name, old.Networks[name])
		if len(found) == 0 {
			continue
		}
		problem := w.text(found[0])
		if more := len(found) - 1; more > 0 {
			problem += fmt.Sprintf(" (and %d more of the network are too wide)", more)
		}
		problems = append(problems, next.problem(next.keyOf(name, found[0]), problem,
			"list those who are really meant; if it is meant, name the network in firewall.accept_wide of the configuration, or "+force))
	}
	return problems
}

// wide finds the entries of networks that take in strangers.
type wide struct {
	peers                 Peers
	siblings, link, nodes prefixSet
}

func (w wide) entries(network string, accepted []netip.Prefix) (found []netip.Prefix) {
	known := make(map[netip.Prefix]bool, len(accepted))
	for _, p := range accepted {
		known[p] = true
	}
	for _, p := range w.peers.Networks[network] {
		_, withSiblings := w.siblings.overlapping(p)
		_, withLink := w.link.overlapping(p)
		_, withNode := w.nodes.overlapping(p)
		if (withSiblings || withLink || withNode) && !known[p] && !isExact(network, p, withNode) {
			found = append(found, p)
		}
	}
	return found
}

// isExact tells whether p is one host that certainly is meant: a node of the
// instance, or a resolver or time server, which often are in a shared subnet.
func isExact(network string, p netip.Prefix, isNode bool) bool {
	return p.IsSingleIP() && (isNode || network == "dns" || network == "ntp")
}

func (w wide) text(p netip.Prefix) string {
	s, ok := w.siblings.overlapping(p)
	switch {
	case ok && s.Bits() <= p.Bits():
		return fmt.Sprintf("%s is part of %s in the network siblings, where other tenants are", p, s)
	case ok:
		return fmt.Sprintf("%s contains %s of the network siblings, where other tenants are", p, s)
	}
	if l, ok := w.link.overlapping(p); ok {
		return fmt.Sprintf("%s has link-local addresses (%s), which any host on the link can give itself", p, l)
	}
	a, _ := w.nodes.overlapping(p)
	return fmt.Sprintf("%s contains %s of node %s, it looks too wide", p, a.Addr(), w.peers.owner(a.Addr()))
}
