package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Family is an address family.
type Family int

// The two families, in the order of every [2]T in this package.
const (
	IPv4 Family = iota
	IPv6
)

// Families lists both, for ranging.
var Families = [...]Family{IPv4, IPv6}

func (f Family) String() string {
	if f == IPv6 {
		return "ipv6"
	}
	return "ipv4"
}

// The chains that are ours, in the filter table of each family.
const (
	ChainIn   = "PGHARDEND-IN"
	ChainOut  = "PGHARDEND-OUT"
	ChainFwd  = "PGHARDEND-FWD"
	ChainICMP = "PGHARDEND-ICMP"

	chainPrefix = "PGHARDEND-"
	tagPrefix   = "pghardend:"
)

// Set types and sizes: ipset(8), hash:net.
const (
	setType       = "hash:net"
	setMaxEntries = 65536
)

// Spec is all that this node's rules are made from.
type Spec struct {
	Role    string                    // this node's role
	Flows   []Flow                    // the matrix of the whole instance
	Members map[string][]netip.Prefix // role or network → addresses, without this node's own
}

// Chain is one of our chains with its rules in order.
type Chain struct {
	Name  string
	Rules []Rule
}

// Jump is the rule that leads from a built-in chain into one of ours.
type Jump struct {
	From string
	Rule Rule
}

// Table is our part of one family's filter table.
type Table struct {
	Chains []Chain
	Jumps  []Jump
}

// Set is one ipset with its members, sorted.
type Set struct {
	Name    string
	Family  Family
	Members []netip.Prefix
}

// Ruleset is the desired state of both families.
type Ruleset struct {
	Tables [2]Table
	Sets   []Set
}

// Render compiles the matrix for one node. A role or network without members
// gets an empty set, so that the rules do not depend on membership.
func Render(s Spec) (Ruleset, error) {
	if s.Role == "" {
		return Ruleset{}, fmt.Errorf("cannot render rules: the node has no role")
	}
	if err := checkFlows(s.Flows); err != nil {
		return Ruleset{}, fmt.Errorf("cannot render rules: %w", err)
	}
	var rs Ruleset
	for _, fam := range Families {
		rs.Tables[fam] = renderTable(s, fam)
	}
	sets, err := renderSets(s)
	if err != nil {
		return Ruleset{}, fmt.Errorf("cannot render sets: %w", err)
	}
	rs.Sets = sets
	return rs, nil
}

// SetName is the ipset that holds a role's or network's members of a family.
func SetName(group string, fam Family) string { return setPrefix(fam) + group }

func setPrefix(fam Family) string {
	if fam == IPv6 {
		return "pgh6-"
	}
	return "pgh4-"
}

// usedGroups are the groups that the rules of a node with this role name.
func usedGroups(s Spec) []string {
	var groups []string
	for _, f := range s.Flows {
		if slices.Contains(f.To, s.Role) {
			groups = append(groups, f.From...)
		}
		if slices.Contains(f.From, s.Role) {
			groups = append(groups, f.To...)
		}
	}
	slices.Sort(groups)
	return slices.Compact(groups)
}

func renderSets(s Spec) ([]Set, error) {
	var sets []Set
	for _, group := range usedGroups(s) {
		for _, fam := range Families {
			set := Set{Name: SetName(group, fam), Family: fam}
			for _, p := range s.Members[group] {
				if !p.IsValid() || p.Bits() == 0 || p.Addr().Is4In6() || p != p.Masked() {
					return nil, fmt.Errorf("%s: %v is not a usable network", set.Name, p)
				}
				if p.Addr().Is4() == (fam == IPv4) {
					set.Members = append(set.Members, p)
				}
			}
			if len(set.Members) > setMaxEntries {
				return nil, fmt.Errorf("%s: %d members, but a set holds %d; use wider networks", set.Name, len(set.Members), setMaxEntries)
			}
			slices.SortFunc(set.Members, comparePrefixes)
			set.Members = slices.Compact(set.Members)
			sets = append(sets, set)
		}
	}
	return sets, nil
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func renderTable(s Spec, fam Family) Table {
	return Table{
		Chains: []Chain{
			{Name: ChainIn, Rules: renderDirection(s, fam, inbound)},
			{Name: ChainOut, Rules: renderDirection(s, fam, outbound)},
			{Name: ChainFwd, Rules: []Rule{logDrop("fwd"), drop(tagDrop)}},
			{Name: ChainICMP, Rules: renderICMP(fam)},
		},
		Jumps: []Jump{
			{From: "INPUT", Rule: jump(ChainIn)},
			{From: "OUTPUT", Rule: jump(ChainOut)},
			{From: "FORWARD", Rule: jump(ChainFwd)},
		},
	}
}

// ends says which end of a flow this node is, and which the peer.
type ends struct {
	here, there func(Flow) []string
}

var (
	asServer = ends{here: func(f Flow) []string { return f.To }, there: func(f Flow) []string { return f.From }}
	asClient = ends{here: func(f Flow) []string { return f.From }, there: func(f Flow) []string { return f.To }}
)

// direction is what differs between packets to and from this node.
type direction struct {
	name     string // in log prefixes
	loopback string // the switch that names the interface
	peer     string // which end of the packet is the peer
	opens    ends   // in flows that this direction opens
	answers  ends   // in flows whose answers go this way
}

var (
	inbound  = direction{name: "in", loopback: "-i", peer: "src", opens: asServer, answers: asClient}
	outbound = direction{name: "out", loopback: "-o", peer: "dst", opens: asClient, answers: asServer}
)

// renderDirection is the chain for packets to or from this node itself.
func renderDirection(s Spec, fam Family, d direction) []Rule {
	icmp := icmpProto(fam)
	rules := []Rule{
		tagged(tagEstablished, "ACCEPT", "! -p "+icmp+" -m conntrack --ctstate RELATED,ESTABLISHED"),
		tagged(tagLoopback, "ACCEPT", d.loopback+" lo"),
	}
	var opens []Rule
	for _, f := range s.Flows {
		if !slices.Contains(d.opens.here(f), s.Role) {
			continue
		}
		for _, group := range d.opens.there(f) {
			match := "-m set --match-set " + SetName(group, fam) + " " + d.peer
			if f.Proto == ProtoEcho {
				rules = append(rules, tagged(f.Name, "ACCEPT", echoRequest(fam)+" "+match+" "+perSource(f)))
			} else {
				opens = append(opens, tagged(f.Name, "ACCEPT", portMatch(f, "d")+" "+match+" -m conntrack --ctstate NEW"))
			}
		}
	}
	rules = append(rules,
		tagged(tagICMP, ChainICMP, "-p "+icmp),
		tagged(tagInvalid, "DROP", "-m conntrack --ctstate INVALID"))
	rules = append(rules, opens...)
	rules = append(rules, renderAnswers(s, fam, d)...)
	return append(rules, logDrop(d.name), drop(tagDrop))
}

// renderAnswers lets a server's next segment through on connections that
// conntrack does not know: those from before the first apply, or from a moment
// without rules, during which the kernel does not track. If the server speaks
// first, conntrack takes its segment for NEW. Without these rules the first
// apply over ssh would hang, and so would a query that is waiting for its
// result. A SYN never matches, so nothing can be opened in either direction.
func renderAnswers(s Spec, fam Family, d direction) []Rule {
	var rules []Rule
	for _, f := range s.Flows {
		if f.Proto != ProtoTCP || !slices.Contains(d.answers.here(f), s.Role) {
			continue
		}
		for _, group := range d.answers.there(f) {
			ports := portMatch(f, "s")
			if len(f.Ports) > 1 {
				ports += " -m tcp"
			}
			rules = append(rules, tagged(f.Name, "ACCEPT", ports+" ! --tcp-flags FIN,SYN,RST,ACK SYN"+
				" -m set --match-set "+SetName(group, fam)+" "+d.peer+" -m conntrack --ctstate NEW"))
		}
	}
	return rules
}

func portMatch(f Flow, side string) string {
	if len(f.Ports) == 1 {
		return fmt.Sprintf("-p %s -m %s --%sport %d", f.Proto, f.Proto, side, f.Ports[0])
	}
	ports := make([]string, len(f.Ports))
	for i, p := range f.Ports {
		ports[i] = strconv.Itoa(int(p))
	}
	return fmt.Sprintf("-p %s -m multiport --%sports %s", f.Proto, side, strings.Join(ports, ","))
}

// perSource limits each source on its own, so that one peer's flood does not
// use up another's share. The rate is part of the table's name since the kernel
// reuses a table of the same name with its old rate.
func perSource(f Flow) string {
	return fmt.Sprintf("-m hashlimit --hashlimit-upto %d/sec --hashlimit-burst %d --hashlimit-mode srcip --hashlimit-name pgh-%s-%d",
		f.Rate, f.Rate, f.Name, f.Rate)
}

// tagged builds a rule with a comment that names its flow or purpose.
func tagged(tag, target, match string) Rule {
	words := strings.Fields(match)
	words = append(words, "-m", "comment", "--comment", tagPrefix+tag, "-j", target)
	return newRule(words...)
}

func drop(tag string) Rule { return tagged(tag, "DROP", "") }

func jump(chain string) Rule { return tagged(tagJump, chain, "") }

// logDrop writes at most 10 lines a minute to the kernel log.
func logDrop(name string) Rule {
	words := strings.Fields("-m limit --limit 10/min --limit-burst 20 -m comment --comment " + tagPrefix + tagLog + " -j LOG --log-prefix")
	return newRule(append(words, "pghardend "+name+": ")...)
}
