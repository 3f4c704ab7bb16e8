package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// restarted is the source of the next daemon on the same files.
func (f *files) restarted(t *testing.T) *fileSource {
	t.Helper()
	s := f.started()
	_, _ = load(t, s, false)
	return s
}

func TestF18_BadAtBootUsesTheLastGood(t *testing.T) {
	for name, spoil := range map[string]func(f *files){
		"config with an unknown key": func(f *files) { f.write(f.config, f.configText()+"firewal: {}\n") },
		"config for others to write": func(f *files) {
			f.t.Setenv("STATE_DIRECTORY", f.state) // as systemd sets it; a file of others is not asked
			f.chmod(f.config, 0o666)
		},
		"config gone": func(f *files) {
			f.t.Setenv("STATE_DIRECTORY", f.state+":/elsewhere")
			f.remove(f.config)
		},
		"peers empty": func(f *files) { f.write(f.peers, "") },
		"peers gone":  func(f *files) { f.remove(f.peers) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFiles(t)
			f.restarted(t)
			spoil(f)
			s := f.started()
			d, err := load(t, s, false)
			contains(t, err, stays)
			if d.Generation != 1 || len(s.current.Peers.Nodes) != 4 || s.current.Config.PeersFile != f.peers {
				t.Errorf("generation %d, current %+v", d.Generation, s.current.Config)
			}
			// It goes on watching the real files.
			f.remove(f.config)
			f.write(f.config, f.configText())
			f.write(f.peers, replace(t, goodPeers, "10.20.1.20", "10.20.1.29"))
			if err := settled(t, s); err != nil || s.generation != 2 {
				t.Errorf("the mended files do not count: generation %d, %v", s.generation, err)
			}
		})
	}
}

func TestBootWithNothingSaysWhatToDo(t *testing.T) {
	f := newFiles(t)
	f.write(f.peers, "version: 1\n")
	_, err := f.source()
	contains(t, err, "peers.yaml:1: nodes: missing", "there is no last good configuration in "+f.state, "nothing is enforced", "pghardend validate")
}

func TestBootWithSpoiledLastGoodSaysSo(t *testing.T) {
	f := newFiles(t)
	f.restarted(t)
	f.write(f.peers, "")
	f.chmod(filepath.Join(f.state, lastGoodDir, acceptedPeers), 0o666)
	_, err := f.source()
	contains(t, err, "peers.yaml:1: the file is empty", "the last good configuration in "+f.state+" cannot be used", "mode 0666")
}

// The state_dir of a file that cannot be read is a guess, which must not lead
// to the rules of another agent on this host.
func TestLastGoodOfAnotherAgentIsNotUsed(t *testing.T) {
	other := newFiles(t)
	other.restarted(t)
	f := newFiles(t)
	f.restarted(t)
	t.Setenv("STATE_DIRECTORY", other.state)
	f.remove(f.config)
	_, err := f.source()
	contains(t, err, "no such file", "it is that of", other.config)
}

func TestStateDirIsFoundInABrokenConfig(t *testing.T) {
	f := newFiles(t)
	for text, want := range map[string]string{
		"state_dir: /a/b\nx: [\n":          "/a/b",
		"x: [\nstate_dir: '/a/b/' # c\n":   "/a/b",
		"state_dir: \"/a/b\"\r\nnode: ]\n": "/a/b",
		"x: [\nstate_dir: /a/b":            "/from/systemd", // cut off
		"x: [\n  state_dir: /a/b\n":        "/from/systemd", // of something else
		"x: [\nstate_dir: relative\n":      "/from/systemd",
		"x: [\n":                           "/from/systemd",
	} {
		t.Setenv("STATE_DIRECTORY", "/from/systemd")
		f.write(f.config, text)
		if got := stateDir(t.Context(), f.config); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	f.write(f.config, "x: [\nruntime_dir: /a/run\nstate_dir: /a/b\n")
	if got := RuntimeDir(t.Context(), f.config); got != "/a/run" {
		t.Errorf("runtime_dir %s", got)
	}
	f.chmod(f.config, 0o666)
	if got := RuntimeDir(t.Context(), f.config); got != "/run/pghardend" {
		t.Errorf("a file that others can write leads to %s", got)
	}
	f.write(f.config, f.configText())
	if got := RuntimeDir(t.Context(), f.config); got != f.run {
		t.Errorf("runtime_dir %s", got)
	}
}

func TestF13_TruncatedListAtRestartIsRefused(t *testing.T) {
	f := newFiles(t)
	f.restarted(t)
	truncated := upTo(goodPeers, "  - {name: pg-1") + from(goodPeers, "networks:")
	f.write(f.peers, truncated)

	s := f.started()
	_, err := load(t, s, false)
	contains(t, err, "only 1 of the 4 nodes", "apply --force", stays)
	if len(s.current.Peers.Nodes) != 4 {
		t.Fatalf("%d nodes in force", len(s.current.Peers.Nodes))
	}
	s = f.started() // and again: the refusal left the last good one as it was
	_, err = load(t, s, false)
	contains(t, err, "only 1 of the 4 nodes")

	if _, err := load(t, s, true); err != nil || len(s.current.Peers.Nodes) != 1 {
		t.Fatalf("apply --force: %d nodes in force, %v", len(s.current.Peers.Nodes), err)
	}
	s = f.started()
	if _, err := load(t, s, false); err != nil || len(s.current.Peers.Nodes) != 1 {
		t.Errorf("after the next restart: %d nodes in force, %v", len(s.current.Peers.Nodes), err)
	}
}

func TestAcceptedInputIsKept(t *testing.T) {
	f := newFiles(t)
	s := f.restarted(t)
	for _, dir := range []string{filepath.Join(f.state, lastGoodDir), f.run} {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
		for name, want := range map[string]string{acceptedConfig: f.configText(), acceptedPeers: goodPeers} {
			path := filepath.Join(dir, name)
			if got := f.read(path); got != want {
				t.Errorf("%s holds\n%s", path, got)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", path, info.Mode(), err)
			}
		}
	}
	// One that was spoiled is put right with the next change at the latest.
	kept := filepath.Join(f.run, acceptedConfig)
	f.chmod(kept, 0o666)
	f.write(f.peers, replace(t, goodPeers, "10.20.1.20", "10.20.1.29"))
	if err := settled(t, s); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(kept); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestF22_StateDirThatCannotBeWritten(t *testing.T) {
	f := newFiles(t)
	f.write(f.state, "in the way, as a read-only file system would be")
	s := f.started()
	accepted := 0
	s.accepted = func(Desired) { accepted++ }
	d, err := load(t, s, false)
	contains(t, err, "is in force, but cannot be kept", "full or read-only", f.state)
	if d.Generation != 1 || accepted != 1 {
		t.Errorf("generation %d, %d times accepted: it must be enforced from memory", d.Generation, accepted)
	}
	if got := f.read(filepath.Join(f.run, acceptedConfig)); got != f.configText() {
		t.Error("the copy for the launch stage, which could be written, is not there")
	}
	_, err = load(t, s, false)
	contains(t, err, "cannot be kept") // as long as it lasts

	f.write(f.peers, replace(t, goodPeers, "10.20.1.20", "10.20.1.29"))
	contains(t, settled(t, s), "cannot be kept")
	if s.generation != 2 {
		t.Errorf("generation %d: a change must be enforced from memory", s.generation)
	}

	f.remove(f.state)
	if _, err := load(t, s, false); err != nil {
		t.Errorf("it is not tried again: %v", err)
	}
	if got := f.read(filepath.Join(f.state, lastGoodDir, acceptedPeers)); !strings.Contains(got, "10.20.1.29") {
		t.Errorf("what is kept is not what is in force:\n%s", got)
	}
}

func TestF22_RuntimeDirThatCannotBeWritten(t *testing.T) {
	f := newFiles(t)
	s := f.restarted(t)
	f.remove(f.run)
	f.write(f.run, "in the way")
	f.write(f.peers, replace(t, goodPeers, "10.20.1.20", "10.20.1.29"))
	contains(t, settled(t, s), "cannot be kept", f.run)
	if got := f.read(filepath.Join(f.state, lastGoodDir, acceptedPeers)); s.generation != 2 || !strings.Contains(got, "10.20.1.29") {
		t.Errorf("generation %d, kept in state_dir:\n%s", s.generation, got)
	}
}
