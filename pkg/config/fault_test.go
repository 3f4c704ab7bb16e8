package config

import (
	"bytes"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The rows of the fault list that a bad file can cause, as far as they can be
// decided from the file: F13 (peer list) and F18 (configuration). The owner and
// mode of F18 are in readfile_test.go.

func TestF13_PeerListRefused(t *testing.T) {
	tests := []refusal{
		{"empty file", "", "peers.yaml:1: the file is empty; begin it with `version: 1`"},
		{"empty list", head + "nodes: []\n", "peers.yaml:3: nodes: the list is empty; list all nodes of the instance, this one included"},
		{"0.0.0.0/0", withCIDR("0.0.0.0/0"),
			`peers.yaml:7: networks.applications[0]: "0.0.0.0/0" is every address there is; list the networks that are really meant, such as 10.50.0.0/16`},
		{"::/0", withCIDR("::/0"),
			`peers.yaml:7: networks.applications[0]: "::/0" is every address there is; list the networks that are really meant, such as 10.50.0.0/16`},
		{"0.0.0.0/0 as a node", withAddress("0.0.0.0/0"),
			`peers.yaml:7: nodes[0].addresses[0]: "0.0.0.0/0" has a prefix length, a node has single addresses; write an address such as 10.20.1.10 or fd00:20:1::10`},
		{"v4-mapped address", withAddress("::ffff:10.20.1.10"),
			`peers.yaml:7: nodes[0].addresses[0]: "::ffff:10.20.1.10" is an IPv4 address mapped into IPv6; write 10.20.1.10`},
		{"v4-mapped network", withCIDR("::ffff:10.50.0.0/112"),
			`peers.yaml:7: networks.applications[0]: "::ffff:10.50.0.0/112" is IPv4 mapped into IPv6; write 10.50.0.0/16`},
		{"duplicate node", head + oneNode + "  - {name: pg-0, role: pgpool, addresses: [10.20.1.20]}\n",
			"peers.yaml:5: nodes[1].name: node pg-0 is here twice, first on line 4; give every node its own name"},
		{"duplicate address", head + oneNode + "  - {name: pg-1, role: pgpool, addresses: [10.20.1.10]}\n",
			"peers.yaml:5: nodes[1].addresses[0]: address 10.20.1.10 is here twice, first as nodes[0].addresses[0] on line 4; remove it where it is wrong"},
		{"truncated in an address", head + "nodes:\n  - name: pg-0\n    role: postgres\n    addresses:\n      - 10.20.1.1",
			"peers.yaml:7: the last line has no end, the file looks half-written; end it with a newline if it is complete, and replace files by rename"},
	}
	refusesPeers(t, tests)
}

func TestF13_SelfMissing(t *testing.T) {
	c := mustParseConfig(t, "version: 1\nnode: pg-1\n")
	checkRefusal(t, Validate(c, mustParsePeers(t, head+oneNode)),
		`/etc/pghardend/pghardend.yaml:2: node: this node, "pg-1", is not in peers.yaml, which has pg-0; did you mean pg-0? If not, add the node there`)
}

// Whatever the byte after which a peer list breaks off: it is refused, or it
// holds nothing that the whole list does not hold; and where it has lost its
// control plane or most of its nodes, it does not replace the whole list.
func TestF13_TruncatedAnywhere(t *testing.T) {
	block := readTestFile(t, examplePeers)
	flow := []byte(`{version: 1, instance: "a-b", nodes: [{name: pg-0, role: postgres, addresses: [10.20.1.10, "fd00::10"]}], networks: {control_plane: [10.0.0.0/24]}}`)
	unterminated := bytes.TrimRight(bytes.ReplaceAll(block, []byte("  backup: []\n"), nil), "\n")
	for name, whole := range map[string][]byte{"block": block, "flow": flow, "no empty network": append(unterminated, '\n')} {
		full := mustParsePeers(t, string(whole))
		accepted := 0
		for n := range whole {
			part, err := ParsePeers("peers.yaml", whole[:n])
			if err != nil {
				checkLines(t, err, whole[:n])
				continue
			}
			accepted++
			if extra := notIn(part, full); extra != "" {
				t.Errorf("%s, first %d bytes: %s is not in the whole list", name, n, extra)
			}
			lost := 2*len(part.Nodes) < len(full.Nodes) || len(part.Networks["control_plane"]) == 0
			if err := CheckChange(Config{}, full, part); lost && err == nil {
				t.Errorf("%s, first %d bytes: would replace the whole list", name, n)
			}
		}
		t.Logf("%s: %d of %d truncations are lists themselves", name, accepted, len(whole))
	}
}

// notIn names something of part that full does not have.
func notIn(part, full Peers) string {
	if part.Instance != full.Instance {
		return part.Instance
	}
	for i, n := range part.Nodes {
		f := full.Nodes[i]
		if n.Name != f.Name || n.Role != f.Role {
			return n.Name
		}
		for _, a := range n.Addresses {
			if !slices.Contains(f.Addresses, a) {
				return a.String()
			}
		}
	}
	for name, prefixes := range part.Networks {
		for _, p := range prefixes {
			if !slices.Contains(full.Networks[name], p) {
				return p.String()
			}
		}
	}
	return ""
}

// Ten thousand nodes are a list like any other.
func TestF13_TenThousandEntries(t *testing.T) {
	var b strings.Builder
	b.WriteString(head + "nodes:\n")
	address := netip.MustParseAddr("10.64.0.1")
	for i := range 10_000 {
		fmt.Fprintf(&b, "  - {name: n%d, role: postgres, addresses: [%s]}\n", i, address)
		address = address.Next()
	}
	p := mustParsePeers(t, b.String())
	if len(p.Nodes) != 10_000 || p.Where("nodes[9999]") != "peers.yaml:10003" {
		t.Errorf("%d nodes, the last at %s", len(p.Nodes), p.Where("nodes[9999]"))
	}
	if err := CheckChange(Config{}, p, p); err != nil {
		t.Error(err)
	}
	b.WriteString("  - {name: n5000, role: postgres, addresses: [10.64.0.1]}\n")
	_, err := ParsePeers("peers.yaml", []byte(b.String()))
	checkRefusal(t, err, "peers.yaml:10004: nodes[10000].name: node n5000 is here twice, first on line 5004; give every node its own name\n"+
		"peers.yaml:10004: nodes[10000].addresses[0]: address 10.64.0.1 is here twice, first as nodes[0].addresses[0] on line 4; remove it where it is wrong")
}

// tenThousand is a network of that many entries among others.
func tenThousand(name string) string {
	var b strings.Builder
	b.WriteString(head + oneNode + "networks:\n  siblings: [10.20.0.0/16]\n  " + name + ":\n")
	for i := range 10_000 {
		fmt.Fprintf(&b, "    - 10.%d.%d.%d/32\n", 64+i/65536, i/256%256, i%256)
	}
	return b.String()
}

func TestF13_TenThousandInANetwork(t *testing.T) {
	text := tenThousand("applications")
	p := mustParsePeers(t, text)
	if n := len(p.Networks["applications"]); n != 10_000 {
		t.Fatalf("%d entries", n)
	}
	if err := errors.Join(CheckChange(Config{}, Peers{}, p), CheckChange(Config{}, p, p)); err != nil {
		t.Error(err)
	}
	half := mustParsePeers(t, text[:strings.Index(text, "    - 10.64.15.0/32\n")])
	checkRefusal(t, CheckChange(Config{}, p, half),
		"peers.yaml:7: networks.applications: the network had 10000 entries and has 3840 now, the list looks cut off; complete it; if they are really gone, "+forced)
	_, err := ParsePeers("peers.yaml", []byte(text+"    - 10.64.1.2/32\n"))
	checkRefusal(t, err, "peers.yaml:10008: networks.applications[10000]: 10.64.1.2/32 is in the list twice, first on line 266; remove one of the two")
	siblings := mustParsePeers(t, tenThousand("backup")+"  applications: [10.64.3.0/24]\n")
	siblings.Networks["siblings"] = siblings.Networks["backup"]
	delete(siblings.Networks, "backup")
	checkRefusal(t, CheckChange(Config{}, Peers{}, siblings),
		"peers.yaml:10008: networks.applications[0]: 10.64.3.0/24 contains 10.64.3.0/32 of the network siblings, where other tenants are"+wideFix)
}

// A benchmark of all that a changed peer list goes through.
func BenchmarkParsePeers10000(b *testing.B) {
	c := Config{Node: "pg-0", Firewall: Firewall{Scope: ScopeSiblings}}
	for _, network := range []string{"applications", "ours"} {
		text := []byte(tenThousand(network))
		b.Run(network, func(b *testing.B) {
			for b.Loop() {
				p, err := ParsePeers("peers.yaml", text)
				if err := errors.Join(err, Validate(c, p), CheckChange(c, Peers{}, p), CheckChange(c, p, p)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	wide := mustParsePeers(b, tenThousand("applications"))
	wide.Networks["siblings"] = wide.Networks["applications"] // every entry is refused
	b.Run("all refused", func(b *testing.B) {
		for b.Loop() {
			if CheckChange(c, Peers{}, wide) == nil {
				b.Fatal("accepted")
			}
		}
	})
}

// No name is ever looked up: where an address belongs, a name is an error, so
// that DNS cannot let anybody in, whatever it answers.
func TestF20_NamesAreRefused(t *testing.T) {
	for _, name := range []string{"localhost", "pg-0", "pg-0.example.com", "pg-0.example.com.", "ip6-localhost", "0x0a140a0a", "167772161", "10.20.1", "example.com"} {
		quoted := `"` + name + `"`
		refusesPeers(t, []refusal{
			{"node " + name, withAddress(quoted), "peers.yaml:7: nodes[0].addresses[0]: " + quoted +
				" is not an IP address; write an address such as 10.20.1.10 or fd00:20:1::10; names are not resolved"},
			{"network " + name, withCIDR(quoted), "peers.yaml:7: networks.applications[0]: " + quoted + " is not a CIDR; write a CIDR such as 10.50.0.0/16 or fd00:50::/64"},
			{"network " + name + "/24", withCIDR(`"` + name + `/24"`), "peers.yaml:7: networks.applications[0]: \"" + name + "/24\" is not a CIDR; write a CIDR such as 10.50.0.0/16 or fd00:50::/64"},
		})
	}
	refusesConfig(t, []refusal{{"flow", top + "flows: {m: {from: [app.example.com]}}\n",
		`pghardend.yaml:3: flows.m.from[0]: "app.example.com" is not a network name (a letter a-z, then at most 23 of a-z, 0-9, _ and -); write the name of a role or network of the peer list such as applications`}})
}

// Who can resolve names or run programs imports one of these.
func TestF20_NothingToResolveWith(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range parsed.Imports {
			if slices.Contains([]string{`"net"`, `"net/http"`, `"os/exec"`, `"os/user"`, `"plugin"`, `"C"`}, spec.Path.Value) {
				t.Errorf("%s imports %s", file, spec.Path.Value)
			}
		}
	}
}

func TestF18_BadConfigNamesKeyAndLine(t *testing.T) {
	tests := []refusal{
		{"unknown key", withKey("limit: {nofile: 5}"), "pghardend.yaml:8: services.postgres.limit: unknown key; did you mean limits?"},
		{"wrong type", withKey("command_line: x") + "reconcile: [1s]\n",
			"pghardend.yaml:8: services.postgres.command_line: unknown key; known keys here: profile, user, groups, command, helpers, data_dir, limits, capabilities, environment, oom_score_adj, landlock, mounts, cgroup, selinux, features, mode, complain_until, start, max_connections, start_timeout, stop_timeout\n" +
				"pghardend.yaml:9: reconcile: is a list, not a mapping; write a mapping such as `interval: 1s`"},
		{"not YAML", top + "services: {postgres: {profile: postgres\n",
			"pghardend.yaml:3: not valid YAML: did not find expected ',' or '}'; check indentation, colons, brackets and quotes on this line and the one before"},
		{"all problems in the order of lines", "node: PG\nfirewall: {scope: x, backend: y}\n" + strings.TrimPrefix(withKey("limits: {nofile: -1, core: {soft: 2, hard: 1}}"), top),
			"pghardend.yaml:1: node: \"PG\" is not " + nodeLabelText + "; write something like pg-0\n" +
				"pghardend.yaml:1: version: missing; add `version: 1`\n" +
				"pghardend.yaml:2: firewall.scope: \"x\" is unknown; known values: host, siblings\n" +
				"pghardend.yaml:2: firewall.backend: \"y\" is unknown; known values: auto, nft, legacy\n" +
				"pghardend.yaml:8: services.postgres.limits.nofile: -1 is negative; write unlimited if there shall be no limit, else a whole number\n" +
				"pghardend.yaml:8: services.postgres.limits.core: the soft limit 2 is above the hard limit 1; raise hard or lower soft"},
	}
	refusesConfig(t, tests)
}

// A half-written configuration is refused unless it breaks off after a whole
// line; what it holds then is right as far as it goes.
func TestF18_HalfWrittenConfig(t *testing.T) {
	whole := readTestFile(t, exampleConfig)
	full := mustParseConfig(t, string(whole))
	for n := range whole {
		part, err := ParseConfig("/etc/pghardend/pghardend.yaml", whole[:n], full.Node)
		if err != nil {
			checkLines(t, err, whole[:n])
			continue
		}
		if end := whole[n-1]; !strings.ContainsRune("\n]}\"' ", rune(end)) {
			t.Errorf("first %d bytes, ending in %q: accepted", n, whole[max(0, n-20):n])
		}
		if part.Node != full.Node || part.RuntimeDir != full.RuntimeDir || part.PeersFile != full.PeersFile || part.Reconcile != full.Reconcile {
			t.Errorf("first %d bytes: %+v differs from the whole, %+v", n, part, full)
		}
		for i, s := range part.Services {
			f := full.Services[i]
			if s.Profile != f.Profile || s.User != f.User || !slices.Equal(s.Command, f.Command[:len(s.Command)]) {
				t.Errorf("first %d bytes: service %+v differs from the whole, %+v", n, s, f)
			}
		}
	}
}

// checkLines checks that the error names lines of the text, in ascending order.
func checkLines(t testing.TB, err error, text []byte) {
	t.Helper()
	last := 1
	for _, e := range problemsOf(t, err) {
		if e.File == "" || e.Line < last || e.Line > lineAt(text, len(text)) || e.Problem == "" || e.Fix == "" {
			t.Errorf("problem %+v of a text of %d lines: file, line (in order), problem and fix must be there", e, lineAt(text, len(text)))
		}
		if text := e.Error(); strings.ContainsFunc(text, isControl) || len(text) > 2000 {
			t.Errorf("%q (%d bytes) does not fit on a line", text, len(text))
		}
		last = e.Line
	}
}
