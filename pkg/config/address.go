package config

import (
	"fmt"
	"net/netip"
	"strings"
)

// special are the addresses that no packet between two hosts carries as its
// source, from the IANA special-purpose address registries (RFC 6890).
var special = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/32"), "the unspecified address"},
	{netip.MustParsePrefix("0.0.0.0/8"), "an address of \"this network\" (0.0.0.0/8)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "a loopback address"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address"},
	{netip.MustParsePrefix("255.255.255.255/32"), "the broadcast address"},
	{netip.MustParsePrefix("::/128"), "the unspecified address"},
	{netip.MustParsePrefix("::1/128"), "a loopback address"},
	{mapped, "IPv4 addresses mapped into IPv6 (::ffff:0:0/96)"},
	{netip.MustParsePrefix("::/96"), "an IPv4-compatible IPv6 address (::/96)"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address"},
}

// The widest networks that are accepted: the largest private ones, 10.0.0.0/8
// and fc00::/7. Wider ones are 0.0.0.0/0 in pieces, or a prefix length that lost
// its last digit with the end of the file.
const (
	minBits4 = 8
	minBits6 = 7
)

var mapped = netip.MustParsePrefix("::ffff:0:0/96")

// parseAddress returns the address of a node, or says what is wrong with it and what would be right.
func parseAddress(s string) (a netip.Addr, problem, fix string) {
	const example = "write an address such as 10.20.1.10 or fd00:20:1::10"
	if host, _, ok := strings.Cut(s, "/"); ok {
		if _, err := netip.ParseAddr(host); err == nil {
			fix = example
			if a, problem, _ := parseAddress(host); problem == "" {
				fix = "write " + a.String() + " if it is the node's"
			}
			return a, quote(s) + " has a prefix length, a node has single addresses", fix
		}
	}
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, quote(s) + " is not an IP address", example + "; names are not resolved"
	case a.Zone() != "":
		return a, quote(s) + " has a zone (what follows the %)", "write an address that means the same on every node, without a zone"
	case a.Is4In6():
		return a, quote(s) + " is an IPv4 address mapped into IPv6", "write " + a.Unmap().String()
	}
	for _, sp := range special {
		if sp.prefix.Contains(a) {
			return a, quote(s) + " is " + sp.what + " and cannot be a node's", example
		}
	}
	if a.IsLinkLocalUnicast() {
		return a, quote(s) + " is a link-local address, another host on another link may have it too", example
	}
	return a, "", ""
}

// parsePrefix returns an entry of a network, or says what is wrong with it and what would be right.
func parsePrefix(s string) (p netip.Prefix, problem, fix string) {
	const example = "write a CIDR such as 10.50.0.0/16 or fd00:50::/64"
	if strings.Contains(s, "%") {
		return p, quote(s) + " has a zone", "write it without the % and what follows"
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		if a, err := netip.ParseAddr(s); err == nil {
			return p, quote(s) + " has no prefix length", fmt.Sprintf("write %s/%d for this one address", a.Unmap(), a.Unmap().BitLen())
		}
		return p, quote(s) + " is not a CIDR", example
	case p.Bits() == 0:
		return p, quote(s) + " is every address there is", "list the networks that are really meant, such as 10.50.0.0/16"
	case p.Addr().Is4In6():
		return p, quote(s) + " is IPv4 mapped into IPv6", unmapped(p)
	}
	problem, fix = checkWidth(p, s)
	return p, problem, fix
}

// unmapped is the fix for a prefix whose address is within ::ffff:0:0/96.
func unmapped(p netip.Prefix) string {
	if bits := p.Bits() - mapped.Bits(); bits >= minBits4 {
		return "write " + netip.PrefixFrom(p.Addr().Unmap(), bits).Masked().String()
	}
	return "write the IPv4 networks that are meant, such as 10.50.0.0/16"
}

func checkWidth(p netip.Prefix, s string) (problem, fix string) {
	least := minBits6
	if p.Addr().Is4() {
		least = minBits4
	}
	switch {
	case p.Bits() < least:
		return fmt.Sprintf("%s is 1/%d of all addresses", quote(s), 1<<p.Bits()),
			fmt.Sprintf("list the networks that are really meant, each a /%d or smaller", least)
	case p != p.Masked():
		return quote(s) + " has bits set beyond its prefix length",
			fmt.Sprintf("write %s for the network or %s/%d for the one address", p.Masked(), p.Addr(), p.Addr().BitLen())
	}
	for _, sp := range special {
		if sp.prefix.Overlaps(p) {
			return quote(s) + " contains " + sp.what, "list the networks that hosts really have"
		}
	}
	return "", ""
}
