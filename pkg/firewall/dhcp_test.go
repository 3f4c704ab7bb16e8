package firewall

import (
	"net/netip"
	"testing"
)

// A host keeps its leases, in both scopes, whoever its client runs as. Nothing
// else gets through by the same ports, and nothing from a service's.
func TestRenderLeases(t *testing.T) {
	const (
		out, in  = false, true
		pass     = "dhcp"
		hostOnly = "scope" // left to the host's own firewall in scope siblings
	)
	for _, tc := range []struct {
		name           string
		inbound        bool
		remote, proto  string
		sport, dport   uint16
		host, siblings string // the tag of the rule that decides
	}{
		{"to a server in the subnet", out, "10.20.1.1", ProtoUDP, 68, 67, pass, pass},
		{"to a server elsewhere", out, "203.0.113.1", ProtoUDP, 68, 67, pass, hostOnly},
		{"to the metadata service's address", out, "169.254.169.254", ProtoUDP, 68, 67, pass, hostOnly},
		{"by broadcast", out, "255.255.255.255", ProtoUDP, 68, 67, pass, hostOnly},
		{"from a service's port", out, "10.20.1.1", ProtoUDP, 1068, 67, tagDrop, tagDrop},
		{"from a service's port by broadcast", out, "255.255.255.255", ProtoUDP, 1068, 67, tagDrop, tagScope},
		{"from a service's port to the metadata service", out, "169.254.169.254", ProtoUDP, 1068, 67, tagMetadata, tagMetadata},
		{"to another port", out, "10.20.1.66", ProtoUDP, 68, 53, tagDrop, tagDrop},
		{"to another port of the metadata service", out, "169.254.169.254", ProtoUDP, 68, 80, tagMetadata, tagMetadata},
		{"by tcp", out, "10.20.1.66", ProtoTCP, 68, 67, tagDrop, tagDrop},
		{"a sibling's, to a server here", in, "10.20.1.66", ProtoUDP, 68, 67, tagDrop, tagDrop},
		{"a sibling's answer that nobody asked for", in, "10.20.1.66", ProtoUDP, 67, 68, tagDrop, tagDrop},

		{"IPv6", out, "ff02::1:2", ProtoUDP, 546, 547, pass, hostOnly},
		{"IPv6, answer", in, "fe80::1", ProtoUDP, 547, 546, pass, pass},
		{"IPv6, from a service's port", out, "ff02::1:2", ProtoUDP, 1546, 547, tagDrop, tagScope},
		{"IPv6, to another group", out, "ff02::1", ProtoUDP, 546, 547, tagDrop, hostOnly},
		{"IPv6, to one address", out, "fe80::66", ProtoUDP, 546, 547, tagDrop, tagDrop},
		{"IPv6, answer from afar", in, "fd00:20:1::66", ProtoUDP, 547, 546, tagDrop, tagDrop},
		{"IPv6, answer to another port", in, "fe80::66", ProtoUDP, 547, 5432, tagDrop, tagDrop},
		{"IPv6, answer from another port", in, "fe80::66", ProtoUDP, 40000, 546, tagDrop, tagDrop},
		{"IPv6, answer by tcp", in, "fe80::66", ProtoTCP, 547, 546, tagDrop, tagDrop},
	} {
		for scope, want := range map[string]string{ScopeHost: tc.host, ScopeSiblings: tc.siblings} {
			for _, role := range []string{"postgres", "pgpool", "other"} {
				rs, err := Render(decideSpec(t, role, scope))
				if err != nil {
					t.Fatal(err)
				}
				r := &reader{t: t, rs: rs, fam: IPv4, p: packet{inbound: tc.inbound, sport: tc.sport, self: netip.MustParseAddr("10.20.1.10"),
					q: Query{Remote: netip.MustParseAddr(tc.remote), Proto: tc.proto, Port: tc.dport, At: decideAt}}}
				if r.p.q.Remote.Is6() {
					r.fam, r.p.self = IPv6, netip.MustParseAddr("fe80::10")
				}
				verdict := r.verdict()
				allowed := want == pass || want == hostOnly && tc.sport < 1024
				if (verdict != "DROP") != allowed || r.tag != want {
					t.Errorf("%s, scope %s, role %s: %s by %s, want %s", tc.name, scope, role, verdict, r.tag, want)
				}
			}
		}
	}
}

// In scope siblings nobody but root sends to all who listen on the link.
func TestDecideGroups(t *testing.T) {
	for _, c := range []struct {
		scope, remote, proto string
		d                    Direction
		root, passedOn       bool
		by                   string
	}{
		{ScopeSiblings, "224.0.0.1", ProtoUDP, Out, false, false, tagScope},
		{ScopeSiblings, "255.255.255.255", ProtoUDP, Out, false, false, tagScope},
		{ScopeSiblings, "ff02::1", ProtoUDP, Out, false, false, tagScope},
		{ScopeSiblings, "ff02::1", ProtoUDP, Out, true, true, tagScope},
		{ScopeSiblings, "203.0.113.1", ProtoUDP, Out, false, true, tagScope},
		{ScopeHost, "224.0.0.1", ProtoUDP, Out, false, false, tagDrop},
		{ScopeHost, "224.0.0.1", ProtoUDP, Out, true, false, tagDrop},
	} {
		got := Decide(decideSpec(t, "postgres", c.scope), c.d, Query{Remote: netip.MustParseAddr(c.remote), Proto: c.proto, Port: 9999, Root: c.root})
		if got.Allowed != c.passedOn || got.PassedOn != c.passedOn || got.By != c.by {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}
