package config

import (
	"fmt"
	"slices"
)

// controlPlane is the network that operators come from.
const controlPlane = "control_plane"

// Validate checks a configuration against a peer list: this node must be in it.
func Validate(c Config, p Peers) error {
	names := make([]string, len(p.Nodes))
	for i, n := range p.Nodes {
		names[i] = n.Name
	}
	if slices.Contains(names, c.Node) {
		return nil
	}
	e := &Error{File: c.File, Line: c.lines.line("node"), Key: "node",
		Problem: fmt.Sprintf("this node, %s, is not in %s, which has %s", quote(c.Node), p.File, listNames(names)),
		Fix:     "add the node there, or write its right name here"}
	if near := nearest(c.Node, names); near != "" {
		e.Fix = "did you mean " + near + "? If not, add the node there"
	}
	return e
}

// CheckChange refuses a new peer list that is valid in itself but looks like
// the wrong file, or like half of the right one: another instance, fewer than
// half of the old nodes (by name), a network that is gone without a word, no
// control plane any more. Without an old list, its zero value, all is fine.
func CheckChange(old, next Peers) error {
	if old.Instance == "" && len(old.Nodes) == 0 {
		return nil
	}
	var problems []*Error
	report := func(key, problem, fix string) {
		problems = append(problems, &Error{File: next.File, Line: next.lines.line(key), Key: key, Problem: problem, Fix: fix})
	}
	const force = "`pghardend apply --force` accepts it"
	if old.Instance != next.Instance {
		report("instance", fmt.Sprintf("this is the list of instance %s, not of %s", next.Instance, old.Instance),
			"put the list of "+old.Instance+" there; if the instance was renamed, "+force)
	}
	if kept := keptNodes(old, next); 2*kept < len(old.Nodes) {
		report("nodes", fmt.Sprintf("only %d of the %d nodes known so far are in the list (it has %d)", kept, len(old.Nodes), len(next.Nodes)),
			"complete the list; if they are really gone, "+force)
	}
	for _, name := range lostNetworks(old, next) {
		key := "networks." + name
		if _, there := next.Networks[name]; there {
			report(key, "the network had "+entries(old, name)+" and is empty now, operators would be locked out",
				"put its entries back; if it is meant, "+force)
			continue
		}
		fix := "put it back; if it is meant, write `" + name + ": []`"
		if name == controlPlane {
			fix = "put it back, operators would be locked out; if it is meant, " + force
		}
		report(key, "the network had "+entries(old, name)+" and is gone, the list looks cut off", fix)
	}
	return joined(problems)
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
