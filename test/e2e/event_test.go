package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/culprit"
	"github.com/pghardend/pghardend/pkg/audit"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// watch listens for commits inside the node.
func (b *fwBed) watch() *firewall.Watcher {
	b.t.Helper()
	var w *firewall.Watcher
	fwMust(b.t, b.node.Do(func() (err error) {
		w, err = firewall.WatchCommits()
		return err
	}))
	b.t.Cleanup(func() { _ = w.Close() })
	return w
}

const (
	evSoon  = 10 * time.Second
	evQuiet = 100 * time.Millisecond // after which nothing more is believed to come
)

// evNext is the next commit.
func evNext(t *testing.T, w *firewall.Watcher) firewall.Commit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), evSoon)
	defer cancel()
	c, err := w.Next(ctx)
	if err != nil {
		t.Fatalf("no commit: %v", err)
	}
	return c
}

// evAll is every commit until it is quiet.
func evAll(t *testing.T, w *firewall.Watcher) []firewall.Commit {
	t.Helper()
	var all []firewall.Commit
	for {
		ctx, cancel := context.WithTimeout(t.Context(), evQuiet)
		c, err := w.Next(ctx)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return all
		case err != nil:
			t.Fatal(err)
		}
		all = append(all, c)
	}
}

// Each way to change rules is heard of once, with who it was, and none is
// taken for ours.
func TestF01_CommitsAreHeard(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.reconcile()
	w := b.watch()
	tests := []struct {
		name, script, command string
		commits               int
	}{
		{"flush of a chain", "echo $$; exec iptables-nft -F PGHARDEND-IN", "iptables-nft", 1},
		{"delete of a jump", "echo $$; exec ip6tables-nft -D INPUT -m comment --comment pghardend:jump -j PGHARDEND-IN", "ip6tables-nft", 1},
		{"restore", `echo $$; exec iptables-nft-restore --noflush <<E
*filter
-A PGHARDEND-IN -j ACCEPT
COMMIT
E`, "iptables-nft-re", 1},
		{"nft", "echo $$; exec nft add rule ip filter INPUT accept", "nft", 1},
		{"everything", "echo $$; exec nft flush ruleset", "nft", 1},
		{"a listing", "echo $$; exec iptables-nft -S", "", 0},
		{"a set, which is no rule", "echo $$; exec ipset create foreign hash:ip", "", 0},
		{"the other backend, which is not announced", "echo $$; exec iptables-legacy -N FOREIGN", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var pid int
			if _, err := fmt.Sscan(b.sh(tt.script), &pid); err != nil {
				t.Fatal(err)
			}
			commits := evAll(t, w)
			if len(commits) != tt.commits {
				t.Fatalf("%d commits, want %d: %+v", len(commits), tt.commits, commits)
			}
			for _, c := range commits {
				if c.Process() != pid || c.Command != tt.command || c.Generation == 0 || time.Since(c.At) > evSoon {
					t.Errorf("got %+v, want pid %d and command %s", c, pid, tt.command)
				}
				if b.fw.Own(c) {
					t.Errorf("%+v is taken for ours", c)
				}
			}
		})
	}
}

// Our own repairs are told apart, though another's follow them at once.
func TestCommitsOfOurs(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	w := b.watch()
	b.reconcile()
	ours := evAll(t, w)
	if len(ours) == 0 {
		t.Fatal("our own commits are not heard of, so the test shows nothing")
	}
	for _, c := range ours {
		if !b.fw.Own(c) {
			t.Errorf("%+v is not taken for ours", c)
		}
	}
	other, err := firewall.Open(t.Context(), firewall.BackendNFT)
	fwMust(t, err)
	b.sh("$I4 -F PGHARDEND-IN; $I6 -F PGHARDEND-IN")
	b.reconcile()
	var foreign, own int
	for _, c := range evAll(t, w) {
		if b.fw.Own(c) {
			own++
		} else {
			foreign++
		}
		if other.Own(c) {
			t.Errorf("%+v is taken for another Firewall's", c)
		}
	}
	if foreign != 2 || own != 2 {
		t.Errorf("%d foreign commits and %d of ours, want 2 and 2", foreign, own)
	}
}

// A transaction of any size is one message: docker's restart does not lose us
// anything, and does not wake us for each of its rules.
func TestF07_LargeTransactionIsOneCommit(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	w := b.watch()
	var rules strings.Builder
	rules.WriteString("add table ip docker\nadd chain ip docker c\n")
	for i := range 20000 {
		fmt.Fprintf(&rules, "add rule ip docker c ip saddr 198.51.%d.%d accept\n", i>>8&255, i&255)
	}
	cmd := b.node.Command(t.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	if commits := evAll(t, w); len(commits) != 1 || commits[0].Process() != cmd.Process.Pid {
		t.Errorf("got %+v, want one commit of pid %d", commits, cmd.Process.Pid)
	}
}

// An overrun is said once, and then the watch goes on: what comes after it is
// heard.
func TestF07_OverrunIsSaidOnceAndWatchingGoesOn(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	w := b.watch()
	var commits int
	fwMust(t, b.node.Do(func() (err error) {
		commits, err = evFlood(20000)
		return err
	}))
	ctx, cancel := context.WithTimeout(t.Context(), evSoon)
	defer cancel()
	if c, err := w.Next(ctx); !errors.Is(err, firewall.ErrOverrun) {
		t.Fatalf("after %d commits that nobody read: %+v, %v", commits, c, err)
	}
	if left := evAll(t, w); len(left) != 0 {
		t.Errorf("%d commits from before the overrun are left, which a look has seen", len(left))
	}
	b.sh("nft add table ip after")
	if c := evNext(t, w); c.Command != "nft" {
		t.Errorf("after the overrun: %+v", c)
	}
}

// evFlood commits n times as fast as it can: a table is made and removed.
func evFlood(n int) (int, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	name, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: []byte("flood\x00")}})
	if err != nil {
		return 0, err
	}
	control := []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES}
	table := append([]byte{unix.AF_INET, 0, 0, 0}, name...)
	types := []uint16{unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE}
	for i := range n {
		batch := evMessage(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, control)
		flags := uint16(unix.NLM_F_REQUEST | unix.NLM_F_CREATE)
		batch = append(batch, evMessage(unix.NFNL_SUBSYS_NFTABLES<<8|types[i%2], flags, table)...)
		batch = append(batch, evMessage(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, control)...)
		if err := evSend(conn, batch); err != nil {
			return i, err
		}
	}
	return n, nil
}

func evMessage(typ, flags uint16, data []byte) []byte {
	msg := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(data))
	binary.NativeEndian.PutUint32(msg, uint32(unix.NLMSG_HDRLEN+len(data)))
	binary.NativeEndian.PutUint16(msg[4:], typ)
	binary.NativeEndian.PutUint16(msg[6:], flags)
	return append(msg, data...)
}

func evSend(conn *netlink.Conn, batch []byte) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendto(int(fd), batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return true
	})
	return errors.Join(err, sendErr)
}

// A Next that waits ends with its context, and with Close.
func TestWatchEnds(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	w := b.watch()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	next := func(ctx context.Context) {
		_, err := w.Next(ctx)
		ended <- err
	}
	go next(ctx)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("after its context: %v", err)
	}
	b.sh("nft add table ip later")
	if c := evNext(t, w); c.Command != "nft" {
		t.Errorf("got %+v: an ended context has an effect on the next call", c)
	}
	go next(t.Context())
	fwMust(t, w.Close())
	if err := <-ended; err == nil || errors.Is(err, firewall.ErrOverrun) {
		t.Errorf("after Close: %v", err)
	}
}

// F1: the culprit of a commit has a name, an executable, arguments and a parent.
func TestF01_CulpritOfACommit(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.reconcile()
	w := b.watch()
	cmd := b.node.Command(t.Context(), "/bin/sh", "-c", "nft -i; exit 0") // it lives on after its commit, until its input ends
	stdin, err := cmd.StdinPipe()
	fwMust(t, err)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	fwMust(t, cmd.Start())
	_, err = fmt.Fprintln(stdin, "flush chain ip filter PGHARDEND-IN")
	fwMust(t, err)
	c := evNext(t, w)
	who := culprit.Look(t.Context(), c.Process(), c.Command)
	fwMust(t, stdin.Close())
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	parent := fmt.Sprintf("sh (%d)", cmd.Process.Pid)
	if who.Command != "nft" || who.UID != 0 || !strings.HasSuffix(who.Exe, "/nft") || who.Args != "nft -i" || who.Parent != parent {
		t.Errorf("got %+v, want nft -i, by %s", who, parent)
	}
	if gone := culprit.Look(t.Context(), c.Process(), c.Command); gone.Exe != "" || gone.Command != "nft" || gone.PID != c.Process() {
		t.Errorf("after its end: %+v", gone)
	}
}

// A syscall that a filter denies is heard of, be auditing on or off, if the
// filter asks for it. The kernel tells the first network namespace alone, so this
// is a test for there.
func TestAuditHearsOfADeniedSyscall(t *testing.T) {
	w, err := audit.Watch()
	if w == nil || (err != nil && !errors.Is(err, audit.ErrOff)) {
		t.Fatalf("cannot watch: %v", err)
	}
	defer w.Close()
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine, and with it the filter
		if err := evDenyGetppid(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), evSoon)
	defer cancel()
	for {
		r, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("no record of the denied syscall: %v", err)
		}
		if d := r.Denial; d != nil && d.Syscall == "getppid" && d.PID == unix.Getpid() {
			if d.Action != audit.ActionErrno || !d.Known || d.UID != 0 || !strings.HasSuffix(d.Exe, "e2e.test") {
				t.Errorf("got %+v", *d)
			}
			return
		}
	}
}

// Where no record can arrive, the watch says so.
func TestAuditElsewhere(t *testing.T) {
	b := fwNew(t, firewall.BackendLegacy)
	fwMust(t, b.node.Do(func() error {
		w, err := audit.Watch()
		if w != nil {
			defer w.Close()
		}
		if w == nil || !errors.Is(err, audit.ErrElsewhere) {
			return fmt.Errorf("in another network namespace: %v, %w", w, err)
		}
		return nil
	}))
}

// evDenyGetppid loads a filter for the calling thread that denies getppid, and
// calls it.
func evDenyGetppid() error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_GETPPID},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_LOG, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0); errno != unix.EPERM {
		return fmt.Errorf("getppid is not denied: %w", errno)
	}
	return nil
}
