package firewall

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestParseFlowsShipped(t *testing.T) {
	flows := allShipped(t)
	var names []string
	for _, f := range flows {
		names = append(names, f.Name)
	}
	want := []string{"postgres", "clients", "pcp", "watchdog", "heartbeat", "ssh", "dns-udp", "dns-tcp", "ntp", "echo",
		"ssh-peers", "patroni", "etcd", "exporter", "exporter-pgpool", "backup"}
	if !slices.Equal(names, want) {
		t.Errorf("flows %q, want %q", names, want)
	}
	if f := flows[0]; f.Proto != ProtoTCP || !slices.Equal(f.Ports, []uint16{5432}) || !slices.Equal(f.From, []string{"postgres", "pgpool"}) || !slices.Equal(f.To, []string{"postgres"}) {
		t.Errorf("first flow %+v", f)
	}
	if f := flows[9]; f.Proto != ProtoEcho || f.Rate != 20 {
		t.Errorf("echo flow %+v", f)
	}
}

func TestParseFlowsErrors(t *testing.T) {
	const good = "version: 1\nflows:\n"
	row := func(f string) string { return good + "  - {" + f + "}\n" }
	long := strings.Repeat("x", 33)
	for name, tc := range map[string]struct{ text, want string }{
		"empty":              {"", "version is 0; write version: 1"},
		"version":            {"version: 2\n", "version is 2"},
		"not yaml":           {"version: [", "flows.yaml: yaml:"},
		"unknown key":        {good + "extra: 1\n", "field extra not found"},
		"unknown flow key":   {row("name: a, porto: tcp"), "line 3: field porto not found"},
		"second document":    {good + "---\nversion: 1\n", "second document"},
		"broken second":      {good + "---\n]", "second document"},
		"no name":            {row("proto: tcp, ports: [1], from: [a], to: [b]"), `flows[0] (): name ""`},
		"upper case":         {row("name: Ssh, proto: tcp, ports: [1], from: [a], to: [b]"), `name "Ssh": use lower-case`},
		"long name":          {row("name: " + long + ", proto: tcp, ports: [1], from: [a], to: [b]"), "name"},
		"reserved":           {row("name: invalid, proto: tcp, ports: [1], from: [a], to: [b]"), `name "invalid" is reserved`},
		"taken":              {row("name: a, proto: tcp, ports: [1], from: [a], to: [b]") + "  - {name: a, proto: tcp, ports: [2], from: [a], to: [b]}\n", "flows[1] (a): the name is taken"},
		"no from":            {row("name: a, proto: tcp, ports: [1], to: [b]"), "from and to must each name"},
		"no to":              {row("name: a, proto: tcp, ports: [1], from: [b]"), "from and to must each name"},
		"bad group":          {row("name: a, proto: tcp, ports: [1], from: ['b c'], to: [b]"), `role or network "b c"`},
		"group with a dot":   {row("name: a, proto: tcp, ports: [1], from: [b.c], to: [b]"), `role or network "b.c"`},
		"long group":         {row("name: a, proto: tcp, ports: [1], from: [" + strings.Repeat("x", 25) + "], to: [b]"), "at most 24 characters"},
		"group twice":        {row("name: a, proto: tcp, ports: [1], from: [b, c, b], to: [b]"), "name a thing once"},
		"port twice":         {row("name: a, proto: tcp, ports: [2, 1, 2], from: [b], to: [b]"), "name a thing once"},
		"no ports":           {row("name: a, proto: tcp, from: [b], to: [b]"), "ports: give 1 to 15 ports"},
		"port 0":             {row("name: a, proto: udp, ports: [0], from: [b], to: [b]"), "ports: give 1 to 15 ports"},
		"port 65536":         {row("name: a, proto: udp, ports: [65536], from: [b], to: [b]"), "cannot unmarshal"},
		"port -1":            {row("name: a, proto: udp, ports: [-1], from: [b], to: [b]"), "cannot unmarshal"},
		"16 ports":           {row("name: a, proto: tcp, ports: [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16], from: [b], to: [b]"), "ports: give 1 to 15 ports"},
		"rate on tcp":        {row("name: a, proto: tcp, ports: [1], rate: 5, from: [b], to: [b]"), "rate: only for proto icmp-echo"},
		"ports on echo":      {row("name: a, proto: icmp-echo, rate: 5, ports: [1], from: [b], to: [b]"), "icmp-echo has none"},
		"echo without rate":  {row("name: a, proto: icmp-echo, from: [b], to: [b]"), "rate: give 1 to 1000"},
		"rate not exact":     {row("name: a, proto: icmp-echo, rate: 1001, from: [b], to: [b]"), "rate: give 1 to 1000"},
		"siblings":           {row("name: a, proto: tcp, ports: [1], from: [siblings], to: [b]"), "no row may name the network siblings"},
		"metadata":           {row("name: a, proto: tcp, ports: [1], from: [a], to: [metadata]"), "no row may name the network metadata"},
		"open":               {row("name: a, proto: tcp, ports: [1], from: [open], to: [b]"), "no row may name the network open"},
		"name of a rule":     {row("name: tcp-flags, proto: tcp, ports: [1], from: [a], to: [b]"), `name "tcp-flags" is reserved`},
		"limit on udp":       {row("name: a, proto: udp, ports: [1], from: [a], to: [b], connections: 1"), "only for proto tcp"},
		"limited udp":        {row("name: a, proto: udp, ports: [1], from: [a], to: [b], limited: true"), "only for proto tcp"},
		"limit on echo":      {row("name: a, proto: icmp-echo, rate: 5, from: [a], to: [b], new_per_second: 1"), "only for proto tcp"},
		"connections":        {row("name: a, proto: tcp, ports: [1], from: [a], to: [b], connections: 1048577"), "connections: give 1 to 1048576"},
		"fewer than none":    {row("name: a, proto: tcp, ports: [1], from: [a], to: [b], connections: -1"), "connections: give"},
		"new per second":     {row("name: a, proto: tcp, ports: [1], from: [a], to: [b], new_per_second: 1001"), "new_per_second: give 1 to 1000"},
		"unknown proto":      {row("name: a, proto: sctp, ports: [1], from: [b], to: [b]"), `proto "sctp": use tcp, udp or icmp-echo`},
		"all named together": {row("name: A, proto: tcp, ports: [1], from: [b], to: [b]") + "  - {name: b, proto: x, from: [b], to: [b]}\n", "flows[1] (b): proto"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseFlows("flows.yaml", []byte(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "cannot read flows: flows.yaml: ") {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

// hashlimit keeps the time between two packets in whole microseconds; every
// rate that a flow may have must survive that.
func TestRatesSurviveTheKernel(t *testing.T) {
	for rate := 1; rate <= maxRate; rate++ {
		if period := 1000000 / rate; 1000000/period != rate {
			t.Errorf("%d/sec comes back as %d/sec", rate, 1000000/period)
		}
	}
}

func TestMultiplePorts(t *testing.T) {
	f := Flow{Name: "etcd", Proto: ProtoTCP, Ports: []uint16{2380, 2379}, From: []string{"postgres"}, To: []string{"postgres"}}
	rs, err := Render(Spec{Role: "postgres", Flows: []Flow{f}})
	if err != nil {
		t.Fatal(err)
	}
	in := fmt.Sprint(rs.Tables[IPv4].Chains[0].Rules)
	for _, want := range []string{
		"-p tcp -m multiport --dports 2380,2379 -m set --match-set pgh4-postgres src -m conntrack --ctstate NEW ",
		"-p tcp -m multiport --sports 2380,2379 -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m set --match-set pgh4-postgres src ",
	} {
		if !strings.Contains(in, want) {
			t.Errorf("no %q in %s", want, in)
		}
	}
}
