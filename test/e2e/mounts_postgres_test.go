package e2e

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

// A38: a library that was written by lo_export. Landlock does not look at mmap, so it
// can be loaded under Landlock alone; from a mount with noexec it cannot.
func TestA38_LibraryFromDatabase(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*testbed.Service)
		denied bool
	}{
		"none":           {func(s *testbed.Service) { withoutLandlock(s); withoutMounts(s) }, false},
		"landlock alone": {withoutMounts, false},
		"mounts alone":   {withoutLandlock, true},
		"both":           {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := landlockSlice(t, c.change)
			file := filepath.Join(a.cluster.Data, "stolen.so")
			_, err := a.superuser("SELECT pg_config.setting || '/dict_int.so' AS lib FROM pg_config WHERE name = 'PKGLIBDIR' \\gset\n" +
				"SELECT lo_import(:'lib') AS oid \\gset\nSELECT lo_export(:oid, '" + file + "')")
			must(t, err)
			_, err = a.superuser("LOAD '" + file + "'")
			if denied := err != nil && strings.Contains(err.Error(), "failed to map segment"); denied != c.denied || err != nil && !denied {
				t.Errorf("LOAD: %v", err)
			}
			if _, err = a.superuser("LOAD 'dict_int'"); err != nil {
				t.Errorf("an installed library: %v", err)
			}
		})
	}
}

func (s *slice) mountsLayer() control.Layer {
	s.t.Helper()
	for _, l := range s.awaitOK().Layers {
		if l.Name == "mounts" {
			return l
		}
	}
	s.t.Fatal("status has no layer mounts")
	return control.Layer{}
}

// The layer in a service's life: it is seen in every process, costs the host nothing,
// and is there again after a restart of the service and of the agent.
func TestMountsOfPostgres(t *testing.T) {
	before := mountTable(t)
	s := newSlice(t, "nft", nil)
	s.start()
	first, err := s.cluster.PID()
	must(t, err)
	host := withoutNetns(run(t, s.node, "cat /proc/self/mountinfo"))
	inside := run(t, s.node, fmt.Sprintf("cat /proc/%d/mountinfo", first))
	if l := s.mountsLayer(); !l.Configured || !l.Enforced || !strings.Contains(l.Detail, "read from /proc just now") {
		t.Errorf("layer %+v", l)
	}
	s.want(0, []string{"mounts", "namespace", "of its own", "noexec", "everywhere but /usr", "nodev", "read-only", "hidden", "checks passed"}, "verify")

	// The socket is the host's to use.
	if out, err := s.cluster.PsqlSocket(s.ctx, s.node, "SELECT 1"); err != nil || strings.TrimSpace(out) != "1" {
		t.Errorf("by the socket: %q %v", out, err)
	}

	// Restart: another process, as many mounts, the host's as before.
	s.want(0, nil, "stop", "--service", "postgres")
	s.want(0, nil, "start", "--service", "postgres")
	s.awaitOK()
	second, err := s.cluster.PID()
	must(t, err)
	again := run(t, s.node, fmt.Sprintf("cat /proc/%d/mountinfo", second))
	if second == first || strings.Count(again, "\n") != strings.Count(inside, "\n") {
		t.Errorf("process %d had\n%s\nand %d has\n%s", first, inside, second, again)
	}

	// Adoption.
	must(t, s.agent.Kill9(s.ctx))
	s.start()
	if now, err := s.cluster.PID(); err != nil || now != second {
		t.Errorf("process %d is %d now: %v", second, now, err)
	}
	if l := s.mountsLayer(); !l.Enforced {
		t.Errorf("layer %+v", l)
	}
	if now := withoutNetns(run(t, s.node, "cat /proc/self/mountinfo")); now != host {
		t.Errorf("mounts of the node were\n%s\nand are\n%s", host, now)
	}
	if now := mountTable(t); now != before {
		t.Errorf("mounts of the host were\n%s\nand are\n%s", before, now)
	}

	// Somebody who gives back what was taken is found, and it is put back. What only a
	// restart can put back is said.
	start := time.Now()
	must(t, s.agent.Signal(unix.SIGSTOP))
	shellIn(t, strconv.Itoa(second), "mount -o remount,bind,exec,nosuid,nodev /")
	s.want(3, []string{"noexec", "executable: / ("}, "verify")
	must(t, s.agent.Signal(unix.SIGCONT))
	s.awaitRestored(start, "service postgres", "noexec is executable: / (")
	s.want(0, []string{"checks passed"}, "verify")
	shellIn(t, strconv.Itoa(second), "umount /etc")
	s.awaitStatus("degraded", func(st control.Status) error {
		text := strings.Join(st.Reasons, "\n")
		if st.State != control.StateDegraded || !strings.Contains(text, "writable: /etc") {
			return fmt.Errorf("%s: %s", st.State, text)
		}
		return nil
	})
}
