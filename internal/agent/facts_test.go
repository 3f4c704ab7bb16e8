package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pghardend/pghardend/pkg/config"
)

func TestPgpoolFile(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"-n", ""},
		{"-n -f /etc/pgpool2/pgpool.conf", "/etc/pgpool2/pgpool.conf"},
		{"-f/etc/a", "/etc/a"},
		{"--config-file=/etc/a", "/etc/a"},
		{"--config-file /etc/a -n", "/etc/a"},
		{"-f /etc/a -f /etc/b", "/etc/b"},
		{"-f pgpool.conf", ""}, // relative to what?
		{"-n -f", ""},
		{"-- -f /etc/a", ""},
		{"-F /etc/pcp.conf -f /etc/a", "/etc/a"},
	} {
		if got := pgpoolFile(append([]string{"/usr/sbin/pgpool"}, strings.Fields(tt.args)...)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.args, got, tt.want)
		}
	}
}

func TestParseNumInitChildren(t *testing.T) {
	for _, tt := range []struct {
		text string
		want int
		err  string
	}{
		{"", 32, ""},
		{"#num_init_children = 64\n", 32, ""},
		{"num_init_children = 64\n", 64, ""},
		{"num_init_children=64", 64, ""},
		{"  num_init_children 64   # Number\n", 64, ""},
		{"Num_Init_Children = '64'\n", 64, ""},
		{"num_init_children = 64\nnum_init_children = 65\n", 65, ""},
		{"reserved_connections = 5\nnum_init_childrens = 7\nxnum_init_children = 8\n", 32, ""},
		{"port = 9999\nnum_init_children = many\n", 0, "line 2: num_init_children: "},
		{"num_init_children =\n", 0, "line 1"},
		{"num_init_children = 0\n", 0, "line 1: num_init_children: 0 connections are not what a server takes"},
		{"num_init_children = 999999999999999999999\n", 0, "line 1"},
	} {
		got, err := parseNumInitChildren([]byte(tt.text))
		if tt.err != "" {
			contains(t, err, tt.err)
		} else if err != nil || got != tt.want {
			t.Errorf("%q: %d, %v, want %d", tt.text, got, err, tt.want)
		}
	}
}

func FuzzParseNumInitChildren(f *testing.F) {
	for _, seed := range []string{"", "num_init_children = 64\n", "num_init_children '5'#x", "\x00", "port = 1\r\nnum_init_children\t=\t7\r\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := parseNumInitChildren(data)
		if err == nil && checkClients(n) != nil {
			t.Errorf("%q: %d", data, n)
		}
	})
}

func TestReadPgpool(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "pgpool.conf")
	if err := os.WriteFile(good, []byte("num_init_children = 50\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := readPgpool(t.Context(), good); err != nil || c != (Capacity{Clients: 50}) {
		t.Errorf("%+v, %v", c, err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, maxPgpoolFile+1); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, large, dir, filepath.Join(dir, "none"), "/dev/zero"} {
		if c, err := readPgpool(t.Context(), path); err == nil {
			t.Errorf("%s: %+v", path, c)
		}
	}
}

func TestOnlyWhatIsKnownToEndIsAsked(t *testing.T) {
	for _, tt := range []struct {
		svc   config.Service
		asked bool
	}{
		{config.Service{Profile: "postgres", Command: []string{"/usr/lib/postgresql/15/bin/postgres"}}, true},
		{config.Service{Profile: "postgres", Command: []string{"/usr/bin/patroni"}}, false},
		{config.Service{Profile: "postgres", Command: []string{"/bin/postgres"}, MaxConnections: 5}, false},
		{config.Service{Profile: "pgpool", Command: []string{"/usr/sbin/pgpool", "-f", "/etc/pgpool.conf"}}, true},
		{config.Service{Profile: "pgpool", Command: []string{"/usr/sbin/pgpool"}}, false},
		{config.Service{Profile: "exporter", Command: []string{"/usr/bin/postgres"}}, false},
	} {
		if got := signOf(t.Context(), tt.svc) != ""; got != tt.asked {
			t.Errorf("%+v: asked %v", tt.svc, got)
		}
	}
}

// A server's settings count when it starts, so it is asked again only then.
func TestServicesAreAskedAgainAfterARestart(t *testing.T) {
	dir := t.TempDir()
	cfg := config.Config{RuntimeDir: t.TempDir(),
		Services: []config.Service{{Name: "postgres", Profile: "postgres", Command: []string{"/bin/postgres"}, DataDir: dir}}}
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		asked := 0
		say := Capacity{Clients: 100, WALSenders: 10}
		var fails error
		r := newFactReader(slog.New(slog.NewTextHandler(&log, nil)))
		r.ask = func(context.Context, config.Service, string) (Capacity, error) {
			asked++
			return say, fails
		}
		check := func(what string, times int, want Facts) {
			t.Helper()
			if got := r.read(t.Context(), cfg, ""); !got.equal(want) || asked != times {
				t.Errorf("%s: %v after %d times, want %v after %d", what, got, asked, want, times)
			}
		}
		first := Facts{"postgres": say}
		check("first", 1, first)
		say = Capacity{Clients: 200}
		check("while nothing happens", 1, first)
		pidFile := func(pid, status string) {
			text := pid + "\n" + dir + "\n1700000000\n5432\n/run\n*\n  1 2\n" + status + "\n"
			if err := os.WriteFile(filepath.Join(dir, "postmaster.pid"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		pidFile("1", "starting")
		second := Facts{"postgres": say}
		check("after a start", 2, second)
		pidFile("1", "ready")
		check("once it is ready", 2, second)

		// Another command, or the next daemon, knows what the server was started with.
		other := newFactReader(slog.New(slog.DiscardHandler))
		other.ask = func(context.Context, config.Service, string) (Capacity, error) {
			t.Error("asked though the answer is known")
			return Capacity{}, nil
		}
		if got := other.read(t.Context(), cfg, ""); !got.equal(second) {
			t.Errorf("another reader has %v, want %v", got, second)
		}

		fails = errors.New("no")
		pidFile("2", "ready")
		check("without an answer", 3, second)
		check("at once", 3, second)
		<-time.After(askAgain)
		fails = nil
		check("later", 4, second)
		if n := strings.Count(log.String(), "cannot ask"); n != 1 {
			t.Errorf("said %d times:\n%s", n, log.String())
		}
		cfg.Services[0].MaxConnections = 7
		check("with a number in the configuration", 4, Facts{})
	})
}

// One that was never asked with success is left to the default.
func TestNoAnswerIsNoFact(t *testing.T) {
	cfg := config.Config{RuntimeDir: t.TempDir(), Services: []config.Service{{Name: "postgres", Profile: "postgres", Command: []string{"/bin/postgres"}}}}
	r := newFactReader(slog.New(slog.DiscardHandler))
	r.ask = func(context.Context, config.Service, string) (Capacity, error) { return Capacity{}, errors.New("no") }
	if got := r.read(t.Context(), cfg, ""); len(got) != 0 {
		t.Errorf("facts %v", got)
	}
}

// What somebody else wrote, or what no server takes, is not believed.
func TestStoredAnswersAreChecked(t *testing.T) {
	file := filepath.Join(t.TempDir(), factsFile)
	for _, tt := range []struct {
		text string
		mode os.FileMode
		want int
	}{
		{`{"a":{"sign":"x","capacity":{"clients":5,"wal_senders":0}}}`, 0o600, 1},
		{`{"a":{"sign":"x","capacity":{"clients":5,"wal_senders":0}}}`, 0o666, 0},
		{`{"a":{"sign":"x","capacity":{"clients":0}},"b":{"capacity":{"clients":5,"wal_senders":-1}},"c":{"capacity":{"clients":999999999}}}`, 0o600, 0},
		{`{"a":`, 0o600, 0},
		{`null`, 0o600, 0},
	} {
		if err := errors.Join(os.WriteFile(file, []byte(tt.text), tt.mode), os.Chmod(file, tt.mode)); err != nil {
			t.Fatal(err)
		}
		if got := loadAnswers(t.Context(), file); got == nil || len(got) != tt.want {
			t.Errorf("%s (%04o): %v", tt.text, tt.mode, got)
		}
	}
}
