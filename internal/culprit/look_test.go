package culprit

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// fakeProc writes directories of /proc. exe is a link that leads nowhere.
func fakeProc(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if filepath.Base(name) == "exe" {
			err = os.Symlink(text, path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func status(uid, parent string) string {
	return "Name:\tx\nUmask:\t0022\nPid:\t40\nPPid:\t" + parent + "\nUid:\t" + uid + "\t0\t0\t0\nGid:\t0\t0\t0\t0\n"
}

func TestLook(t *testing.T) {
	const cmdline = "iptables\x00-D\x00INPUT\x00-m\x00comment\x00--comment\x00a b\x00"
	tests := []struct {
		name    string
		files   map[string]string
		command string
		want    Culprit
	}{
		{"all of it", map[string]string{
			"40/comm": "iptables\n", "40/exe": "/usr/sbin/xtables-nft-multi", "40/status": status("0", "12"), "40/cmdline": cmdline,
			"12/comm": "fail2ban-server\n",
		}, "iptables", Culprit{40, "iptables", 0, "/usr/sbin/xtables-nft-multi", "iptables -D INPUT -m comment --comment a b", "fail2ban-server (12)"}},
		{"gone", nil, "iptables", Culprit{PID: 40, Command: "iptables", UID: unknown}},
		{"the pid is another's by now", map[string]string{
			"40/comm": "postgres\n", "40/exe": "/usr/bin/postgres", "40/status": status("26", "1"), "40/cmdline": "postgres\x00", "1/comm": "systemd\n",
		}, "iptables", Culprit{PID: 40, Command: "iptables", UID: unknown}},
		{"the kernel gave no name", map[string]string{"40/comm": "nft\n", "40/exe": "/usr/sbin/nft", "40/status": status("0", "0"), "40/cmdline": "nft\x00flush\x00ruleset\x00"},
			"", Culprit{40, "nft", 0, "/usr/sbin/nft", "nft flush ruleset", ""}},
		{"ended while being read", map[string]string{"40/comm": "nft\n"}, "nft", Culprit{PID: 40, Command: "nft", UID: unknown}},
		{"arguments of another program may be secret", map[string]string{
			"40/comm": "python3\n", "40/exe": "/usr/bin/python3.11", "40/status": status("0", "1"), "40/cmdline": "python3\x00tool\x00--password=hunter2\x00", "1/comm": "systemd\n",
		}, "python3", Culprit{40, "python3", 0, "/usr/bin/python3.11", "python3", "systemd (1)"}},
		{"a title of its own may hold one", map[string]string{
			"40/comm": "d\n", "40/exe": "/usr/bin/d", "40/status": status("0", "0"), "40/cmdline": "d: login hunter2",
		}, "d", Culprit{40, "d", 0, "/usr/bin/d", "d:", ""}},
		{"a name that begins alike", map[string]string{"40/comm": "nftables-sync\n", "40/exe": "/opt/nftables-sync", "40/status": status("0", "0"), "40/cmdline": "nftables-sync\x00hunter2\x00"},
			"nftables-sync", Culprit{40, "nftables-sync", 0, "/opt/nftables-sync", "nftables-sync", ""}},
		{"replaced on disk", map[string]string{"40/comm": "nft\n", "40/exe": "/usr/sbin/nft (deleted)", "40/status": status("0", "0"), "40/cmdline": "nft\x00-f\x00x\x00"},
			"nft", Culprit{40, "nft", 0, "/usr/sbin/nft (deleted)", "nft -f x", ""}},
		{"not root's: its memory is not read", map[string]string{"40/comm": "nft\n", "40/exe": "/usr/sbin/nft", "40/status": status("1000", "0"), "40/cmdline": "nft\x00-f\x00x\x00"},
			"nft", Culprit{40, "nft", 1000, "/usr/sbin/nft", "", ""}},
		{"words that forge lines", map[string]string{
			"40/comm": "a\nb\x1b[2J\n", "40/exe": "/tmp/x\n\u202ey", "40/status": status("0", "12"), "40/cmdline": "a\x07\xff\x00", "12/comm": "p\rq\n",
		}, "a\nb\x1b[2J", Culprit{40, "a?b?[2J", 0, "/tmp/x??y", "a??", "p?q (12)"}},
		{"comm is a link", map[string]string{"40/exe": "/etc/passwd"}, "", Culprit{PID: 40, UID: unknown}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := look(t.Context(), fakeProc(t, tt.files), 40, tt.command)
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// A process' own directory may not lead us anywhere else.
func TestLookFollowsNoLink(t *testing.T) {
	proc := fakeProc(t, map[string]string{"40/status": status("0", "0"), "secret": "hunter2\n"})
	if err := os.Symlink("../secret", filepath.Join(proc, "40", "comm")); err != nil {
		t.Fatal(err)
	}
	if got := look(t.Context(), proc, 40, ""); got.Command != "" || got.UID != unknown {
		t.Errorf("got %+v", got)
	}
}

func TestLookIsCut(t *testing.T) {
	proc := fakeProc(t, map[string]string{
		"40/comm": "nft\n", "40/exe": "/usr/sbin/nft", "40/status": status("0", "0"), "40/cmdline": "nft\x00" + strings.Repeat("é", 100<<10),
	})
	got := look(t.Context(), proc, 40, "nft")
	if len(got.Args) > maxText || !strings.HasSuffix(got.Args, "…") || !utf8.ValidString(got.Args) {
		t.Errorf("%d bytes: %q", len(got.Args), got.Args)
	}
}

func TestLookEndsWithItsContext(t *testing.T) {
	proc := fakeProc(t, map[string]string{"40/comm": "nft\n", "40/status": status("0", "0")})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := look(ctx, proc, 40, "nft"); got.UID != unknown {
		t.Errorf("got %+v", got)
	}
}

// A child of ours, in the kernel's own words.
func TestLookAtAProcess(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "echo up; read line")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = cmd.Wait()
	}()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	got := Look(t.Context(), cmd.Process.Pid, "sh")
	if got.UID != os.Getuid() || got.Exe == "" || !strings.HasSuffix(got.Parent, "("+strconv.Itoa(os.Getpid())+")") {
		t.Errorf("got %+v", got)
	}
	if other := Look(t.Context(), cmd.Process.Pid, "nft"); other.Exe != "" || other.UID != unknown {
		t.Errorf("a process of another name is blamed: %+v", other)
	}
}

func FuzzLook(f *testing.F) {
	f.Add("iptables\n", status("0", "12"), "iptables\x00-F\x00", "iptables")
	f.Add("a b\n", "Uid:\t-1\nPPid:\t99999999999999999999\n", "\x00\x00", "")
	f.Add("", "Uid\nPPid:\n", "\xff\n", "\xff")
	f.Fuzz(func(t *testing.T, comm, status, cmdline, command string) {
		proc := fakeProc(t, map[string]string{"40/comm": comm, "40/status": status, "40/cmdline": cmdline, "40/exe": "/usr/sbin/nft"})
		c := look(t.Context(), proc, 40, command)
		if c.UID < unknown {
			t.Errorf("uid %d", c.UID)
		}
		for _, text := range []string{c.Command, c.Exe, c.Args, c.Parent} {
			if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("not printable: %q", text)
			}
		}
		if max(len(c.Command), len(c.Exe), len(c.Args), len(c.Parent)) > maxText {
			t.Errorf("too long: %+v", c)
		}
	})
}
