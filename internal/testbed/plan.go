package testbed

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
)

// HostSpec describes one host of a bed.
type HostSpec struct {
	Name      string   // also its host name: lower case letters, digits and dashes
	Addresses []string // with prefix length, e.g. "10.20.1.10/24"; one or more, all in subnets of one switch
	// MTU in bytes of the router's way to the host's subnet; 0 means 1500. It is narrow for packets to the host: its own
	// interface keeps 1500, so that only path-MTU discovery tells the other side.
	MTU int
}

const (
	defaultMTU = 1500
	nicName    = "eth0" // the one interface of each host
)

// routerLinkLocal is the router's address on every subnet: hosts use it as IPv6 gateway, as after a router advertisement.
var routerLinkLocal = netip.MustParseAddr("fe80::1")

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// plan is the topology computed from the host list.
type plan struct {
	segments []segment
	hosts    []plannedHost
}

// segment is one bridge and the subnets on it.
type segment struct {
	router []netip.Prefix // the router's addresses, one for each subnet
	mtu    int            // of the router's own interface: the least of the hosts'
}

type plannedHost struct {
	name      string
	addresses []netip.Prefix
	segment   int
	mtu       int
}

// planHosts checks the specs and groups hosts that share a subnet. Pure.
func planHosts(specs []HostSpec) (plan, error) {
	var p plan
	taken := map[netip.Addr]string{}
	names := map[string]bool{}
	for _, spec := range specs {
		h, err := planHost(spec, taken)
		if err != nil {
			return plan{}, err
		}
		if names[h.name] {
			return plan{}, fmt.Errorf("cannot plan host %s: the name is used twice", h.name)
		}
		names[h.name] = true
		if h.segment, err = p.attach(h); err != nil {
			return plan{}, err
		}
		p.hosts = append(p.hosts, h)
	}
	for _, s := range p.segments {
		for _, r := range s.router {
			if owner, ok := taken[r.Addr()]; ok {
				return plan{}, fmt.Errorf("cannot plan host %s: %s is the router's address; take another", owner, r.Addr())
			}
		}
	}
	return p, nil
}

func planHost(spec HostSpec, taken map[netip.Addr]string) (plannedHost, error) {
	h := plannedHost{name: spec.Name, mtu: spec.MTU}
	if !nameForm.MatchString(h.name) {
		return h, fmt.Errorf("cannot plan host %q: the name must match %s", h.name, nameForm)
	}
	if h.mtu == 0 {
		h.mtu = defaultMTU
	}
	if len(spec.Addresses) == 0 {
		return h, fmt.Errorf("cannot plan host %s: it has no address", h.name)
	}
	for _, text := range spec.Addresses {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return h, fmt.Errorf("cannot plan host %s: %w", h.name, err)
		}
		if p.Addr().Is4In6() || p.IsSingleIP() {
			return h, fmt.Errorf("cannot plan host %s: %s is not an address in a subnet", h.name, p)
		}
		if owner, ok := taken[p.Addr()]; ok {
			return h, fmt.Errorf("cannot plan host %s: %s belongs to %s", h.name, p.Addr(), owner)
		}
		taken[p.Addr()] = h.name
		h.addresses = append(h.addresses, p)
	}
	return h, nil
}

// attach finds or makes the segment of the host's subnets and returns its index.
func (p *plan) attach(h plannedHost) (int, error) {
	at := -1
	for i, s := range p.segments {
		for _, a := range h.addresses {
			if !slices.Contains(s.router, routerPrefix(a)) {
				continue
			}
			if at >= 0 && at != i {
				return 0, fmt.Errorf("cannot plan host %s: its addresses are in subnets of two different switches", h.name)
			}
			at = i
		}
	}
	if at < 0 {
		at = len(p.segments)
		p.segments = append(p.segments, segment{mtu: h.mtu})
	}
	s := &p.segments[at]
	s.mtu = min(s.mtu, h.mtu)
	for _, a := range h.addresses {
		if r := routerPrefix(a); !slices.Contains(s.router, r) {
			s.router = append(s.router, r)
		}
	}
	return at, nil
}

// routerPrefix returns the first address of the subnet, which the router owns.
func routerPrefix(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits())
}

// subnets lists every subnet of the plan, masked.
func (p plan) subnets() []netip.Prefix {
	var all []netip.Prefix
	for _, s := range p.segments {
		for _, r := range s.router {
			all = append(all, r.Masked())
		}
	}
	return all
}
