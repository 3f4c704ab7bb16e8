package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const flowsYAML = `flows:
  exporter: {enabled: true}
  ntp: {enabled: false}
  clients:
    from: [applications]
    ports: [5433, 9999]
    connections: 200
    new_per_second: 0
  metrics: {proto: tcp, ports: [9100], from: [control_plane], to: [postgres, pgpool]}
  echo: {proto: icmp-echo, rate: 1000}
`

func pointer[T any](v T) *T { return &v }

func TestConfigFlows(t *testing.T) {
	got := mustParseConfig(t, top+flowsYAML).Flows
	want := map[string]FlowOverride{
		"exporter": {Enabled: pointer(true)},
		"ntp":      {Enabled: pointer(false)},
		"clients":  {From: []string{"applications"}, Ports: []uint16{5433, 9999}, Connections: pointer(200), NewPerSecond: pointer(0)},
		"metrics":  {Proto: "tcp", Ports: []uint16{9100}, From: []string{"control_plane"}, To: []string{"postgres", "pgpool"}},
		"echo":     {Proto: "icmp-echo", Rate: pointer(1000)},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if got := mustParseConfig(t, top+"flows: {}\n").Flows; len(got) != 0 {
		t.Errorf("no flows: %v", got)
	}
}

func TestConfigFlowsRefused(t *testing.T) {
	const at = "pghardend.yaml:3: flows."
	const group = "; write the name of a role or network of the peer list such as applications"
	const notName = " is not a network name (a letter a-z, then at most 23 of a-z, 0-9, _ and -)"
	flow := func(text string) string { return top + "flows: {" + text + "}\n" }
	var many, ports strings.Builder
	for i := range maxFlows + 2 {
		fmt.Fprintf(&many, "  f%d: {enabled: true}\n", i)
	}
	for i := range maxPorts + 1 {
		fmt.Fprintf(&ports, "%d, ", i+1)
	}
	refusesConfig(t, []refusal{
		{"a list", top + "flows: [exporter]\n", "pghardend.yaml:3: flows: is a list, not a mapping; write a mapping such as `exporter: {enabled: true}`"},
		{"nothing said", flow("exporter: {}"), at + "exporter: says nothing about the flow; write what changes, such as `enabled: true`, or remove it"},
		{"no value", flow("exporter: "), at + "exporter: has no value; write a mapping such as `enabled: true`"},
		{"a word in place of the row", flow("exporter: true"), at + "exporter: is a boolean (true), not a mapping; write a mapping such as `enabled: true`"},
		{"unknown key", flow("exporter: {enable: true}"), at + "exporter.enable: unknown key; did you mean enabled?"},
		{"upper-case key", flow("exporter: {From: [applications]}"), at + "exporter.From: unknown key; did you mean from?"},
		{"upper-case name", flow("SSH_peers: {enabled: true}"), at + `SSH_peers: "SSH_peers" is not ` + flowNameText + "; write ssh-peers"},
		{"a dot in the name", flow("a.b: {enabled: true}"), at + `"a.b": "a.b" is not ` + flowNameText + "; write something like exporter"},
		{"the name twice", flow("ntp: {enabled: true}, ntp: {enabled: false}"), at + "ntp: the key is here twice, first on line 3; remove one of the two"},
		{"enabled: text", flow("ntp: {enabled: on}"), at + `ntp.enabled: is text ("on"), not true or false; write true or false`},
		{"enabled: number", flow("ntp: {enabled: 1}"), at + "ntp.enabled: is a number (1), not true or false; write true or false"},
		{"enabled: list", flow("ntp: {enabled: [true]}"), at + "ntp.enabled: is a list, not true or false; write true or false such as `true`"},
		{"proto", flow("m: {proto: sctp}"), at + `m.proto: "sctp" is unknown; known values: tcp, udp, icmp-echo`},
		{"ports: none", flow("m: {ports: []}"), at + "m.ports: the list has 0 ports; write 1 to 15 ports"},
		{"ports: too many", flow("m: {ports: [" + ports.String() + "]}"), at + "m.ports: the list has 16 ports; write 1 to 15 ports"},
		{"ports: one number", flow("m: {ports: 22}"), at + "m.ports: is a number (22), not a list; write a list such as `[5432]`"},
		{"ports: 0", flow("m: {ports: [0]}"), at + "m.ports[0]: 0 is out of range; write a whole number from 1 to 65535"},
		{"ports: too large", flow("m: {ports: [22, 65536]}"), at + "m.ports[1]: 65536 is out of range; write a whole number from 1 to 65535"},
		{"ports: a service's name", flow("m: {ports: [ssh]}"), at + `m.ports[0]: is text ("ssh"), not a number; write a whole number from 1 to 65535`},
		{"ports: a range", flow("m: {ports: [9000-9010]}"), at + `m.ports[0]: is text ("9000-9010"), not a number; write a whole number from 1 to 65535`},
		{"ports: twice", flow("m: {ports: [22, 22]}"), at + "m.ports[1]: 22 is in the list twice, first as flows.m.ports[0] on line 3; remove one of the two"},
		{"from: empty", flow("m: {from: []}"), at + "m.from: the list is empty; name a role or network, or write `enabled: false` to switch the row off"},
		{"from: a name", flow("m: {from: applications}"), at + `m.from: is text ("applications"), not a list; write a list such as ` + "`[applications]`"},
		{"from: siblings", flow("m: {from: [siblings]}"), at + "m.from[0]: no flow can name the network siblings, it is there to be kept out; name the network of those who are meant"},
		{"to: metadata", flow("m: {to: [metadata]}"), at + "m.to[0]: no flow can name the network metadata, it is there to be kept out; name the network of those who are meant"},
		{"to: a CIDR", flow("m: {to: [10.0.0.0/24]}"), at + `m.to[0]: "10.0.0.0/24"` + notName + group},
		{"to: twice", flow("m: {to: [postgres, dns, postgres]}"), at + "m.to[2]: postgres is in the list twice, first as flows.m.to[0] on line 3; remove one of the two"},
		{"rate: 0", flow("echo: {rate: 0}"), at + "echo.rate: 0 is out of range; write a whole number from 1 to 1000"},
		{"connections: negative", flow("clients: {connections: -1}"), at + "clients.connections: -1 is out of range; write a whole number from 0 to 1000000"},
		{"new_per_second: too many", flow("clients: {new_per_second: 1001}"), at + "clients.new_per_second: 1001 is out of range; write a whole number from 0 to 1000"},
		{"tcp with a rate", flow("m: {proto: tcp, rate: 5}"), at + "m.rate: proto tcp has no rate; remove it"},
		{"udp with limits", flow("m: {connections: 5, new_per_second: 6, proto: udp}"),
			at + "m.connections: proto udp has no connections; remove it\n" + at + "m.new_per_second: proto udp has no new_per_second; remove it"},
		{"echo with ports", flow("m: {proto: icmp-echo, ports: [1], rate: 1}"), at + "m.ports: proto icmp-echo has no ports; remove it"},
		{"too many", top + "flows:\n" + many.String(), "pghardend.yaml:260: flows.f256: more than 256 flows; name networks, not single hosts, in from and to"},
	})
}

func TestConfigFirewallRefused(t *testing.T) {
	wide := func(list string) string { return top + "firewall: {accept_wide: " + list + "}\n" }
	const at = "pghardend.yaml:3: firewall.accept_wide"
	refusesConfig(t, []refusal{
		{"scope: upper case", top + "firewall: {scope: Siblings}\n", `pghardend.yaml:3: firewall.scope: "Siblings" is unknown; did you mean siblings?`},
		{"accept_wide: true", wide("true"), at + ": is a boolean (true), not a list; write a list such as `[applications]`"},
		{"accept_wide: a CIDR", wide("[10.0.0.0/8]"), at + `[0]: "10.0.0.0/8" is not a network name (a letter a-z, then at most 23 of a-z, 0-9, _ and -)` +
			"; write the name of a role or network of the peer list such as applications"},
		{"accept_wide: siblings", wide("[siblings]"), at + "[0]: siblings may be as wide as it is; remove it from the list"},
		{"accept_wide: twice", wide("[dns, dns]"), at + "[1]: dns is in the list twice, first as firewall.accept_wide[0] on line 3; remove one of the two"},
	})
}

func TestConfigScope(t *testing.T) {
	got := mustParseConfig(t, top+"firewall: {scope: siblings, accept_wide: [applications, backup]}\n").Firewall
	want := Firewall{Backend: "auto", Scope: ScopeSiblings, AcceptWide: []string{"applications", "backup"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestConfigSysctl(t *testing.T) {
	for text, want := range map[string]Sysctl{
		"{}":              {Manage: true},
		"{manage: false}": {},
		`{set: ["net.ipv4.conf.all.log_martians=0", "-net/ipv4/conf/eth0.1/rp_filter = 2", net.core.somaxconn=4096], leave: [net.ipv4.tcp_rfc1337, "net.ipv6.conf.*.accept_redirects"]}`: {
			Manage: true, Set: []string{"net.ipv4.conf.all.log_martians=0", "-net/ipv4/conf/eth0.1/rp_filter = 2", "net.core.somaxconn=4096"},
			Leave: []string{"net.ipv4.tcp_rfc1337", "net.ipv6.conf.*.accept_redirects"}},
	} {
		if diff := cmp.Diff(want, mustParseConfig(t, top+"sysctl: "+text+"\n").Sysctl); diff != "" {
			t.Errorf("%s: -want +got\n%s", text, diff)
		}
	}
	const at = "pghardend.yaml:3: sysctl."
	const other = " is not the key of a network sysctl; write something like net.ipv4.conf.all.log_martians; other sysctls belong into sysctl.d(5)"
	sysctl := func(text string) string { return top + "sysctl: {" + text + "}\n" }
	refusesConfig(t, []refusal{
		{"manage: text", sysctl("manage: off"), at + `manage: is text ("off"), not true or false; write true or false`},
		{"set: a mapping", sysctl("set: {net.ipv4.tcp_syncookies: 1}"), at + "set: is a mapping, not a list; write a list such as `[net.ipv4.conf.all.log_martians=0]`"},
		{"set: no value", sysctl("set: [net.ipv4.tcp_syncookies]"), at + `set[0]: "net.ipv4.tcp_syncookies" is not key=value; write something like net.ipv4.conf.all.log_martians=0`},
		{"set: empty value", sysctl(`set: ["net.ipv4.tcp_syncookies= "]`), at + `set[0]: "net.ipv4.tcp_syncookies= " is not key=value; write something like net.ipv4.conf.all.log_martians=0`},
		{"set: another tree", sysctl("set: [kernel.yama.ptrace_scope=1]"), at + `set[0]: "kernel.yama.ptrace_scope"` + other},
		{"set: twice", sysctl("set: [net.ipv4.ip_forward=1, net.ipv4.ip_forward=0]"), at + "set[1]: net.ipv4.ip_forward is in the list twice, first as sysctl.set[0] on line 3; remove one of the two"},
		{"leave: a setting", sysctl("leave: [net.ipv4.ip_forward=1]"), at + `leave[0]: "net.ipv4.ip_forward=1"` + other},
		{"leave: everything", sysctl(`leave: ["*"]`), at + `leave[0]: "*"` + other},
		{"unknown key", sysctl("mange: true"), at + "mange: unknown key; did you mean manage?"},
	})
}

func TestConfigServiceHelpersAndConnections(t *testing.T) {
	s := mustParseConfig(t, withKey("helpers: [/etc/pgpool2/failover.sh, /usr//bin/psql]")+"    max_connections: 262143\n").Services[0]
	if diff := cmp.Diff([]string{"/etc/pgpool2/failover.sh", "/usr/bin/psql"}, s.Helpers); diff != "" || s.MaxConnections != 262143 {
		t.Errorf("max_connections %d, helpers -want +got\n%s", s.MaxConnections, diff)
	}
	const at = "pghardend.yaml:8: services.postgres."
	refusesConfig(t, []refusal{
		{"max_connections: 0", withKey("max_connections: 0"), at + "max_connections: 0 is out of range; write a whole number from 1 to 262143"},
		{"max_connections: too many", withKey("max_connections: 262144"), at + "max_connections: 262144 is out of range; write a whole number from 1 to 262143"},
		{"helpers: relative", withKey("helpers: [failover.sh]"), at + `helpers[0]: "failover.sh" is a relative path; write an absolute path such as /etc/pgpool2/failover.sh`},
		{"helpers: dots", withKey("helpers: [/etc/../tmp/x]"), at + `helpers[0]: "/etc/../tmp/x" leads through ..; write an absolute path such as /etc/pgpool2/failover.sh`},
		{"helpers: a directory", withKey("helpers: [/etc/pgpool2/]"), at + `helpers[0]: "/etc/pgpool2/" is not the path of a file; write the absolute path of a program such as /etc/pgpool2/failover.sh`},
		{"helpers: a command line", withKey("helpers: [[/bin/sh, -c]]"), at + "helpers[0]: is a list, not text; write text such as `/etc/pgpool2/failover.sh`"},
		{"helpers: twice", withKey("helpers: [/bin/sh, /bin//sh]"), at + "helpers[1]: /bin/sh is in the list twice, first as services.postgres.helpers[0] on line 8; remove one of the two"},
	})
}
