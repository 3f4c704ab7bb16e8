package firewall

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testInstance is what the captured texts were made from, role postgres.
func testInstance(t *testing.T) Ruleset {
	t.Helper()
	flows := shipped(t)
	flows[0].Connections, flows[0].NewPerSecond = 113, 500
	rs, err := Render(Spec{Role: "postgres", Flows: flows})
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

// testdata/save-* are real texts of iptables 1.8.9, with our rules applied
// amid foreign ones that are as odd as iptables lets them be.
func TestParseSaveCaptured(t *testing.T) {
	want := testInstance(t)
	for _, backend := range []string{BackendNFT, BackendLegacy} {
		for _, fam := range Families {
			t.Run(backend+"-"+fam.String(), func(t *testing.T) {
				text := read(t, fmt.Sprintf("testdata/save-%s-%s.txt", backend, fam))
				got, err := ParseSave("filter", text)
				if err != nil {
					t.Fatal(err)
				}
				o := Observed{}
				o.Tables[fam] = got
				if fam == IPv6 {
					if o.Tables[RawIPv6], err = ParseSave("raw", text); err != nil {
						t.Fatal(err)
					}
				}
				if p := Diff(want, o); !p.Empty() {
					t.Errorf("our own rules, as the kernel prints them, differ:\n%s", p)
				}
				if fam == IPv4 {
					checkOddRules(t, got)
				}
			})
		}
	}
}

// checkOddRules compares what was read with the commands that made it.
func checkOddRules(t *testing.T, got ObservedTable) {
	t.Helper()
	want := [][]string{
		{"-m", "comment", "--comment", "pghardend:jump", "-j", "PGHARDEND-IN"},
		{"-m", "set", "--match-set", "#odd", `"name`, "src", "-j", "ACCEPT"}, // a name with a space is printed as two words
		{"-p", "tcp", "-m", "multiport", "--dports", "22", "-j", "f2b-sshd"},
		{"-p", "tcp", "-m", "tcp", "--dport", "9100", "-m", "comment", "--comment", "it\"s \\ a\n-A INPUT -j PGHARDEND-IN\nCOMMIT", "-j", "ACCEPT"},
		{"-m", "comment", "--comment", "-j", "-j", "ACCEPT"},
		{"-m", "recent", "--set", "--name", "-j", "--mask", "255.255.255.255", "--rsource", "-j", "DROP"},
		{"-m", "comment", "--comment", "", "-j", "DROP"},
	}
	var words [][]string
	for _, r := range got.Chains["INPUT"] {
		words = append(words, r.words)
	}
	if d := cmp.Diff(want, words); d != "" {
		t.Errorf("INPUT (-want +got):\n%s", d)
	}
	chains := slices.Sorted(maps.Keys(got.Chains))
	if want := []string{"DOCKER", "DOCKER-USER", "FORWARD", "INPUT", "OUTPUT", ChainFwd, ChainICMP, ChainIn, ChainMetadata, ChainOut, `c"d`, "f2b-sshd"}; !slices.Equal(chains, want) {
		t.Errorf("chains %q, want %q: the nat table has one more DOCKER, the comments name a chain, and neither counts", chains, want)
	}
	if n := len(got.Chains["DOCKER"]); n != 0 {
		t.Errorf("DOCKER has %d rules", n)
	}
}

func TestParseSave(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"nothing":           {"", "[]"},
		"empty table":       {"*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", "[INPUT:]"},
		"no final newline":  {"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT", "[INPUT:-j DROP;]"},
		"other table":       {"*nat\n:X - [0:0]\n-A X -j ACCEPT\nCOMMIT\n*filter\n:INPUT DROP [1:2]\nCOMMIT\n", "[INPUT:]"},
		"warning":           {"# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n*filter\nCOMMIT\n", "[]"},
		"rule without text": {"*filter\n-A X\nCOMMIT\n", "[X:;]"},
		"comment in nat":    {"*nat\n-A X -m comment --comment \"a\nCOMMIT\n*filter\n-A INPUT\" -j Y\nCOMMIT\n", "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseSave("filter", []byte(tc.text))
			if err != nil || !got.Read {
				t.Fatalf("read %v, error %v", got.Read, err)
			}
			var chains []string
			for _, name := range slices.Sorted(maps.Keys(got.Chains)) {
				text := name + ":"
				for _, r := range got.Chains[name] {
					text += r.String() + ";"
				}
				chains = append(chains, text)
			}
			if s := fmt.Sprint(chains); s != tc.want {
				t.Errorf("got %s, want %s", s, tc.want)
			}
		})
	}
}

func TestParseSaveErrors(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"only nft understands": {"# Table `filter' is incompatible, use 'nft' tool.\n", "only nft understands"},
		"cut short":            {"*filter\n:INPUT ACCEPT [0:0]\n", "ends inside table filter; it was cut short"},
		"cut in a comment":     {"*filter\n-A INPUT -m comment --comment \"a\nb", "entry 3"},
		"not ours to read":     {"*filter\nflush ruleset\nCOMMIT\n", `entry 2: "flush ruleset" is not iptables-save output`},
		"counters":             {"*filter\n[0:0] -A INPUT -j DROP\nCOMMIT\n", "entry 2"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseSave("filter", []byte(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) || got.Read {
				t.Errorf("read %v, error %v, want %q", got.Read, err, tc.want)
			}
		})
	}
}

func TestParseSetsCaptured(t *testing.T) {
	got, err := ParseSets(read(t, "testdata/ipset-save.txt"))
	if err != nil {
		t.Fatal(err)
	}
	v4 := func(members ...string) ObservedSet {
		return ObservedSet{Type: "hash:net", Family: "inet", Members: members}
	}
	v6 := func(members ...string) ObservedSet {
		return ObservedSet{Type: "hash:net", Family: "inet6", Members: members}
	}
	want := map[string]ObservedSet{
		"pgh4-control_plane": v4("10.20.1.30/32"), "pgh6-control_plane": v6("fd00:20:1::30/128"),
		"pgh4-dns": v4(), "pgh6-dns": v6(), "pgh4-ntp": v4(), "pgh6-ntp": v6(),
		"pgh4-pgpool":   v4("10.20.0.0/16 nomatch", "10.20.1.20/32"), // and not the member that a foreign comment claims
		"pgh6-pgpool":   v6("::a00:1/128", "fd00:20:1::20/128"),
		"pgh4-postgres": v4("10.20.1.11/32"), "pgh6-postgres": v6("fd00:20:1::11/128"),
		"pgh4-old": {Type: "hash:net", Family: "inet", Options: []string{"timeout", "60", "comment"}, Members: []string{"10.9.0.1/32 timeout 49 comment a b"}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestParseSets(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want string
	}{
		"nothing":      {"", "map[]"},
		"foreign":      {"create x hash:ip family inet\nadd x 1.2.3.4\ncreate pgh hash:ip\ncreate pgh5-x hash:ip\n", "map[]"},
		"order":        {"create pgh4-a hash:net family inet\nadd pgh4-a 10.0.0.9\nadd pgh4-a 10.0.0.10\n", "map[pgh4-a:{hash:net inet [] [10.0.0.10/32 10.0.0.9/32]}]"},
		"scratch":      {"create pgh6.a hash:net family inet6\n", "map[pgh6.a:{hash:net inet6 [] []}]"},
		"other type":   {"create pgh4-a list:set size 8\nadd pgh4-a b\n", "map[pgh4-a:{list:set  [size 8] [b]}]"},
		"odd member":   {"create pgh4-a hash:net,port family inet\nadd pgh4-a 10.0.0.0/8,tcp:80\n", "map[pgh4-a:{hash:net,port inet [] [10.0.0.0/8,tcp:80]}]"},
		"own comment":  {"create pgh4-a hash:net family inet comment\nadd pgh4-a 10.0.0.1 comment \"a\nb\"\n", `map[pgh4-a:{hash:net inet [comment] [10.0.0.1/32 comment a\nb]}]`},
		"v4 in v6 set": {"create pgh6-a hash:net family inet6\nadd pgh6-a 10.0.0.1\n", "map[pgh6-a:{hash:net inet6 [] [10.0.0.1]}]"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseSets([]byte(tc.text))
			if err != nil {
				t.Fatal(err)
			}
			if s := fmt.Sprint(got); s != tc.want {
				t.Errorf("got  %s\nwant %s", s, tc.want)
			}
		})
	}
	for name, tc := range map[string]struct{ text, want string }{
		"not a dump": {"destroy x y\n", `entry 1: "destroy x y" is not ipset save output`},
		"short":      {"create x\n", "entry 1"},
		// or an empty set of that name would hide what is in the real one
		"name with a blank": {"create pgh4-a hash:ip family inet\nadd pgh4-a 10.0.0.1\ncreate pgh4-a hash:net hashsize hash:net family inet\n", "entry 3: there are two sets pgh4-a, so one has a name with a blank; find it with `ipset list -n`"},
		"member first":      {"create x hash:ip\nadd pgh4-a 10.0.0.1\n", "entry 2: a member of pgh4-a comes before the set"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseSets([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}
