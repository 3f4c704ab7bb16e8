package agent

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/limits"
)

const configHead = "version: 1\nnode: pg-0\n"

func build(t *testing.T, configText string) (Desired, error) {
	t.Helper()
	cfg, err := config.ParseConfig("/etc/pghardend/pghardend.yaml", []byte(configText), "pg-0")
	if err != nil {
		return Desired{}, err
	}
	peers, err := config.ParsePeers(cfg.PeersFile, []byte(goodPeers))
	if err != nil {
		t.Fatal(err)
	}
	return Build(cfg, peers, Extra{})
}

func mustBuild(t *testing.T, configText string) Desired {
	t.Helper()
	d, err := build(t, configText)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// sets prints each set with its members.
func sets(d Desired) string {
	var b strings.Builder
	for _, s := range d.Rules.Sets {
		fmt.Fprintf(&b, "%s %v\n", s.Name, s.Members)
	}
	return b.String()
}

// An address in peers.yaml can be followed to the set that holds it. This is
// all there is on each of the two roles: the node's own addresses are nowhere.
func TestAddressesEndInTheirSets(t *testing.T) {
	for node, want := range map[string]string{
		"pg-0": `pgh4-control_plane [10.0.0.0/24]
pgh6-control_plane [fd00:10::/64]
pgh4-dns []
pgh6-dns []
pgh4-metadata [169.254.169.254/32]
pgh6-metadata [fd00:ec2::254/128]
pgh4-ntp []
pgh6-ntp []
pgh4-pgpool [10.20.1.20/32 10.20.1.21/32]
pgh6-pgpool [fd00:20:1::21/128]
pgh4-postgres [10.20.1.11/32]
pgh6-postgres [fd00:20:1::11/128]
pgh4-open []
pgh6-open []
`,
		"pool-1": `pgh4-applications [10.50.0.0/16]
pgh6-applications []
pgh4-control_plane [10.0.0.0/24]
pgh6-control_plane [fd00:10::/64]
pgh4-dns []
pgh6-dns []
pgh4-metadata [169.254.169.254/32]
pgh6-metadata [fd00:ec2::254/128]
pgh4-ntp []
pgh6-ntp []
pgh4-pgpool [10.20.1.20/32]
pgh6-pgpool []
pgh4-postgres [10.20.1.10/32 10.20.1.11/32]
pgh6-postgres [fd00:20:1::10/128 fd00:20:1::11/128]
pgh4-open []
pgh6-open []
`,
	} {
		d := mustBuild(t, "version: 1\nnode: "+node+"\n")
		if diff := cmp.Diff(want, sets(d)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", node, diff)
		}
		if d.Self.Name != node {
			t.Errorf("self is %+v", d.Self)
		}
	}
}

// A flow in flows.yaml can be followed to the rules that name the set.
func TestFlowsEndInRulesThatNameTheSets(t *testing.T) {
	d := mustBuild(t, configHead)
	for fam, prefix := range []string{"pgh4-", "pgh6-"} {
		var text strings.Builder
		for _, c := range d.Rules.Tables[fam].Chains {
			for _, r := range c.Rules {
				fmt.Fprintf(&text, "%s %s\n", c.Name, r)
			}
		}
		for _, want := range []struct{ chain, flow, port, set string }{
			{"PGHARDEND-IN", "postgres", "--dport 5432", prefix + "pgpool src"},
			{"PGHARDEND-IN", "postgres", "--dport 5432", prefix + "postgres src"},
			{"PGHARDEND-OUT", "postgres", "--dport 5432", prefix + "postgres dst"},
			{"PGHARDEND-IN", "ssh", "--dport 22", prefix + "control_plane src"},
		} {
			if !slices.ContainsFunc(strings.Split(text.String(), "\n"), func(line string) bool {
				return strings.HasPrefix(line, want.chain+" ") && strings.Contains(line, want.port+" ") &&
					strings.Contains(line, want.set) && strings.Contains(line, "pghardend:"+want.flow) && strings.HasSuffix(line, "-j ACCEPT")
			}) {
				t.Errorf("no rule for %+v in\n%s", want, text.String())
			}
		}
	}
}

func TestMembers(t *testing.T) {
	a := netip.MustParseAddr
	p := netip.MustParsePrefix
	self := config.Node{Name: "pg-0", Role: "postgres", Addresses: []netip.Addr{a("10.0.0.1")}}
	peers := config.Peers{
		Nodes: []config.Node{self,
			{Name: "pg-1", Role: "postgres", Addresses: []netip.Addr{a("10.0.0.2"), a("fd00::2")}},
			{Name: "pool-0", Role: "pgpool", Addresses: []netip.Addr{a("fd00::3")}}},
		Networks: map[string][]netip.Prefix{"dns": {p("10.9.0.0/16")}, "ntp": {}},
	}
	want := map[string][]netip.Prefix{
		"postgres": {p("10.0.0.2/32"), p("fd00::2/128")},
		"pgpool":   {p("fd00::3/128")},
		"dns":      {p("10.9.0.0/16")},
		"ntp":      {},
	}
	got := members(peers, self)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	got["dns"][0] = p("10.8.0.0/16")
	if peers.Networks["dns"][0] != p("10.9.0.0/16") {
		t.Error("the peers were changed")
	}
}

// The desired state is a function of the two files.
func TestBuildIsDeterministic(t *testing.T) {
	text := configHead + serviceText
	first := mustBuild(t, text)
	for range 5 {
		if !reflect.DeepEqual(first, mustBuild(t, text)) {
			t.Fatal("the same files give two states")
		}
	}
}

func TestServiceSpec(t *testing.T) {
	d := mustBuild(t, configHead+serviceText+"    environment: [TZ=UTC]\n    oom_score_adj: -100\n    groups: [ssl-cert]\n    capabilities: [cap_net_raw]\n    helpers: [/usr/bin/psql]\n")
	if len(d.Services) != 1 {
		t.Fatalf("%d services", len(d.Services))
	}
	s := d.Services[0]
	want := limits.Set{"nofile": {Soft: 65536, Hard: 65536}, "core": {}}
	if s.Service != "postgres" || s.User != "postgres" || s.DataDir != "/var/lib/postgresql/15/main" || !reflect.DeepEqual(s.Limits, want) ||
		!slices.Equal(s.Groups, []string{"ssl-cert"}) || s.Capabilities == 0 || s.OOMScoreAdj == nil || *s.OOMScoreAdj != -100 ||
		!slices.Equal(s.Helpers, []string{"/usr/bin/psql"}) ||
		!slices.Equal(s.Command, []string{"/usr/lib/postgresql/15/bin/postgres", "-D", "/var/lib/postgresql/15/main"}) {
		t.Errorf("spec %+v", s)
	}
	if !slices.Equal(s.Environment, []string{"PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj", "PG_OOM_ADJUST_VALUE=0", "TZ=UTC"}) {
		t.Errorf("environment %q", s.Environment)
	}
	if got, ok := d.service("postgres"); !ok || got.Service != "postgres" {
		t.Errorf("service: %+v, %v", got, ok)
	}
	if _, ok := d.service("pgpool"); ok {
		t.Error("a service that is not there was found")
	}
}

func TestBuildErrorsNameFileAndLine(t *testing.T) {
	for _, tt := range []struct {
		name, config string
		says         []string
	}{
		{"unknown profile", strings.Replace(serviceText, "profile: postgres", "profile: oracle", 1),
			[]string{`pghardend.yaml:5: services.postgres.profile: there is no profile "oracle"; profiles: generic, pgpool, postgres`}},
		{"unknown capability", serviceText + "    capabilities: [CAP_NET_ADMIN, CAP_FLY]\n",
			[]string{"pghardend.yaml:9: services.postgres.capabilities: ", "CAP_FLY"}},
		{"unknown limit", strings.Replace(serviceText, "nofile:", "nofiles:", 1),
			[]string{"pghardend.yaml:8: services.postgres.limits.nofiles: unknown limit; did you mean nofile?"}},
		{"soft above hard", strings.Replace(serviceText, "nofile: 65536", "nofile: {soft: 2, hard: 1}", 1),
			[]string{"pghardend.yaml:8: services.postgres.limits", "nofile"}},
		{"node not in the list", "", []string{`pghardend.yaml:2: node: this node, "pg-7", is not in /etc/pghardend/peers.yaml`}},
		{"a new row without its parts", "flows:\n  metrics: {ports: [9100]}\n",
			[]string{"pghardend.yaml:4: flows.metrics: ", "proto, from, to"}},
		{"a row that cannot be", "flows:\n  metrics: {proto: tcp, ports: [9100], from: [control_plane], to: [postgres]}\n  heartbeat: {connections: 5}\n",
			[]string{"pghardend.yaml:5: flows.heartbeat: ", "only for proto tcp"}},
		{"a sysctl that is none", "sysctl:\n  set: [net.ipv4.tcp_rfc1337=1, net.ipv4..x=1]\n  leave: [net.ipv4..y]\n",
			[]string{"pghardend.yaml:4: sysctl.set[1]: ", "pghardend.yaml:5: sysctl.leave[0]: "}},
		{"runtime_dir over the files", "runtime_dir: /etc/pghardend\n",
			[]string{"pghardend.yaml:3: runtime_dir: ", "/etc/pghardend", "choose another"}},
		{"state_dir over the files", "state_dir: /srv\npeers_file: /srv/last-good/peers.yaml\n",
			[]string{"pghardend.yaml:3: state_dir: ", "/srv/last-good", "choose another"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			head := configHead
			if tt.config == "" {
				head = "version: 1\nnode: pg-7\n"
			}
			_, err := build(t, head+tt.config)
			contains(t, err, tt.says...)
		})
	}
}

func TestServiceSpecOfAnUnknownService(t *testing.T) {
	d := mustBuild(t, configHead+serviceText)
	_, err := ServiceSpec(d.Config, "pgpool")
	contains(t, err, "pghardend.yaml:3", `there is no service "pgpool"; services: postgres`)
	d = mustBuild(t, configHead)
	_, err = ServiceSpec(d.Config, "pgpool")
	contains(t, err, "services: none")
}
