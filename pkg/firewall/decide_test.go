package firewall

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A packet is the first of a connection, as the rules see it.
type packet struct {
	q       Query
	self    netip.Addr
	inbound bool
	sport   uint16 // 0: an ordinary one
}

// ends are the packet's source and destination.
func (p packet) ends() (src, dst netip.Addr) {
	if p.inbound {
		return p.q.Remote, p.self
	}
	return p.self, p.q.Remote
}

// A reader follows a packet through a rendered ruleset, as the kernel would. It
// is written from iptables-extensions(8), shares nothing with Render or Decide,
// and fails at a match that it does not know.
type reader struct {
	t    *testing.T
	rs   Ruleset
	fam  Family
	p    packet
	tag  string
	seen bool // a limit stood in the rule that accepted
}

// verdict is ACCEPT, DROP, or RETURN to the host's own firewall.
func (r *reader) verdict() string {
	chain := ChainOut
	if r.p.inbound {
		chain = ChainIn
	}
	return r.chain(chain)
}

func (r *reader) chain(name string) string {
	r.t.Helper()
	i := slices.IndexFunc(r.rs.Tables[r.fam].Chains, func(c Chain) bool { return c.Name == name })
	if i < 0 {
		r.t.Fatalf("no chain %s", name)
	}
	for _, rule := range r.rs.Tables[r.fam].Chains[i].Rules {
		target, tag, limited, ok := r.rule(rule)
		if !ok || target == "LOG" {
			continue
		}
		if target == "ACCEPT" || target == "DROP" || target == "RETURN" {
			r.tag, r.seen = tag, limited
			return target
		}
		if v := r.chain(target); v != "RETURN" {
			return v
		}
	}
	return "RETURN"
}

func (r *reader) rule(rule Rule) (target, tag string, limited, ok bool) {
	ok = true
	for _, o := range splitOptions(rule.tokens) {
		values, negated := o.words[1:], o.words[0] == "!"
		if negated {
			values = o.words[2:]
		}
		switch key := o.key(); {
		case key == "-j":
			target = values[0]
		case key == "--comment":
			tag = strings.TrimPrefix(values[0], tagPrefix)
		case key == "-m", key == "--log-prefix":
		case strings.HasPrefix(key, "--hashlimit-"), strings.HasPrefix(key, "--connlimit-"), strings.HasPrefix(key, "--limit"):
			limited = true // not used up
		default:
			ok = ok && r.matches(key, values) != negated
		}
	}
	return target, tag, limited, ok
}

func (r *reader) matches(key string, values []string) bool {
	q, proto := r.p.q, map[string]string{ProtoEcho: icmpProto(r.fam)}
	src, dst := r.p.ends()
	switch key {
	case "-p":
		name := q.Proto
		if n, ok := proto[name]; ok {
			name = n
		}
		return values[0] == name
	case "--ctstate":
		return slices.Contains(strings.Split(values[0], ","), "NEW")
	case "-i", "-o":
		return q.Remote.IsLoopback() && values[0] == "lo"
	case "--dport", "--dports":
		return inPorts(values[0], q.Port)
	case "--sport", "--sports":
		return inPorts(values[0], cmp.Or(r.p.sport, 40000))
	case "-s":
		return netip.MustParsePrefix(values[0]).Contains(src)
	case "-d":
		return netip.MustParsePrefix(values[0]).Contains(dst)
	case "--dst-type":
		kind := "UNICAST"
		if dst.IsMulticast() {
			kind = "MULTICAST"
		} else if dst == netip.MustParseAddr("255.255.255.255") {
			kind = "BROADCAST"
		}
		return slices.Contains(strings.Split(values[0], ","), kind)
	case "--tcp-flags":
		compared := strings.Split(values[0], ",")
		return slices.Contains(compared, "SYN") && values[1] == "SYN" || !slices.Contains(compared, "SYN") && values[1] == "NONE"
	case "--icmp-type", "--icmpv6-type":
		return values[0] == map[Family]string{IPv4: "8", IPv6: "128"}[r.fam]
	case "--hl-eq":
		return false
	case "--uid-owner":
		return q.Root && !r.p.inbound && values[0] == "0"
	case "--match-set":
		return r.inSet(values[0], values[1])
	}
	r.t.Fatalf("a match that this test does not know: %s %v", key, values)
	return false
}

// inPorts reads a list of ports and ranges.
func inPorts(list string, port uint16) bool {
	return slices.ContainsFunc(strings.Split(list, ","), func(item string) bool {
		from, to, isRange := strings.Cut(item, ":")
		if !isRange {
			to = from
		}
		low, err1 := strconv.Atoi(from)
		high, err2 := strconv.Atoi(to)
		return err1 == nil && err2 == nil && low <= int(port) && int(port) <= high
	})
}

func (r *reader) inSet(name, side string) bool {
	i := slices.IndexFunc(r.rs.Sets, func(s Set) bool { return s.Name == name })
	if i < 0 {
		r.t.Fatalf("no set %s", name)
	}
	set, q := r.rs.Sets[i], r.p.q
	if set.Timed {
		return slices.ContainsFunc(set.Openings, func(o Opening) bool {
			return o.From.Contains(q.Remote) && o.Proto == q.Proto && o.Port == q.Port && q.At.Before(o.Until)
		})
	}
	addr, dst := r.p.ends()
	if side == "dst" {
		addr = dst
	}
	return slices.ContainsFunc(set.Members, func(p netip.Prefix) bool { return p.Contains(addr) })
}

var decideAt = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// decideSpec has every kind of row and group; a sibling's subnet around the
// nodes, as it is in practice; an opening that is in force and one that ended.
func decideSpec(t testing.TB, role, scope string) Spec {
	s := Spec{Role: role, Scope: scope, Flows: shipped(t), Members: members()}
	s.Flows = append(s.Flows, Flow{Name: "two", Proto: ProtoTCP, Ports: []uint16{7000, 7001}, From: []string{"postgres"}, To: []string{"applications", "pgpool"}},
		Flow{Name: "group", Proto: ProtoUDP, Ports: []uint16{9700}, From: []string{"pgpool"}, To: []string{"postgres"}},
		Flow{Name: "limits", Proto: ProtoTCP, Ports: []uint16{7100}, From: []string{"applications"}, To: []string{"postgres", "pgpool"}, Connections: 5, NewPerSecond: 50})
	s.Members["dns"] = prefixes("10.0.53.0/28", "169.254.169.254/32", "fd00:53::/64")
	s.Members["siblings"] = prefixes("10.20.1.0/24", "fd00:20:1::/64")
	s.Members["metadata"] = prefixes("10.99.0.1/32")
	for _, from := range []string{"192.0.2.0/24", "10.20.1.66/32", "2001:db8::/32"} {
		s.Openings = append(s.Openings,
			Opening{From: netip.MustParsePrefix(from), Proto: ProtoTCP, Port: 8443, Until: decideAt.Add(time.Minute)},
			Opening{From: netip.MustParsePrefix(from), Proto: ProtoUDP, Port: 8444, Until: decideAt.Add(-time.Minute)})
	}
	return s
}

var decideRemotes = []string{
	"10.20.1.11", "10.20.1.20", "10.20.1.66", "10.0.0.7", "10.50.3.4", "10.0.53.5", "169.254.169.254", "10.99.0.1", "192.0.2.9", "203.0.113.1", "127.0.0.1", "224.0.0.251", "255.255.255.255",
	"fd00:20:1::11", "fd00:20:1::20", "fd00:20:1::66", "fd00:10::7", "fd00:53::1", "fd00:ec2::254", "2001:db8::9", "2001:db9::9", "fe80::1", "::1", "ff02::1", "ff02::1:2",
}

// Decide says what the rules do, for every direction, remote, protocol and port,
// on both roles and in both scopes.
func TestDecideSaysWhatRulesDo(t *testing.T) {
	for _, scope := range []string{ScopeHost, ScopeSiblings} {
		for _, role := range []string{"postgres", "pgpool"} {
			t.Run(scope+"/"+role, func(t *testing.T) {
				s := decideSpec(t, role, scope)
				rs, err := Render(s)
				if err != nil {
					t.Fatal(err)
				}
				allowed, dropped := 0, 0
				for _, q := range decideQueries(s) {
					for _, d := range []Direction{In, Out} {
						if compareDecision(t, s, rs, d, q) {
							allowed++
						} else {
							dropped++
						}
					}
				}
				if allowed < 50 || dropped < 50 {
					t.Errorf("%d allowed and %d dropped: the queries prove little", allowed, dropped)
				}
			})
		}
	}
}

func decideQueries(s Spec) []Query {
	ports := map[string][]uint16{ProtoTCP: {80, 443, 8443, 12345}, ProtoUDP: {67, 80, 546, 547, 8444, 12345}, ProtoEcho: {0}, "132": {5432}}
	for _, f := range s.Flows {
		ports[ProtoTCP], ports[ProtoUDP] = append(ports[ProtoTCP], f.Ports...), append(ports[ProtoUDP], f.Ports...)
	}
	var queries []Query
	for _, remote := range decideRemotes {
		for proto, list := range ports {
			for _, port := range list {
				for _, root := range []bool{false, true} {
					queries = append(queries, Query{Remote: netip.MustParseAddr(remote), Proto: proto, Port: port, Root: root, At: decideAt})
				}
			}
		}
	}
	return queries
}

func compareDecision(t *testing.T, s Spec, rs Ruleset, d Direction, q Query) bool {
	t.Helper()
	r := &reader{t: t, rs: rs, fam: IPv4, p: packet{q: q, self: netip.MustParseAddr("10.20.1.10"), inbound: d == In}}
	if q.Remote.Is6() {
		r.fam, r.p.self = IPv6, netip.MustParseAddr("fd00:20:1::10")
	}
	verdict := r.verdict()
	got := Decide(s, d, q)
	tag := r.tag
	if tag == tagICMP {
		tag = tagDrop // its chain has a drop of its own
	}
	want := Decision{Allowed: verdict != "DROP", PassedOn: verdict == "RETURN", By: tag}
	if got.Allowed != want.Allowed || got.PassedOn != want.PassedOn || got.By != want.By || (got.Limit != "") != (got.Allowed && r.seen) {
		t.Errorf("direction %d, %+v: decided %+v; the rules: %s by %s, limited %t", d, q, got, verdict, r.tag, r.seen)
	}
	if !strings.Contains(got.Reason, " ") {
		t.Errorf("direction %d, %+v: no reason", d, q)
	}
	return got.Allowed
}

func TestDecideReasons(t *testing.T) {
	s := decideSpec(t, "postgres", ScopeHost)
	for _, c := range []struct {
		d      Direction
		q      Query
		by     string
		reason string
		limit  string
	}{
		{In, Query{Proto: ProtoTCP, Port: 5432, Remote: netip.MustParseAddr("10.20.1.20")}, "postgres",
			"the flow postgres allows tcp port 5432 from pgpool to postgres", ""},
		{In, Query{Proto: ProtoTCP, Port: 5432, Remote: netip.MustParseAddr("::ffff:10.20.1.20")}, "postgres",
			"the flow postgres allows tcp port 5432 from pgpool to postgres", ""},
		{In, Query{Proto: ProtoTCP, Port: 5432, Remote: netip.MustParseAddr("10.20.1.66")}, "drop",
			"the flow postgres allows tcp port 5432 from postgres, pgpool only, and 10.20.1.66 is none of it", ""},
		{In, Query{Proto: ProtoTCP, Port: 7100, Remote: netip.MustParseAddr("10.50.0.1")}, "limits",
			"the flow limits allows tcp port 7100 from applications to postgres", "at most 5 connections and 50 new a second per source"},
		{In, Query{Proto: ProtoEcho, Remote: netip.MustParseAddr("fd00:10::7%eth0")}, "echo",
			"the flow echo allows echo requests from control_plane to postgres", "at most 20 requests a second per source"},
		{In, Query{Proto: ProtoTCP, Port: 8443, Remote: netip.MustParseAddr("192.0.2.1"), At: decideAt}, "open",
			"an opening lets 192.0.2.0/24 in on tcp port 8443 until 2030-01-01T12:01:00Z", ""},
		{In, Query{Proto: ProtoTCP, Port: 8443, Remote: netip.MustParseAddr("192.0.2.1"), At: decideAt.Add(time.Minute)}, "drop",
			"no flow allows tcp port 8443 to postgres", ""},
		{Out, Query{Proto: ProtoTCP, Port: 9999, Remote: netip.MustParseAddr("10.20.1.20")}, "drop", "no flow allows tcp port 9999 from postgres", ""},
		{Out, Query{Proto: "sctp\n", Port: 9999, Remote: netip.MustParseAddr("10.20.1.20")}, "drop", `no flow allows protocol sctp\n from postgres`, ""},
		{Out, Query{Proto: ProtoTCP, Port: 80, Remote: netip.MustParseAddr("fd00:ec2::254")}, "metadata", "the metadata service at fd00:ec2::254 is for root alone", ""},
		{Out, Query{Proto: ProtoTCP, Port: 80, Remote: netip.MustParseAddr("fd00:ec2::254"), Root: true}, "metadata", "root may use the metadata service at fd00:ec2::254", ""},
		{Out, Query{}, "drop", "no flow allows protocol  from postgres", ""},
	} {
		got := Decide(s, c.d, c.q)
		if got.By != c.by || got.Reason != c.reason || got.Limit != c.limit {
			t.Errorf("direction %d, %+v:\n got %+v\nwant %s: %s (%s)", c.d, c.q, got, c.by, c.reason, c.limit)
		}
	}
}

func TestDecideLimits(t *testing.T) {
	for _, c := range []struct {
		connections, perSecond int
		want                   string
	}{
		{0, 0, ""}, {7, 0, "at most 7 connections per source"}, {0, 9, "at most 9 new connections a second per source"},
	} {
		f := Flow{Proto: ProtoTCP, Connections: c.connections, NewPerSecond: c.perSecond}
		if got := f.limit(In); got != c.want {
			t.Errorf("%+v: %q, want %q", c, got, c.want)
		}
		if got := f.limit(Out); got != "" {
			t.Errorf("%+v: %q for what goes out", c, got)
		}
	}
}

// An address is looked up among ten thousand prefixes as the kernel does it, not one by one.
func BenchmarkDecideManyMembers(b *testing.B) {
	s := decideSpec(b, "pgpool", ScopeHost)
	for i := range 10000 {
		s.Members["applications"] = append(s.Members["applications"], netip.MustParsePrefix(fmt.Sprintf("10.60.%d.%d/32", i/256, i%256)))
	}
	j := newJudge(s)
	q := Query{Remote: netip.MustParseAddr("10.60.39.15"), Proto: ProtoTCP, Port: 9999}
	for b.Loop() {
		if !j.decide(In, q).Allowed {
			b.Fatal("not allowed")
		}
	}
}
