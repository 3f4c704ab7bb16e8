package agent

import (
	"strings"
	"testing"
)

// Whatever keeps operators out by ssh is refused, with the file and what to do,
// unless it is forced; also if it is the first that this node hears of.
func TestNoFileAloneShutsOperatorsOut(t *testing.T) {
	for _, tt := range []struct {
		name, config, peers string
		says                []string
	}{
		{"row switched off", "flows:\n  ssh: {enabled: false}\n", "", []string{"pghardend.yaml:5: no row lets control_plane connect to tcp port 22 of the role postgres"}},
		{"row for others", "flows:\n  ssh: {from: [applications]}\n", "", []string{"pghardend.yaml:5: no row"}},
		{"row for other nodes", "flows:\n  ssh: {to: [pgpool]}\n", "", []string{"pghardend.yaml:5: no row"}},
		{"another port", "flows:\n  ssh: {ports: [2222]}\n", "", []string{"pghardend.yaml:5: no row"}},
		{"nobody to let in", "", strings.Replace(goodPeers, `[10.0.0.0/24, "fd00:10::/64"]`, "[]", 1), []string{"peers.yaml:9: networks.control_plane has no entry"}},
		{"nobody who could reach it", "", strings.NewReplacer(`"fd00:10::/64"`, "10.0.1.0/24", `[10.20.1.10, "fd00:20:1::10"]`, `["fd00:20:1::10"]`).Replace(goodPeers),
			[]string{"peers.yaml:9: networks.control_plane has no entry of an address family that this node has"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFiles(t)
			s := f.restarted(t)
			f.write(f.config, f.configText()+tt.config)
			if tt.peers != "" {
				f.write(f.peers, tt.peers)
			}
			f.bad(t, s, append(tt.says, "nobody could log in to this node by ssh", "`pghardend apply --force`")...)

			again := f.started() // a restart is no way round it
			_, err := load(t, again, false)
			contains(t, err, tt.says...)

			fresh := newFiles(t)
			fresh.write(fresh.config, fresh.configText()+tt.config)
			if tt.peers != "" {
				fresh.write(fresh.peers, tt.peers)
			}
			_, err = fresh.source()
			contains(t, err, append(tt.says, "nothing is enforced")...)

			if _, err := load(t, s, true); err != nil || letsOperatorsIn(s.current) {
				t.Fatalf("it is not what the test is about, or cannot be forced: %v", err)
			}
			// Nothing is taken from who has nothing.
			f.write(f.peers, strings.Replace(f.read(f.peers), "10.20.1.20", changed, 1))
			if err := settled(t, s); err != nil {
				t.Error(err)
			}
			again = f.started()
			if _, err := load(t, again, false); err != nil {
				t.Errorf("after a restart: %v", err)
			}
		})
	}
}

// Another row may stand in for the built-in one.
func TestOperatorsMayUseAnotherRow(t *testing.T) {
	f := newFiles(t)
	s := f.restarted(t)
	f.write(f.config, f.configText()+"flows:\n  ssh: {enabled: false}\n  admin: {proto: tcp, ports: [22, 2222], from: [control_plane], to: [postgres, pgpool]}\n")
	if err := settled(t, s); err != nil {
		t.Error(err)
	}
}

// What the host's own firewall decides is not for these rules to lock.
func TestScopeSiblingsLeavesSSHToTheHost(t *testing.T) {
	const scope = "firewall: {scope: siblings}\nflows:\n  ssh: {enabled: false}\n"
	for operators, refused := range map[string]bool{
		`[10.0.0.0/24, "fd00:10::/64"]`: false,
		"[]":                            false,
		"[10.20.1.5/32]":                true, // a sibling's address, for which the rules decide
	} {
		f := newFiles(t)
		f.write(f.config, f.configText()+scope)
		f.write(f.peers, replace(t, goodPeers, `[10.0.0.0/24, "fd00:10::/64"]`, operators)+"  siblings: [10.20.1.0/24]\n")
		d, err := Load(t.Context(), f.config)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkLockOut(nil, d); (err != nil) != refused {
			t.Errorf("%s: %v", operators, err)
		}
	}
}

// A list that looks wrong by itself is refused even if it is the first one.
func TestF13_FirstListThatSwallowsTheSiblings(t *testing.T) {
	wide := strings.Replace(goodPeers, "applications: [10.50.0.0/16]", "applications: [10.20.0.0/16]\n  siblings: [10.20.1.0/24]", 1)
	f := newFiles(t)
	f.write(f.peers, wide)
	_, err := f.source()
	contains(t, err, "peers.yaml:10: networks.applications[0]", "nothing is enforced")

	f.write(f.config, f.configText()+"firewall: {accept_wide: [applications]}\n")
	s := f.restarted(t)
	f.write(f.config, f.configText())
	if err := settled(t, s); err != nil {
		t.Errorf("what is in force already: %v", err)
	}
}
