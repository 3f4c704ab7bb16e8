package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/pkg/config"
)

const stays = "the last good configuration stays in force"

func TestGoodInputIsAccepted(t *testing.T) {
	f := newFiles(t)
	s := f.started()
	var accepted []Desired
	s.accepted = func(d Desired) { accepted = append(accepted, d) }
	d, err := load(t, s, false)
	if err != nil || d.Generation != 1 || d.Recheck != 0 {
		t.Fatalf("first load: %+v, %v", d, err)
	}
	if d, err = load(t, s, false); err != nil || d.Generation != 1 {
		t.Errorf("nothing changed, but %+v, %v", d, err)
	}

	f.write(f.peers, replace(t, goodPeers, "10.20.1.20", "10.20.1.29"))
	if d, err = load(t, s, false); err != nil || d.Generation != 1 || d.Recheck != settleTime {
		t.Errorf("a change seen once counts already, or is not looked at again soon: %+v, %v", d, err)
	}
	if d, err = load(t, s, false); err != nil || d.Generation != 2 || d.Recheck != 0 {
		t.Errorf("a change seen twice does not count: %+v, %v", d, err)
	}
	if len(accepted) != 2 || accepted[1].Peers.Nodes[2].Addresses[0].String() != "10.20.1.29" {
		t.Errorf("accepted %d states", len(accepted))
	}
}

// However the file is replaced, what counts is what it holds.
func TestChangeIsSeenHoweverItIsMade(t *testing.T) {
	changed := strings.Replace(goodPeers, "10.20.1.20", "10.20.1.29", 1)
	for name, change := range map[string]func(f *files){
		"atomic rename":  func(f *files) { f.write(f.peers, changed) },
		"in-place write": func(f *files) { f.writeInPlace(f.peers, changed) },
		"symlink swap": func(f *files) {
			release := filepath.Join(f.dir, "release-2")
			f.write(release, changed)
			if err := errors.Join(os.Symlink(release, f.peers+".new"), os.Rename(f.peers+".new", f.peers)); err != nil {
				f.t.Fatal(err)
			}
		},
		"another peers_file": func(f *files) {
			f.write(filepath.Join(f.dir, "other.yaml"), changed)
			f.write(f.config, f.configText()+"peers_file: other.yaml\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFiles(t)
			f.t = t
			s := f.started()
			if err := settled(t, s); err != nil {
				t.Fatal(err)
			}
			change(f)
			if err := settled(t, s); err != nil {
				t.Fatal(err)
			}
			if got := s.current.Peers.Nodes[2].Addresses[0].String(); got != "10.20.1.29" || s.generation != 2 {
				t.Errorf("address %s, generation %d", got, s.generation)
			}
		})
	}
}

// A writer that is not done is neither believed nor complained about.
func TestChangeCountsOnlyWhenItHasSettled(t *testing.T) {
	f := newFiles(t)
	s := f.started()
	_, _ = load(t, s, false)
	changed := replace(t, goodPeers, "10.20.1.20", "10.20.1.29")
	for i := 0; i < len(changed); i += 100 {
		f.writeInPlace(f.peers, changed[:i])
		d, err := load(t, s, false)
		if err != nil || d.Generation != 1 || d.Recheck != settleTime {
			t.Fatalf("after %d bytes: %+v, %v", i, d, err)
		}
	}
	f.writeInPlace(f.peers, changed)
	if err := settled(t, s); err != nil || s.generation != 2 {
		t.Errorf("generation %d, %v", s.generation, err)
	}
}

func TestReturnToTheCurrentInputNeedsNoSettling(t *testing.T) {
	f := newFiles(t)
	s := f.started()
	_, _ = load(t, s, false)
	f.write(f.peers, "")
	contains(t, settled(t, s), stays)
	f.write(f.peers, goodPeers)
	if d, err := load(t, s, false); err != nil || d.Generation != 1 || d.Recheck != 0 {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestForceAcceptsAtOnce(t *testing.T) {
	f := newFiles(t)
	s := f.started()
	_, _ = load(t, s, false)
	f.write(f.peers, replace(t, goodPeers, "10.20.1.20", "10.20.1.29"))
	if d, err := load(t, s, true); err != nil || d.Generation != 2 {
		t.Errorf("%+v, %v", d, err)
	}
	f.write(f.peers, "nonsense")
	if _, err := load(t, s, true); err == nil {
		t.Error("force accepts what is wrong, not only what is suspicious")
	}
}

// bad asks for the state until the change has settled, and checks that nothing
// changed but what is reported.
func (f *files) bad(t *testing.T, s *fileSource, parts ...string) {
	t.Helper()
	before, generation := s.currentIn, s.generation
	err := settled(t, s)
	contains(t, err, append(parts, stays)...)
	if !s.currentIn.equal(before) || s.generation != generation {
		t.Error("a bad input replaced the good one")
	}
	if got := f.read(filepath.Join(f.state, lastGoodDir, acceptedPeers)); got != string(before.peers) {
		t.Errorf("the last good peers are now\n%s", got)
	}
	if again := settled(t, s); again == nil || again.Error() != err.Error() {
		t.Errorf("it is not reported as long as it lasts: %v", again)
	}
}

func TestF13_BadPeerListIsRefused(t *testing.T) {
	line := "  - {name: pg-1, role: postgres, addresses: [10.20.1.11, \"fd00:20:1::11\"]}\n"
	for _, tt := range []struct {
		name, text string
		says       []string
	}{
		{"empty", "", []string{"peers.yaml:1: the file is empty"}},
		{"empty list", "version: 1\ninstance: orders-prod\nnodes: []\n", []string{"peers.yaml:3: nodes: the list is empty"}},
		{"truncated in a line", upTo(goodPeers, "20.1.21"), []string{"peers.yaml:7:"}},
		{"truncated between lines", upTo(goodPeers, "networks:"), []string{"networks.control_plane", "looks cut off"}},
		{"most nodes gone", "version: 1\ninstance: orders-prod\nnodes:\n  - {name: pg-0, role: postgres, addresses: [10.20.1.10]}\n" + from(goodPeers, "networks:"), []string{"peers.yaml:3: nodes: only 1 of the 4 nodes", "apply --force"}},
		{"self missing", strings.Replace(goodPeers, "name: pg-0", "name: pg-9", 1), []string{"pghardend.yaml:2: node: this node, \"pg-0\", is not in"}},
		{"v4-mapped", strings.Replace(goodPeers, "fd00:20:1::11", "::ffff:10.20.1.12", 1), []string{"peers.yaml:5: nodes[1].addresses[1]", "write 10.20.1.12"}},
		{"duplicate address", strings.Replace(goodPeers, "10.20.1.20", "10.20.1.10", 1), []string{"peers.yaml:6: nodes[2].addresses[0]", "here twice"}},
		{"duplicate node", strings.Replace(goodPeers, "pool-1", "pool-0", 1), []string{"peers.yaml:7: nodes[3].name", "here twice"}},
		{"everybody", strings.Replace(goodPeers, "10.50.0.0/16", "0.0.0.0/0", 1), []string{"peers.yaml:10: networks.applications[0]", "every address there is"}},
		{"another instance", strings.Replace(goodPeers, "orders-prod", "billing", 1), []string{"peers.yaml:2: instance", "billing, not of orders-prod"}},
		{"unknown key", strings.Replace(goodPeers, line, strings.Replace(line, "role:", "roll:", 1), 1), []string{"peers.yaml:5: nodes[1].roll: unknown key; did you mean role?"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFiles(t)
			s := f.started()
			_, _ = load(t, s, false)
			f.write(f.peers, tt.text)
			f.bad(t, s, tt.says...)
		})
	}
}

func TestF18_BadConfigIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(f *files)
		says   []string
	}{
		{"unknown key", func(f *files) { f.write(f.config, f.configText()+"firewal: {}\n") },
			[]string{"pghardend.yaml:5: firewal: unknown key; did you mean firewall?"}},
		{"half-written", func(f *files) { f.writeInPlace(f.config, f.configText()[:60]) },
			[]string{"pghardend.yaml:3:", "half-written"}},
		{"wrong type", func(f *files) { f.write(f.config, f.configText()+"services: 7\n") },
			[]string{"pghardend.yaml:5: services"}},
		{"unknown profile", func(f *files) {
			f.write(f.config, f.configText()+strings.Replace(serviceText, "profile: postgres", "profile: oracle", 1))
		}, []string{"pghardend.yaml:7: services.postgres.profile", `there is no profile "oracle"; profiles: generic, pgpool, postgres`}},
		{"wrong mode", func(f *files) { f.chmod(f.config, 0o620) },
			[]string{"pghardend.yaml", "mode 0620", "chmod go-w"}},
		{"wrong mode of the peers", func(f *files) { f.chmod(f.peers, 0o602) },
			[]string{"peers.yaml", "mode 0602", "chmod go-w"}},
		{"gone", func(f *files) { f.remove(f.config) },
			[]string{"pghardend.yaml: no such file or directory"}},
		{"peers gone", func(f *files) { f.remove(f.peers) },
			[]string{"peers.yaml: no such file or directory"}},
		{"a directory", func(f *files) { f.remove(f.peers); f.must(os.Mkdir(f.peers, 0o700)) },
			[]string{"peers.yaml: not a regular file but a directory"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFiles(t)
			s := f.started()
			_, _ = load(t, s, false)
			tt.change(f)
			f.bad(t, s, tt.says...)
		})
	}
}

func (f *files) chmod(path string, mode os.FileMode) {
	f.t.Helper()
	f.must(os.Chmod(path, mode))
}

func (f *files) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func TestChangesThatNeedARestart(t *testing.T) {
	const command = "command: [/usr/lib/postgresql/15/bin/postgres, -D, /var/lib/postgresql/15/main]"
	for _, tt := range []struct{ name, old, replacement, says string }{
		{"runtime_dir", "/run\n", "/other\n", ":3: runtime_dir cannot change from"},
		{"state_dir", "/state\n", "/other\n", ":4: state_dir cannot change from"},
		{"backend", "services:", "firewall: {backend: legacy}\nservices:", ":5: firewall.backend cannot change from auto to legacy"},
		{"interval", "services:", "reconcile: {interval: 5s}\nservices:", ":5: reconcile.interval cannot change from 1s to 5s"},
		{"full", "services:", "reconcile: {full: 5m}\nservices:", ":5: reconcile.full cannot change from 30s to 5m0s"},
		{"metrics", "services:", "metrics: {listen: 127.0.0.1:9188}\nservices:", ":5: metrics.listen cannot change from none to 127.0.0.1:9188"},
		{"program", "postgresql/15/bin", "postgresql/16/bin", ":9: services.postgres.command cannot change from /usr/lib/postgresql/15/bin/postgres to /usr/lib/postgresql/16/bin/postgres"},
		{"data_dir", command, "command: [/usr/lib/postgresql/15/bin/postgres]", ":6: services.postgres.data_dir cannot change from /var/lib/postgresql/15/main to none"},
		{"stop_timeout", command, command + "\n    stop_timeout: 5m", ":10: services.postgres.stop_timeout cannot change from 1m0s to 5m0s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFiles(t)
			text := f.configText() + serviceText
			f.write(f.config, text)
			s := f.started()
			_, _ = load(t, s, false)
			f.write(f.config, replace(t, text, tt.old, tt.replacement))
			f.bad(t, s, "pghardend.yaml"+tt.says, "while the daemon runs; restart it (services go on)")
			if _, err := load(t, s, true); err == nil {
				t.Error("force cannot change what a running daemon holds")
			}
		})
	}
}

// A service that went and came back still has its first supervisor.
func TestServiceThatComesBackIsCheckedAgainstItsSupervisor(t *testing.T) {
	f := newFiles(t)
	f.write(f.config, f.configText()+serviceText)
	s := f.started()
	_, _ = load(t, s, false)
	f.write(f.config, f.configText())
	if err := settled(t, s); err != nil {
		t.Fatal(err)
	}
	f.write(f.config, f.configText()+replace(t, serviceText, "/15/main", "/16/main"))
	f.bad(t, s, "services.postgres.data_dir cannot change")
}

// What a running service can take over with its next start is accepted.
func TestServiceChangesThatNeedNoRestart(t *testing.T) {
	f := newFiles(t)
	f.write(f.config, f.configText()+serviceText)
	s := f.started()
	_, _ = load(t, s, false)
	f.write(f.config, f.configText()+replace(t, serviceText, "nofile: 65536", "nofile: 4096"))
	if err := settled(t, s); err != nil {
		t.Fatal(err)
	}
	if s.current.Config.Services[0].Limits["nofile"] != (config.Limit{Soft: 4096, Hard: 4096}) {
		t.Errorf("limits: %+v", s.current.Config.Services[0].Limits)
	}
}
