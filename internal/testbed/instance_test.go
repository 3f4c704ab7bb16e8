package testbed

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestInstanceTopology(t *testing.T) {
	p, err := planHosts(instanceHosts)
	if err != nil {
		t.Fatal(err)
	}
	segments := map[string]int{}
	for _, h := range p.hosts {
		segments[h.name] = h.segment
	}
	if len(p.hosts) != 9 || len(p.segments) != 4 {
		t.Fatalf("%d hosts on %d switches, want 9 on 4", len(p.hosts), len(p.segments))
	}
	for _, name := range []string{"pg-1", "pool-0", "pool-1", "pool-2", SiblingHost} {
		if segments[name] != segments["pg-0"] {
			t.Errorf("%s is not on the switch of pg-0: nothing but netfilter may stand between them", name)
		}
	}
	in := &Instance{Bed: &Bed{}, spec: InstanceSpec{Name: "x", Networks: map[string][]string{"ntp": {"10.0.0.5/32"}, "dns": {}}}}
	for _, h := range p.hosts {
		in.Bed.hosts = append(in.Bed.hosts, &Host{name: h.name, addresses: h.addresses})
	}
	peers := in.firstPeers()
	var got []string
	for _, n := range peers.Nodes {
		got = append(got, n.Name+" "+n.Role+" "+strings.Join(n.Addresses, " "))
	}
	want := []string{
		"pg-0 postgres 10.20.1.10 fd00:20:1::10", "pg-1 postgres 10.20.1.11 fd00:20:1::11", "pool-0 pgpool 10.20.1.20 fd00:20:1::20",
		"pool-1 pgpool 10.20.1.21 fd00:20:1::21", "pool-2 pgpool 10.20.1.22 fd00:20:1::22",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	if peers.Networks["ntp"] == nil || len(peers.Networks["dns"]) != 0 || peers.Networks["siblings"] == nil {
		t.Errorf("networks: %v; the spec's replace those of the same name", peers.Networks)
	}
}

// Editing a list never changes the one it was made from.
func TestPeersEdits(t *testing.T) {
	first := Peers{Instance: "x", Nodes: []Peer{{"a", "postgres", []string{"10.0.0.1"}}, {"b", "pgpool", []string{"10.0.0.2"}}},
		Networks: map[string][]string{"dns": {"10.0.0.9/32"}}}
	before := first.Clone()
	edited := first.Without("a").With(Peer{"c", "pgpool", []string{"10.0.0.3"}}).WithNetwork("ntp").WithoutNetwork("dns")
	want := Peers{Instance: "x", Nodes: []Peer{{"b", "pgpool", []string{"10.0.0.2"}}, {"c", "pgpool", []string{"10.0.0.3"}}},
		Networks: map[string][]string{"ntp": {}}}
	if diff := cmp.Diff(want, edited); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	edited.Nodes[0].Addresses[0] = "changed"
	if diff := cmp.Diff(before, first); diff != "" {
		t.Errorf("the original changed (-before +now):\n%s", diff)
	}
}

func TestManyPrefixes(t *testing.T) {
	list := ManyPrefixes(1 << 16)
	seen := map[netip.Prefix]bool{}
	v6 := 0
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() || seen[p] {
			t.Fatalf("%s: %v, or twice", text, err)
		}
		seen[p] = true
		if p.Addr().Is6() {
			v6++
		}
	}
	if len(list) != 1<<16 || v6 != 1<<15 {
		t.Errorf("%d prefixes, %d of them IPv6", len(list), v6)
	}
}

func TestPgpoolFiles(t *testing.T) {
	at := netip.MustParseAddr
	p := &Pgpool{Socket: "/d/socket", State: "/d/state", Failover: "/d/failover.sh", Port: 9999, PCPPort: 9898}
	conf, err := fill(poolConfFile, poolConf{Pgpool: p, ID: 1, Children: 16, Priority: 2, LoadBalance: "off", Superuser: Superuser,
		Backends: []poolMember{{0, "pg-0", at("10.20.1.10"), 5432}, {1, "pg-1", at("10.20.1.11"), 5432}},
		Members:  []poolMember{{0, "pool-0", at("10.20.1.20"), 9999}, {1, "pool-1", at("10.20.1.21"), 9999}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"socket_dir = '/d/socket'", "pcp_socket_dir = '/d/socket'", "wd_ipc_socket_dir = '/d/socket'", "pid_file_name = '/d/state/pgpool.pid'",
		"failover_command = '/d/failover.sh %d %P %H %r'", "backend_hostname1 = '10.20.1.11'", "hostname1 = '10.20.1.21'",
		"heartbeat_port0 = 9694", "load_balance_mode = off", "wd_priority = 2",
	} {
		if !strings.Contains(conf, "\n"+line+"\n") {
			t.Errorf("pgpool.conf lacks %q:\n%s", line, conf)
		}
	}
	if strings.Contains(conf, "/tmp") || strings.Contains(conf, "<no value>") {
		t.Errorf("pgpool.conf names what is shared with the machine, or lacks a value:\n%s", conf)
	}
	if _, err := fill(failoverFile, map[string]string{"Psql": "/psql"}); err == nil {
		t.Error("a template with a value missing was filled in")
	}
	hba := poolHBA([]netip.Prefix{netip.MustParsePrefix("10.50.0.0/24")})
	if want := "local all all trust\nhost all app 10.50.0.0/24 scram-sha-256\n"; hba != want {
		t.Errorf("pool_hba.conf is %q, want %q", hba, want)
	}
}

const (
	poolNodes = "0|10.20.1.10|5432|up|up|0.500000|primary|primary|2|true|0|||2026-01-01 20:17:28\n" +
		"1|10.20.1.11|5432|down|down|0.500000|standby|unknown|0|false|0|streaming|async|2026-01-01 20:17:28"
	watchdogInfo = "Watchdog Cluster Information \nTotal Nodes              : 3\nRemote Nodes             : 2\n" +
		"Member Remote Nodes      : 2\nAlive Remote Nodes       : 2\nNodes required for quorum: 2\nQuorum state             : QUORUM EXIST\n" +
		"Local node escalation    : NO\nLeader Node Name         : 10.20.1.20:9999 Linux pool-0\nLeader Host Name         : 10.20.1.20\n\n" +
		"Watchdog Node Information \nNode Name         : Not_Set\n"
)

func TestParsePoolNodes(t *testing.T) {
	got, err := parsePoolNodes(poolNodes)
	if err != nil || len(got) != 2 || got[0] != (backend{netip.MustParseAddr("10.20.1.10"), "up", "primary"}) || got[1].status != "down" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, out := range []string{"", "x", "0|name|5432|up|up|1|primary|primary"} {
		if got, err := parsePoolNodes(out); err == nil {
			t.Errorf("%q gave %+v", out, got)
		}
	}
}

func FuzzParsePoolNodes(f *testing.F) {
	f.Add(poolNodes)
	f.Add("|||||||\n")
	f.Fuzz(func(t *testing.T, out string) {
		if got, err := parsePoolNodes(out); err == nil && (len(got) == 0 || !got[0].address.IsValid()) {
			t.Errorf("%q gave %+v", out, got)
		}
	})
}

func TestParseWatchdog(t *testing.T) {
	w, err := parseWatchdog(watchdogInfo)
	if err != nil || w != (watchdog{quorum: true, alive: 2, leader: "10.20.1.20"}) {
		t.Errorf("%+v, %v", w, err)
	}
	w, err = parseWatchdog(strings.Replace(watchdogInfo, "QUORUM EXIST", "QUORUM ABSENT", 1))
	if err != nil || w.quorum {
		t.Errorf("without a quorum: %+v, %v", w, err)
	}
	if _, err := parseWatchdog("ERROR: connection refused"); err == nil {
		t.Error("an error message was read as a report")
	}
}

func FuzzParseWatchdog(f *testing.F) {
	f.Add(watchdogInfo)
	f.Add("Alive Remote Nodes : 9999")
	f.Fuzz(func(t *testing.T, out string) {
		if w, err := parseWatchdog(out); err == nil && (w.alive < 0 || w.alive > 999) {
			t.Errorf("%q gave %+v", out, w)
		}
	})
}
