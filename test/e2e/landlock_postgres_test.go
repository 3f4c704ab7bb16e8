package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

// landlockSlice is a PostgreSQL with a hostile superuser, confined as by default
// but for what change says.
func landlockSlice(t *testing.T, change func(*testbed.Service)) *attack {
	t.Helper()
	s := newSlice(t, "nft", nil)
	if change != nil {
		s.configure(change)
	}
	s.start()
	return &attack{slice: s}
}

func (s *slice) landlockLayer() control.Layer {
	s.t.Helper()
	for _, l := range s.awaitOK().Layers {
		if l.Name == "landlock" {
			return l
		}
	}
	s.t.Fatal("status has no layer landlock")
	return control.Layer{}
}

// A36, by Landlock alone: the seccomp profile lets shells be executed, as the
// control shows, and Landlock does not. Connections of the server itself go to
// the ports of its flows only.
func TestA36_ShellFromPostgres(t *testing.T) {
	t.Run("control", func(t *testing.T) {
		a := landlockSlice(t, withoutLandlock)
		if l := a.landlockLayer(); l.Enforced || l.Configured {
			t.Errorf("layer %+v", l)
		}
		a.want(0, []string{"checks passed"}, "verify")
		if out, err := a.program("id -un"); err != nil || !strings.Contains(out, "postgres") {
			t.Errorf("%q %v; the test proves nothing", out, err)
		}
		if got := a.connectLocally(); !strings.Contains(got, "Connection refused") {
			t.Errorf("connecting gives %s", got)
		}
	})
	t.Run("confined", func(t *testing.T) {
		a := landlockSlice(t, nil)
		if l := a.landlockLayer(); !l.Enforced || !strings.Contains(l.Detail, "probed at launch, 20") {
			t.Errorf("layer %+v", l)
		}
		a.want(0, []string{"landlock", "files", "probed at launch", "signals"}, "verify")
		if out, err := a.program("id -un"); err == nil || !strings.Contains(err.Error(), "could not execute command") {
			t.Errorf("%q %v", out, err)
		}
		if got := a.connectLocally(); !strings.Contains(got, "Permission denied") {
			t.Errorf("connecting gives %s", got)
		}
	})
}

// A39: what the configuration of the server names is executed no more than what
// SQL names. The archiver shows it, which nobody asks.
func TestA39_ArchiveCommand(t *testing.T) {
	for name, change := range map[string]func(*testbed.Service){"control": withoutLandlock, "confined": nil} {
		t.Run(name, func(t *testing.T) {
			s := newSlice(t, "nft", map[string]string{"archive_mode": "on"})
			if change != nil {
				s.configure(change)
			}
			s.start()
			a := &attack{slice: s}
			owned := filepath.Join(s.cluster.Data, "owned")
			_, err := a.superuser("ALTER SYSTEM SET archive_command = 'touch " + owned + "'")
			must(t, err)
			_, err = a.superuser("SELECT pg_reload_conf(); CREATE TABLE x (); SELECT pg_switch_wal()")
			must(t, err)
			ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
			defer cancel()
			must(t, s.agent.Await(ctx, "the archiver", func(ctx context.Context) error {
				if name == "confined" {
					// The C library's system() says 127 if there is no shell.
					log, err := os.ReadFile(s.agent.LogPath)
					if err == nil && !strings.Contains(string(log), "archive command failed with exit code 127") {
						err = errors.New("no failure in the log")
					}
					return err
				}
				n, err := a.superuser("SELECT archived_count FROM pg_stat_archiver")
				if err == nil && n == "0" {
					err = errors.New("nothing is archived")
				}
				return err
			}))
			if _, err := os.Stat(owned); (err == nil) != (name == "control") {
				t.Errorf("the command's file: %v", err)
			}
		})
	}
}

// connectLocally has the server connect to a port of its own host that is in no flow.
func (a *attack) connectLocally() string {
	a.t.Helper()
	_, err := a.superuser("SET statement_timeout = '3s';\nCREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port=1 user=x dbname=x' PUBLICATION x;")
	if err == nil {
		a.t.Fatal("a subscription to nobody succeeds")
	}
	return err.Error()
}

// A49, A50 in SQL: what lies outside is neither read nor written, whoever may by
// its mode; what is declared is.
func TestA49_FilesFromPostgres(t *testing.T) {
	dir := landlockOpen(t)
	secret := filepath.Join(dir, "secret")
	launchWrite(t, secret, []byte("secret\n"), 0o666)
	declared := launchMkdir(t, filepath.Join(launchDir(t), "archive"), 0o777)
	declare := func(s *testbed.Service) {
		s.Landlock["write"] = append(s.Landlock["write"].([]string), declared)
	}
	for name, c := range map[string]struct {
		change func(*testbed.Service)
		denied bool
	}{"confined": {declare, true}, "control": {withoutLandlock, false}} {
		t.Run(name, func(t *testing.T) {
			a := landlockSlice(t, c.change)
			for _, sql := range []string{
				"SELECT pg_read_file('" + secret + "')",
				"COPY (SELECT 'x') TO '" + secret + "'",
				"COPY (SELECT 'x') TO '" + filepath.Join(dir, "new") + "'",
			} {
				_, err := a.superuser(sql)
				if denied := err != nil && strings.Contains(err.Error(), "Permission denied"); denied != c.denied {
					t.Errorf("%s: %v", sql, err)
				}
			}
			if _, err := a.superuser("COPY (SELECT 'x') TO '" + filepath.Join(declared, name) + "'"); err != nil {
				t.Errorf("declared: %v", err)
			}
			// A tablespace is a link in the data directory and a directory that is declared.
			space := launchMkdir(t, filepath.Join(declared, "space-"+name), 0o700)
			launchOwn(t, space, atoi(t, a.cluster.User.Uid))
			for _, sql := range []string{
				"CREATE TABLESPACE space LOCATION '" + space + "'",
				"CREATE TABLE there TABLESPACE space AS SELECT generate_series(1, 1000)",
				"ALTER TABLE there SET TABLESPACE pg_default",
				"DROP TABLE there",
				"DROP TABLESPACE space",
			} {
				if _, err := a.superuser(sql); err != nil {
					t.Errorf("%s: %v", sql, err)
				}
			}
		})
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err != nil {
		t.Errorf("the control made no file: %v", err)
	}
}
