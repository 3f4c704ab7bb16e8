package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/test/reach"
)

func TestTable(t *testing.T) {
	got := map[reach.Cell]reach.Outcome{}
	set := func(from, to string, p reach.Probe, v4, v6 reach.Outcome) {
		pair := reach.Pair{From: from, To: to}
		got[reach.Cell{Pair: pair, Probe: p}], got[reach.Cell{Pair: pair, Probe: p, V6: true}] = v4, v6
	}
	const no, half, yes = reach.Blocked, reach.OneWay, reach.Through
	for _, p := range reach.Probes {
		set("app", "sibling", p, yes, yes)
		set("sibling", "app", p, no, no)
	}
	set("pg-0", "app", reach.Probe{Proto: reach.TCP, Port: 5432}, yes, yes)
	set("pg-0", "app", reach.Probe{Proto: reach.UDP, Port: 53}, yes, no)
	set("pg-0", "app", reach.Probe{Proto: reach.ICMP}, no, half)
	want := `from \ to  pg-0 app     sibling
pg-0            5432    ·
                u53/4
                icmp/6?
app        ·            all
sibling    ·    ·
`
	if diff := cmp.Diff(want, table([]string{"pg-0", "app", "sibling"}, got)); diff != "" {
		t.Error(diff)
	}
}
