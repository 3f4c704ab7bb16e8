package sandbox

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What the kernel gives back is tested as root, in test/e2e.

func TestDigest(t *testing.T) {
	// printf '\x06\x00\x00\x00\x00\x00\xff\x7f' | sha256sum
	const allow = "sha256:40b2a31e1a78576bb4afdf1433867d0cc67b769635ef549fba81c7d37570520f"
	a := digest([]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}})
	if a != allow {
		t.Errorf("%s, want %s", a, allow)
	}
	for _, other := range []unix.SockFilter{
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_LOG},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_A, K: unix.SECCOMP_RET_ALLOW},
	} {
		if digest([]unix.SockFilter{other}) == a {
			t.Errorf("%+v has the digest of another", other)
		}
	}
	if (*Filter)(nil).Digest() == a || (*Filter)(nil).Digest() != (&Filter{}).Digest() {
		t.Error("no filter has the digest of one")
	}
}

// Who may not attach, or finds no filter, is told so, and the process goes on.
func TestLoadedFiltersWithoutFilter(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	got, err := LoadedFilters(t.Context(), fd, cmd.Process.Pid, cmd.Process.Pid)
	if err == nil || got != nil || !strings.Contains(err.Error(), "cannot read the seccomp filters of thread") {
		t.Errorf("read %v, %v", got, err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("cat: %v", err)
	}
	if _, err := LoadedFilters(t.Context(), fd, cmd.Process.Pid, cmd.Process.Pid); err == nil || !strings.Contains(err.Error(), os.ErrProcessDone.Error()) {
		t.Errorf("a process that has ended: %v", err)
	}
}
