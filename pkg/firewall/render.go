package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
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

// The chains that are ours: in the filter table of each family, and the last in
// the raw table of IPv6.
const (
	ChainIn       = "PGHARDEND-IN"
	ChainOut      = "PGHARDEND-OUT"
	ChainFwd      = "PGHARDEND-FWD"
	ChainICMP     = "PGHARDEND-ICMP"
	ChainMetadata = "PGHARDEND-META"
	ChainRPF      = "PGHARDEND-RPF"

	chainPrefix = "PGHARDEND-"
	tagPrefix   = "pghardend:"
)

// What of the traffic is judged, Spec.Scope.
const (
	ScopeHost     = "host"     // all of it
	ScopeSiblings = "siblings" // that with the network siblings; the host's own firewall judges the rest
)

// Networks with a meaning of their own; no row of the matrix may name them.
const (
	NetworkSiblings = "siblings" // other tenants' nodes in the shared subnets
	NetworkMetadata = "metadata" // the cloud's metadata service, for root alone
)

// Spec is all that this node's rules are made from.
type Spec struct {
	Role     string                    // this node's role
	Flows    []Flow                    // the matrix of the whole instance: the rows in force
	Members  map[string][]netip.Prefix // role or network → addresses, without this node's own
	Scope    string                    // ScopeHost if empty
	Openings []Opening
}

// Opening is a hole for a limited time in what this node lets in. The kernel
// closes it, so it closes even if nobody is there to do it.
type Opening struct {
	From  netip.Prefix
	Proto string // ProtoTCP or ProtoUDP
	Port  uint16
	Until time.Time
}

// builtin are the members that a network has whatever the peer list says.
var builtin = map[string][]netip.Prefix{
	NetworkMetadata: {netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("fd00:ec2::254/128")},
	// A sibling on the same link can use its link-local address.
	NetworkSiblings: {netip.MustParsePrefix("fe80::/10")},
}

// members are the addresses of a role or network, the built-in ones included.
func (s Spec) members(group string) []netip.Prefix {
	return slices.Concat(s.Members[group], builtin[group])
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

// Table is our part of one table.
type Table struct {
	Chains []Chain
	Jumps  []Jump
}

// Ruleset is the desired state of both families.
type Ruleset struct {
	Tables [3]Table // by TableID; those of the filter tables by Family as well
	Sets   []Set
}

// Render compiles the matrix for one node. A role or network without members
// gets an empty set, so that the rules do not depend on membership.
func Render(s Spec) (Ruleset, error) {
	if s.Role == "" {
		return Ruleset{}, fmt.Errorf("cannot render rules: the node has no role")
	}
	if s.Scope != "" && s.Scope != ScopeHost && s.Scope != ScopeSiblings {
		return Ruleset{}, fmt.Errorf("cannot render rules: scope %q: use %s or %s", s.Scope, ScopeHost, ScopeSiblings)
	}
	if err := checkFlows(s.Flows); err != nil {
		return Ruleset{}, fmt.Errorf("cannot render rules: %w", err)
	}
	if i := slices.IndexFunc(s.Flows, func(f Flow) bool { return f.OptIn }); i >= 0 {
		return Ruleset{}, fmt.Errorf("cannot render rules: row %s is off; Customise leaves out what is not in force", s.Flows[i].Name)
	}
	var rs Ruleset
	for _, fam := range Families {
		rs.Tables[fam] = renderTable(s, fam)
	}
	rs.Tables[RawIPv6] = renderRaw(s)
	sets, err := renderSets(s)
	if err != nil {
		return Ruleset{}, fmt.Errorf("cannot render sets: %w", err)
	}
	rs.Sets = sets
	return rs, nil
}

func renderTable(s Spec, fam Family) Table {
	return Table{
		Chains: []Chain{
			{Name: ChainIn, Rules: renderDirection(s, fam, inbound)},
			{Name: ChainOut, Rules: renderDirection(s, fam, outbound)},
			{Name: ChainFwd, Rules: renderForward(s, fam)},
			{Name: ChainICMP, Rules: renderICMP(fam)},
			{Name: ChainMetadata, Rules: renderMetadata(fam)},
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
	in       bool
	loopback string // the switch that names the interface
	peer     string // which end of the packet is the peer
	opens    ends   // in flows that this direction opens
	answers  ends   // in flows whose answers go this way
}

var (
	inbound  = direction{name: "in", in: true, loopback: "-i", peer: "src", opens: asServer, answers: asClient}
	outbound = direction{name: "out", loopback: "-o", peer: "dst", opens: asClient, answers: asServer}
)

// renderDirection is the chain for packets to or from this node itself.
func renderDirection(s Spec, fam Family, d direction) []Rule {
	rules := renderHead(s, fam, d)
	for _, row := range rowsOf(s, d.opens) {
		if row.Proto == ProtoEcho {
			match := echoRequest(fam) + " " + matchSet(row.group, fam, d.peer)
			rules = append(rules, tagged(row.Name, "ACCEPT", match+" "+perSource(row.Name, row.Rate, row.Rate)))
		}
	}
	rules = append(rules, tagged(tagICMP, ChainICMP, "-p "+icmpProto(fam)))
	if d.in {
		rules = append(rules, renderTCPFlags()...)
	}
	rules = append(rules, renderResets(s, fam, d)...)
	rules = append(rules, tagged(tagInvalid, "DROP", "-m conntrack --ctstate INVALID"))
	rules = append(rules, renderLeases(fam, d)...)
	for _, row := range rowsOf(s, d.opens) {
		if row.Proto == ProtoEcho {
			continue
		}
		match := portMatch(row.Flow, "d") + " " + matchSet(row.group, fam, d.peer) + newOnly
		if d.in {
			match += serviceLimits(row.Flow, fam)
		}
		rules = append(rules, tagged(row.Name, "ACCEPT", match))
	}
	if d.in {
		rules = append(rules, tagged(tagOpen, "ACCEPT", matchSet(groupOpen, fam, "src,dst")+newOnly))
	}
	rules = append(rules, renderAnswers(s, fam, d)...)
	return append(rules, logDrop(d.name), drop(tagDrop))
}

// renderHead is what comes before any row. In scope host the metadata guard
// stands behind "established", which costs a connection nothing. In scope
// siblings "established" is not for what is none of our business, so the guard
// comes before both: it is for every packet to the service, whoever judges the
// others.
func renderHead(s Spec, fam Family, d direction) []Rule {
	var rules []Rule
	if s.Scope == ScopeSiblings {
		if !d.in {
			rules = append(rules, metadataGuard(fam), noGroups(fam))
		}
		rules = append(rules, outOfScope(fam, d))
	}
	rules = append(rules, established(tagEstablished, "ACCEPT", fam), tagged(tagLoopback, "ACCEPT", d.loopback+" lo"))
	if s.Scope != ScopeSiblings && !d.in {
		rules = append(rules, metadataGuard(fam))
	}
	return rules
}

// established leaves ICMP out, see the package's comment.
func established(tag, target string, fam Family) Rule {
	return tagged(tag, target, "! -p "+icmpProto(fam)+" -m conntrack --ctstate RELATED,ESTABLISHED")
}

const newOnly = " -m conntrack --ctstate NEW"

func matchSet(group string, fam Family, side string) string {
	return "-m set --match-set " + SetName(group, fam) + " " + side
}

// row is one flow and one of the groups at its other end.
type row struct {
	Flow
	group string
}

// rowsOf are the rows in which this node is at the end e.
func rowsOf(s Spec, e ends) []row {
	var rows []row
	for _, f := range s.Flows {
		if !slices.Contains(e.here(f), s.Role) {
			continue
		}
		for _, group := range e.there(f) {
			rows = append(rows, row{f, group})
		}
	}
	return rows
}

// renderAnswers lets a server's next segment through on connections that
// conntrack does not know: those from before the first apply, or from a moment
// without rules, during which the kernel does not track. If the server speaks
// first, conntrack takes its segment for NEW. Without these rules the first
// apply over ssh would hang, and so would a query that is waiting for its
// result. A SYN never matches, so nothing can be opened in either direction.
func renderAnswers(s Spec, fam Family, d direction) []Rule {
	var rules []Rule
	for _, row := range rowsOf(s, d.answers) {
		if row.Proto != ProtoTCP {
			continue
		}
		ports := portMatch(row.Flow, "s")
		if len(row.Ports) > 1 {
			ports += " -m tcp"
		}
		rules = append(rules, tagged(row.Name, "ACCEPT", ports+" ! --tcp-flags FIN,SYN,RST,ACK SYN "+matchSet(row.group, fam, d.peer)+newOnly))
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
