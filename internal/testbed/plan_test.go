package testbed

import (
	"strings"
	"testing"
)

func TestPlanGroupsBySubnet(t *testing.T) {
	p, err := planHosts([]HostSpec{
		{Name: "pg-0", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64", "10.20.1.11/24"}},
		{Name: "control", Addresses: []string{"10.0.0.5/24"}, MTU: 1300},
		{Name: "sibling", Addresses: []string{"fd00:20:1::66/64"}},
		{Name: "control-2", Addresses: []string{"10.0.0.6/24", "fd00:10::6/64"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, h := range p.hosts {
		got = append(got, h.segment)
	}
	if len(got) != 4 || got[0] != got[2] || got[1] != got[3] || got[0] == got[1] {
		t.Errorf("segments %v: those who share a subnet, and only those, must share a switch", got)
	}
	if p.segments[0].mtu != 1500 || p.segments[1].mtu != 1300 {
		t.Errorf("MTUs %d and %d, want the default 1500, and 1300", p.segments[0].mtu, p.segments[1].mtu)
	}
	var routers []string
	for _, s := range p.segments {
		for _, r := range s.router {
			routers = append(routers, r.String())
		}
	}
	if want := "10.20.1.1/24 fd00:20:1::1/64 10.0.0.1/24 fd00:10::1/64"; strings.Join(routers, " ") != want {
		t.Errorf("router has %v, want %s", routers, want)
	}
	if len(p.subnets()) != 4 {
		t.Errorf("subnets %v, want four", p.subnets())
	}
}

func TestPlanRefuses(t *testing.T) {
	ok := HostSpec{Name: "a", Addresses: []string{"10.0.0.2/24"}}
	other := HostSpec{Name: "b", Addresses: []string{"fd00::2/64"}}
	for want, specs := range map[string][]HostSpec{
		"must match":             {{Name: "PG", Addresses: ok.Addresses}},
		"has no address":         {{Name: "a"}},
		"is used twice":          {ok, {Name: "a", Addresses: []string{"10.0.0.3/24"}}},
		"belongs to a":           {ok, {Name: "b", Addresses: ok.Addresses}},
		"no '/'":                 {{Name: "a", Addresses: []string{"10.0.0.2"}}},
		"not an address":         {{Name: "a", Addresses: []string{"10.0.0.2/32"}}},
		"the router's address":   {{Name: "a", Addresses: []string{"10.0.0.1/24"}}},
		"two different switches": {ok, other, {Name: "c", Addresses: []string{"10.0.0.4/24", "fd00::4/64"}}},
	} {
		if _, err := planHosts(specs); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("planHosts(%v) = %v, want an error with %q", specs, err, want)
		}
	}
}
