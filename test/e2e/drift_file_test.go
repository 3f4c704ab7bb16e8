package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
)

// Modes and owners with the daemon running and a PostgreSQL under it: what was
// changed is put back within two looks, and PostgreSQL does not notice.
func TestSliceFileDrift(t *testing.T) {
	t.Parallel()
	s := startSlice(t, "nft")
	pid, err := s.cluster.PID()
	must(t, err)
	uid := atoi(t, s.cluster.User.Uid)
	data := s.cluster.Data
	etc := filepath.Dir(s.agent.ConfigPath)
	for _, row := range []struct {
		name   string
		path   string
		change func(path string) error
		event  string
		mode   uint32
		uid    int
		frozen bool // two changes, between which nothing may be put back
	}{
		{"data directory opened", data, chmod(0o777), "data directory of service postgres " + data + ": has mode 0777, want 0700", 0o700, uid, false},
		{"data directory given away", data, chown(0), fmt.Sprintf("data directory of service postgres %s: belongs to uid 0, want uid %d", data, uid), 0o700, uid, false},
		{"data directory given away and opened", data, both(chown(1), chmod(0o755)), fmt.Sprintf("belongs to uid 1, want uid %d", uid), 0o700, uid, true},
		{"configuration", s.agent.ConfigPath, chmod(0o666), "configuration " + s.agent.ConfigPath + ": has mode 0666, want 0644", 0o644, 0, false},
		{"configuration given away", s.agent.ConfigPath, chown(uid), fmt.Sprintf("belongs to uid %d, want uid 0", uid), 0o644, 0, false},
		{"peer list", s.agent.PeersPath, chmod(0o620), "peer list " + s.agent.PeersPath + ": has mode 0620, want 0600", 0o600, 0, false},
		{"directory of the configuration", etc, chmod(0o733), "directory of the configuration " + etc + ": has mode 0733, want 0711", 0o711, 0, false},
		{"runtime_dir", filepath.Join(s.agent.Dir, "run"), chmod(0o777), "runtime_dir", 0o755, 0, false},
		{"state_dir", filepath.Join(s.agent.Dir, "state"), chown(uid), "state_dir", 0o700, 0, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := time.Now()
			s.whileFrozen(row.frozen, func() { must(t, row.change(row.path)) })
			d := s.awaitRestored(before, row.event)
			t.Logf("%s: put back at most %.0f ms after it was last seen right", row.name, d.OpenMS)
			var st unix.Stat_t
			must(t, unix.Stat(row.path, &st))
			if st.Mode&0o7777 != row.mode || int(st.Uid) != row.uid {
				t.Errorf("mode %04o of uid %d, want %04o of uid %d", st.Mode&0o7777, st.Uid, row.mode, row.uid)
			}
		})
	}
	s.awaitOK()
	if now, err := s.cluster.PID(); err != nil || now != pid {
		t.Errorf("the postmaster was %d and is %d: %v", pid, now, err)
	}
	if got, err := s.sql(s.peer, s.node.V4(), "SELECT 1"); err != nil || got != "1" {
		t.Errorf("the peer's session: %q %v", got, err)
	}
	t.Run("TestF18 written to while anybody could", func(t *testing.T) { writtenConfiguration(t, s) })
	t.Run("TestF28 never on what is somebody else's", func(t *testing.T) { foreignDirectory(t, s) })
}

func chmod(mode uint32) func(string) error {
	return func(path string) error { return unix.Chmod(path, mode) }
}

func chown(uid int) func(string) error {
	return func(path string) error { return unix.Chown(path, uid, -1) }
}

func both(a, b func(string) error) func(string) error {
	return func(path string) error {
		if err := a(path); err != nil {
			return err
		}
		return b(path)
	}
}

// writtenConfiguration: what was written while others could does not count because
// the mode is put back; an operator has to look at it.
func writtenConfiguration(t *testing.T, s *slice) {
	good, err := os.ReadFile(s.agent.PeersPath)
	must(t, err)
	f, err := os.OpenFile(s.agent.PeersPath, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer f.Close()
	must(t, unix.Chmod(s.agent.PeersPath, 0o666))
	_, err = f.WriteString("# evil\n")
	must(t, err)
	s.awaitStatus("degraded by the peer list", func(st control.Status) error {
		if text := strings.Join(st.Reasons, "\n"); st.State != control.StateDegraded || !strings.Contains(text, "and its content changed: check it") {
			return fmt.Errorf("%s %s", st.State, text)
		}
		return nil
	})
	var st unix.Stat_t
	must(t, unix.Stat(s.agent.PeersPath, &st))
	if st.Mode&0o777 != 0o666 {
		t.Errorf("the mode is %04o: it was put back", st.Mode&0o777)
	}
	must(t, os.WriteFile(s.agent.PeersPath, good, 0))
	must(t, unix.Chmod(s.agent.PeersPath, 0o600))
	s.awaitOK()
}

// foreignDirectory: a directory that is in the place of the data directory, or was
// not the service's when it started, is not given to the service.
func foreignDirectory(t *testing.T, s *slice) {
	data := s.cluster.Data
	victim := filepath.Join(filepath.Dir(data), "victim")
	must(t, os.Mkdir(victim, 0o755))
	defer os.Remove(victim)
	untouched := func(path string, mode uint32) {
		t.Helper()
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		if st.Uid != 0 || st.Mode&0o777 != mode {
			t.Errorf("%s belongs to uid %d and has mode %04o; want it left as it was", path, st.Uid, st.Mode&0o777)
		}
	}
	must(t, os.Rename(data, data+".aside"))
	must(t, os.Symlink(victim, data))
	s.awaitStatus("degraded by another directory", func(st control.Status) error {
		if text := strings.Join(st.Reasons, "\n"); !strings.Contains(text, "another directory than the one that the service was seen to run in") {
			return fmt.Errorf("%s %s", st.State, text)
		}
		return nil
	})
	untouched(victim, 0o755)
	must(t, os.Remove(data))
	must(t, os.Rename(data+".aside", data))
	s.awaitOK()

	s.want(0, []string{"service postgres stopped"}, "stop", "--service", "postgres")
	must(t, unix.Chown(data, 0, -1))
	r := s.cli("start", "--service", "postgres")
	if text := r.Stdout + r.Stderr; r.Code == 0 || !strings.Contains(text, "belongs to uid 0") {
		t.Errorf("start with a data directory of root's: exit code %d\n%s", r.Code, text)
	}
	untouched(data, 0o700)
	must(t, unix.Chown(data, atoi(t, s.cluster.User.Uid), -1))
	s.want(0, nil, "start", "--service", "postgres")
	s.awaitOK()
}

func atoi(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	must(t, err)
	return n
}
