package config

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func FuzzParsePeers(f *testing.F) {
	f.Add(readTestFile(f, examplePeers))
	for _, s := range []string{head + oneNode, withAddress(`"fd00::1"`), withCIDR("10.50.0.0/16"), withCIDR(`"fc00::/7"`), withAddress("&a ::ffff:1.2.3.4"),
		head + oneNode + "networks: {dns: [], ntp: [10.0.0.123/32]}\n", "version: 1\n---\n", "? [a]\n: b\n", "a: *b\n", "{a: [\n", "<<: {}\n",
		head + oneNode + "networks: {siblings: [10.20.0.0/16], applications: [10.20.1.0/24], metadata: [10.20.1.10/32]}\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePeers("peers.yaml", data)
		if err != nil {
			checkLines(t, err, data)
			return
		}
		checkPeers(t, p)
		if err := CheckChange(Config{}, p, p); err != nil {
			t.Errorf("a list cannot replace itself: %v", err)
		}
		if err := CheckChange(Config{}, Peers{}, p); err != nil {
			checkLines(t, err, data)
		}
	})
}

// checkPeers checks what everybody who is given a peer list relies on.
func checkPeers(t *testing.T, p Peers) {
	if !instanceID.matches(p.Instance) || len(p.Nodes) == 0 || p.Networks == nil {
		t.Errorf("instance %q, %d nodes, networks %v", p.Instance, len(p.Nodes), p.Networks)
	}
	names, addresses := map[string]bool{}, map[netip.Addr]bool{}
	for _, n := range p.Nodes {
		if !nodeLabel.matches(n.Name) || names[n.Name] || !slices.Contains(roles, n.Role) || len(n.Addresses) == 0 {
			t.Errorf("node %+v", n)
		}
		names[n.Name] = true
		for _, a := range n.Addresses {
			unicast := a.IsGlobalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
			if !a.IsValid() || !unicast || a.Is4In6() || a.Zone() != "" || addresses[a] {
				t.Errorf("address %v of node %s", a, n.Name)
			}
			addresses[a] = true
		}
	}
	for name, prefixes := range p.Networks {
		if !networkName.matches(name) || slices.Contains(roles, name) || prefixes == nil {
			t.Errorf("network %q: %v", name, prefixes)
		}
		for i, n := range prefixes {
			if !n.IsValid() || n != n.Masked() || n.Bits() < 7 || n.Addr().Is4In6() || n.Addr().Is4() && n.Bits() < 8 {
				t.Errorf("entry %v of network %s", n, name)
			}
			if i > 0 && prefixes[i-1].Compare(n) >= 0 {
				t.Errorf("network %s is not sorted and unique: %v", name, prefixes)
			}
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(readTestFile(f, exampleConfig), "pg-0")
	f.Add([]byte(configValues), "")
	for _, s := range []string{top, serviceYAML, withKey("limits: {nofile: {soft: 1, hard: unlimited}, as: 9223372036854775808}"), withKey("environment: [A=b]"),
		withKey("oom_score_adj: -1"), withKey("stop_timeout: 1.5m"), withKey("groups: [1, a]"), "version: 1\nnode: &a b\n", "version: 1\nfirewall: {<<: {}}\n",
		top + flowsYAML, top + "flows: {exporter: {enabled: TRUE}, ntp: {}}\n", top + "firewall: {scope: siblings, accept_wide: [applications]}\n",
		top + "sysctl: {manage: false, set: [net.ipv4.tcp_rfc1337=1], leave: [net.ipv6.*]}\n", withKey("max_connections: 262143"), withKey("helpers: [/a//b, /c]"),
		withKey("landlock: {mode: preferred, read: [/a], write: [/b//c], bind: [1], connect: [65535]}"), withKey("landlock: {write: [/a, /a], mode: off}"),
		withKey("mounts: {mode: preferred, exec: [/opt//a]}"),
		withKey("cgroup: {mode: required, memory_max: 8G, tasks_max: unlimited}"),
		top + "reconcile: {interval: 60s, full: 1s}\nmetrics: {listen: \"[::1]:1024\"}\n"} {
		f.Add([]byte(s), "host.example.com")
	}
	f.Fuzz(func(t *testing.T, data []byte, hostname string) {
		c, err := ParseConfig("/etc/pghardend.yaml", data, hostname)
		if err != nil {
			checkLines(t, err, data)
			return
		}
		checkConfig(t, c)
		checkDecoded(t, c, data)
	})
}

// checkConfig checks what everybody who is given a configuration relies on.
func checkConfig(t *testing.T, c Config) {
	if !nodeLabel.matches(c.Node) || !filepath.IsAbs(c.PeersFile) || pathProblem(c.RuntimeDir) != "" || pathProblem(c.StateDir) != "" {
		t.Errorf("configuration %+v", c)
	}
	if !slices.Contains([]string{"auto", "nft", "legacy"}, c.Firewall.Backend) || !slices.Contains([]string{ScopeHost, ScopeSiblings}, c.Firewall.Scope) ||
		c.Reconcile.Interval < minInterval || c.Reconcile.Interval > maxInterval || c.Reconcile.Full < minFull || c.Reconcile.Full > maxFull {
		t.Errorf("firewall %+v, reconcile %+v", c.Firewall, c.Reconcile)
	}
	if l := c.Metrics.Listen; l != "" {
		addr, err := netip.ParseAddrPort(l)
		if err != nil || !addr.Addr().IsLoopback() || addr.Port() < minMetricsPort || addr.String() != l && addr.Addr().Is4() {
			t.Errorf("metrics are served on %q: %v", l, err)
		}
	}
	checkFlows(t, c)
	for i, s := range c.Services {
		if !serviceName.matches(s.Name) || i > 0 && c.Services[i-1].Name >= s.Name || s.Profile == "" || s.User == "" {
			t.Errorf("service %+v", s)
		}
		if len(s.Command) == 0 || !filepath.IsAbs(s.Command[0]) || s.DataDir != "" && pathProblem(s.DataDir) != "" {
			t.Errorf("service %s: command %q, data directory %q", s.Name, s.Command, s.DataDir)
		}
		for _, text := range slices.Concat(s.Command, s.Environment, s.Groups, s.Capabilities) {
			if slices.ContainsFunc([]rune(text), isControl) {
				t.Errorf("service %s: control character in %q", s.Name, text)
			}
		}
		for resource, l := range s.Limits {
			if !slices.Contains(resources, resource) || l.Soft > l.Hard {
				t.Errorf("service %s: limit %s %+v", s.Name, resource, l)
			}
		}
		if s.StartTimeout < minTimeout || s.StopTimeout < minTimeout || s.StartTimeout > maxTimeout || s.StopTimeout > maxTimeout {
			t.Errorf("service %s: time-outs %v, %v", s.Name, s.StartTimeout, s.StopTimeout)
		}
		if v := s.OOMScoreAdj; v != nil && (*v < -1000 || *v > 1000) {
			t.Errorf("service %s: oom score %d", s.Name, *v)
		}
	}
}

// checkFlows checks what everybody who is given the flows relies on.
func checkFlows(t *testing.T, c Config) {
	for name, f := range c.Flows {
		if !flowName.matches(name) || reflect.ValueOf(f).IsZero() {
			t.Errorf("flow %q: %+v", name, f)
		}
		if slices.Contains(f.Ports, 0) || len(f.Ports) > 15 || !slices.Contains([]string{"", "tcp", "udp", "icmp-echo"}, f.Proto) {
			t.Errorf("flow %s: %+v", name, f)
		}
		for _, group := range slices.Concat(f.From, f.To) {
			if !networkName.matches(group) || group == "siblings" || group == "metadata" {
				t.Errorf("flow %s names %q", name, group)
			}
		}
		for _, v := range []*int{f.Rate, f.NewPerSecond, f.Connections} {
			if v != nil && (*v < 0 || *v > 1_000_000) {
				t.Errorf("flow %s: a rate or limit of %d", name, *v)
			}
		}
	}
	for _, s := range slices.Concat(c.Sysctl.Set, c.Sysctl.Leave) {
		if !strings.HasPrefix(strings.TrimLeft(s, " \t-"), "net") {
			t.Errorf("sysctl %q", s)
		}
	}
}

// checkDecoded compares what came through viper with a second, plain decoder.
func checkDecoded(t *testing.T, c Config, data []byte) {
	var plain struct {
		Services map[string]struct {
			User, Profile                              string
			Command, Environment, Groups, Capabilities []string
		}
		Flows map[string]struct {
			Enabled  *bool
			Ports    []uint16
			From, To []string
			Rate     *int
		}
	}
	if err := yaml.Unmarshal(data, &plain); err != nil {
		t.Fatalf("the plain decoder fails: %v", err)
	}
	if len(plain.Services) != len(c.Services) {
		t.Fatalf("%d services, want %d", len(c.Services), len(plain.Services))
	}
	if len(plain.Flows) != len(c.Flows) {
		t.Fatalf("%d flows, want %d", len(c.Flows), len(plain.Flows))
	}
	for name, f := range c.Flows {
		p, ok := plain.Flows[name]
		if !ok || !reflect.DeepEqual(f.Enabled, p.Enabled) || !slices.Equal(f.Ports, p.Ports) || !slices.Equal(f.From, p.From) ||
			!slices.Equal(f.To, p.To) || !reflect.DeepEqual(f.Rate, p.Rate) {
			t.Errorf("flow %s %+v, want %+v", name, f, p)
		}
	}
	for _, s := range c.Services {
		p, ok := plain.Services[s.Name]
		if !ok || s.User != p.User || s.Profile != p.Profile || !slices.Equal(s.Command, p.Command) || !slices.Equal(s.Environment, p.Environment) ||
			!slices.Equal(s.Groups, p.Groups) || !slices.Equal(s.Capabilities, p.Capabilities) {
			t.Errorf("service %+v, want %+v", s, p)
		}
	}
}
