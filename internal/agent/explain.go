package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// Question is what Explain is asked: may From open a connection to To? Each is a
// node's name, a network's name or an address.
type Question struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Proto string `json:"proto"` // tcp, udp or icmp-echo
	Port  uint16 `json:"port"`  // 0 for icmp-echo
	Root  bool   `json:"root"`  // the sender is root
}

// Explanation is the answer to a Question.
type Explanation struct {
	Question
	Allowed bool     `json:"allowed"` // on every path
	Paths   []Path   `json:"paths"`   // one for each family that both ends have
	Notes   []string `json:"notes"`   // what the answer depends on beside the files
}

// Path is the way from one address to another.
type Path struct {
	From    Endpoint `json:"from"`
	To      Endpoint `json:"to"`
	Allowed bool     `json:"allowed"` // by each side
	Sides   []Side   `json:"sides"`   // the ends that are nodes, the sender first
}

// Side is what the rules of one node do.
type Side struct {
	Node      string `json:"node"`
	Direction string `json:"direction"` // out or in
	Allowed   bool   `json:"allowed"`
	PassedOn  bool   `json:"passed_on"` // left to the host's own firewall; allowed as well
	By        string `json:"by"`        // the flow, or drop, metadata, open, scope, loopback
	Reason    string `json:"reason"`
	Limit     string `json:"limit,omitempty"`
}

// Explain answers from the files. It needs neither root nor the daemon, but
// without root it may not be able to read the openings or to ask the services
// for their limits, which its notes then say.
func Explain(ctx context.Context, configFile string, q Question) (Explanation, error) {
	d, in, err := loadInput(ctx, configFile)
	if err != nil {
		return Explanation{}, err
	}
	extra := Extra{Facts: readFacts(ctx, d.Config, configFile)}
	now := time.Now()
	list, openErr := loadOpenings(ctx, d.Config.StateDir)
	if openErr == nil {
		extra.Openings = openNow(list, now)
	}
	if d, err = Build(d.Config, d.Peers, extra); err != nil {
		return Explanation{}, err
	}
	e, err := explain(d, q, now)
	if err == nil && in.notInForce(ctx, d.Config) {
		e.Notes = append(e.Notes, notInForce)
	}
	if err == nil && openErr != nil && e.has("in", d.Self.Name) {
		e.Notes = append(e.Notes, fmt.Sprintf("the openings cannot be read, so none is counted: %v%s", openErr, rootHint(openErr)))
	}
	if name := unasked(ctx, d); err == nil && name != "" && e.limited(d.Self.Name) {
		e.Notes = append(e.Notes, fmt.Sprintf("how many connections a source may have is not said, since service %s could not be asked; run this as root", name))
	}
	return e, err
}

// unasked is a service whose capacity counts here but is not known.
func unasked(ctx context.Context, d Desired) string {
	for _, svc := range d.Config.Services {
		if _, ok := d.Extra.Facts[svc.Name]; !ok && svc.Profile == d.Self.Role && signOf(ctx, svc) != "" {
			return svc.Name
		}
	}
	return ""
}

// limited says whether a limit of this node's own is part of the answer.
func (e Explanation) limited(node string) bool {
	return slices.ContainsFunc(e.Paths, func(p Path) bool {
		return slices.ContainsFunc(p.Sides, func(s Side) bool { return s.Direction == "in" && s.Node == node && s.Limit != "" && e.Port != 0 })
	})
}

// has says whether a side of a node was looked at.
func (e Explanation) has(direction, node string) bool {
	return slices.ContainsFunc(e.Paths, func(p Path) bool {
		return slices.ContainsFunc(p.Sides, func(s Side) bool { return s.Direction == direction && s.Node == node })
	})
}

func explain(d Desired, q Question, now time.Time) (Explanation, error) {
	e := Explanation{Question: q, Allowed: true, Notes: []string{}}
	if err := q.check(); err != nil {
		return e, err
	}
	from, fromErr := findEndpoints(d.Peers, "--from", q.From)
	to, toErr := findEndpoints(d.Peers, "--to", q.To)
	if err := errors.Join(fromErr, toErr); err != nil {
		return e, err
	}
	x := explainer{d: d, q: q, now: now, specs: map[string]firewall.Spec{}}
	for _, a := range from {
		for _, b := range to {
			if a.Address.Is4() != b.Address.Is4() {
				continue
			}
			p, err := x.path(a, b)
			if err != nil {
				return e, err
			}
			e.Paths = append(e.Paths, p)
			e.Allowed = e.Allowed && p.Allowed
		}
	}
	switch {
	case len(e.Paths) == 0:
		return e, fmt.Errorf("there is no way from %s (%s) to %s (%s): one has only IPv4 addresses, the other only IPv6", q.From, from[0].Address, q.To, to[0].Address)
	case len(e.Paths[0].Sides) == 0:
		return e, fmt.Errorf("neither %s nor %s is a node of instance %s, so none of its rules decide; name one of %s", q.From, q.To, d.Peers.Instance, nodeNames(d.Peers))
	}
	e.Notes = append(e.Notes, x.notes...)
	return e, nil
}

func (q Question) check() error {
	switch q.Proto {
	case firewall.ProtoTCP, firewall.ProtoUDP:
		if q.Port == 0 {
			return fmt.Errorf("--proto %s needs a --port from 1 to 65535", q.Proto)
		}
	case firewall.ProtoEcho:
		if q.Port != 0 {
			return errors.New("--proto icmp has no ports; leave --port out")
		}
	default:
		return fmt.Errorf("--proto %q: use tcp, udp or icmp (echo requests)", q.Proto)
	}
	return nil
}

// An explainer answers one question.
type explainer struct {
	d     Desired
	q     Question
	now   time.Time
	specs map[string]firewall.Spec // by node
	notes []string
}

func (x *explainer) path(from, to Endpoint) (Path, error) {
	p := Path{From: from, To: to, Allowed: true, Sides: []Side{}}
	if from.Node != "" && from.Node == to.Node {
		p.Sides = append(p.Sides, Side{Node: from.Node, Direction: "out", Allowed: true, By: "loopback",
			Reason: "a node's connections to itself are allowed"})
		return p, nil
	}
	for _, side := range []struct {
		here, there Endpoint
		direction   firewall.Direction
		name        string
	}{{from, to, firewall.Out, "out"}, {to, from, firewall.In, "in"}} {
		if side.here.Node == "" {
			continue
		}
		spec, err := x.spec(side.here.Node)
		if err != nil {
			return p, err
		}
		made := firewall.Decide(spec, side.direction, firewall.Query{
			Remote: side.there.Address, Proto: x.q.Proto, Port: x.q.Port, Root: x.q.Root, At: x.now,
		})
		s := Side{Node: side.here.Node, Direction: side.name,
			Allowed: made.Allowed, PassedOn: made.PassedOn, By: made.By, Reason: made.Reason, Limit: made.Limit}
		p.Sides = append(p.Sides, s)
		p.Allowed = p.Allowed && s.Allowed
		x.note(s)
	}
	return p, nil
}

// spec is what a node's rules are made from. What another node has learnt from
// its services is taken from this one where both have the same role.
func (x *explainer) spec(name string) (firewall.Spec, error) {
	if name == x.d.Self.Name {
		return x.d.Firewall, nil
	}
	if spec, ok := x.specs[name]; ok {
		return spec, nil
	}
	node := x.d.Peers.Nodes[slices.IndexFunc(x.d.Peers.Nodes, func(n config.Node) bool { return n.Name == name })]
	spec, err := firewallSpec(x.d.Config, x.d.Peers, node, Extra{Facts: x.d.Extra.Facts})
	x.specs[name] = spec
	return spec, err
}

// note says what only the other node knows.
func (x *explainer) note(s Side) {
	if s.Direction != "in" || s.Node == x.d.Self.Name {
		return
	}
	add := func(text string) {
		if !slices.Contains(x.notes, text) {
			x.notes = append(x.notes, text)
		}
	}
	if !s.Allowed {
		add("openings of " + s.Node + " are known there only")
	}
	if s.Limit != "" && x.derived(s.By) {
		add("the limit is derived from how many connections a server takes, as far as " + x.d.Self.Name + " knows; ask on " + s.Node)
	}
}

// derived says whether a row's limits are not written down in the files.
func (x *explainer) derived(flow string) bool {
	said := x.d.Config.Flows[flow]
	return slices.ContainsFunc(x.d.Firewall.Flows, func(f firewall.Flow) bool { return f.Name == flow && f.Limited }) &&
		(said.Connections == nil || said.NewPerSecond == nil)
}

func nodeNames(peers config.Peers) string {
	names := make([]string, len(peers.Nodes))
	for i, n := range peers.Nodes {
		names[i] = n.Name
	}
	return strings.Join(names, ", ")
}

func networkNames(peers config.Peers) string {
	return strings.Join(slices.Sorted(maps.Keys(peers.Networks)), ", ")
}
