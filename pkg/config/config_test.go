package config

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// defaultAgent is what the agent has if the file says nothing of it.
var defaultAgent = AgentSettings{Cgroup: Cgroup{Mode: CgroupPreferred, CPUWeight: 1000}}

var withoutLines = cmpopts.IgnoreUnexported(Config{}, Peers{})

func TestExampleConfig(t *testing.T) {
	const file = "/etc/pghardend/pghardend.yaml"
	got, err := ParseConfig(file, readTestFile(t, exampleConfig), "another.example.com")
	if err != nil {
		t.Fatal(err)
	}
	oom := -900
	want := Config{
		File: file, Node: "pg-0", PeersFile: "/etc/pghardend/peers.yaml",
		RuntimeDir: "/run/pghardend", StateDir: "/var/lib/pghardend",
		Firewall: Firewall{Backend: "auto", Scope: "host"}, Sysctl: Sysctl{Manage: true}, Denials: Denials{Trace: true}, Reconcile: Reconcile{Interval: time.Second, Full: 30 * time.Second}, Agent: defaultAgent, SELinux: defaultSELinux,
		Services: []Service{{
			Name: "postgres", Profile: "postgres", User: "postgres", Groups: []string{"ssl-cert"},
			Command: []string{"/usr/lib/postgresql/15/bin/postgres", "-D", "/var/lib/postgresql/15/main",
				"-c", "config_file=/etc/postgresql/15/main/postgresql.conf"},
			DataDir:     "/var/lib/postgresql/15/main",
			Limits:      map[string]Limit{"nofile": {65536, 65536}, "core": {0, 0}},
			Environment: []string{"LANG=C.UTF-8", "TZ=UTC"}, OOMScoreAdj: &oom,
			StartTimeout: time.Minute, StopTimeout: time.Minute,
			Landlock: Landlock{Mode: LandlockRequired}, Mounts: Mounts{Mode: MountsRequired}, Cgroup: Cgroup{Mode: CgroupPreferred, CPUWeight: 100}, SELinux: noSELinux, Features: []string{"auto"}, Mode: ModeEnforce,
		}},
	}
	if diff := cmp.Diff(want, got, withoutLines); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	peers, err := ParsePeers(examplePeers, readTestFile(t, examplePeers))
	if err != nil {
		t.Fatal(err)
	}
	if err := Validate(got, peers); err != nil {
		t.Errorf("the two examples do not fit: %v", err)
	}
}

func TestExamplePgpool(t *testing.T) {
	c, err := ParseConfig("/etc/pghardend/pghardend.yaml", readTestFile(t, "../../packaging/examples/pghardend-pgpool.yaml"), "")
	if err != nil {
		t.Fatal(err)
	}
	peers, err := ParsePeers(examplePeers, readTestFile(t, examplePeers))
	if err := errors.Join(err, Validate(c, peers)); err != nil {
		t.Error(err)
	}
	if s := c.Services[0]; s.Profile != RolePgpool || len(s.Helpers) != 2 || s.DataDir != "" {
		t.Errorf("%+v", s)
	}
}

// What the example shows as an option must be right as well.
func TestExampleOptions(t *testing.T) {
	option := regexp.MustCompile(`(?m)^( *)# ( *(?:runtime_dir|state_dir|accept_wide|flows|exporter|ntp|clients|metrics|listen|sysctl|manage|set|leave|` +
		`memlock|nproc|helpers|capabilities|max_connections):(?:$| [/\[{0-9]| true| unlimited))`)
	text := option.ReplaceAllString(string(readTestFile(t, exampleConfig)), "$1$2")
	c, err := ParseConfig("/etc/pghardend/pghardend.yaml", []byte(text), "")
	if err != nil {
		t.Fatal(err)
	}
	s := c.Services[0]
	if len(c.Flows) != 4 || len(c.Sysctl.Set) != 1 || len(c.Sysctl.Leave) != 1 || len(c.Firewall.AcceptWide) != 1 || len(s.Helpers) != 1 || c.Metrics.Listen == "" || s.MaxConnections != 100 || len(s.Limits) != 4 {
		t.Errorf("an option is not there: %+v", c)
	}
	peers, err := ParsePeers(examplePeers, readTestFile(t, examplePeers))
	if err := errors.Join(err, Validate(c, peers), CheckChange(c, Peers{}, peers)); err != nil {
		t.Error(err)
	}
}

func TestConfigDefaults(t *testing.T) {
	got, err := ParseConfig("/etc/p/c.yaml", []byte("version: 1\nfirewall: {}\nreconcile: {}\nservices: {}\n"), "PG-0.example.com")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{File: "/etc/p/c.yaml", Node: "pg-0", PeersFile: "/etc/p/peers.yaml", RuntimeDir: "/run/pghardend",
		StateDir: "/var/lib/pghardend", Firewall: Firewall{Backend: "auto", Scope: "host"}, Sysctl: Sysctl{Manage: true}, Denials: Denials{Trace: true}, Reconcile: Reconcile{time.Second, 30 * time.Second}, Agent: defaultAgent, SELinux: defaultSELinux}
	if diff := cmp.Diff(want, got, withoutLines); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

const configValues = `version: 1
node: pg-1
peers_file: /srv/Peers.List.yaml
runtime_dir: /tmp/Run.d/
state_dir: /tmp//state
firewall: {backend: legacy}
reconcile: {interval: 1.5s, full: 5m}
metrics: {listen: "[::1]:9188"}
services:
  z-last:
    profile: pgpool
    user: 1000
    groups: [104, "105", Adm]
    command: [/usr/sbin/pgpool, -n, -D, -f, "/etc/A B,c.conf", "", "${HOME}", "a,b,c", "5432", "A.B=c.d"]
    capabilities: [CAP_NET_ADMIN, cap_net_raw]
    environment: ["EMPTY=", "Mixed_Case=A,b=C", "QUOTED=\"x\""]
    limits:
      memlock: unlimited
      core: 0
      as: 18446744073709551614
      data: 9223372036854775808
      nofile: {soft: 1024, hard: unlimited}
    oom_score_adj: 0
    start_timeout: 1h30m
    stop_timeout: 500ms
  a-first:
    profile: postgres
    user: postgres
    command: [/bin/true]
`

// The decoder must hand on every value as it stands in the file.
func TestConfigValues(t *testing.T) {
	got := mustParseConfig(t, configValues)
	zero := 0
	want := []Service{
		{Name: "a-first", Profile: "postgres", User: "postgres", Command: []string{"/bin/true"}, Limits: map[string]Limit{},
			StartTimeout: time.Minute, StopTimeout: time.Minute, Landlock: Landlock{Mode: LandlockRequired}, Mounts: Mounts{Mode: MountsRequired}, Cgroup: Cgroup{Mode: CgroupPreferred, CPUWeight: 100}, SELinux: noSELinux, Features: []string{"auto"}, Mode: ModeEnforce},
		{Name: "z-last", Profile: "pgpool", User: "1000", Groups: []string{"104", "105", "Adm"},
			Command: []string{"/usr/sbin/pgpool", "-n", "-D", "-f", "/etc/A B,c.conf", "", "${HOME}", "a,b,c", "5432", "A.B=c.d"},
			Limits: map[string]Limit{"memlock": {Unlimited, Unlimited}, "core": {}, "as": {math.MaxUint64 - 1, math.MaxUint64 - 1},
				"data": {1 << 63, 1 << 63}, "nofile": {1024, Unlimited}},
			Capabilities: []string{"CAP_NET_ADMIN", "cap_net_raw"},
			Environment:  []string{"EMPTY=", "Mixed_Case=A,b=C", `QUOTED="x"`}, OOMScoreAdj: &zero,
			StartTimeout: 90 * time.Minute, StopTimeout: 500 * time.Millisecond, Landlock: Landlock{Mode: LandlockRequired}, Mounts: Mounts{Mode: MountsRequired}, Cgroup: Cgroup{Mode: CgroupPreferred, CPUWeight: 100}, SELinux: noSELinux, Features: []string{"auto"}, Mode: ModeEnforce},
	}
	if diff := cmp.Diff(want, got.Services); diff != "" {
		t.Errorf("services: -want +got\n%s", diff)
	}
	got.Services = nil
	rest := Config{File: "/etc/pghardend/pghardend.yaml", Node: "pg-1", PeersFile: "/srv/Peers.List.yaml", RuntimeDir: "/tmp/Run.d",
		StateDir: "/tmp/state", Firewall: Firewall{Backend: "legacy", Scope: "host"}, Sysctl: Sysctl{Manage: true}, Denials: Denials{Trace: true}, Reconcile: Reconcile{1500 * time.Millisecond, 5 * time.Minute},
		Metrics: Metrics{Listen: "[::1]:9188"}, Agent: defaultAgent, SELinux: defaultSELinux}
	if diff := cmp.Diff(rest, got, withoutLines); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestConfigDataDir(t *testing.T) {
	tests := []struct{ name, command, want string }{
		{"separate", "[/usr/bin/postgres, -D, /data]", "/data"},
		{"attached", "[/usr/bin/postgres, -D/data/]", "/data"},
		{"long", "[/usr/bin/pg, --pgdata, /data]", "/data"},
		{"long with =", "[/usr/bin/pg, --pgdata=/data]", "/data"},
		{"the last one counts", "[/usr/bin/postgres, -D, /other, -D, /data]", "/data"},
		{"after the options", "[/usr/bin/postgres, --, -D, /data]", ""},
		{"no value", "[/usr/bin/postgres, -D]", ""},
		{"none", "[/usr/bin/postgres]", ""},
		{"the program's name is no option", "[/usr/bin/-D, /data]", ""},
		{"pgpool's -D has no value", "[/usr/sbin/pgpool, -n, -D, -f, /etc/pgpool.conf]", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := mustParseConfig(t, replaced("[/usr/bin/postgres, -D, /data]", tt.command))
			if got := c.Services[0].DataDir; got != tt.want {
				t.Errorf("data directory %q, want %q", got, tt.want)
			}
		})
	}
}

func TestConfigHostname(t *testing.T) {
	for hostname, want := range map[string]string{"pg-0": "pg-0", "PG-0.db.example.com": "pg-0"} {
		c, err := ParseConfig("c.yaml", []byte("version: 1\n"), hostname)
		if err != nil || c.Node != want {
			t.Errorf("host name %s: node %q, error %v, want node %s", hostname, c.Node, err, want)
		}
	}
	for _, hostname := range []string{"", "pg_0", ".example.com", "-"} {
		_, err := ParseConfig("c.yaml", []byte("version: 1\n"), hostname)
		checkRefusal(t, err, "c.yaml:1: node: missing, and the host name "+quote(hostname)+" is not "+nodeLabelText+
			"; add `node: pg-0` with this node's name in the peer list")
		if _, err := ParseConfig("c.yaml", []byte("version: 1\nnode: pg-0\n"), hostname); err != nil {
			t.Errorf("host name %q must not matter if there is a node: %v", hostname, err)
		}
	}
}

func TestConfigWhere(t *testing.T) {
	c := mustParseConfig(t, configValues)
	for key, want := range map[string]string{
		"version":                              "/etc/pghardend/pghardend.yaml:1",
		"firewall.backend":                     "/etc/pghardend/pghardend.yaml:6",
		"firewall.scope":                       "/etc/pghardend/pghardend.yaml:6",
		"services":                             "/etc/pghardend/pghardend.yaml:9",
		"services.z-last":                      "/etc/pghardend/pghardend.yaml:10",
		"services.z-last.command[3]":           "/etc/pghardend/pghardend.yaml:14",
		"services.z-last.limits":               "/etc/pghardend/pghardend.yaml:17",
		"services.z-last.limits.nofile.soft":   "/etc/pghardend/pghardend.yaml:22",
		"services.a-first.stop_timeout":        "/etc/pghardend/pghardend.yaml:26",
		"services.a-first.limits.nofile[7].xy": "/etc/pghardend/pghardend.yaml:26",
		"nowhere":                              "/etc/pghardend/pghardend.yaml:1",
		"":                                     "/etc/pghardend/pghardend.yaml:1",
	} {
		if got := c.Where(key); got != want {
			t.Errorf("Where(%q) is %s, want %s", key, got, want)
		}
	}
}

func TestConfigTooManyServices(t *testing.T) {
	text := top + "services:\n"
	for i := range maxServices + 2 {
		text += fmt.Sprintf("  s%d: {profile: postgres, user: postgres, command: [/bin/true]}\n", i)
	}
	_, err := ParseConfig("c.yaml", []byte(text+"  not looked at: {}\n"), "")
	checkRefusal(t, err, "c.yaml:68: services.s64: more than 64 services; keep those that this node runs")
}
