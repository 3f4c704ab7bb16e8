package testbed

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestVerdicts(t *testing.T) {
	op := func(e syscall.Errno) error { return &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", e)} }
	for _, c := range []struct {
		err  error
		want Verdict
	}{
		{nil, Open}, {op(unix.ECONNREFUSED), Refused}, {op(unix.ECONNRESET), Refused}, {op(unix.EPERM), Denied},
		{op(unix.EHOSTUNREACH), Unreachable}, {op(unix.ENETUNREACH), Unreachable}, {op(unix.EACCES), Unreachable},
		{op(unix.ETIMEDOUT), NoAnswer}, {os.ErrDeadlineExceeded, NoAnswer}, {context.DeadlineExceeded, NoAnswer},
	} {
		if got, err := verdictOf(c.err); got != c.want || err != nil {
			t.Errorf("%v is %q (%v), want %q", c.err, got, err, c.want)
		}
	}
	for _, e := range []error{op(unix.EMFILE), errors.New("x"), context.Canceled} {
		if v, err := verdictOf(e); err == nil {
			t.Errorf("%v was taken for the verdict %q; it says nothing about the network", e, v)
		}
	}
}

func TestAwait(t *testing.T) {
	n := 0
	err := Await(context.Background(), "three", func(context.Context) error {
		if n++; n < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || n != 3 {
		t.Errorf("after %d looks: %v", n, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err = Await(ctx, "the impossible", func(context.Context) error { return errors.New("still no") })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the impossible") || !strings.Contains(err.Error(), "still no") {
		t.Errorf("the error must tell what, why and the last state: %v", err)
	}
}

func TestParsePostmaster(t *testing.T) {
	const full = "4711\n/data\n1700000000\n5432\n/socket\n*\n  123456   7\nready   \n"
	if pid, status, err := parsePostmaster([]byte(full)); pid != 4711 || status != "ready" || err != nil {
		t.Errorf("%d %q %v", pid, status, err)
	}
	if pid, status, err := parsePostmaster([]byte("4711\n/data\n")); pid != 4711 || status != "starting" || err != nil {
		t.Errorf("half-written: %d %q %v", pid, status, err)
	}
	for _, text := range []string{"", "\n", "x\n", "-5\n", "0\n"} {
		if pid, _, err := parsePostmaster([]byte(text)); err == nil {
			t.Errorf("%q is process %d", text, pid)
		}
	}
}

func FuzzParsePostmaster(f *testing.F) {
	f.Add([]byte("4711\n/data\n1700000000\n5432\n/socket\n*\n  123456   7\nready   \n"))
	f.Add([]byte("-1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if pid, status, err := parsePostmaster(data); err == nil && (pid <= 0 || strings.ContainsAny(status, "\n")) {
			t.Errorf("%q gave %d %q", data, pid, status)
		}
	})
}

func TestParsePgbench(t *testing.T) {
	const out = "pgbench (15.1)\ntransaction type: <builtin: TPC-B (sort of)>\nnumber of transactions actually processed: 1234\n" +
		"number of failed transactions: 2 (0.162%)\nlatency average = 1.5 ms\ninitial connection time = 3.2 ms\n" +
		"tps = 617.253 (without initial connection time)\n"
	r := parsePgbench(out)
	if r.Processed != 1234 || r.Failed != 2 || r.TPS != 617.253 || r.Output != out {
		t.Errorf("%+v", r)
	}
	if r := parsePgbench("could not connect"); r.Processed != 0 || r.Output == "" {
		t.Errorf("%+v", r)
	}
}

func FuzzParsePgbench(f *testing.F) {
	f.Add("number of transactions actually processed: 99999999999999999999\ntps = 1.2.3\n")
	f.Fuzz(func(t *testing.T, out string) {
		if r := parsePgbench(out); r.Output != out || r.Failed < 0 || r.Processed < 0 {
			t.Errorf("%+v", r)
		}
	})
}

func TestServerFiles(t *testing.T) {
	hba := hbaText([]netip.Prefix{netip.MustParsePrefix("10.20.1.0/24"), netip.MustParsePrefix("fd00:20:1::/64")})
	for _, line := range []string{"host all postgres 10.20.1.0/24 trust", "host all app fd00:20:1::/64 scram-sha-256"} {
		if !strings.Contains(hba, line+"\n") {
			t.Errorf("pg_hba.conf lacks %q:\n%s", line, hba)
		}
	}
	if strings.Contains(hba, "0.0.0.0") || strings.Contains(hba, "host all all") {
		t.Errorf("pg_hba.conf lets in more than the bed:\n%s", hba)
	}
	conf := confText(5433, "/s", map[string]string{"jit": "on", "fsync": "off"})
	if want := "\nlisten_addresses = '*'\nport = 5433\nunix_socket_directories = '/s'\nfsync = off\njit = on\n"; conf != want {
		t.Errorf("postgresql.conf gets %q, want %q", conf, want)
	}
}

func TestAgentFiles(t *testing.T) {
	cfg := AgentConfig{Backend: "legacy", Services: map[string]Service{"postgres": {Profile: "postgres", User: "postgres",
		Command: []string{"/bin/postgres", "-D", "/data"}, Limits: map[string]any{"nofile": 1024}}}}
	got, err := cfg.yaml("/dir")
	if err != nil {
		t.Fatal(err)
	}
	const want = `version: 1
peers_file: peers.yaml
runtime_dir: /dir/run
state_dir: /dir/state
firewall:
    backend: legacy
agent:
    cgroup:
        mode: "off"
services:
    postgres:
        profile: postgres
        user: postgres
        command: [/bin/postgres, -D, /data]
        limits:
            nofile: 1024
        cgroup:
            mode: "off"
`
	if got != want {
		t.Errorf("pghardend.yaml:\n%s\nwant:\n%s", got, want)
	}
	got, err = Peers{Instance: "demo", Nodes: []Peer{{"pg-0", "postgres", []string{"10.20.1.10", "fd00:20:1::10"}}},
		Networks: map[string][]string{"control_plane": {"10.0.0.0/24"}}}.YAML()
	if err != nil {
		t.Fatal(err)
	}
	const wantPeers = `version: 1
instance: demo
nodes:
    - name: pg-0
      role: postgres
      addresses: [10.20.1.10, 'fd00:20:1::10']
networks:
    control_plane:
        - 10.0.0.0/24
`
	if got != wantPeers {
		t.Errorf("peers.yaml:\n%s\nwant:\n%s", got, wantPeers)
	}
}

// What an agent can be told besides the minimum is passed on as it is.
func TestAgentFilesInFull(t *testing.T) {
	cfg := AgentConfig{Scope: "siblings", AcceptWide: []string{"applications"},
		Flows:    map[string]any{"exporter": map[string]any{"enabled": true}, "clients": map[string]any{"ports": []int{5433}}},
		Sysctl:   map[string]any{"leave": []string{"net.ipv4.tcp_rfc1337"}},
		Services: map[string]Service{"pgpool": {Profile: "pgpool", Helpers: []string{"/f.sh"}, MaxConnections: 32}}}
	got, err := cfg.yaml("/dir")
	if err != nil {
		t.Fatal(err)
	}
	const want = `version: 1
peers_file: peers.yaml
runtime_dir: /dir/run
state_dir: /dir/state
firewall:
    accept_wide:
        - applications
    scope: siblings
flows:
    clients:
        ports:
            - 5433
    exporter:
        enabled: true
sysctl:
    leave:
        - net.ipv4.tcp_rfc1337
agent:
    cgroup:
        mode: "off"
services:
    pgpool:
        profile: pgpool
        helpers:
            - /f.sh
        cgroup:
            mode: "off"
        max_connections: 32
`
	if got != want {
		t.Errorf("pghardend.yaml:\n%s\nwant:\n%s", got, want)
	}
}

func TestWriteFileReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"one", "two"} {
		if err := WriteFile(path, text); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil || string(data) != text {
			t.Errorf("%q, %v", data, err)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if got := tail(path); !strings.Contains(got, "no log") {
		t.Errorf("no file: %q", got)
	}
	if err := WriteFile(path, strings.Repeat("line\n", 10000)+"last\n"); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(tail(path), "\n")
	if len(got) != tailLines || got[len(got)-1] != "last" {
		t.Errorf("%d lines, the last is %q", len(got), got[len(got)-1])
	}
}

func TestModuleRoot(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	root, err := moduleRoot(dir)
	if err != nil || !exists(t, filepath.Join(root, "go.sum")) {
		t.Errorf("%s, %v", root, err)
	}
	if _, err := moduleRoot(t.TempDir()); err == nil {
		t.Error("found the module outside of it")
	}
}

// What is asked for inside a host is named in errors, not how it got in.
func TestVisible(t *testing.T) {
	for want, args := range map[string][]string{
		"psql -- x": {"nsenter", "--net=/x", "--", "setpriv", "--reuid=1", "--", "psql", "--", "x"},
		"ip -- a":   {"nsenter", "--net=/x", "--", "ip", "--", "a"},
	} {
		if got := strings.Join(visible(args), " "); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
