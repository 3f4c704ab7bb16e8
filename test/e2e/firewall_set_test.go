package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

func TestF15b_SetsChanged(t *testing.T) {
	// Takes the rules off the sets, so that these can be destroyed and renamed.
	const detach = "for I in $I4 $I6; do for C in IN OUT; do $I -F PGHARDEND-$C; done; done; "
	fwTestDrift(t, []fwDrift{
		{"added", "ipset add pgh4-pgpool 10.20.1.66", []string{"ipv4 set pgh4-pgpool: members differ\n  - 10.20.1.66/32\n", "!chain", "!ipv6"}},
		{"added v6", "ipset add pgh6-postgres fd00:20:1::66", []string{"ipv6 set pgh6-postgres: members differ\n  - fd00:20:1::66/128\n", "!ipv4"}},
		{"removed", "ipset del pgh4-control_plane 10.20.1.30", []string{"ipv4 set pgh4-control_plane: members differ\n  + 10.20.1.30/32\n"}},
		{"flushed", "ipset flush", []string{"ipv4 set pgh4-pgpool", "ipv6 set pgh6-pgpool"}},
		{"nomatch", "ipset del pgh4-pgpool 10.20.1.20; ipset add pgh4-pgpool 10.20.1.20 nomatch", []string{"- 10.20.1.20/32 nomatch", "+ 10.20.1.20/32"}},
		{"widened", "ipset add pgh4-pgpool 10.20.1.0/24", []string{"- 10.20.1.0/24"}},
		{"destroyed", detach + "ipset destroy pgh6-pgpool", []string{"ipv6 set pgh6-pgpool: missing", "ipv4 chain PGHARDEND-IN: differs"}},
		{"all destroyed", "$I4 -F; $I6 -F; $I4 -X DOCKER; ipset list -n | grep pgh | xargs -n1 ipset destroy", []string{"ipv4 set pgh4-pgpool: missing", "ipv6 set pgh6-ntp: missing"}},
		{"swapped", "ipset create other hash:net; ipset add other 10.20.1.66; ipset swap other pgh4-pgpool", []string{"set pgh4-pgpool: members differ", "- 10.20.1.66/32", "+ 10.20.1.20/32"}},
		{"renamed", detach + "ipset rename pgh4-postgres stolen", []string{"ipv4 set pgh4-postgres: missing"}},
		{"renamed within", detach + "ipset rename pgh4-postgres pgh4-old", []string{"ipv4 set pgh4-postgres: missing", "ipv4 set pgh4-old: not wanted"}},
		{"timeout", detach + "ipset destroy pgh4-dns; ipset create pgh4-dns hash:net timeout 600", []string{"ipv4 set pgh4-dns: has options: timeout 600"}},
		{"counters", detach + "ipset destroy pgh4-pgpool; ipset create pgh4-pgpool hash:net counters comment; ipset add pgh4-pgpool 10.20.1.20 comment 'a b'",
			[]string{"ipv4 set pgh4-pgpool: has options: counters comment"}},
		{"wrong type", detach + "ipset destroy pgh4-pgpool; ipset create pgh4-pgpool hash:ip; ipset add pgh4-pgpool 10.20.1.66", []string{"is a hash:ip of family inet, not hash:net inet"}},
		{"wrong family", detach + "ipset destroy pgh6-pgpool; ipset create pgh6-pgpool hash:net; ipset add pgh6-pgpool 10.20.1.66", []string{"is a hash:net of family inet, not hash:net inet6"}},
		{"too small", detach + "ipset destroy pgh4-control_plane; ipset create pgh4-control_plane hash:net maxelem 1; ipset add pgh4-control_plane 10.20.1.66", []string{"- 10.20.1.66/32"}},
		{"left over", "ipset create pgh4.pgpool hash:net; ipset flush pgh4-pgpool", []string{"ipv4 set pgh4.pgpool: left over", "set pgh4-pgpool: members differ"}},
	})
}

// A set of the wrong type that our own rules use: they must let go of it first.
func TestF15b_WrongTypeInUse(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.sh(`ipset create pgh4-pgpool hash:ip; ipset add pgh4-pgpool 10.20.1.66
			for C in PGHARDEND-IN PGHARDEND-OLD; do $I4 -N $C; $I4 -A $C -m set --match-set pgh4-pgpool src -j ACCEPT; done`)
		p := b.reconcile().String()
		if !strings.Contains(p, "ipv4 set pgh4-pgpool: is a hash:ip") {
			t.Errorf("plan:\n%s", p)
		}
	})
}

// What cannot be repaired must not keep the rest from being repaired.
func TestF15b_SetHeldByForeignRule(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.reconcile()
		b.sh(`ipset create pgh4.pgpool hash:net; ipset create pgh4-old hash:net
			$I4 -A FORWARD -m set --match-set pgh4.pgpool src -m set --match-set pgh4-old src -j DROP
			ipset flush pgh4-pgpool; ipset flush pgh4-postgres; ipset flush pgh6-pgpool; $I6 -F PGHARDEND-OUT`)
		err := b.apply(b.plan())
		if err == nil || !strings.Contains(err.Error(), "cannot remove the set pgh4.pgpool; if a foreign rule names it, remove that rule") {
			t.Errorf("error %v", err)
		}
		left := b.plan().String()
		if want := "ipv4 set pgh4-old: not wanted\nipv4 set pgh4.pgpool: left over\n"; left != want {
			t.Errorf("not repaired:\n%swant only\n%s", left, want)
		}
		b.sh("$I4 -D FORWARD -m set --match-set pgh4.pgpool src -m set --match-set pgh4-old src -j DROP")
		b.reconcile()
	})
}

func TestF17_OlderVersionsChainsAndSets(t *testing.T) {
	fwTestDrift(t, []fwDrift{
		{"chains", `$I4 -N PGHARDEND-OLD; $I4 -N PGHARDEND-OLDER; $I4 -A PGHARDEND-OLD -j PGHARDEND-OLDER; $I4 -A PGHARDEND-OLDER -m set --match-set pgh4-pgpool src -j ACCEPT
			$I4 -I INPUT -m comment --comment pghardend:jump -j PGHARDEND-OLD`,
			[]string{"ipv4 chain PGHARDEND-OLD: not wanted", "- -j PGHARDEND-OLDER", "ipv4 jump INPUT: there more than once", "!ipv6"}},
		{"set", "ipset create pgh6-gone hash:net family inet6; $I6 -N PGHARDEND-OLD; $I6 -A PGHARDEND-OLD -m set --match-set pgh6-gone src -j ACCEPT",
			[]string{"ipv6 set pgh6-gone: not wanted", "ipv6 chain PGHARDEND-OLD: not wanted"}},
		{"used by a foreign chain", "$I4 -N PGHARDEND-OLD; $I4 -A PGHARDEND-OLD -j ACCEPT; $I4 -A DOCKER-USER -j PGHARDEND-OLD",
			[]string{"ipv4 chain PGHARDEND-OLD: not wanted\n  - -j ACCEPT"}},
	})
}

// rewriteAll is a plan that writes every chain anew and swaps every set, from
// an observation in which all of them differ.
func (b *fwBed) rewriteAll() firewall.Plan {
	got := b.observe()
	for _, fam := range firewall.Families {
		for _, chain := range []string{firewall.ChainIn, firewall.ChainOut, firewall.ChainFwd, firewall.ChainICMP, firewall.ChainMetadata} {
			got.Tables[fam].Chains[chain] = nil
		}
	}
	got.Tables[firewall.RawIPv6].Chains[firewall.ChainRPF] = nil
	for name, set := range got.Sets {
		set.Members = []string{"differs"}
		got.Sets[name] = set
	}
	return firewall.Diff(b.want, got)
}

// F9, F10: another tool writes rules at the same time. Neither loses anything.
func TestF10_ForeignWriterAtTheSameTime(t *testing.T) {
	const rules = 50
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.reconcile()
		all := b.rewriteAll()
		written := make(chan error, 1)
		go func() {
			written <- b.node.Do(func() error { // not by a shell in the node: that has a lock file of its own
				for i := range rules {
					args := []string{"-w", "20", "-A", "INPUT", "-s", fmt.Sprintf("192.0.2.%d", i), "-j", "DROP"}
					if out, err := exec.Command("iptables-"+b.backend, args...).CombinedOutput(); err != nil {
						return fmt.Errorf("foreign rule %d: %w: %s", i, err, out)
					}
				}
				return nil
			})
		}()
		for done := false; !done; {
			if err := b.apply(all); err != nil {
				t.Errorf("rewrite: %v", err)
			}
			select {
			case err := <-written:
				fwMust(t, err)
				done = true
			default:
			}
		}
		if n := strings.Count(b.sh("$I4 -S INPUT"), "192.0.2."); n != rules {
			t.Errorf("%d of %d foreign rules are there", n, rules)
		}
		if p := b.plan(); !p.Empty() {
			t.Errorf("left to do:\n%s", p)
		}
	})
}

// Invariant 3: while all chains are rewritten and all sets are swapped 200
// times, no packet of the stranger is answered, and no peer's is lost: not one
// segment of a session or of a new connection is sent twice.
func TestFirewallRewriteIsAtomic(t *testing.T) {
	const rewrites = 200
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.reconcile()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		for _, fam := range firewall.Families {
			_, err := b.node.ServeTCP(ctx, netip.AddrPortFrom(fwAddr(b.node, fam), 5432))
			fwMust(t, err)
		}
		all := b.rewriteAll()
		for _, want := range []string{"ipv4 chain PGHARDEND-IN", "ipv6 chain PGHARDEND-ICMP", "ipv6 chain raw PGHARDEND-RPF", "ipv4 set pgh4-pgpool: members differ", "ipv6 set pgh6-control_plane: members differ"} {
			if !strings.Contains(all.String(), want) {
				t.Fatalf("the plan does not rewrite all; no %q:\n%s", want, all)
			}
		}
		done := make(chan struct{})
		var wg sync.WaitGroup
		var probed, connected int
		wg.Go(func() { probed = fwProbeUntil(t, b, done) })
		wg.Go(func() { connected = fwConnectUntil(ctx, t, b, done) })
		for range rewrites {
			if err := b.apply(all); err != nil {
				t.Errorf("rewrite: %v", err)
				break
			}
		}
		close(done)
		wg.Wait()
		t.Logf("%d rewrites, %d probes of the stranger, %d connections of the peer", rewrites, probed, connected)
		if probed < 500 || connected < 100 {
			t.Errorf("too little traffic to say anything: %d probes, %d connections", probed, connected)
		}
		if p := b.plan(); !p.Empty() {
			t.Errorf("left to do:\n%s", p)
		}
	})
}

func fwProbeUntil(t *testing.T, b *fwBed, done chan struct{}) (sent int) {
	for {
		select {
		case <-done:
			return sent
		default:
		}
		var probes []testbed.Probe
		for range 32 {
			probes = append(probes, testbed.TCPProbe(netip.AddrPortFrom(b.node.V4(), 5432), testbed.SYN), testbed.TCPProbe(netip.AddrPortFrom(b.node.V4(), 5432), testbed.ACK))
		}
		out, err := b.stranger.Send(t.Context(), probes...)
		if err != nil || out.Answered != 0 || out.Arrived != len(probes) {
			t.Errorf("stranger: %s %v %v", out, out.Answers, err)
			return sent
		}
		sent += out.Sent
	}
}

func fwConnectUntil(ctx context.Context, t *testing.T, b *fwBed, done chan struct{}) (n int) {
	for {
		for _, fam := range firewall.Families {
			if err := fwSession(ctx, b, fam); err != nil {
				t.Errorf("peer, %s, connection %d: %v", fam, n, err)
				return n
			}
			n++
		}
		select {
		case <-done:
			return n
		default:
		}
	}
}

// fwSession opens a connection, has 20 lines echoed and fails if any segment
// had to be sent twice.
func fwSession(ctx context.Context, b *fwBed, fam firewall.Family) error {
	return fwSessionAt(ctx, b, netip.AddrPortFrom(fwAddr(b.node, fam), 5432))
}

func fwSessionAt(ctx context.Context, b *fwBed, at netip.AddrPort) error {
	conn, err := b.peer.Dial(ctx, "tcp", at)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	buf := make([]byte, 16)
	for range 20 {
		if _, err := conn.Write([]byte("line\n")); err != nil {
			return err
		}
		if _, err := conn.Read(buf); err != nil {
			return err
		}
	}
	return fwNoRetransmissions(conn)
}

func fwNoRetransmissions(conn net.Conn) error {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	var infoErr error
	err = raw.Control(func(fd uintptr) { info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err = errors.Join(err, infoErr); err == nil && info.Total_retrans > 0 {
		err = fmt.Errorf("%d segments had to be sent again", info.Total_retrans)
	}
	return err
}
