package firewall

import "fmt"

// ICMP types by number, since iptables-save prints numbers: the IANA registries
// "ICMP Type Numbers" and "ICMPv6 Parameters".
const errorRate = "-m limit --limit 100/sec --limit-burst 200"

func icmpProto(fam Family) string {
	if fam == IPv6 {
		return "ipv6-icmp"
	}
	return "icmp"
}

func icmpType(fam Family, typ string) string {
	if fam == IPv6 {
		return "-p ipv6-icmp -m icmp6 --icmpv6-type " + typ
	}
	return "-p icmp -m icmp --icmp-type " + typ
}

func echoRequest(fam Family) string {
	if fam == IPv6 {
		return icmpType(fam, "128")
	}
	return icmpType(fam, "8")
}

// renderICMP decides every ICMP packet that no echo flow has accepted, in both
// directions. What RFC 4890 section 4.3.1 and 4.4.1 say must not be dropped
// passes without a limit; errors pass if they belong to a connection that
// conntrack knows. All else, redirects and timestamps among it, is dropped.
func renderICMP(fam Family) []Rule {
	if fam == IPv6 {
		return renderICMPv6()
	}
	rules := []Rule{tagged(tagPathMTU, "ACCEPT", icmpType(IPv4, "3/4"))}
	for _, typ := range []string{"3", "11", "12"} { // unreachable, time exceeded, parameter problem
		rules = append(rules, icmpError(IPv4, typ))
	}
	return append(rules,
		tagged(tagEchoReply, "ACCEPT", icmpType(IPv4, "0")+" -m conntrack --ctstate ESTABLISHED"),
		drop(tagICMP))
}

func renderICMPv6() []Rule {
	rules := []Rule{tagged(tagPathMTU, "ACCEPT", icmpType(IPv6, "2"))}
	// Router and neighbour solicitation and advertisement, inverse discovery, SEND.
	// A hop limit of 255 proves that no router forwarded them (RFC 4861, 6.1 and 7.1).
	for _, typ := range []int{133, 134, 135, 136, 141, 142, 148, 149} {
		rules = append(rules, tagged(tagNeighbour, "ACCEPT", icmpType(IPv6, fmt.Sprint(typ))+" -m hl --hl-eq 255"))
	}
	// MLD query, report, done, version 2 report, multicast router discovery.
	for _, typ := range []int{130, 131, 132, 143, 151, 152, 153} {
		rules = append(rules, tagged(tagMulticast, "ACCEPT", icmpType(IPv6, fmt.Sprint(typ))))
	}
	for _, typ := range []string{"1", "3", "4"} { // unreachable, time exceeded, parameter problem
		rules = append(rules, icmpError(IPv6, typ))
	}
	return append(rules,
		tagged(tagEchoReply, "ACCEPT", icmpType(IPv6, "129")+" -m conntrack --ctstate ESTABLISHED"),
		drop(tagICMP))
}

func icmpError(fam Family, typ string) Rule {
	return tagged(tagICMPError, "ACCEPT", icmpType(fam, typ)+" -m conntrack --ctstate RELATED "+errorRate)
}
