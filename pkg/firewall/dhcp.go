package firewall

import "net/netip"

// DHCP's ports, RFC 2131 section 4.1 and RFC 8415 section 7.2.
const (
	dhcpClient, dhcpServer     = 68, 67
	dhcpv6Client, dhcpv6Server = 546, 547
)

// allDHCP is All_DHCP_Relay_Agents_and_Servers, RFC 8415 section 7.1.
var allDHCP = netip.MustParseAddr("ff02::1:2")

const (
	matchDHCP = "-p udp -m udp --sport 68 --dport 67" // a client to any server: leases are renewed by unicast

	// A client asks by multicast. Unicast is only for servers that offer it, and
	// it falls back to multicast in time (RFC 8415, sections 18.2.4 and 18.2.5).
	matchDHCPv6 = "-d ff02::1:2/128 -p udp -m udp --sport 546 --dport 547"

	// The answer comes from another address than was asked, so that conntrack
	// takes it for new: that of a server or relay on the link.
	matchDHCPv6Answer = "-s fe80::/10 -p udp -m udp --sport 547 --dport 546"
)

// renderLeases lets a host keep its addresses: without renewals a cloud's VM
// loses them. They open nothing for a service, which cannot send or listen on a
// port below 1024 (capabilities(7), CAP_NET_BIND_SERVICE; and ip-sysctl.rst,
// ip_unprivileged_port_start, which is among the sysctls that the agent keeps).
// Whose the packets are is not asked, since clients run as users of their own.
//
// No rule lets in IPv4's answers: one by unicast is ESTABLISHED, and one by
// broadcast is read from a packet socket, which is before netfilter.
func renderLeases(fam Family, d direction) []Rule {
	switch {
	case fam == IPv6 && d.in:
		return []Rule{tagged(tagDHCP, "ACCEPT", matchDHCPv6Answer+newOnly)}
	case fam == IPv6:
		return []Rule{tagged(tagDHCP, "ACCEPT", matchDHCPv6+newOnly)}
	case d.in:
		return nil
	}
	return []Rule{tagged(tagDHCP, "ACCEPT", matchDHCP+newOnly)}
}

// isLease says whether renderLeases lets a connection be opened.
func (c Connection) isLease(d Direction) bool {
	from, to := c.Src, c.at()
	switch {
	case c.Proto != ProtoUDP:
		return false
	case c.family() == IPv4:
		return d == Out && from.Port() == dhcpClient && to.Port() == dhcpServer
	case d == Out:
		return from.Port() == dhcpv6Client && to.Port() == dhcpv6Server && to.Addr() == allDHCP
	}
	return from.Port() == dhcpv6Server && to.Port() == dhcpv6Client && from.Addr().IsLinkLocalUnicast()
}
