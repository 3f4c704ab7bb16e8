package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExamplePeers(t *testing.T) {
	p, err := ParsePeers("/etc/pghardend/peers.yaml", readTestFile(t, examplePeers))
	if err != nil {
		t.Fatal(err)
	}
	if p.Instance != "orders-prod" || len(p.Nodes) != 5 || len(p.Networks) != 7 {
		t.Errorf("instance %s with %d nodes and %d networks, want orders-prod with 5 and 7", p.Instance, len(p.Nodes), len(p.Networks))
	}
	if got, want := p.Where("nodes[1].addresses[1]"), "/etc/pghardend/peers.yaml:25"; got != want {
		t.Errorf("the second address of pg-1 is at %s, want %s", got, want)
	}
}

func TestPeersValues(t *testing.T) {
	p := mustParsePeers(t, `version: 1
instance: Orders.prod_1-a
nodes:
  - {name: pool-0, role: pgpool, addresses: ["FD00:20:1:0:0:0:0:20", 10.20.1.20]}
  - {addresses: [198.51.100.7], name: 0-pg, role: postgres}
networks:
  control_plane: [10.2.0.0/24, "fd00::/64", 10.1.0.0/16, 10.1.2.0/24, 10.1.0.0/24]
  applications: []
  dns: [169.254.169.253/32]
  wide-open_24-characters0: [10.0.0.0/8, "fc00::/7", 10.1.0.0/16]
`)
	prefixes := func(s ...string) (p []netip.Prefix) {
		for _, s := range s {
			p = append(p, netip.MustParsePrefix(s))
		}
		return p
	}
	want := Peers{
		File: "peers.yaml", Instance: "Orders.prod_1-a",
		Nodes: []Node{ // in the order of the file
			{"pool-0", RolePgpool, []netip.Addr{netip.MustParseAddr("fd00:20:1::20"), netip.MustParseAddr("10.20.1.20")}},
			{"0-pg", RolePostgres, []netip.Addr{netip.MustParseAddr("198.51.100.7")}},
		},
		Networks: map[string][]netip.Prefix{
			"control_plane":            prefixes("10.1.0.0/16", "10.1.0.0/24", "10.1.2.0/24", "10.2.0.0/24", "fd00::/64"),
			"applications":             {},
			"dns":                      prefixes("169.254.169.253/32"),
			"wide-open_24-characters0": prefixes("10.0.0.0/8", "10.1.0.0/16", "fc00::/7"),
		},
	}
	equal := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	equalPrefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff(want, p, withoutLines, equal, equalPrefix); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	for key, line := range map[string]int{"nodes[0].name": 4, "nodes[1].addresses[0]": 5, "networks.applications": 8,
		"networks.dns[0]": 9, "networks.dns[7]": 9, "networks.gone": 6, "nodes[9].name": 3} {
		if got, want := p.Where(key), fmt.Sprintf("peers.yaml:%d", line); got != want {
			t.Errorf("Where(%q) is %s, want %s", key, got, want)
		}
	}
}

func TestPeersWithoutNetworks(t *testing.T) {
	if p := mustParsePeers(t, head+oneNode); p.Networks == nil || len(p.Networks) != 0 {
		t.Errorf("networks %v, want an empty map", p.Networks)
	}
}

// Windows line ends, a byte order mark and a marked document are all fine.
func TestPeersEncodings(t *testing.T) {
	for name, text := range map[string]string{
		"CRLF":                       strings.ReplaceAll(head+oneNode, "\n", "\r\n"),
		"byte order mark":            "\ufeff" + head + oneNode,
		"document start and end":     "---\n" + head + oneNode + "...\n",
		"directive":                  "%YAML 1.1\n---\n" + head + oneNode,
		"no newline after a bracket": strings.TrimSuffix(head+oneNode, "\n") + "   ",
		"comments":                   "# ä\n" + head + "# x\n" + oneNode + "  # y\n",
	} {
		if _, err := ParsePeers("peers.yaml", []byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Texts made to cost time or memory are refused soon: one that takes quadratic
// time, or unfolds its aliases, would not end before the test's time is up.
func TestHostileTexts(t *testing.T) {
	const size = 256 << 10
	bomb := "version: 1\na0: &a0 [x, x]\n"
	for i := range 200 {
		bomb += fmt.Sprintf("a%d: &a%d [*a%d, *a%d, *a%d]\n", i+1, i+1, i, i, i)
	}
	for name, text := range map[string]string{
		"alias bomb":         bomb,
		"deep lists":         strings.Repeat("[", size),
		"deep mappings":      strings.Repeat("{a: ", size),
		"deep blocks":        strings.Repeat("- ", size),
		"many documents":     strings.Repeat("---\n", size),
		"one long name":      head + "nodes: [{name: " + strings.Repeat("a", size) + "}]\n",
		"many unknown keys":  head + strings.Repeat("networkz: 1\n", size/16),
		"many unknown names": head + "networks: {" + strings.Repeat("a.b: 1,\n", size/16) + "}\n",
		"anchors":            strings.Repeat("&a ", size),
		"line ends":          head + strings.Repeat("\r\r\n", size),
		"blank":              strings.Repeat(" \n", size),
	} {
		if _, err := ParsePeers("peers.yaml", []byte(text)); err == nil {
			t.Errorf("%s: accepted as a peer list", name)
		}
		if _, err := ParseConfig("c.yaml", []byte(text), "pg-0"); err == nil {
			t.Errorf("%s: accepted as a configuration", name)
		}
	}
}

// The line of a syntax error of a large file comes from the YAML reader alone.
func TestSyntaxErrorOfLargeFile(t *testing.T) {
	text := strings.Repeat("# comment\n", 10000) + "version: 1: 2\n"
	_, err := ParsePeers("peers.yaml", []byte(text))
	if ps := problemsOf(t, err); len(ps) != 1 || ps[0].Line != 10001 {
		t.Errorf("error %v, want one on line 10001", err)
	}
}

type panicking struct{}

func (panicking) Decode(any) error { panic("unexpected state") }

// A panic of the YAML reader is an error of the file, not the daemon's end.
func TestYAMLReaderPanics(t *testing.T) {
	err := decode(panicking{}, nil)
	if err == nil || !strings.Contains(err.Error(), "unexpected state") {
		t.Errorf("error %v, want the reason of the panic", err)
	}
	if got := syntaxError("peers.yaml", []byte("a: 1\n"), err); got.Line != 1 {
		t.Errorf("%v, want line 1 as none is known", got)
	}
}

func TestErrorText(t *testing.T) {
	e := &Error{File: "peers.yaml", Line: 7, Key: "nodes[1].addresses[0]", Problem: "it is wrong", Fix: "make it right"}
	if got, want := e.Error(), "peers.yaml:7: nodes[1].addresses[0]: it is wrong; make it right"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	e = &Error{File: "peers.yaml", Problem: "it is wrong"}
	if got, want := e.Error(), "peers.yaml: it is wrong"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	_, err := ParsePeers("peers.yaml", []byte("version: 2\n"))
	if !errors.As(err, &e) || e.Key != "instance" && e.Key != "version" {
		t.Errorf("no *Error can be had from %v", err)
	}
}

func TestNearest(t *testing.T) {
	for name, want := range map[string]string{"nofiles": "nofile", "NOFILE": "nofile", "RLIMIT_STACK": "stack", "memloc": "memlock",
		"cpus": "cpu", "nic": "nice", "open_files": "", "": "", strings.Repeat("stack", 20): ""} {
		if got := nearest(name, resources); got != want {
			t.Errorf("nearest to %q is %q, want %q", name, got, want)
		}
	}
}
