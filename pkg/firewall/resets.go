package firewall

// renderResets lets a node say that it did not open a connection. Whoever is on
// its link can forge a SYN from its address to a server that it may use; the
// server's SYN-ACK comes as a surprise to conntrack (INVALID), and if it were
// dropped, each forged SYN would hold a place of this node's limit at the
// server until it times out: two packets a second would lock the node out. So
// these SYN-ACKs reach the stack, which has no socket for them, and its reset
// goes back. Nothing can be opened by either.
func renderResets(s Spec, fam Family, d direction) []Rule {
	side, flags := "d", "SYN,RST RST"
	if d.in {
		side, flags = "s", "SYN,RST,ACK SYN,ACK"
	}
	var rules []Rule
	for _, row := range rowsOf(s, asClient) {
		if row.Proto != ProtoTCP {
			continue
		}
		ports := portMatch(row.Flow, side)
		if len(row.Ports) > 1 {
			ports += " -m tcp"
		}
		rules = append(rules, tagged(tagReset, "ACCEPT", ports+" --tcp-flags "+flags+" "+matchSet(row.group, fam, d.peer)+
			" -m conntrack --ctstate INVALID"))
	}
	return rules
}
