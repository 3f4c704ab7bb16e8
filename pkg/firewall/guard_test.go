package firewall

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// lines is a chain as text, one rule a line, comments shortened to their tag.
func lines(t *testing.T, rs Ruleset, id TableID, chain string) []string {
	t.Helper()
	i := slices.IndexFunc(rs.Tables[id].Chains, func(c Chain) bool { return c.Name == chain })
	if i < 0 {
		t.Fatalf("no chain %s", chain)
	}
	var list []string
	for _, r := range rs.Tables[id].Chains[i].Rules {
		list = append(list, strings.Replace(r.String(), "-m comment --comment pghardend:", "#", 1))
	}
	return list
}

func renderScope(t *testing.T, scope string) Ruleset {
	t.Helper()
	m := members()
	m[NetworkSiblings] = prefixes("10.20.0.0/16", "fd00:20:1::/64")
	m[NetworkMetadata] = prefixes("169.254.170.2/32")
	rs, err := Render(Spec{Role: "postgres", Flows: shipped(t), Members: m, Scope: scope})
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

// What stands before the rows, in which order, in both scopes.
func TestRenderScope(t *testing.T) {
	const (
		established = "! -p icmp -m conntrack --ctstate ESTABLISHED,RELATED #established -j ACCEPT"
		guard       = "-m set --match-set pgh4-metadata dst #metadata -j PGHARDEND-META"
		groups      = "-p udp -m udp --sport 1024:65535 -m addrtype --dst-type BROADCAST,MULTICAST -m owner ! --uid-owner 0 #scope -j DROP"
	)
	host, siblings := renderScope(t, ScopeHost), renderScope(t, ScopeSiblings)
	for _, tc := range []struct {
		rs    Ruleset
		chain string
		want  []string
	}{
		{host, ChainIn, []string{established, "-i lo #loopback -j ACCEPT"}},
		{host, ChainOut, []string{established, "-o lo #loopback -j ACCEPT", guard}},
		{siblings, ChainIn, []string{"-m set ! --match-set pgh4-siblings src #scope -j RETURN", established, "-i lo #loopback -j ACCEPT"}},
		{siblings, ChainOut, []string{guard, groups, "-m set ! --match-set pgh4-siblings dst #scope -j RETURN", established, "-o lo #loopback -j ACCEPT"}},
		{siblings, ChainFwd, []string{"-m set ! --match-set pgh4-siblings src -m set ! --match-set pgh4-siblings dst #scope -j RETURN"}},
	} {
		got := lines(t, tc.rs, FilterIPv4, tc.chain)
		if !slices.Equal(got[:len(tc.want)], tc.want) {
			t.Errorf("%s begins with\n%s\nwant\n%s", tc.chain, strings.Join(got[:len(tc.want)], "\n"), strings.Join(tc.want, "\n"))
		}
	}
	for _, chain := range []string{ChainIn, ChainOut} { // behind the head both scopes are alike
		a, b := lines(t, host, FilterIPv6, chain), lines(t, siblings, FilterIPv6, chain)
		if !slices.Equal(a[3:], b[len(b)-len(a)+3:]) {
			t.Errorf("%s differs between the scopes:\n%q\n%q", chain, a, b)
		}
	}
	if got, want := lines(t, siblings, FilterIPv6, ChainOut)[1], strings.Replace(groups, "BROADCAST,", "", 1); got != want {
		t.Errorf("IPv6, which has no broadcast: %s, want %s", got, want)
	}
	if fwd := lines(t, host, FilterIPv6, ChainFwd); len(fwd) != 2 {
		t.Errorf("scope host forwards: %q", fwd)
	}
}

// The built-in members are there whatever the peer list says.
func TestRenderBuiltInMembers(t *testing.T) {
	for _, tc := range []struct {
		rs   Ruleset
		want string
	}{
		{renderScope(t, ScopeSiblings), "pgh4-metadata [169.254.169.254/32 169.254.170.2/32]"},
		{renderScope(t, ScopeSiblings), "pgh6-metadata [fd00:ec2::254/128]"},
		{renderScope(t, ScopeSiblings), "pgh4-siblings [10.20.0.0/16]"},
		{renderScope(t, ScopeSiblings), "pgh6-siblings [fd00:20:1::/64 fe80::/10]"},
		{render(t, "pgpool"), "pgh4-metadata [169.254.169.254/32]"},
	} {
		var got []string
		for _, s := range tc.rs.Sets {
			got = append(got, fmt.Sprintf("%s %v", s.Name, s.Members))
		}
		if !slices.Contains(got, tc.want) {
			t.Errorf("no %s in %q", tc.want, got)
		}
	}
	if slices.ContainsFunc(renderScope(t, ScopeHost).Sets, func(s Set) bool { return strings.HasSuffix(s.Name, "siblings") }) {
		t.Error("a set of siblings, which no rule of scope host names")
	}
}

func TestA47_RenderMetadata(t *testing.T) {
	for _, id := range []TableID{FilterIPv4, FilterIPv6} {
		want := []string{
			"! -p " + icmpProto(id.family()) + " -m conntrack --ctstate ESTABLISHED,RELATED #metadata -j RETURN",
			"-p udp -m multiport --dports 53,123 #metadata -j RETURN",
			"-p tcp -m tcp --dport 53 #metadata -j RETURN",
			"-p udp -m udp --dport 67 --sport 68 #metadata -j RETURN",
			"-p tcp -m tcp --dport 80 -m owner --uid-owner 0 -m conntrack --ctstate NEW #metadata -j ACCEPT",
			"#metadata -j DROP",
		}
		if id == FilterIPv6 { // its DHCP goes to a multicast address
			want = slices.Delete(want, 3, 4)
		}
		if got := lines(t, render(t, "postgres"), id, ChainMetadata); !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", id, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// tcpMatches plays `--tcp-flags mask comp` of a rule.
func tcpMatches(t *testing.T, rule string, flags int) bool {
	t.Helper()
	bit := map[string]int{"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "NONE": 0}
	words := strings.Fields(rule)
	i := slices.Index(words, "--tcp-flags")
	sum := func(list string) (n int) {
		for _, name := range strings.Split(list, ",") {
			b, ok := bit[name]
			if !ok {
				t.Fatalf("flag %q", name)
			}
			n |= b
		}
		return n
	}
	return flags&sum(words[i+1]) == sum(words[i+2])
}

// Of all 64 combinations those are dropped that conntrack's tcp_valid_flags
// (net/netfilter/nf_conntrack_proto_tcp.c) does not list, and no other.
func TestRenderTCPFlags(t *testing.T) {
	const fin, syn, rst, ack, urg, psh = 1, 2, 4, 16, 32, 8
	valid := []int{syn, syn | urg, syn | ack, rst, rst | ack, fin | ack, fin | ack | urg, ack, ack | urg}
	var rules []string
	for _, line := range lines(t, render(t, "postgres"), FilterIPv4, ChainIn) {
		if strings.Contains(line, "#tcp-flags") {
			rules = append(rules, line)
		}
	}
	for flags := range 64 {
		dropped := slices.ContainsFunc(rules, func(r string) bool { return tcpMatches(t, r, flags) })
		known := slices.Contains(valid, flags&^psh)
		unusual := flags&^psh == rst|urg || flags&^psh == rst|ack|urg || flags&^psh == syn|ack|urg // conntrack's to drop: no scanner's trick
		if dropped == known && !unusual || dropped && unusual {
			t.Errorf("flags %06b: dropped %v, valid %v", flags, dropped, known)
		}
	}
}

func TestRenderRPFilter(t *testing.T) {
	rs := render(t, "pgpool")
	if got, want := lines(t, rs, RawIPv6, ChainRPF), []string{"-m rpfilter --invert #rpfilter -j DROP"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := lines(t, renderScope(t, ScopeSiblings), RawIPv6, ChainRPF), []string{"-m set --match-set pgh6-siblings src -m rpfilter --invert #rpfilter -j DROP"}; !slices.Equal(got, want) {
		t.Errorf("scope siblings: %q, want %q", got, want)
	}
	p := Diff(rs, nothing())
	golden(t, "render-raw.txt", p.rules[RawIPv6])
}

func TestRenderLimits(t *testing.T) {
	f := Flow{Name: "postgres", Proto: ProtoTCP, Ports: []uint16{5432}, From: []string{"pgpool"}, To: []string{"postgres"}}
	for _, tc := range []struct {
		connections, fresh int
		fam                Family
		want               string
	}{
		{0, 0, IPv4, "-m conntrack --ctstate NEW #postgres -j ACCEPT"},
		{113, 0, IPv4, "--ctstate NEW -m connlimit --connlimit-mask 32 --connlimit-saddr --connlimit-upto 113 #postgres -j ACCEPT"},
		{113, 0, IPv6, "--ctstate NEW -m connlimit --connlimit-mask 128 --connlimit-saddr --connlimit-upto 113 #postgres -j ACCEPT"},
		{0, 500, IPv4, "--ctstate NEW -m hashlimit --hashlimit-burst 1000 --hashlimit-mode srcip --hashlimit-name pgh-postgres-500 --hashlimit-upto 500/sec #postgres -j ACCEPT"},
		{1, 1, IPv6, "--hashlimit-upto 1/sec -m connlimit --connlimit-mask 128 --connlimit-saddr --connlimit-upto 1 #postgres -j ACCEPT"},
	} {
		f.Connections, f.NewPerSecond = tc.connections, tc.fresh
		server, err := Render(Spec{Role: "postgres", Flows: []Flow{f}})
		if err != nil {
			t.Fatal(err)
		}
		got := lines(t, server, TableID(tc.fam), ChainIn)
		if !slices.ContainsFunc(got, func(l string) bool { return strings.HasSuffix(l, tc.want) }) {
			t.Errorf("no %q in\n%s", tc.want, strings.Join(got, "\n"))
		}
		client, err := Render(Spec{Role: "pgpool", Flows: []Flow{f}})
		if err != nil {
			t.Fatal(err)
		}
		if out := strings.Join(lines(t, client, TableID(tc.fam), ChainOut), "\n"); strings.Contains(out, "connlimit") || strings.Contains(out, "hashlimit") {
			t.Errorf("the client's end is limited:\n%s", out)
		}
	}
}
