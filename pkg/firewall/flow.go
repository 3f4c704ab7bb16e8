package firewall

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Protocols of a Flow.
const (
	ProtoTCP  = "tcp"
	ProtoUDP  = "udp"
	ProtoEcho = "icmp-echo" // ICMP and ICMPv6 echo request
)

// Flow is one row of the matrix: who may open a connection to whom.
type Flow struct {
	Name  string   `yaml:"name"`
	Proto string   `yaml:"proto"`
	Ports []uint16 `yaml:"ports"` // destination ports; none for icmp-echo
	From  []string `yaml:"from"`  // roles or networks
	To    []string `yaml:"to"`    // roles or networks
	Rate  int      `yaml:"rate"`  // icmp-echo only: requests per second and source

	OptIn   bool `yaml:"opt_in"`  // off unless the configuration switches the row on
	Limited bool `yaml:"limited"` // a service's row: what one source may use of it is limited

	// What one source may use, enforced by the server's node; tcp only, 0 is no limit.
	Connections  int `yaml:"connections"`    // at the same time
	NewPerSecond int `yaml:"new_per_second"` // with twice as many at once
}

// Comments of rules that belong to no flow; a flow may not take their names.
const (
	tagEstablished = "established"
	tagLoopback    = "loopback"
	tagICMP        = "icmp"
	tagInvalid     = "invalid"
	tagLog         = "log"
	tagDrop        = "drop"
	tagJump        = "jump"
	tagPathMTU     = "path-mtu"
	tagICMPError   = "icmp-error"
	tagEchoReply   = "echo-reply"
	tagNeighbour   = "neighbour-discovery"
	tagMulticast   = "mld"
	tagMetadata    = "metadata"
	tagScope       = "scope"
	tagOpen        = "open"
	tagTCPFlags    = "tcp-flags"
	tagRPFilter    = "rpfilter"
	tagDHCP        = "dhcp"
	tagReset       = "reset"
)

var reservedNames = []string{
	tagEstablished, tagLoopback, tagICMP, tagInvalid, tagLog, tagDrop, tagJump,
	tagPathMTU, tagICMPError, tagEchoReply, tagNeighbour, tagMulticast,
	tagMetadata, tagScope, tagOpen, tagTCPFlags, tagRPFilter, tagDHCP, tagReset,
}

// Every start of the program would pay for regular expressions here.
func flowName(s string) bool  { return isName(s, "-", 32) }
func groupName(s string) bool { return isName(s, "_-", 24) }

// isName: a small letter, then small letters, digits and signs, at most so many characters in all.
func isName(s, signs string, most int) bool {
	if s == "" || len(s) > most || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789"+signs) == ""
}

// multiport takes at most 15 ports, iptables-extensions(8). hashlimit keeps the
// microseconds between two packets as an integer, so that a rate above 1000 does
// not always come back from the kernel as it went in (1500/sec as 1501/sec).
// Connections: more than any server has, max_connections being 262143 at most.
const (
	maxPorts       = 15
	maxRate        = 1000
	maxConnections = 1 << 20
)

// ParseFlows reads a flow matrix (version 1). Unknown keys are errors; file is
// used in messages only.
func ParseFlows(file string, data []byte) ([]Flow, error) {
	var doc struct {
		Version int    `yaml:"version"`
		Flows   []Flow `yaml:"flows"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read flows: %s: %w", file, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read flows: %s: there is a second document; keep one and remove the line ---", file)
	}
	if doc.Version != 1 {
		return nil, fmt.Errorf("cannot read flows: %s: version is %d; write version: 1", file, doc.Version)
	}
	if err := checkFlows(doc.Flows); err != nil {
		return nil, fmt.Errorf("cannot read flows: %s: %w", file, err)
	}
	return doc.Flows, nil
}

func checkFlows(flows []Flow) error {
	var errs []error
	seen := map[string]bool{}
	for i, f := range flows {
		if err := f.check(); err != nil {
			errs = append(errs, fmt.Errorf("flows[%d] (%s): %w", i, f.Name, err))
		}
		if seen[f.Name] {
			errs = append(errs, fmt.Errorf("flows[%d] (%s): the name is taken by an earlier row", i, f.Name))
		}
		seen[f.Name] = true
	}
	return errors.Join(errs...)
}

func (f Flow) check() error {
	if !flowName(f.Name) {
		return fmt.Errorf("name %q: use lower-case letters, digits and dashes", f.Name)
	}
	if slices.Contains(reservedNames, f.Name) {
		return fmt.Errorf("name %q is reserved; choose another", f.Name)
	}
	if err := f.checkGroups(); err != nil {
		return err
	}
	if hasDuplicates(f.From) || hasDuplicates(f.To) || hasDuplicates(f.Ports) {
		return errors.New("from, to and ports must each name a thing once")
	}
	switch f.Proto {
	case ProtoTCP, ProtoUDP:
		if len(f.Ports) == 0 || len(f.Ports) > maxPorts || slices.Contains(f.Ports, 0) {
			return fmt.Errorf("ports: give 1 to %d ports between 1 and 65535", maxPorts)
		}
		if f.Rate != 0 {
			return errors.New("rate: only for proto icmp-echo")
		}
	case ProtoEcho:
		if len(f.Ports) != 0 {
			return errors.New("ports: icmp-echo has none; remove the key")
		}
		if f.Rate < 1 || f.Rate > maxRate {
			return fmt.Errorf("rate: give 1 to %d requests per second", maxRate)
		}
	default:
		return fmt.Errorf("proto %q: use %s, %s or %s", f.Proto, ProtoTCP, ProtoUDP, ProtoEcho)
	}
	return f.checkLimits()
}

func (f Flow) checkGroups() error {
	if len(f.From) == 0 || len(f.To) == 0 {
		return errors.New("from and to must each name at least one role or network")
	}
	for _, g := range slices.Concat(f.From, f.To) {
		if !groupName(g) {
			return fmt.Errorf("role or network %q: use a lower-case name of at most 24 characters", g)
		}
		if g == NetworkSiblings || g == NetworkMetadata || g == groupOpen {
			return fmt.Errorf("no row may name the network %s; that name has a meaning of its own", g)
		}
	}
	return nil
}

func (f Flow) checkLimits() error {
	if f.Proto != ProtoTCP && (f.Limited || f.Connections != 0 || f.NewPerSecond != 0) {
		return errors.New("limited, connections and new_per_second: only for proto tcp")
	}
	if f.Connections < 0 || f.Connections > maxConnections {
		return fmt.Errorf("connections: give 1 to %d for each source, or 0 for no limit", maxConnections)
	}
	if f.NewPerSecond < 0 || f.NewPerSecond > maxRate {
		return fmt.Errorf("new_per_second: give 1 to %d for each source, or 0 for no limit", maxRate)
	}
	return nil
}

func hasDuplicates[T cmp.Ordered](list []T) bool {
	sorted := slices.Sorted(slices.Values(list))
	return len(slices.Compact(sorted)) != len(list)
}
