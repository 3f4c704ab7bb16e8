package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func hole(from, proto string, port uint16, left time.Duration) Opening {
	return Opening{From: netip.MustParsePrefix(from), Proto: proto, Port: port, Until: noon.Add(left)}
}

// openingsOf renders openings and returns the sets of both families.
func openingsOf(t *testing.T, openings ...Opening) (Ruleset, [2]Set) {
	t.Helper()
	rs, err := Render(Spec{Role: "postgres", Flows: shipped(t), Members: members(), Openings: openings})
	if err != nil {
		t.Fatal(err)
	}
	var sets [2]Set
	for _, fam := range Families {
		i := slices.IndexFunc(rs.Sets, func(s Set) bool { return s.Name == SetName("open", fam) })
		if i < 0 {
			t.Fatalf("no set of openings for %s", fam)
		}
		sets[fam] = rs.Sets[i]
	}
	return rs, sets
}

func TestOpenings(t *testing.T) {
	_, sets := openingsOf(t,
		hole("203.0.113.7/32", ProtoTCP, 22, time.Hour),
		hole("203.0.113.7/32", ProtoTCP, 22, time.Minute), // the same hole: the longer time counts
		hole("203.0.113.0/24", ProtoUDP, 53, 1900*time.Millisecond),
		hole("203.0.113.8/32", ProtoTCP, 22, 900*time.Millisecond), // 0 would be for ever
		hole("203.0.113.9/32", ProtoTCP, 22, -time.Hour),
		hole("2001:db8::/64", ProtoTCP, 5432, 100*24*time.Hour),
	)
	if got, want := sets[IPv4].memberNames(noon), []string{"203.0.113.0/24,udp:53 timeout 1", "203.0.113.7/32,tcp:22 timeout 3600"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := sets[IPv6].memberNames(noon), []string{"2001:db8::/64,tcp:5432 timeout 86400"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q: a day is the longest", got, want)
	}
}

// Rules are the same with and without openings: an opening touches a set alone.
func TestOpeningsChangeNoRule(t *testing.T) {
	with, _ := openingsOf(t, hole("203.0.113.7/32", ProtoTCP, 22, time.Hour), hole("2001:db8::1/128", ProtoTCP, 22, time.Hour))
	without, _ := openingsOf(t)
	got := asObserved(without)
	got.At = noon
	p := Diff(with, got)
	if p.rules != [3]string{} || len(p.sets) != 2 {
		t.Errorf("plan:\n%s", p)
	}
	want := "add pgh4-open 203.0.113.7/32,tcp:22 timeout 3600 -exist\n"
	if text := restoreText(p.sets[0].write(noon)); text != want {
		t.Errorf("the edit is\n%s\nwant\n%s", text, want)
	}
	want = "create pgh4.open hash:net,port family inet hashsize 64 maxelem 65536 timeout 1\nadd pgh4.open 203.0.113.7/32,tcp:22 timeout 3600\n" +
		"swap pgh4.open pgh4-open\ndestroy pgh4.open\n"
	if text := restoreText(p.sets[0].instead(noon)); text != want {
		t.Errorf("if that fails, the edit is\n%s\nwant\n%s", text, want)
	}
	if open := lines(t, with, FilterIPv4, ChainIn); !slices.Contains(open, "-m set --match-set pgh4-open src,dst -m conntrack --ctstate NEW #open -j ACCEPT") {
		t.Errorf("no rule for openings in\n%s", strings.Join(open, "\n"))
	}
}

func TestF15b_DiffOpenings(t *testing.T) {
	const name = "203.0.113.7/32,tcp:22"
	rs, _ := openingsOf(t, hole("203.0.113.7/32", ProtoTCP, 22, 30*time.Minute))
	short, _ := openingsOf(t, hole("203.0.113.7/32", ProtoTCP, 22, 2*time.Second))
	ended, _ := openingsOf(t, hole("203.0.113.7/32", ProtoTCP, 22, -time.Second))
	none, _ := openingsOf(t)
	for _, tc := range []struct {
		name string
		want Ruleset
		have []string
		ok   bool
	}{
		{"as it should be", rs, []string{name + " timeout 1800"}, true},
		{"written a moment ago", rs, []string{name + " timeout 1798"}, true},
		{"rounded up", rs, []string{name + " timeout 1802"}, true},
		{"extended", rs, []string{name + " timeout 1803"}, false},
		{"cut short", rs, []string{name + " timeout 1797"}, false},
		{"missing", rs, nil, false},
		{"for ever", rs, []string{name}, false},
		{"timeout 0", rs, []string{name + " timeout 0"}, false},
		{"with an option", rs, []string{name + " timeout 1800 nomatch"}, false},
		{"another port", rs, []string{"203.0.113.7/32,tcp:23 timeout 1800"}, false},
		{"one more", rs, []string{name + " timeout 1800", "203.0.113.8/32,tcp:22 timeout 60"}, false},
		{"about to end, gone", short, nil, true},
		{"ended, about to go", ended, []string{name + " timeout 1"}, true},
		{"ended, still long", ended, []string{name + " timeout 3"}, false},
		{"closed early", none, []string{name + " timeout 1700"}, false},
		{"none", none, nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := asObserved(tc.want)
			got.At = noon
			s := got.Sets["pgh4-open"]
			s.Members = tc.have
			got.Sets["pgh4-open"] = s
			p := Diff(tc.want, got)
			if p.Empty() != tc.ok {
				t.Errorf("plan:\n%s", p)
			}
			if !tc.ok && p.Changes[0].Problem != "members differ" {
				t.Errorf("plan:\n%s", p)
			}
			if strings.Contains(setsText(p), "timeout 0") {
				t.Errorf("a member for ever:\n%s", setsText(p))
			}
		})
	}
}

// What is near enough is not shown as a difference.
func TestDiffOpeningsShowsWhatDiffers(t *testing.T) {
	rs, _ := openingsOf(t, hole("203.0.113.7/32", ProtoTCP, 22, time.Hour), hole("203.0.113.8/32", ProtoTCP, 22, time.Hour))
	got := asObserved(rs)
	got.At = noon
	s := got.Sets["pgh4-open"]
	s.Members = []string{"203.0.113.7/32,tcp:22 timeout 3599", "203.0.113.8/32,tcp:22 timeout 7200"}
	got.Sets["pgh4-open"] = s
	want := "ipv4 set pgh4-open: members differ\n  - 203.0.113.8/32,tcp:22 timeout 7200\n  + 203.0.113.8/32,tcp:22 timeout 3600\n"
	if p := Diff(rs, got).String(); p != want {
		t.Errorf("got\n%swant\n%s", p, want)
	}
}

// A set of openings of an older kind: without times no hole would ever close.
func TestF15b_DiffOpeningsKind(t *testing.T) {
	rs, _ := openingsOf(t)
	for problem, s := range map[string]ObservedSet{
		"lacks options: timeout 1":                                   {Type: typeNetPort, Family: "inet"},
		"has options: timeout 0":                                     {Type: typeNetPort, Family: "inet", Options: []string{"timeout", "0"}},
		"is a hash:net of family inet, not hash:net,port inet":       {Type: typeNet, Family: "inet", Options: []string{"timeout", "1"}},
		"is a hash:net,port of family inet6, not hash:net,port inet": {Type: typeNetPort, Family: "inet6", Options: []string{"timeout", "1"}},
	} {
		got := asObserved(rs)
		got.Sets["pgh4-open"] = s
		if p := Diff(rs, got); len(p.Changes) == 0 || p.Changes[0].Name != "pgh4-open" || p.Changes[0].Problem != problem {
			t.Errorf("want %q, plan:\n%s", problem, p)
		}
	}
}

func TestParseSetsOpenings(t *testing.T) {
	got, err := ParseSets([]byte("create pgh4-open hash:net,port family inet hashsize 1024 maxelem 65536 timeout 1 bucketsize 12 initval 0x1\n" +
		"add pgh4-open 203.0.113.0/24,udp:53 timeout 59\nadd pgh4-open 203.0.113.7,tcp:22 timeout 1799\n" +
		"create pgh6-open hash:net,port family inet6 hashsize 1024 maxelem 65536 timeout 1 bucketsize 12 initval 0x1\n" +
		"add pgh6-open ::10.0.0.1,tcp:22 timeout 5\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := "map[pgh4-open:{hash:net,port inet [timeout 1] [203.0.113.0/24,udp:53 timeout 59 203.0.113.7/32,tcp:22 timeout 1799]} " +
		"pgh6-open:{hash:net,port inet6 [timeout 1] [::a00:1/128,tcp:22 timeout 5]}]"
	if s := fmt.Sprint(got); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}
