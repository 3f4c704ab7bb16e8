package firewall

// renderMetadata decides all packets to the metadata service, which hands out
// the machine's credentials: root may ask it, nobody else. DNS and time, which
// clouds serve at the same address, go back to the rows of the matrix, and DHCP,
// which Google's does, to the rule for leases. Its first rule is for scope
// siblings, where the chain comes before "established".
func renderMetadata(fam Family) []Rule {
	rules := []Rule{
		established(tagMetadata, "RETURN", fam),
		tagged(tagMetadata, "RETURN", "-p udp -m multiport --dports 53,123"),
		tagged(tagMetadata, "RETURN", "-p tcp -m tcp --dport 53"),
	}
	if fam == IPv4 { // IPv6's goes to a multicast address
		rules = append(rules, tagged(tagMetadata, "RETURN", matchDHCP))
	}
	return append(rules,
		tagged(tagMetadata, "ACCEPT", "-p tcp -m tcp --dport 80 -m owner --uid-owner 0 -m conntrack --ctstate NEW"),
		drop(tagMetadata))
}

func metadataGuard(fam Family) Rule {
	return tagged(tagMetadata, ChainMetadata, matchSet(NetworkMetadata, fam, "dst"))
}

// renderForward drops what would be routed through this node. In scope siblings
// the host may be a router for others.
func renderForward(s Spec, fam Family) []Rule {
	var rules []Rule
	if s.Scope == ScopeSiblings {
		set := SetName(NetworkSiblings, fam)
		rules = append(rules, tagged(tagScope, "RETURN", "-m set ! --match-set "+set+" src -m set ! --match-set "+set+" dst"))
	}
	return append(rules, logDrop("fwd"), drop(tagDrop))
}

// outOfScope leaves all but the siblings to the host's own firewall.
func outOfScope(fam Family, d direction) Rule {
	return tagged(tagScope, "RETURN", "-m set ! --match-set "+SetName(NetworkSiblings, fam)+" "+d.peer)
}

// noGroups is for scope siblings: a multicast or broadcast address is no
// sibling's, and yet siblings of the same link take in what is sent there. Root,
// and daemons with a port below 1024 such as DHCP clients, are left to the host's
// own firewall. addrtype knows the broadcast addresses of this node's subnets.
func noGroups(fam Family) Rule {
	groups := "BROADCAST,MULTICAST"
	if fam == IPv6 {
		groups = "MULTICAST"
	}
	return tagged(tagScope, "DROP", "-p udp -m udp --sport 1024:65535 -m addrtype --dst-type "+groups+" -m owner ! --uid-owner 0")
}

// renderTCPFlags drops segments that no TCP sends, by which scanners tell
// systems apart. The kernel's conntrack takes these for invalid as well
// (tcp_valid_flags in nf_conntrack_proto_tcp.c), unless somebody switches off
// its checks. They stand behind "established" and cost a connection nothing.
func renderTCPFlags() []Rule {
	var rules []Rule
	for _, flags := range []string{
		"SYN,RST,ACK NONE", // without all three: NULL, FIN alone, XMAS
		"FIN,SYN FIN,SYN",
		"SYN,RST SYN,RST",
		"FIN,RST FIN,RST",
	} {
		rules = append(rules, tagged(tagTCPFlags, "DROP", "-p tcp -m tcp --tcp-flags "+flags))
	}
	return rules
}

// renderRaw drops IPv6 packets from a source to which the way back is not the
// one they came by, before conntrack gets to see them. For IPv4 that is the
// sysctl rp_filter, which IPv6 has not. The match itself lets pass what has no
// way back and is right: the unspecified address, which duplicate address
// detection uses, and what comes over the loopback interface; a link-local
// source is looked up on its own link (net/ipv6/netfilter/ip6t_rpfilter.c).
func renderRaw(s Spec) Table {
	match := "-m rpfilter --invert"
	if s.Scope == ScopeSiblings { // by which way others come is not ours to judge
		match = matchSet(NetworkSiblings, IPv6, "src") + " " + match
	}
	return Table{
		Chains: []Chain{{Name: ChainRPF, Rules: []Rule{tagged(tagRPFilter, "DROP", match)}}},
		Jumps:  []Jump{{From: "PREROUTING", Rule: jump(ChainRPF)}},
	}
}
