package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

// archive_command and restore_command through declared helpers, confined in everything: rows that are in the archive alone
// are there again after a recovery from a base backup.
func TestArchiveAndRestoreThroughHelpers(t *testing.T) {
	s := newSlice(t, "nft", map[string]string{"archive_mode": "on"})
	archive := launchMkdir(t, filepath.Join(launchDir(t), "archive"), 0o700)
	launchOwn(t, archive, atoi(t, s.cluster.User.Uid))
	s.configure(withPrograms(t, "sh", "cp"))
	s.configure(func(svc *testbed.Service) {
		svc.Landlock["write"] = append(slices.Clone(svc.Landlock["write"].([]string)), archive)
	})
	s.start()
	s.awaitTraced()
	a := &attack{slice: s}
	sql := func(text string) string {
		t.Helper()
		out, err := a.superuser(text)
		must(t, err)
		return out
	}
	sql("ALTER SYSTEM SET archive_command = 'cp %p " + archive + "/%f'")
	sql("ALTER SYSTEM SET restore_command = 'cp " + archive + "/%f %p'")
	sql("SELECT pg_reload_conf(); CREATE TABLE kept (n int)")

	// A backup of a server that is stopped, without any WAL: even its last checkpoint is to come from the archive.
	backup := s.cluster.Data + ".backup"
	s.want(0, nil, "stop", "--service", "postgres")
	run(t, s.node, "cp -a "+s.cluster.Data+" "+backup+" && rm "+backup+"/pg_wal/0*")
	s.want(0, nil, "start", "--service", "postgres")
	s.awaitOK()
	last := sql("INSERT INTO kept SELECT generate_series(1, 1000); SELECT pg_walfile_name(pg_switch_wal())")
	must(t, s.agent.Await(s.ctx, "the archiver", func(context.Context) error {
		_, err := os.Stat(filepath.Join(archive, strings.TrimSpace(last)))
		return err
	}))
	s.want(0, nil, "stop", "--service", "postgres")
	must(t, os.Rename(s.cluster.Data, s.cluster.Data+".lost"))
	must(t, os.Rename(backup, s.cluster.Data))
	signal := filepath.Join(s.cluster.Data, "recovery.signal")
	must(t, os.WriteFile(signal, nil, 0o600))
	launchOwn(t, signal, atoi(t, s.cluster.User.Uid))
	s.want(0, nil, "start", "--service", "postgres")
	s.awaitStatus("postgres", func(st control.Status) error {
		if len(st.Services) != 1 || st.Services[0].State != "ready" {
			return fmt.Errorf("%+v", st.Services)
		}
		return nil
	})
	must(t, s.agent.Await(s.ctx, "the end of the recovery", func(context.Context) error {
		out, err := a.superuser("SELECT pg_is_in_recovery()")
		if err == nil && out != "f" {
			err = errors.New(out)
		}
		return err
	}))
	if got := sql("SELECT count(*), max(n) FROM kept"); got != "1000|1000" {
		t.Errorf("restored: %s", got)
	}
	if list := s.denialEvents(); len(list) > 0 {
		t.Errorf("denied: %+v", list)
	}
	s.awaitOK()
}

// A recorder that does not come to read what the kernel reports says that its recording is NOT COMPLETE, and the
// recording says so itself, also after merging.
func TestLearnIsNotComplete(t *testing.T) {
	const many = 40_000 // more than the kernel keeps until they are read
	s := startSlice(t, "nft")
	uid := atoi(t, s.cluster.User.Uid)
	dir := launchMkdir(t, filepath.Join(s.cluster.Data, "many"), 0o700)
	launchOwn(t, dir, uid)
	for n := range many {
		file := filepath.Join(dir, fmt.Sprint(n+1))
		must(t, os.WriteFile(file, nil, 0o600))
		must(t, os.Chown(file, uid, uid))
	}
	file := filepath.Join(launchDir(t), "recording.json")
	cmd, done, said := learnCommand(t, s, "--service", "postgres", "--output", file)
	must(t, cmd.Process.Signal(unix.SIGSTOP))
	a := &attack{slice: s}
	// Each file that is opened for the first time is reported.
	_, err := a.superuser("SELECT count(length(pg_read_file('many/' || n))) FROM generate_series(1, " + fmt.Sprint(many) + ") n")
	must(t, err)
	must(t, cmd.Process.Signal(unix.SIGCONT))
	must(t, cmd.Process.Signal(unix.SIGINT))
	<-done
	if code := cmd.ProcessState.ExitCode(); code != 0 || !strings.Contains(said.String(), "NOT COMPLETE") {
		t.Errorf("exit code %d\n%s", code, said)
	}
	if lost, _ := readRecording(t, file).Lost(); lost == 0 || readRecording(t, file).Complete() {
		t.Errorf("the recording says that %d are lost", lost)
	}
	again := filepath.Join(filepath.Dir(file), "merged.json")
	s.want(0, []string{"NOT COMPLETE"}, "learn", "--service", "postgres", "--for", "100ms", "--merge", file, "--output", again)
}
