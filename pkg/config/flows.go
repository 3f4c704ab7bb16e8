package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// FlowOverride is what the configuration says about one row of the flow matrix:
// the change of a built-in row, or a new row. What it does not say is nil or empty.
type FlowOverride struct {
	Enabled      *bool
	Proto        string   // tcp, udp or icmp-echo
	Ports        []uint16 // 1 to 15, unique
	From         []string // roles or networks, unique; that they exist is checked by Validate
	To           []string
	Rate         *int // icmp-echo: requests per second and source, 1 to 1000
	Connections  *int // tcp: concurrent connections per source; 0: no limit
	NewPerSecond *int `mapstructure:"new_per_second"` // tcp: new connections per second and source, at most 1000; 0: no limit
}

const (
	protoTCP  = "tcp"
	protoUDP  = "udp"
	protoEcho = "icmp-echo"
)

// A rule takes at most 15 ports (multiport of iptables-extensions(8)) and rates
// up to 1000 a second, above which the kernel rounds them; a source has at most
// 65535 ports, so that a million connections is no limit for any of them.
const (
	maxFlows       = 256
	maxPorts       = 15
	maxRate        = 1000
	maxConnections = 1_000_000
)

const (
	networkSiblings = "siblings"
	networkMetadata = "metadata"
)

// wellKnown are the networks that flows may name without their being in the peer list.
var wellKnown = []string{controlPlane, "applications", "backup", "dns", "ntp"}

// notInFlows are networks that no row may name: nobody there is let in or out.
var notInFlows = []string{networkSiblings, networkMetadata}

var flowName = form{first: lower, rest: lower + digits + "-", most: 32}

const flowNameText = "a flow name (a letter a-z, then at most 31 of a-z, 0-9 and -)"

func (r *configReader) flows(key string, n *yaml.Node) {
	count := 0
	r.entries(key, n, "exporter: {enabled: true}", func(name, key string, n *yaml.Node) {
		if count++; count == maxFlows+1 {
			r.report(key, fmt.Sprintf("more than %d flows", maxFlows), "name networks, not single hosts, in from and to")
		}
		if count > maxFlows {
			return
		}
		if !flowName.matches(name) {
			fix := "write something like exporter"
			if small := strings.ReplaceAll(strings.ToLower(name), "_", "-"); flowName.matches(small) {
				fix = "write " + small
			}
			r.report(key, quote(name)+" is not "+flowNameText, fix)
		}
		r.flow(key, n)
	})
}

func (r *configReader) flow(key string, n *yaml.Node) {
	proto := ""
	number := func(least, most int) func(key string, n *yaml.Node) {
		return func(key string, n *yaml.Node) { r.whole(key, n, least, most) }
	}
	r.mapping(key, n, []field{
		{"enabled", false, "enabled: true", r.boolean},
		{"proto", false, "", func(key string, n *yaml.Node) { proto = r.oneOf(key, n, []string{protoTCP, protoUDP, protoEcho}) }},
		{"ports", false, "", r.ports},
		{"from", false, "", r.groups},
		{"to", false, "", r.groups},
		{"rate", false, "", number(1, maxRate)},
		{"connections", false, "", number(0, maxConnections)},
		{"new_per_second", false, "", number(0, maxRate)},
	})
	if n.Kind == yaml.MappingNode && len(n.Content) == 0 { // or viper would lose the row
		r.report(key, "says nothing about the flow", "write what changes, such as `enabled: true`, or remove it")
	}
	r.flowProto(key, proto)
}

// flowProto refuses keys that the protocol has no use for. The protocol of a
// built-in row is only known where the rows are.
func (r *configReader) flowProto(key, proto string) {
	foreign := map[string][]string{
		protoTCP:  {"rate"},
		protoUDP:  {"rate", "connections", "new_per_second"},
		protoEcho: {"ports", "connections", "new_per_second"},
	}
	for _, name := range foreign[proto] {
		if _, there := r.lines[join(key, name)]; there {
			r.report(join(key, name), "proto "+proto+" has no "+name, "remove it")
		}
	}
}

func (r *configReader) ports(key string, n *yaml.Node) {
	if count := len(n.Content); n.Kind == yaml.SequenceNode && (count == 0 || count > maxPorts) {
		r.report(key, fmt.Sprintf("the list has %d ports", count), fmt.Sprintf("write 1 to %d ports", maxPorts))
		return
	}
	r.unique(key, n, "5432", func(key string, n *yaml.Node) string {
		if v, ok := r.whole(key, n, 1, 65535); ok {
			return strconv.Itoa(v)
		}
		return ""
	})
}

// groups checks what stands in from and to of a row.
func (r *configReader) groups(key string, n *yaml.Node) {
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		r.report(key, "the list is empty", "name a role or network, or write `enabled: false` to switch the row off")
		return
	}
	r.unique(key, n, "applications", func(key string, n *yaml.Node) string {
		s, ok := r.networkRef(key, n, "applications")
		if ok && slices.Contains(notInFlows, s) {
			r.report(key, "no flow can name the network "+s+", it is there to be kept out", "name the network of those who are meant")
		}
		return s
	})
}

// networkRef returns the name of a role or network. Addresses have no place
// where networks are named, and no host name is looked up.
func (r *configReader) networkRef(key string, n *yaml.Node, example string) (string, bool) {
	s, ok := r.text(key, n, example)
	if ok && !networkName.matches(s) {
		r.report(key, quote(s)+" is "+networkNameText, "write the name of a role or network of the peer list such as "+example)
		return "", false
	}
	return s, ok
}

func (r *configReader) boolean(key string, n *yaml.Node) {
	if r.isKind(key, n, yaml.ScalarNode, "true or false", "true") && n.Tag != "!!bool" {
		r.report(key, "is "+kindOf(n)+", not true or false", "write true or false")
	}
}

// eachGroup visits the key and name of every role and network that the
// configuration's flows name, in order.
func (c Config) eachGroup(visit func(key, name string)) {
	for _, flow := range slices.Sorted(maps.Keys(c.Flows)) {
		for i, name := range c.Flows[flow].From {
			visit(fmt.Sprintf("flows.%s.from[%d]", flow, i), name)
		}
		for i, name := range c.Flows[flow].To {
			visit(fmt.Sprintf("flows.%s.to[%d]", flow, i), name)
		}
	}
}
