package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// edit changes the first rule of a chain that contains a text.
func edit(t *testing.T, got Observed, fam Family, chain, match, from, to string) {
	t.Helper()
	for i, r := range got.Tables[fam].Chains[chain] {
		if text := quoteWords(r.words); strings.Contains(text, match) {
			changed := strings.Replace(text, from, to, 1)
			if changed == text {
				t.Fatalf("%q is not in %s", from, text)
			}
			words, _ := scanWords(changed, true)
			got.Tables[fam].Chains[chain][i] = ObservedRule{Rule: newRule(words...), words: words}
			return
		}
	}
	t.Fatalf("no rule of %s has %q", chain, match)
}

func prepend(got Observed, fam Family, chain string, rules ...string) {
	var list []ObservedRule
	for _, text := range rules {
		words, _ := scanWords(text, true)
		list = append(list, ObservedRule{Rule: newRule(words...), words: words})
	}
	got.Tables[fam].Chains[chain] = append(list, got.Tables[fam].Chains[chain]...)
}

func TestDiffNothing(t *testing.T) {
	for _, role := range []string{"postgres", "pgpool"} {
		rs := render(t, role)
		p := Diff(rs, asObserved(rs))
		if !p.Empty() || p.String() != "" || p.sets != nil || p.dropSets != nil || p.rules != [3]string{} || p.detach != [3]string{} {
			t.Errorf("%s: %+v", role, p)
		}
	}
}

// A drift and the changes that the plan must name, each as "family resource
// name: problem". An empty list means that it is no drift.
type drift struct {
	name  string
	spoil func(t *testing.T, got Observed)
	want  []string
}

func testDrifts(t *testing.T, drifts []drift) {
	t.Helper()
	rs := render(t, "postgres")
	for _, d := range drifts {
		t.Run(d.name, func(t *testing.T) {
			got := asObserved(rs)
			d.spoil(t, got)
			p := Diff(rs, got)
			var changes []string
			for _, c := range p.Changes {
				changes = append(changes, c.Family+" "+c.Resource+" "+c.Name+": "+c.Problem)
			}
			if !slices.Equal(changes, d.want) {
				t.Errorf("got  %q\nwant %q\n%s", changes, d.want, p)
			}
			if p.Empty() != (len(d.want) == 0) {
				t.Errorf("Empty() is %v", p.Empty())
			}
		})
	}
}

func TestF01_DiffChains(t *testing.T) {
	testDrifts(t, []drift{
		{"flushed", func(_ *testing.T, got Observed) { got.Tables[IPv4].Chains[ChainIn] = nil }, []string{"ipv4 chain PGHARDEND-IN: differs"}},
		{"deleted", func(_ *testing.T, got Observed) { delete(got.Tables[IPv6].Chains, ChainICMP) }, []string{"ipv6 chain PGHARDEND-ICMP: missing"}},
		{"table gone", func(_ *testing.T, got Observed) { clear(got.Tables[IPv4].Chains) }, []string{
			"ipv4 chain PGHARDEND-IN: missing", "ipv4 chain PGHARDEND-OUT: missing", "ipv4 chain PGHARDEND-FWD: missing", "ipv4 chain PGHARDEND-ICMP: missing",
			"ipv4 chain PGHARDEND-META: missing", "ipv4 jump INPUT: missing", "ipv4 jump OUTPUT: missing", "ipv4 jump FORWARD: missing"}},
		{"raw flushed", func(_ *testing.T, got Observed) { got.Tables[RawIPv6].Chains[ChainRPF] = nil }, []string{"ipv6 chain raw PGHARDEND-RPF: differs"}},
		{"raw gone", func(_ *testing.T, got Observed) { clear(got.Tables[RawIPv6].Chains) }, []string{
			"ipv6 chain raw PGHARDEND-RPF: missing", "ipv6 jump raw PREROUTING: missing"}},
	})
}

func TestF02_DiffJumpDeleted(t *testing.T) {
	testDrifts(t, []drift{
		{"input", func(_ *testing.T, got Observed) { got.Tables[IPv4].Chains["INPUT"] = nil }, []string{"ipv4 jump INPUT: missing"}},
		{"foreign rule stays", func(_ *testing.T, got Observed) {
			got.Tables[IPv6].Chains["OUTPUT"] = nil
			prepend(got, IPv6, "OUTPUT", "-j ACCEPT")
		}, []string{"ipv6 jump OUTPUT: missing"}},
		{"raw", func(_ *testing.T, got Observed) { got.Tables[RawIPv6].Chains["PREROUTING"] = nil }, []string{"ipv6 jump raw PREROUTING: missing"}},
	})
}

func TestF03_DiffAboveTheJump(t *testing.T) {
	above := func(rules ...string) func(*testing.T, Observed) {
		return func(_ *testing.T, got Observed) { prepend(got, IPv4, "INPUT", rules...) }
	}
	chain := func(name string, rules ...string) func(*testing.T, Observed) {
		return func(_ *testing.T, got Observed) {
			got.Tables[IPv4].Chains[name] = nil
			prepend(got, IPv4, name, rules...)
			prepend(got, IPv4, "INPUT", "-p tcp -j "+name)
		}
	}
	moved := []string{"ipv4 jump INPUT: not in first place"}
	testDrifts(t, []drift{
		{"accept", above("-s 10.0.0.1/32 -j ACCEPT"), moved},
		{"accept with a comment", above("-m comment --comment -j -j ACCEPT"), moved},
		{"accept of an odd set", above("-m set --match-set #x src -j ACCEPT"), moved},
		{"return", above("-j RETURN"), moved},
		{"queue", above("-j NFQUEUE --queue-num 1 --queue-bypass"), moved},
		{"drop", above("-s 10.0.0.1/32 -j DROP", "-j REJECT --reject-with tcp-reset"), nil},
		{"log", above("-j LOG --log-prefix \"-j ACCEPT\"", "-j NFLOG"), nil},
		{"list of recent sources", above("-p tcp -m recent --set --name ssh --mask 255.255.255.255 --rsource"), nil},
		{"verdict map of nft's", above("-p tcp"), moved}, // tcp dport vmap { 22 : accept }
		{"verdict map with a comment", above("-m comment --comment -m"), moved},
		{"verdict map in a chain", chain("odd", "-s 10.0.0.1/32"), moved},
		{"drop, then accept", above("-j DROP", "-j ACCEPT"), moved},
		{"accept below", func(_ *testing.T, got Observed) {
			got.Tables[IPv4].Chains["INPUT"] = append(got.Tables[IPv4].Chains["INPUT"], observed(parse("-j ACCEPT")))
		}, nil},
		{"chain of bans", chain("f2b", "-s 10.0.0.1/32 -j REJECT", "-j RETURN"), nil},
		{"empty chain", chain("empty"), nil},
		{"chain that accepts", chain("docker", "-j RETURN", "-j ACCEPT"), moved},
		{"chain in a chain", func(t *testing.T, got Observed) {
			chain("inner", "-j ACCEPT")(t, got)
			got.Tables[IPv4].Chains["INPUT"] = got.Tables[IPv4].Chains["INPUT"][1:]
			chain("outer", "-j inner")(t, got)
		}, moved},
		{"goto a chain of bans", func(_ *testing.T, got Observed) {
			got.Tables[IPv4].Chains["away"] = nil
			prepend(got, IPv4, "INPUT", "-g away")
		}, moved},
		{"chain called LOG", chain("LOG", "-j ACCEPT"), moved},
		{"chain that calls itself", chain("loop", "-j loop"), moved},
		{"raw: no tracking, tracing", func(_ *testing.T, got Observed) {
			prepend(got, Family(RawIPv6), "PREROUTING", "-p udp -j CT --notrack", "-j NOTRACK", "-j TRACE")
		}, nil},
		{"raw: accept", func(_ *testing.T, got Observed) { prepend(got, Family(RawIPv6), "PREROUTING", "-j ACCEPT") }, []string{"ipv6 jump raw PREROUTING: not in first place"}},
		{"twice", above("-m comment --comment pghardend:jump -j PGHARDEND-IN"), []string{"ipv4 jump INPUT: there more than once"}},
		{"into another of our chains", above("-j PGHARDEND-OUT"), []string{"ipv4 jump INPUT: there more than once"}},
		{"edited", func(t *testing.T, got Observed) { edit(t, got, IPv4, "INPUT", "jump", "-m", "-s 10.0.0.0/8 -m") }, []string{"ipv4 jump INPUT: differs"}},
		{"goto us", func(t *testing.T, got Observed) { edit(t, got, IPv6, "FORWARD", "jump", "-j", "-g") }, []string{"ipv6 jump FORWARD: differs"}},
		{"unwritable jump below", func(_ *testing.T, got Observed) {
			got.Tables[IPv4].Chains["INPUT"] = append(got.Tables[IPv4].Chains["INPUT"], observed(newRule("-m", "comment", "--comment", "a\nb", "-j", ChainIn)))
		}, nil},
		{"unwritable jump above", func(_ *testing.T, got Observed) {
			got.Tables[IPv4].Chains["INPUT"] = append([]ObservedRule{observed(newRule("-m", "comment", "--comment", "a\nb", "-j", ChainIn))}, got.Tables[IPv4].Chains["INPUT"]...)
		}, moved},
	})
}

func TestF03_ForeignRuleIsReported(t *testing.T) {
	rs := render(t, "postgres")
	got := asObserved(rs)
	prepend(got, IPv4, "INPUT", "-j DROP", "-s 10.0.0.1/32 -j ACCEPT")
	p := Diff(rs, got)
	if want := []string{"ipv4 -A INPUT -s 10.0.0.1/32 -j ACCEPT"}; !slices.Equal(p.Foreign, want) {
		t.Errorf("foreign %q, want %q", p.Foreign, want)
	}
	if strings.Contains(p.rules[IPv4], "10.0.0.1") || p.rules[IPv6] != "" {
		t.Errorf("the foreign rule is touched:\n%s", p.rules[IPv4])
	}
}

func TestF04_DiffEditedRule(t *testing.T) {
	change := func(fam Family, chain, match, from, to string) func(*testing.T, Observed) {
		return func(t *testing.T, got Observed) { edit(t, got, fam, chain, match, from, to) }
	}
	in4, out6 := []string{"ipv4 chain PGHARDEND-IN: differs"}, []string{"ipv6 chain PGHARDEND-OUT: differs"}
	testDrifts(t, []drift{
		{"port", change(IPv4, ChainIn, "--dport 5432", "5432", "5433"), in4},
		{"set", change(IPv4, ChainIn, "--dport 5432", "pgh4-postgres", "pgh4-dns"), in4},
		{"set direction", change(IPv6, ChainOut, "--dport 5432", " dst", " src"), out6},
		{"target", change(IPv4, ChainIn, "pghardend:drop", "DROP", "ACCEPT"), in4},
		{"goto", change(IPv4, ChainIn, "-j PGHARDEND-ICMP", "-j", "-g"), in4},
		{"state", change(IPv6, ChainOut, "pghardend:postgres", "NEW", "NEW,INVALID"), out6},
		{"negation", change(IPv4, ChainIn, "established", "! -p", "-p"), in4},
		{"limit", change(IPv4, ChainIn, "hashlimit", "20/sec", "200/sec"), in4},
		{"burst", change(IPv4, ChainIn, "hashlimit", "burst 20", "burst 2000"), in4},
		{"interface", change(IPv4, ChainIn, "-i lo", "-i lo", "-i lo+"), in4},
		{"comment", change(IPv4, ChainIn, "--dport 5432", "pghardend:postgres", "pghardend:postgress"), in4},
		{"one match more", change(IPv4, ChainIn, "pghardend:drop", "-m comment", "-p tcp -m comment"), in4},
		{"added", func(_ *testing.T, got Observed) { prepend(got, IPv4, ChainIn, "-j ACCEPT") }, in4},
		{"order", func(_ *testing.T, got Observed) {
			rules := got.Tables[IPv4].Chains[ChainIn]
			rules[0], rules[len(rules)-1] = rules[len(rules)-1], rules[0]
		}, in4},
		{"printed in another way", change(IPv6, ChainIn, "established", "-p ipv6-icmp", "-p 58"), nil},
	})
}

// F5: policies are not even read.
func TestF05_DiffIgnoresPolicies(t *testing.T) {
	a, err := ParseSave("filter", []byte("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := ParseSave("filter", []byte("*filter\n:INPUT DROP [7:420]\nCOMMIT\n"))
	if err != nil {
		t.Fatal(err)
	}
	var oa, ob Observed
	oa.Tables[IPv4], ob.Tables[IPv4] = a, b
	rs := render(t, "postgres")
	if pa, pb := Diff(rs, oa), Diff(rs, ob); pa.String() != pb.String() {
		t.Errorf("plans differ:\n%s\n%s", pa, pb)
	}
}

func TestF06_DiffFamiliesAreIndependent(t *testing.T) {
	testDrifts(t, []drift{{"v6 flushed", func(_ *testing.T, got Observed) {
		for _, c := range []string{ChainIn, ChainOut, ChainFwd, ChainICMP} {
			got.Tables[IPv6].Chains[c] = nil
		}
	}, []string{"ipv6 chain PGHARDEND-IN: differs", "ipv6 chain PGHARDEND-OUT: differs", "ipv6 chain PGHARDEND-FWD: differs", "ipv6 chain PGHARDEND-ICMP: differs"}}})
}

func TestF11_DiffLeavesTheUnreadableAlone(t *testing.T) {
	rs := render(t, "postgres")
	for name, tc := range map[string]struct {
		got  Observed
		want string // the only family and resource that may be in the plan
	}{
		"v4 only":  {Observed{Tables: [3]ObservedTable{nothing().Tables[0]}}, "ipv4 "},
		"raw only": {Observed{Tables: [3]ObservedTable{{}, {}, nothing().Tables[2]}}, "ipv6 "},
		"v6 only":  {Observed{Tables: [3]ObservedTable{{}, nothing().Tables[1]}}, "ipv6 "},
		"nothing":  {Observed{}, "-"},
	} {
		p := Diff(rs, tc.got)
		for _, c := range p.Changes {
			if !strings.HasPrefix(c.Family+" ", tc.want) || c.Resource == resourceSet {
				t.Errorf("%s: %+v", name, c)
			}
		}
		if p.sets != nil || p.dropSets != nil || (name == "nothing") != p.Empty() {
			t.Errorf("%s: plan:\n%s", name, p)
		}
	}
	sets := Diff(rs, Observed{SetsRead: true})
	if sets.Empty() || sets.rules != [3]string{} || sets.detach != [3]string{} {
		t.Errorf("sets alone: %+v", sets)
	}
}

func TestF17_DiffStaleChains(t *testing.T) {
	testDrifts(t, []drift{
		{"unused", func(_ *testing.T, got Observed) { got.Tables[IPv4].Chains["PGHARDEND-OLD"] = nil }, []string{"ipv4 chain PGHARDEND-OLD: not wanted"}},
		{"emptied, used by a foreign chain", func(_ *testing.T, got Observed) {
			got.Tables[IPv4].Chains["PGHARDEND-OLD"] = nil
			prepend(got, IPv4, "DOCKER-USER", "-j PGHARDEND-OLD")
		}, nil},
		{"foreign chain with a like name", func(_ *testing.T, got Observed) { got.Tables[IPv4].Chains["MY-PGHARDEND-X"] = nil }, nil},
	})
}

func TestDiffPlanString(t *testing.T) {
	rs := render(t, "postgres")
	got := asObserved(rs)
	edit(t, got, IPv4, ChainIn, "--dport 5432", "5432", "5433")
	prepend(got, IPv6, "INPUT", `-s fd00::1/128 -m comment --comment "it\"s 
mine" -j ACCEPT`)
	got.Tables[IPv4].Chains["OUTPUT"] = nil
	got.Tables[IPv4].Chains["PGHARDEND-OLD"] = nil
	prepend(got, IPv4, "PGHARDEND-OLD", "-j ACCEPT")
	delete(got.Sets, "pgh6-dns")
	got.Sets["pgh4-pgpool"] = ObservedSet{Type: typeNet, Family: "inet", Members: []string{"10.20.1.20/32", "10.66.0.0/16 nomatch"}}
	got.Sets["pgh4-gone"] = ObservedSet{Type: typeNet, Family: "inet"}
	p := Diff(rs, got)
	golden(t, "plan.txt", p.String())
	golden(t, "plan-ipv4.restore", p.rules[IPv4])
	golden(t, "plan-ipv6.restore", p.rules[IPv6])
	golden(t, "plan-sets.restore", setsText(p))
}

func TestTeardownPlan(t *testing.T) {
	got := asObserved(render(t, "pgpool"))
	prepend(got, IPv4, "INPUT", "-s 10.0.0.1/32 -j ACCEPT")
	prepend(got, IPv4, "DOCKER-USER", "-j PGHARDEND-IN")
	got.Sets["pgh4.dns"] = ObservedSet{Type: typeNet, Family: "inet"}
	p := TeardownPlan(got)
	golden(t, "teardown-ipv4.restore", p.rules[IPv4])
	golden(t, "teardown-ipv6.restore", p.rules[IPv6])
	golden(t, "teardown-ipv6-raw.restore", p.rules[RawIPv6])
	if len(p.sets) != 0 || len(p.dropSets) != 17 || !slices.Contains(p.dropSets, "pgh4.dns") {
		t.Errorf("sets %v %v", p.sets, p.dropSets)
	}
	if p := TeardownPlan(nothing()); !p.Empty() {
		t.Errorf("nothing to tear down, but:\n%s", p)
	}
	if len(p.Foreign) != 0 {
		t.Errorf("foreign %q", p.Foreign)
	}
}

func set(kind, family string, members ...string) ObservedSet {
	return ObservedSet{Type: kind, Family: family, Members: members}
}

func TestF15b_DiffSets(t *testing.T) {
	put := func(name string, s ObservedSet) func(*testing.T, Observed) {
		return func(_ *testing.T, got Observed) { got.Sets[name] = s }
	}
	pool := func(s ObservedSet, problem string) drift {
		return drift{problem, put("pgh4-pgpool", s), []string{"ipv4 set pgh4-pgpool: " + problem}}
	}
	timed := set(typeNet, "inet", "10.20.1.20/32 timeout 9", "10.20.1.21/32 timeout 9")
	timed.Options = []string{"timeout", "60"}
	counting := set(typeNet, "inet", "10.20.1.20/32", "10.20.1.21/32")
	counting.Options = []string{"counters"}
	differ := []string{"ipv4 set pgh4-pgpool: members differ"}
	testDrifts(t, []drift{
		{"added", put("pgh4-pgpool", set(typeNet, "inet", "10.20.1.20/32", "10.20.1.21/32", "10.66.0.1/32")), differ},
		{"removed", put("pgh4-pgpool", set(typeNet, "inet", "10.20.1.20/32")), differ},
		{"emptied", put("pgh4-pgpool", set(typeNet, "inet")), differ},
		{"nomatch", put("pgh4-pgpool", set(typeNet, "inet", "10.20.1.20/32 nomatch", "10.20.1.21/32")), differ},
		{"destroyed", func(_ *testing.T, got Observed) { delete(got.Sets, "pgh6-ntp") }, []string{"ipv6 set pgh6-ntp: missing"}},
		pool(set("hash:ip", "inet"), "is a hash:ip of family inet, not hash:net inet"),
		pool(set(typeNet, "inet6"), "is a hash:net of family inet6, not hash:net inet"),
		pool(set("list:set", ""), "is a list:set of family , not hash:net inet"),
		pool(timed, "has options: timeout 60"),
		pool(counting, "has options: counters"),
		{"older version's", put("pgh4-gone", set(typeNet, "inet", "10.0.0.1/32")), []string{"ipv4 set pgh4-gone: not wanted"}},
		{"left over", put("pgh6.pgpool", set(typeNet, "inet6")), []string{"ipv6 set pgh6.pgpool: left over"}},
	})
}

// How each kind of set drift is repaired, and what rules have to do with it.
func TestF15b_SetEdits(t *testing.T) {
	rs := render(t, "postgres")
	got := asObserved(rs)
	got.Sets["pgh4-pgpool"] = set(typeNet, "inet", "10.66.0.1/32")
	got.Sets["pgh4-postgres"] = set("hash:ip", "inet")
	got.Sets["pgh6-pgpool"] = set(typeNet, "inet6")
	got.Sets["pgh6.pgpool"] = set(typeNet, "inet6") // taken by a foreign rule, perhaps
	delete(got.Sets, "pgh6-postgres")
	p := Diff(rs, got)
	golden(t, "sets.restore", setsText(p))
	golden(t, "detach-ipv4.restore", p.detach[IPv4])
	if p.detach[IPv6] != "" || p.rules[IPv6] != "" {
		t.Error("IPv6 rules are touched, though no set of theirs is of the wrong type")
	}
	if full := Diff(rs, nothing()); !strings.HasPrefix(full.rules[IPv4], p.rules[IPv4][:strings.Index(p.rules[IPv4], "COMMIT")]) {
		t.Errorf("after the detour the rules are not all written again:\n%s", p.rules[IPv4])
	}
	if !slices.Equal(p.dropSets, []string{"pgh6.pgpool"}) || len(p.sets) != 4 {
		t.Errorf("drop %q, edits %v", p.dropSets, p.sets)
	}
}

// Few members are changed one by one, and many at once by a swap.
func TestF15b_InPlaceUpTo64(t *testing.T) {
	rs := render(t, "postgres")
	for n, swap := range map[int]bool{64: false, 65: true} {
		got := asObserved(rs)
		have := got.Sets["pgh4-pgpool"]
		for i := range n {
			have.Members = append(have.Members, fmt.Sprintf("10.66.0.%d/32", i))
		}
		got.Sets["pgh4-pgpool"] = have
		p := Diff(rs, got)
		if len(p.sets) != 1 {
			t.Fatalf("%d strangers: %d sets are written", n, len(p.sets))
		}
		if text := restoreText(p.sets[0].write(noon)); strings.Contains(text, "swap ") != swap || strings.Contains(text, "del pgh4-pgpool 10.66.0.7/32") == swap {
			t.Errorf("%d strangers are removed by\n%s", n, text)
		}
	}
}

// A member that is there with another time, or as an exception, is the same
// entry to the kernel: it is added over, and must not be deleted after that.
func TestF15b_InPlaceKeepsWhatItChanges(t *testing.T) {
	rs, _ := openingsOf(t, hole("203.0.113.7/32", ProtoTCP, 22, time.Hour))
	got := asObserved(rs)
	got.At = noon
	got.Sets["pgh4-pgpool"] = set(typeNet, "inet", "10.20.1.20/32 nomatch", "10.20.1.21/32", "10.20.1.22/32")
	open := got.Sets["pgh4-open"]
	open.Members = []string{"203.0.113.7/32,tcp:22 timeout 7200", "203.0.113.8/32,tcp:22 timeout 7200"}
	got.Sets["pgh4-open"] = open
	var text string
	for _, e := range Diff(rs, got).sets {
		text += restoreText(e.write(noon.Add(time.Minute)))
	}
	want := "add pgh4-pgpool 10.20.1.20/32 -exist\ndel pgh4-pgpool 10.20.1.22/32 -exist\n" +
		"add pgh4-open 203.0.113.7/32,tcp:22 timeout 3540 -exist\ndel pgh4-open 203.0.113.8/32,tcp:22 timeout 7200 -exist\n"
	if text != want {
		t.Errorf("got\n%swant\n%s", text, want)
	}
}

// A member is written and read back in the same form, whatever its bits.
func TestSetMembersReadBack(t *testing.T) {
	for _, p := range prefixes("0.0.0.0/1", "10.0.0.0/8", "10.0.0.1/32", "::/1", "::1/128", "::a00:1/128", "::a00:0/120", "fd00::/64", "64:ff9b::a00:1/128") {
		fam, printed := IPv4, p.Addr().String()
		if p.Addr().Is6() {
			fam = IPv6
		}
		if p.Addr() == netip.MustParseAddr("::a00:1") {
			printed = "::10.0.0.1" // as ipset prints it
		}
		if !p.IsSingleIP() {
			printed += "/" + strings.Split(p.String(), "/")[1]
		}
		if got := memberName(printed, inet(fam)); got != p.String() {
			t.Errorf("%s is read back as %s", p, got)
		}
	}
}
