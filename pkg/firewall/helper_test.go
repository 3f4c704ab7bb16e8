package firewall

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew; review them by hand")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-golden +got):\n%s", file, d)
	}
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// allShipped is the matrix that the project ships, opt-in rows included.
func allShipped(t testing.TB) []Flow {
	t.Helper()
	flows, err := ParseFlows("flows.yaml", read(t, "../../policies/network/flows.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

// shipped are the rows that are in force if the configuration says nothing.
func shipped(t testing.TB) []Flow {
	t.Helper()
	flows, err := Customise(allShipped(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

func prefixes(list ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range list {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}

// members are those of a small instance, as seen from its first postgres.
func members() map[string][]netip.Prefix {
	return map[string][]netip.Prefix{
		"postgres":      prefixes("10.20.1.11/32", "fd00:20:1::11/128"),
		"pgpool":        prefixes("10.20.1.21/32", "10.20.1.20/32", "fd00:20:1::20/128", "10.20.1.21/32"),
		"control_plane": prefixes("10.0.0.0/24", "fd00:10::/64"),
		"applications":  prefixes("10.50.0.0/16"),
	}
}

func render(t testing.TB, role string) Ruleset {
	t.Helper()
	rs, err := Render(Spec{Role: role, Flows: shipped(t), Members: members()})
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

// nothing is what a fresh namespace has.
func nothing() Observed {
	got := Observed{SetsRead: true, Sets: map[string]ObservedSet{}}
	for _, id := range tableIDs {
		got.Tables[id] = ObservedTable{Read: true, Chains: map[string][]ObservedRule{}}
		for _, chain := range id.builtins() {
			got.Tables[id].Chains[chain] = nil
		}
	}
	return got
}

// asObserved is the state in which nothing is left to do.
func asObserved(rs Ruleset) Observed {
	got := nothing()
	for _, id := range tableIDs {
		for _, c := range rs.Tables[id].Chains {
			for _, r := range c.Rules {
				got.Tables[id].Chains[c.Name] = append(got.Tables[id].Chains[c.Name], observed(r))
			}
		}
		for _, j := range rs.Tables[id].Jumps {
			got.Tables[id].Chains[j.From] = []ObservedRule{observed(j.Rule)}
		}
	}
	for _, s := range rs.Sets {
		got.Sets[s.Name] = ObservedSet{Type: s.setType(), Family: inet(s.Family), Options: s.options(), Members: s.memberNames(got.At)}
	}
	return got
}

func observed(r Rule) ObservedRule { return ObservedRule{Rule: r, words: slices.Clone(r.tokens)} }

func setsText(p Plan) string {
	var text string
	for _, s := range p.sets {
		text += restoreText(s.write(noon))
		if s.instead != nil {
			text += "# if that fails\n" + restoreText(s.instead(noon))
		}
	}
	return text
}
