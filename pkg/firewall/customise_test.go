package firewall

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func names(flows []Flow) []string {
	var list []string
	for _, f := range flows {
		list = append(list, f.Name)
	}
	return list
}

func flowNamed(t *testing.T, flows []Flow, name string) Flow {
	t.Helper()
	i := slices.IndexFunc(flows, func(f Flow) bool { return f.Name == name })
	if i < 0 {
		t.Fatalf("no row %s in %q", name, names(flows))
	}
	return flows[i]
}

var defaults = []string{"postgres", "clients", "pcp", "watchdog", "heartbeat", "ssh", "dns-udp", "dns-tcp", "ntp", "echo"}

// DESIGN's opt-in rows, written down once more.
var optIn = []Flow{
	{Name: "ssh-peers", Proto: ProtoTCP, Ports: []uint16{22}, From: []string{"postgres", "pgpool"}, To: []string{"postgres", "pgpool"}},
	{Name: "patroni", Proto: ProtoTCP, Ports: []uint16{8008}, From: []string{"postgres", "pgpool", "control_plane"}, To: []string{"postgres"}},
	{Name: "etcd", Proto: ProtoTCP, Ports: []uint16{2379, 2380}, From: []string{"postgres", "pgpool"}, To: []string{"postgres", "pgpool"}},
	{Name: "exporter", Proto: ProtoTCP, Ports: []uint16{9187}, From: []string{"control_plane"}, To: []string{"postgres"}},
	{Name: "exporter-pgpool", Proto: ProtoTCP, Ports: []uint16{9719}, From: []string{"control_plane"}, To: []string{"pgpool"}},
	{Name: "backup", Proto: ProtoTCP, Ports: []uint16{443}, From: []string{"postgres"}, To: []string{"backup"}},
}

func TestCustomiseRowsInForce(t *testing.T) {
	on, off := true, false
	for name, tc := range map[string]struct {
		over map[string]FlowOverride
		want []string
	}{
		"nothing said":    {nil, defaults},
		"switched on":     {map[string]FlowOverride{"etcd": {Enabled: &on}, "backup": {Enabled: &on}}, append(slices.Clone(defaults), "etcd", "backup")},
		"switched off":    {map[string]FlowOverride{"ntp": {Enabled: &off}, "dns-tcp": {Enabled: &off}}, []string{"postgres", "clients", "pcp", "watchdog", "heartbeat", "ssh", "dns-udp", "echo"}},
		"off, with a key": {map[string]FlowOverride{"ntp": {Enabled: &off, Ports: []uint16{124}}, "patroni": {Enabled: &off}}, slices.DeleteFunc(slices.Clone(defaults), func(n string) bool { return n == "ntp" })},
		"on already":      {map[string]FlowOverride{"ntp": {Enabled: &on}}, defaults},
		"new, by name": {map[string]FlowOverride{
			"zabbix":  {Proto: ProtoTCP, Ports: []uint16{10050}, From: []string{"control_plane"}, To: []string{"postgres"}},
			"metrics": {Proto: ProtoTCP, Ports: []uint16{9100}, From: []string{"control_plane"}, To: []string{"postgres"}},
			"never":   {Enabled: &off, Proto: ProtoTCP, Ports: []uint16{9101}, From: []string{"control_plane"}, To: []string{"postgres"}},
		}, append(slices.Clone(defaults), "metrics", "zabbix")},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Customise(allShipped(t), tc.over)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(names(got), tc.want) {
				t.Errorf("rows %q, want %q", names(got), tc.want)
			}
			if slices.ContainsFunc(got, func(f Flow) bool { return f.OptIn }) {
				t.Errorf("a row in force is still marked as off: %+v", got)
			}
		})
	}
}

func TestOptInRows(t *testing.T) {
	on := true
	for _, want := range optIn {
		got, err := Customise(allShipped(t), map[string]FlowOverride{want.Name: {Enabled: &on}})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, flowNamed(t, got, want.Name)); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}

func TestLimitedRows(t *testing.T) {
	var limited []string
	for _, f := range shipped(t) {
		if f.Limited {
			limited = append(limited, f.Name)
		}
	}
	if want := []string{"postgres", "clients", "pcp", "watchdog"}; !slices.Equal(limited, want) {
		t.Errorf("limited rows %q, want %q", limited, want)
	}
}

func TestCustomiseFields(t *testing.T) {
	base := allShipped(t)
	before := allShipped(t)
	rate, conns, fresh := 5, 200, 100
	got, err := Customise(base, map[string]FlowOverride{
		"clients": {From: []string{"applications", "backup"}, Ports: []uint16{5433}, Connections: &conns, NewPerSecond: &fresh},
		"echo":    {Rate: &rate},
		"ssh":     {To: []string{"postgres"}},
		"dns-udp": {Proto: ProtoTCP},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Flow{Name: "clients", Proto: ProtoTCP, Ports: []uint16{5433}, From: []string{"applications", "backup"}, To: []string{"pgpool"},
		Limited: true, Connections: 200, NewPerSecond: 100}
	if d := cmp.Diff(want, flowNamed(t, got, "clients")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if f := flowNamed(t, got, "echo"); f.Rate != 5 || len(f.From) != 3 {
		t.Errorf("echo %+v", f)
	}
	if f := flowNamed(t, got, "ssh"); !slices.Equal(f.To, []string{"postgres"}) || !slices.Equal(f.Ports, []uint16{22}) {
		t.Errorf("ssh %+v", f)
	}
	if f := flowNamed(t, got, "dns-udp"); f.Proto != ProtoTCP {
		t.Errorf("dns-udp %+v", f)
	}
	if d := cmp.Diff(before, base); d != "" {
		t.Errorf("the built-in rows were changed:\n%s", d)
	}
}

func TestCustomiseErrors(t *testing.T) {
	on, bad := true, 1001
	row := FlowOverride{Proto: ProtoTCP, Ports: []uint16{1}, From: []string{"a"}, To: []string{"b"}}
	with := func(change func(*FlowOverride)) FlowOverride {
		o := row
		change(&o)
		return o
	}
	for name, tc := range map[string]struct {
		row  string
		over FlowOverride
		want string
	}{
		"misspelt":        {"exportr", FlowOverride{Enabled: &on}, "flows.exportr: there is no built-in row exportr, and a new one also needs proto, from, to; built-in rows: postgres, "},
		"off":             {"exporter", FlowOverride{Ports: []uint16{9188}}, "flows.exporter: the row is off; add enabled: true"},
		"no ports":        {"new", with(func(o *FlowOverride) { o.Ports = nil }), "flows.new: there is no built-in row new, and a new one also needs ports;"},
		"no rate":         {"new", FlowOverride{Proto: ProtoEcho, From: []string{"a"}, To: []string{"b"}}, "also needs rate;"},
		"bad name":        {"New", row, `flows.New: name "New": use lower-case`},
		"reserved":        {"drop", row, `flows.drop: name "drop" is reserved`},
		"siblings":        {"clients", FlowOverride{From: []string{"siblings"}}, "flows.clients: no row may name the network siblings"},
		"metadata":        {"new", with(func(o *FlowOverride) { o.To = []string{"metadata"} }), "flows.new: no row may name the network metadata"},
		"from nobody":     {"clients", FlowOverride{From: []string{}}, "flows.clients: from and to must each name"},
		"no ports at all": {"clients", FlowOverride{Ports: []uint16{}}, "flows.clients: ports: give 1 to 15"},
		"limit":           {"clients", FlowOverride{NewPerSecond: &bad}, "flows.clients: new_per_second: give 1 to 1000"},
		"limit on udp":    {"heartbeat", FlowOverride{Connections: &bad}, "flows.heartbeat: limited, connections and new_per_second: only for proto tcp"},
		"rate on tcp":     {"ssh", FlowOverride{Rate: &bad}, "flows.ssh: rate: only for proto icmp-echo"},
		"proto":           {"ntp", FlowOverride{Proto: "sctp"}, `flows.ntp: proto "sctp": use tcp, udp or icmp-echo`},
	} {
		t.Run(name, func(t *testing.T) {
			flows, err := Customise(allShipped(t), map[string]FlowOverride{tc.row: tc.over, "also": {}})
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "flows.also: ") || flows != nil {
				t.Errorf("rows %q, error %v, want %q", names(flows), err, tc.want)
			}
		})
	}
}

// FuzzCustomise: what is accepted can be rendered and settles, and no built-in
// row disappears unless it was switched off.
func FuzzCustomise(f *testing.F) {
	f.Add("exporter", true, "", "", 0, 0, uint16(0))
	f.Add("metrics", true, "tcp", "control_plane", 100, 50, uint16(9100))
	f.Add("ntp", false, "udp", "siblings", -1, 1001, uint16(1))
	base := allShipped(f)
	f.Fuzz(func(t *testing.T, name string, enabled bool, proto, group string, conns, fresh int, port uint16) {
		o := FlowOverride{Enabled: &enabled, Proto: proto, Connections: &conns, NewPerSecond: &fresh}
		if group != "" {
			o.From, o.To = []string{group}, []string{"postgres"}
		}
		if port != 0 {
			o.Ports = []uint16{port}
		}
		flows, err := Customise(base, map[string]FlowOverride{name: o})
		if err != nil {
			return
		}
		rs, err := Render(Spec{Role: "postgres", Flows: flows, Members: members()})
		if err != nil {
			t.Fatalf("accepted, but: %v", err)
		}
		if p := Diff(rs, asObserved(rs)); !p.Empty() {
			t.Errorf("does not settle:\n%s", p)
		}
		for _, want := range defaults {
			if !slices.Contains(names(flows), want) && (name != want || enabled) {
				t.Errorf("%s is gone", want)
			}
		}
	})
}
