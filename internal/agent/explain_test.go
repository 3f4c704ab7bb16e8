package agent

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

const explainPeers = goodPeers + `  dns: [10.20.1.53/32]
  siblings: [10.20.1.0/24]
  ntp: []
  backup: ["fd00:99::/64"]
`

func explained(t *testing.T, configText string, extra Extra, q Question) (Explanation, error) {
	t.Helper()
	cfg, err := config.ParseConfig("/etc/pghardend/pghardend.yaml", []byte(configText), "pg-0")
	if err != nil {
		t.Fatal(err)
	}
	peers, err := config.ParsePeers(cfg.PeersFile, []byte(explainPeers))
	if err != nil {
		t.Fatal(err)
	}
	d, err := Build(cfg, peers, extra)
	if err != nil {
		t.Fatal(err)
	}
	return explain(d, q, time.Now())
}

// short is an explanation without its sentences: the verdict, and for each path
// the two addresses with what each side says.
func short(e Explanation) string {
	text := "denied"
	if e.Allowed {
		text = "allowed"
	}
	for _, p := range e.Paths {
		text += fmt.Sprintf(" | %s > %s", p.From.Address, p.To.Address)
		for _, s := range p.Sides {
			mark := "-"
			switch {
			case s.PassedOn:
				mark = "~"
			case s.Allowed:
				mark = "+"
			}
			text += fmt.Sprintf(" %s%s:%s", mark, s.Node, s.By)
		}
	}
	return text
}

func question(t *testing.T, text string) Question {
	t.Helper()
	var q Question
	words := strings.Fields(text)
	q.From, q.To, q.Proto = words[0], words[1], words[2]
	for _, w := range words[3:] {
		if w == "root" {
			q.Root = true
		} else if _, err := fmt.Sscan(w, &q.Port); err != nil {
			t.Fatal(err)
		}
	}
	return q
}

func TestExplain(t *testing.T) {
	for _, tt := range []struct{ config, question, want string }{
		// Both ends are nodes: both sides have to agree, in each family that both have.
		{"", "pg-0 pg-1 tcp 5432", "allowed | 10.20.1.10 > 10.20.1.11 +pg-0:postgres +pg-1:postgres | fd00:20:1::10 > fd00:20:1::11 +pg-0:postgres +pg-1:postgres"},
		{"", "pool-0 pg-0 tcp 5432", "allowed | 10.20.1.20 > 10.20.1.10 +pool-0:postgres +pg-0:postgres"},
		{"", "pg-0 pool-0 tcp 5432", "denied | 10.20.1.10 > 10.20.1.20 -pg-0:drop -pool-0:drop"},
		{"", "pool-0 pool-1 udp 9694", "allowed | 10.20.1.20 > 10.20.1.21 +pool-0:heartbeat +pool-1:heartbeat"},
		{"", "pool-0 pool-1 tcp 9694", "denied | 10.20.1.20 > 10.20.1.21 -pool-0:drop -pool-1:drop"},
		{"", "pg-0 pg-1 icmp-echo", "allowed | 10.20.1.10 > 10.20.1.11 +pg-0:echo +pg-1:echo | fd00:20:1::10 > fd00:20:1::11 +pg-0:echo +pg-1:echo"},
		// One end is not: only the node's side is known.
		{"", "applications pool-0 tcp 9999", "allowed | 10.50.0.1 > 10.20.1.20 +pool-0:clients"},
		{"", "applications pg-0 tcp 5432", "denied | 10.50.0.1 > 10.20.1.10 -pg-0:drop"},
		{"", "control_plane pg-0 tcp 22", "allowed | 10.0.0.1 > 10.20.1.10 +pg-0:ssh | fd00:10::1 > fd00:20:1::10 +pg-0:ssh"},
		{"", "pg-0 dns udp 53", "allowed | 10.20.1.10 > 10.20.1.53 +pg-0:dns-udp"},
		{"", "pg-0 10.9.9.9 udp 53", "denied | 10.20.1.10 > 10.9.9.9 -pg-0:drop"},
		// The first sibling's address that is nobody else's.
		{"", "siblings pg-0 tcp 5432", "denied | 10.20.1.1 > 10.20.1.10 -pg-0:drop"},
		{"", "pg-0 siblings tcp 80", "denied | 10.20.1.10 > 10.20.1.1 -pg-0:drop"},
		// An address may be a node's, and then is that node.
		{"", "10.20.1.20 10.20.1.10 tcp 5432", "allowed | 10.20.1.20 > 10.20.1.10 +pool-0:postgres +pg-0:postgres"},
		{"", "::ffff:10.20.1.20 pg-0 tcp 5432", "allowed | 10.20.1.20 > 10.20.1.10 +pool-0:postgres +pg-0:postgres"},
		{"", "fd00:20:1::66 pg-0 tcp 5432", "denied | fd00:20:1::66 > fd00:20:1::10 -pg-0:drop"},
		{"", "pg-0 pg-0 tcp 1", "allowed | 10.20.1.10 > 10.20.1.10 +pg-0:loopback | fd00:20:1::10 > fd00:20:1::10 +pg-0:loopback"},
		// The metadata service, which no peer list has to name.
		{"", "pg-0 metadata tcp 80", "denied | 10.20.1.10 > 169.254.169.254 -pg-0:metadata | fd00:20:1::10 > fd00:ec2::254 -pg-0:metadata"},
		{"", "pg-0 metadata tcp 80 root", "allowed | 10.20.1.10 > 169.254.169.254 +pg-0:metadata | fd00:20:1::10 > fd00:ec2::254 +pg-0:metadata"},
		{"", "pg-0 169.254.169.254 tcp 22 root", "denied | 10.20.1.10 > 169.254.169.254 -pg-0:metadata"},
		// Rows of the configuration count for all nodes.
		{"flows: {exporter: {enabled: true}}\n", "control_plane pg-1 tcp 9187", "allowed | 10.0.0.1 > 10.20.1.11 +pg-1:exporter | fd00:10::1 > fd00:20:1::11 +pg-1:exporter"},
		{"flows: {clients: {enabled: false}}\n", "applications pool-1 tcp 9999", "denied | 10.50.0.1 > 10.20.1.21 -pool-1:drop"},
		// Scope siblings leaves the rest to others.
		{"firewall: {scope: siblings}\n", "10.9.9.9 pg-0 tcp 80", "allowed | 10.9.9.9 > 10.20.1.10 ~pg-0:scope"},
		{"firewall: {scope: siblings}\n", "siblings pg-0 tcp 80", "denied | 10.20.1.1 > 10.20.1.10 -pg-0:drop"},
	} {
		t.Run(tt.question+" "+tt.config, func(t *testing.T) {
			e, err := explained(t, configHead+tt.config, Extra{}, question(t, tt.question))
			if err != nil {
				t.Fatal(err)
			}
			if got := short(e); got != tt.want {
				t.Errorf("\ngot  %s\nwant %s", got, tt.want)
			}
			for _, p := range e.Paths {
				for _, s := range p.Sides {
					if s.Reason == "" {
						t.Errorf("no reason: %+v", s)
					}
				}
			}
		})
	}
}

func TestExplainRefuses(t *testing.T) {
	for _, tt := range []struct {
		question string
		says     []string
	}{
		{"pg-0 pg-9 tcp 1", []string{`--to: "pg-9" is neither a node nor a network of /etc/pghardend/peers.yaml nor an address`, "nodes: pg-0, pg-1, pool-0, pool-1", "networks: applications, backup, control_plane"}},
		{"pg-7 pg-9 tcp 1", []string{`--from: "pg-7"`, `--to: "pg-9"`}},
		{"pg-0 10.0.0.0/8 tcp 1", []string{`"10.0.0.0/8" is neither`}},
		{"pg-0 ntp udp 123", []string{"--to: the network ntp of", "nobody to ask about"}},
		{"pool-0 backup tcp 443", []string{"no way from pool-0 (10.20.1.20) to backup (fd00:99::1)", "IPv4", "IPv6"}},
		{"applications control_plane tcp 1", []string{"neither applications nor control_plane is a node of instance orders-prod", "pg-0"}},
		{"pg-0 pg-1 tcp", []string{"--proto tcp needs a --port"}},
		{"pg-0 pg-1 udp", []string{"--proto udp needs a --port"}},
		{"pg-0 pg-1 icmp-echo 7", []string{"leave --port out"}},
		{"pg-0 pg-1 sctp 7", []string{`--proto "sctp"`, "tcp, udp or icmp"}},
	} {
		_, err := explained(t, configHead, Extra{}, question(t, tt.question))
		contains(t, err, tt.says...)
	}
}

func TestExplainKnowsThisNodesOpenings(t *testing.T) {
	extra := Extra{Openings: []firewall.Opening{{From: netip.MustParsePrefix("192.0.2.0/24"), Proto: "tcp", Port: 5432, Until: time.Now().Add(time.Hour)}}}
	for text, want := range map[string]string{
		"192.0.2.7 pg-0 tcp 5432": "allowed | 192.0.2.7 > 10.20.1.10 +pg-0:open",
		"192.0.2.7 pg-0 udp 5432": "denied | 192.0.2.7 > 10.20.1.10 -pg-0:drop",
		"192.0.2.7 pg-1 tcp 5432": "denied | 192.0.2.7 > 10.20.1.11 -pg-1:drop",
		"pg-0 192.0.2.7 tcp 5432": "denied | 10.20.1.10 > 192.0.2.7 -pg-0:drop",
	} {
		e, err := explained(t, configHead, extra, question(t, text))
		if err != nil || short(e) != want {
			t.Errorf("%s: %s, %v, want %s", text, short(e), err, want)
		}
		noted := slices.Contains(e.Notes, "openings of pg-1 are known there only")
		if noted != strings.Contains(text, " pg-1 ") {
			t.Errorf("%s: notes %q", text, e.Notes)
		}
	}
	extra.Openings[0].Until = time.Now()
	if e, err := explained(t, configHead, extra, question(t, "192.0.2.7 pg-0 tcp 5432")); err != nil || e.Allowed {
		t.Errorf("an opening that ended: %s, %v", short(e), err)
	}
}

func TestExplainTellsLimits(t *testing.T) {
	facts := Extra{Facts: Facts{"postgres": {Clients: 300, WALSenders: 4}}}
	limit := func(config, text string) (string, []string) {
		e, err := explained(t, config, facts, question(t, text))
		if err != nil {
			t.Fatal(err)
		}
		sides := e.Paths[0].Sides
		return sides[len(sides)-1].Limit, e.Notes
	}
	if got, notes := limit(configHead+serviceText, "pool-0 pg-0 tcp 5432"); !strings.Contains(got, "314 connections") || len(notes) != 0 {
		t.Errorf("%q, notes %q", got, notes)
	}
	// What another node's server takes is known there.
	if got, notes := limit(configHead+serviceText, "pool-0 pg-1 tcp 5432"); got == "" || len(notes) != 1 || !strings.Contains(notes[0], "ask on pg-1") {
		t.Errorf("%q, notes %q", got, notes)
	}
	set := configHead + "flows: {postgres: {connections: 7, new_per_second: 9}}\n"
	if got, notes := limit(set, "pool-0 pg-1 tcp 5432"); !strings.Contains(got, "7 connections and 9 new") || len(notes) != 0 {
		t.Errorf("%q, notes %q", got, notes)
	}
}

// A network that lies within another has no address of its own.
func TestRepresentativeOfAnOverlappedNetwork(t *testing.T) {
	p := netip.MustParsePrefix
	peers := config.Peers{
		Nodes:    []config.Node{{Name: "pg-0", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.9.9")}}},
		Networks: map[string][]netip.Prefix{"inner": {p("10.0.0.0/30")}, "outer": {p("10.0.0.0/24"), p("10.1.0.0/31")}, "single": {p("10.0.9.9/32")}},
	}
	for name, want := range map[string]string{"inner": "10.0.0.2", "outer": "10.0.0.4", "single": "none"} {
		got := "none"
		if e, ok := representative(peers, name, peers.Networks[name], true); ok {
			got = e.Address.String()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// A large network must not make the answer slow, nor the search endless.
func TestRepresentativeIsBounded(t *testing.T) {
	all := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("255.255.255.0/24")}
	peers := config.Peers{Networks: map[string][]netip.Prefix{"a": all, "b": all}}
	if e, ok := representative(peers, "a", all, true); !ok || e.Address.String() != "10.0.0.1" {
		t.Errorf("%+v, %v", e, ok)
	}
	last := []netip.Prefix{netip.MustParsePrefix("255.255.255.254/31")}
	peers.Networks["c"], peers.Networks["d"] = last, last
	if e, ok := representative(peers, "c", last, true); !ok || e.Address.String() != "255.255.255.254" {
		t.Errorf("%+v, %v", e, ok)
	}
}

// What the answer could not take into account is said with it.
func TestExplainSaysWhatItDoesNotKnow(t *testing.T) {
	f := newFiles(t)
	f.write(f.config, f.configText()+serviceText)
	if err := os.Mkdir(f.state, 0o700); err != nil {
		t.Fatal(err)
	}
	f.write(filepath.Join(f.state, openingsFile), "half of")
	for text, want := range map[string][]string{
		"pool-0 pg-0 tcp 5432":  {"the openings cannot be read, so none is counted", "service postgres could not be asked; run this as root"},
		"192.0.2.7 pg-0 tcp 22": {"the openings cannot be read"},
		"pg-0 pool-1 udp 1":     {"openings of pool-1 are known there only"},
	} {
		e, err := Explain(t.Context(), f.config, question(t, text))
		if err != nil || len(e.Notes) != len(want) {
			t.Fatalf("%s: notes %q, %v", text, e.Notes, err)
		}
		for i, part := range want {
			if !strings.Contains(e.Notes[i], part) {
				t.Errorf("%s: note %q lacks %q", text, e.Notes[i], part)
			}
		}
	}
}

// Explain answers from the files, and these may have been refused.
func TestExplainSaysThatTheFilesAreNotInForce(t *testing.T) {
	f := newFiles(t)
	f.restarted(t)
	ask := func() []string {
		t.Helper()
		e, err := Explain(t.Context(), f.config, question(t, "applications pg-0 tcp 5432"))
		if err != nil {
			t.Fatal(err)
		}
		return e.Notes
	}
	if notes := ask(); len(notes) != 0 {
		t.Errorf("notes %q", notes)
	}
	f.write(f.peers, changedPeers(t))
	if notes := ask(); len(notes) != 1 || notes[0] != notInForce {
		t.Errorf("notes %q", notes)
	}
	f.remove(f.run)
	if notes := ask(); len(notes) != 0 {
		t.Errorf("notes %q", notes)
	}
}
