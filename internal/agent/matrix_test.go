package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

const poolText = `services:
  pgpool:
    profile: pgpool
    user: postgres
    command: [/usr/sbin/pgpool, -n, -f, /etc/pgpool2/pgpool.conf]
`

// limits prints what one source may use of each row with a limit.
func flowLimits(d Desired) string {
	var b strings.Builder
	for _, f := range d.Firewall.Flows {
		if f.Connections != 0 || f.NewPerSecond != 0 {
			fmt.Fprintf(&b, "%s %d %d\n", f.Name, f.Connections, f.NewPerSecond)
		}
	}
	return b.String()
}

// buildNode builds with the services of one node and what they say.
func buildNode(t *testing.T, text string, facts Facts) Desired {
	t.Helper()
	cfg, err := config.ParseConfig("/etc/pghardend/pghardend.yaml", []byte(text), "pg-0")
	if err != nil {
		t.Fatal(err)
	}
	peers, err := config.ParsePeers(cfg.PeersFile, []byte(goodPeers))
	if err != nil {
		t.Fatal(err)
	}
	d, err := Build(cfg, peers, Extra{Facts: facts})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestLimitsAreDerivedUnlessSet(t *testing.T) {
	const pool = "version: 1\nnode: pool-0\n"
	for _, tt := range []struct {
		name, config string
		facts        Facts
		want         string
	}{
		{"nobody to ask", configHead, nil, "postgres 0 1000\n"},
		{"postgres says", configHead + serviceText, Facts{"postgres": {Clients: 300, WALSenders: 4}}, "postgres 314 1000\n"},
		{"postgres was not asked", configHead + serviceText, Facts{"other": {Clients: 300}}, "postgres 0 1000\n"},
		{"few connections", configHead + serviceText, Facts{"postgres": {Clients: 5}}, "postgres 15 50\n"},
		{"in the service's entry", configHead + serviceText + "    max_connections: 40\n", Facts{"postgres": {Clients: 300, WALSenders: 2}}, "postgres 52 200\n"},
		{"in the service's entry, and it was not asked", configHead + serviceText + "    max_connections: 40\n", nil, "postgres 60 200\n"},
		{"in the row", configHead + "flows: {postgres: {connections: 7, new_per_second: 9}}\n" + serviceText, Facts{"postgres": {Clients: 300}}, "postgres 7 9\n"},
		{"one of two in the row", configHead + "flows: {postgres: {connections: 7}}\n", nil, "postgres 7 1000\n"},
		{"none, by the row", configHead + "flows: {postgres: {connections: 0, new_per_second: 0}}\n", nil, ""},
		{"a pool was not asked", pool + poolText, nil, "clients 0 1000\npcp 0 1000\nwatchdog 0 1000\n"},
		{"a pool says", pool + poolText, Facts{"pgpool": {Clients: 64}}, "clients 202 320\npcp 202 320\nwatchdog 202 320\n"},
		{"a row of the user's own", configHead + "flows: {metrics: {proto: tcp, ports: [9100], from: [control_plane], to: [postgres]}}\n", nil, "postgres 0 1000\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, flowLimits(buildNode(t, tt.config, tt.facts))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// The larger of two servers counts: a limit that is too low keeps clients out.
func TestLimitsAreThoseOfTheLargestServer(t *testing.T) {
	text := configHead + serviceText + strings.ReplaceAll(strings.TrimPrefix(serviceText, "services:\n"), "main", "second")
	text = strings.Replace(text, "  postgres:\n    profile: postgres\n    user: postgres\n    command: [/usr/lib/postgresql/15/bin/postgres, -D, /var/lib/postgresql/15/second]",
		"  second:\n    profile: postgres\n    user: postgres\n    command: [/usr/lib/postgresql/15/bin/postgres, -D, /var/lib/postgresql/15/second]", 1)
	d := buildNode(t, text, Facts{"postgres": {Clients: 20, WALSenders: 10}, "second": {Clients: 200, WALSenders: 3}})
	if got := flowLimits(d); len(d.Services) != 2 || got != "postgres 220 1000\n" {
		t.Errorf("%d services, %q", len(d.Services), got)
	}
}

func TestFlowsFollowTheConfiguration(t *testing.T) {
	names := func(d Desired) []string {
		var list []string
		for _, f := range d.Firewall.Flows {
			list = append(list, f.Name)
		}
		return list
	}
	plain := names(mustBuild(t, configHead))
	if slices.Contains(plain, "exporter") || !slices.Contains(plain, "ntp") || !slices.Contains(plain, "postgres") {
		t.Errorf("by default: %q", plain)
	}
	d := mustBuild(t, configHead+`flows:
  exporter: {enabled: true}
  ntp: {enabled: false}
  clients: {from: [applications, control_plane], ports: [5433]}
  metrics: {proto: tcp, ports: [9100], from: [control_plane], to: [postgres, pgpool]}
`)
	got := names(d)
	if !slices.Contains(got, "exporter") || slices.Contains(got, "ntp") || got[len(got)-1] != "metrics" {
		t.Errorf("flows: %q", got)
	}
	i := slices.IndexFunc(d.Firewall.Flows, func(f firewall.Flow) bool { return f.Name == "clients" })
	if f := d.Firewall.Flows[i]; !slices.Equal(f.From, []string{"applications", "control_plane"}) || !slices.Equal(f.Ports, []uint16{5433}) {
		t.Errorf("clients: %+v", f)
	}
}

func TestScopeReachesTheRules(t *testing.T) {
	if d := mustBuild(t, configHead); d.Firewall.Scope != firewall.ScopeHost {
		t.Errorf("scope %q by default", d.Firewall.Scope)
	}
	cfg := configHead + "firewall: {scope: siblings}\n"
	if _, err := build(t, cfg); err == nil {
		t.Error("scope siblings without siblings was accepted")
	}
	c, err := config.ParseConfig("/etc/pghardend/pghardend.yaml", []byte(cfg), "pg-0")
	if err != nil {
		t.Fatal(err)
	}
	peers, err := config.ParsePeers(c.PeersFile, []byte(goodPeers+"  siblings: [10.20.1.0/24]\n"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := Build(c, peers, Extra{})
	if err != nil || d.Firewall.Scope != firewall.ScopeSiblings {
		t.Errorf("scope %q, %v", d.Firewall.Scope, err)
	}
	if !strings.Contains(sets(d), "pgh4-siblings [10.20.1.0/24]") {
		t.Errorf("sets\n%s", sets(d))
	}
}

// A manner of building twice what is the same is seen by what must be done anew.
func TestBuildsAreToldApart(t *testing.T) {
	a, b := mustBuild(t, configHead), mustBuild(t, configHead)
	if a.made == nil || a.made == b.made {
		t.Error("two builds look the same")
	}
}
