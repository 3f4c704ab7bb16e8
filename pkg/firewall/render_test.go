package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// The golden files are whole iptables-restore inputs for an empty namespace.
func TestRenderGolden(t *testing.T) {
	for _, role := range []string{"postgres", "pgpool"} {
		p := Diff(render(t, role), nothing())
		for _, fam := range Families {
			golden(t, fmt.Sprintf("render-%s-%s.txt", role, fam), p.rules[fam])
		}
		golden(t, "render-"+role+"-sets.txt", setsText(p))
	}
}

// matrix is DESIGN's default matrix written down once more, independently of
// flows.yaml: protocol/port → from → to.
var matrix = []struct {
	service  string
	from, to []string
}{
	{"tcp/5432", []string{"postgres", "pgpool"}, []string{"postgres"}},
	{"tcp/9999", []string{"applications"}, []string{"pgpool"}},
	{"tcp/9898", []string{"pgpool", "control_plane"}, []string{"pgpool"}},
	{"tcp/9000", []string{"pgpool"}, []string{"pgpool"}},
	{"udp/9694", []string{"pgpool"}, []string{"pgpool"}},
	{"tcp/22", []string{"control_plane"}, []string{"postgres", "pgpool"}},
	{"udp/53", []string{"postgres", "pgpool"}, []string{"dns"}},
	{"tcp/53", []string{"postgres", "pgpool"}, []string{"dns"}},
	{"udp/123", []string{"postgres", "pgpool"}, []string{"ntp"}},
	{"icmp/echo", []string{"postgres", "pgpool", "control_plane"}, []string{"postgres", "pgpool"}},
}

// accepts lists what a chain opens: "tcp/5432 pgh4-pgpool".
func accepts(rs Ruleset, fam Family, chain string) []string {
	var list []string
	i := slices.IndexFunc(rs.Tables[fam].Chains, func(c Chain) bool { return c.Name == chain })
	for _, r := range rs.Tables[fam].Chains[i].Rules {
		value := func(key string) string {
			if i := slices.Index(r.tokens, key); i >= 0 {
				return r.tokens[i+1]
			}
			return ""
		}
		set := value("--match-set")
		switch {
		case set == "", value("--ctstate") == "INVALID": // the latter belongs to no new connection
		case value("--dport") != "":
			list = append(list, value("-p")+"/"+value("--dport")+" "+set)
		case value("--icmp-type") == "8", value("--icmpv6-type") == "128":
			list = append(list, "icmp/echo "+set)
		}
	}
	slices.Sort(list)
	return list
}

// Every node opens exactly its rows of the matrix, inbound and outbound.
func TestRenderFollowsTheMatrix(t *testing.T) {
	for _, role := range []string{"postgres", "pgpool"} {
		rs := render(t, role)
		for _, fam := range Families {
			var in, out []string
			for _, row := range matrix {
				if slices.Contains(row.to, role) {
					for _, g := range row.from {
						in = append(in, row.service+" "+SetName(g, fam))
					}
				}
				if slices.Contains(row.from, role) {
					for _, g := range row.to {
						out = append(out, row.service+" "+SetName(g, fam))
					}
				}
			}
			slices.Sort(in)
			slices.Sort(out)
			if got := accepts(rs, fam, ChainIn); !slices.Equal(got, in) {
				t.Errorf("%s %s in:\n got %q\nwant %q", role, fam, got, in)
			}
			if got := accepts(rs, fam, ChainOut); !slices.Equal(got, out) {
				t.Errorf("%s %s out:\n got %q\nwant %q", role, fam, got, out)
			}
		}
	}
}

// What must hold of every chain, whatever the flows: see DESIGN and RFC 4890.
func TestRenderInvariants(t *testing.T) {
	flows := append(shipped(t), Flow{Name: "wide", Proto: ProtoTCP, Ports: []uint16{1, 2, 3}, From: []string{"postgres"}, To: []string{"pgpool", "postgres"}})
	for i := range flows {
		if flows[i].Limited {
			flows[i].Connections, flows[i].NewPerSecond = 113, 500
		}
	}
	for _, scope := range []string{"", ScopeHost, ScopeSiblings} {
		for _, role := range []string{"postgres", "pgpool", "other"} {
			rs, err := Render(Spec{Role: role, Flows: flows, Members: members(), Scope: scope})
			if err != nil {
				t.Fatal(err)
			}
			for _, fam := range Families {
				for _, c := range rs.Tables[fam].Chains {
					checkChain(t, scope, fam, c)
				}
			}
		}
	}
}

func checkChain(t *testing.T, scope string, fam Family, c Chain) {
	t.Helper()
	last := c.Rules[len(c.Rules)-1]
	if target, _ := last.target(); target != "DROP" || len(last.tokens) != 6 {
		t.Errorf("%s %s does not end in an unconditional drop: %s", fam, c.Name, last)
	}
	first := 0 // where established stands
	if scope == ScopeSiblings {
		first = map[string]int{ChainIn: 1, ChainOut: 3}[c.Name]
	}
	for i, r := range c.Rules {
		text := r.String()
		if !strings.Contains(text, "--comment pghardend:") {
			t.Errorf("%s %s: no comment: %s", fam, c.Name, r)
		}
		checkOpening(t, scope, fam, c.Name, r)
		established := strings.HasPrefix(text, "! -p "+icmpProto(fam)+" -m conntrack --ctstate ESTABLISHED,RELATED ")
		if (c.Name == ChainIn || c.Name == ChainOut) && established != (i == first) {
			t.Errorf("%s %s: rule %d: established comes first and only there, without ICMP: %s", fam, c.Name, i, r)
		}
	}
}

// leases are all rules for DHCP. Both ports and, with IPv6, one address are fixed.
var leases = map[Family]map[string][]string{
	IPv4: {
		ChainOut:      {"-p udp -m udp --dport 67 --sport 68 -m conntrack --ctstate NEW #dhcp -j ACCEPT"},
		ChainMetadata: {"-p udp -m udp --dport 67 --sport 68 #metadata -j RETURN"},
	},
	IPv6: {
		ChainIn:  {"-p udp -s fe80::/10 -m udp --dport 546 --sport 547 -m conntrack --ctstate NEW #dhcp -j ACCEPT"},
		ChainOut: {"-d ff02::1:2/128 -p udp -m udp --dport 547 --sport 546 -m conntrack --ctstate NEW #dhcp -j ACCEPT"},
	},
}

// checkOpening: what a rule lets through, or out of our chain, is what some
// rule may.
func checkOpening(t *testing.T, scope string, fam Family, chain string, r Rule) {
	t.Helper()
	text := r.String()
	target, _ := r.target()
	set := strings.Contains(text, "--match-set")
	echo := strings.Contains(text, echoRequest(fam)+" ")
	if strings.Contains(text, "--ctstate INVALID") && target == "ACCEPT" {
		only := map[string]string{ChainIn: "--tcp-flags SYN,RST,ACK SYN,ACK ", ChainOut: "--tcp-flags SYN,RST RST "}[chain]
		if !set || only == "" || !strings.Contains(text, only) || !strings.Contains(text, "port") {
			t.Errorf("%s %s: no answer to a SYN nor its reset, but let through: %s", fam, chain, r)
		}
		return
	}
	if set && target == "ACCEPT" && !echo && !strings.Contains(text, "--ctstate NEW") {
		t.Errorf("%s %s: opens for more than new connections: %s", fam, chain, r)
	}
	if echo && !strings.Contains(text, "-m hashlimit") {
		t.Errorf("%s %s: echo without a limit: %s", fam, chain, r)
	}
	if strings.Contains(text, "--comment pghardend:dhcp ") || strings.Contains(text, "--sport 68 ") {
		if !slices.Contains(leases[fam][chain], strings.Replace(text, "-m comment --comment pghardend:", "#", 1)) {
			t.Errorf("%s %s: opens more than leases need: %s", fam, chain, r)
		}
		return
	}
	if target != "DROP" && strings.Contains(text, "--sport") && !strings.Contains(text, "! --tcp-flags FIN,SYN,RST,ACK SYN") {
		t.Errorf("%s %s: a source port opens: %s", fam, chain, r)
	}
	limit := max(strings.Index(text, "-m hashlimit"), strings.Index(text, "-m connlimit"))
	if limit >= 0 && (chain == ChainOut && !echo || limit < strings.Index(text, "--match-set") || target != "ACCEPT") {
		t.Errorf("%s %s: a limit counts members only, on their way in, in the rule that accepts: %s", fam, chain, r)
	}
	loopback := strings.HasPrefix(text, "-i lo ") || strings.HasPrefix(text, "-o lo ")
	established := strings.HasPrefix(text, "! -p "+icmpProto(fam)+" -m conntrack --ctstate ESTABLISHED,RELATED ")
	root := chain == ChainMetadata && strings.Contains(text, "--uid-owner 0 ") && strings.Contains(text, "--dport 80 ") && strings.Contains(text, "--ctstate NEW ")
	if target == "ACCEPT" && chain != ChainICMP && !set && !loopback && !established && !root {
		t.Errorf("%s %s: accepts too much: %s", fam, chain, r)
	}
	outside := scope == ScopeSiblings && strings.Contains(text, "! --match-set "+SetName(NetworkSiblings, fam))
	if target == "RETURN" && chain != ChainMetadata && !outside {
		t.Errorf("%s %s: leaves to others what is ours to judge: %s", fam, chain, r)
	}
}

// RFC 4890, sections 4.3 and 4.4: what must not be dropped, and what is.
func TestRenderICMPTypes(t *testing.T) {
	for _, tc := range []struct {
		fam                   Family
		option                string
		always, ifKnown, hops []string
	}{
		{IPv4, "--icmp-type", []string{"3/4"}, []string{"0", "3", "11", "12"}, nil},
		{IPv6, "--icmpv6-type",
			[]string{"2", "130", "131", "132", "143", "151", "152", "153"},
			[]string{"1", "3", "4", "129"},
			[]string{"133", "134", "135", "136", "141", "142", "148", "149"}},
	} {
		got := map[string][]string{}
		for _, r := range renderICMP(tc.fam) {
			if target, _ := r.target(); target != "ACCEPT" {
				continue
			}
			i := slices.Index(r.tokens, tc.option)
			kind := "always"
			switch text := r.String(); {
			case strings.Contains(text, "--hl-eq 255"):
				kind = "hops"
			case strings.Contains(text, "--ctstate RELATED "), strings.Contains(text, "--ctstate ESTABLISHED "):
				kind = "known"
			case strings.Contains(text, "limit"):
				t.Errorf("%s: limited: %s", tc.fam, r)
			}
			got[kind] = append(got[kind], r.tokens[i+1])
		}
		for kind, want := range map[string][]string{"always": tc.always, "known": tc.ifKnown, "hops": tc.hops} {
			slices.Sort(got[kind])
			slices.Sort(want)
			if !slices.Equal(got[kind], want) {
				t.Errorf("%s %s: got types %q, want %q", tc.fam, kind, got[kind], want)
			}
		}
	}
}

// Rules are a function of role and flows; members change sets alone.
func TestRenderRulesDoNotDependOnMembers(t *testing.T) {
	full := render(t, "pgpool")
	empty, err := Render(Spec{Role: "pgpool", Flows: shipped(t)})
	if err != nil {
		t.Fatal(err)
	}
	if p := Diff(empty, asObserved(full)); strings.Contains(p.String(), "chain") || p.rules != [3]string{} {
		t.Errorf("rules differ:\n%s", p)
	}
	if len(empty.Sets) != len(full.Sets) {
		t.Errorf("%d sets without members, %d with", len(empty.Sets), len(full.Sets))
	}
}

func TestRenderSets(t *testing.T) {
	sets := map[string]Set{}
	for _, s := range render(t, "postgres").Sets {
		sets[s.Name] = s
	}
	want := "[10.20.1.20/32 10.20.1.21/32]" // sorted, once each, of this family
	if got := fmt.Sprint(sets["pgh4-pgpool"].Members); got != want {
		t.Errorf("pgh4-pgpool: %s, want %s", got, want)
	}
	if _, ok := sets["pgh4-applications"]; ok {
		t.Error("a postgres has a set of applications, which no rule of its own names")
	}
	for name := range sets {
		if len(name) > 30 { // ipset(8): 31 with the scratch set's extra dot
			t.Errorf("%s is too long", name)
		}
	}
}

func TestRenderErrors(t *testing.T) {
	many := make([]netip.Prefix, setMaxEntries+1)
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	mapped := netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.1"), 128)
	for name, tc := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"no role":     {func(s *Spec) { s.Role = "" }, "cannot render rules: the node has no role"},
		"bad flow":    {func(s *Spec) { s.Flows[0].Ports = nil }, "cannot render rules: flows[0] (postgres): ports"},
		"everyone":    {func(s *Spec) { s.Members["dns"] = prefixes("0.0.0.0/0") }, "cannot render sets: pgh4-dns: 0.0.0.0/0 is not a usable network"},
		"everyone v6": {func(s *Spec) { s.Members["dns"] = prefixes("::/0") }, "::/0 is not a usable network"},
		"mapped":      {func(s *Spec) { s.Members["dns"] = []netip.Prefix{mapped} }, "is not a usable network"},
		"host bits":   {func(s *Spec) { s.Members["ntp"] = prefixes("10.0.0.1/24") }, "10.0.0.1/24 is not a usable network"},
		"zero":        {func(s *Spec) { s.Members["ntp"] = make([]netip.Prefix, 1) }, "is not a usable network"},
		"too many":    {func(s *Spec) { s.Members["ntp"] = many }, "pgh4-ntp: 65537 members, but a set holds 65536"},
		"open to all": {func(s *Spec) {
			s.Openings = []Opening{{From: netip.MustParsePrefix("0.0.0.0/0"), Proto: "tcp", Port: 22}}
		}, "pgh4-open: 0.0.0.0/0,tcp:22 is not a usable opening"},
		"open port 0": {func(s *Spec) { s.Openings = []Opening{{From: netip.MustParsePrefix("fd00::1/128"), Proto: "tcp"}} }, "is not a usable opening"},
		"open sctp": {func(s *Spec) {
			s.Openings = []Opening{{From: netip.MustParsePrefix("10.0.0.1/32"), Proto: "sctp", Port: 1}}
		}, "10.0.0.1/32,sctp:1 is not a usable opening"},
		"scope":        {func(s *Spec) { s.Scope = "everything" }, `cannot render rules: scope "everything": use host or siblings`},
		"metadata":     {func(s *Spec) { s.Members["metadata"] = prefixes("0.0.0.0/0") }, "pgh4-metadata: 0.0.0.0/0 is not a usable network"},
		"not our role": {func(s *Spec) { s.Members["unused"] = prefixes("0.0.0.0/0") }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := Spec{Role: "postgres", Flows: shipped(t), Members: members()}
			tc.change(&s)
			_, err := Render(s)
			if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}
