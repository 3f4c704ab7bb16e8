package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// loadPrevious gives the node the rules and sets that the version before this
// one wrote, from what iptables-save and ipset save said of them.
func (b *fwBed) loadPrevious(role string) {
	b.t.Helper()
	dir, err := filepath.Abs("testdata/previous")
	fwMust(b.t, err)
	base := filepath.Join(dir, role+"-"+b.backend)
	b.sh(fmt.Sprintf("ipset restore < %s.ipset; $I4-restore < %[1]s-ipv4.rules; $I6-restore < %[1]s-ipv6.rules", base))
}

// The rules of the version before are recognised as ours and replaced while
// traffic flows: a kept peer loses no packet, no packet of a stranger gets in,
// and nothing is left of the old rules.
func TestF17_UpgradeUnderTraffic(t *testing.T) {
	const rounds = 10
	for _, role := range []string{"postgres", "pgpool"} {
		fwBackends(t, func(t *testing.T, b *fwBed) {
			b.spec.Role = role
			b.spec.Members["applications"] = fwPrefixes("10.50.0.0/16", "fd00:50::/64")
			for i := range b.spec.Flows {
				if b.spec.Flows[i].Limited {
					b.spec.Flows[i].Connections, b.spec.Flows[i].NewPerSecond = 1000, 1000
				}
			}
			b.want = fwRender(t, b.spec)
			tcp := uint16(5432)
			if role == "pgpool" {
				tcp = 9898
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			for _, fam := range firewall.Families {
				_, err := b.node.ServeTCP(ctx, netip.AddrPortFrom(fwAddr(b.node, fam), tcp))
				fwMust(t, err)
				_, err = b.node.ServeUDP(ctx, netip.AddrPortFrom(fwAddr(b.node, fam), 9694))
				fwMust(t, err)
			}
			if !fwCanConnect(t, b.stranger, b.node, firewall.IPv4, tcp) {
				t.Fatal("without rules the stranger cannot connect; the test proves nothing")
			}
			b.loadPrevious(role)
			first := b.plan().String()
			for _, want := range []string{"ipv4 chain PGHARDEND-IN: differs", "ipv4 chain PGHARDEND-META: missing", "ipv6 chain raw PGHARDEND-RPF: missing", "ipv6 set pgh6-open: missing"} {
				if !strings.Contains(first, want) {
					t.Fatalf("%s: these are not the rules of the version before; no %q in\n%s", role, want, first)
				}
			}
			for _, absent := range []string{"ipv4 jump", "ipv6 jump INPUT", "chain PGHARDEND-ICMP: ", "chain PGHARDEND-FWD: ", "not wanted", "set pgh4-pgpool: "} {
				if strings.Contains(first, absent) {
					t.Errorf("%s: %q in the plan, though nothing changes there:\n%s", role, absent, first)
				}
			}
			traffic := fwStartTraffic(ctx, b, tcp, role == "pgpool")
			for range rounds {
				b.downgradeChains(role)
				b.reconcile()
			}
			traffic.end(t, rounds)
			if left := b.sh("$I4-save; $I6-save; ipset list -n"); strings.Count(left, "-j PGHARDEND-IN") != 2 {
				t.Errorf("left:\n%s", left)
			}
		})
	}
}

// downgradeChains puts the old chains back in place, as a downgrade would: in one
// transaction for each table, by jumps that stay.
func (b *fwBed) downgradeChains(role string) {
	b.t.Helper()
	dir, err := filepath.Abs("testdata/previous")
	fwMust(b.t, err)
	base := filepath.Join(dir, role+"-"+b.backend)
	b.sh(fmt.Sprintf(`for F in 4 6; do
		grep -vE '^-A (INPUT|OUTPUT|FORWARD) |^:(INPUT|OUTPUT|FORWARD) ' %s-ipv$F.rules > /run/old
		if [ $F = 4 ]; then $I4-restore --noflush < /run/old; else $I6-restore --noflush < /run/old; fi
	done`, base))
}

// fwTraffic is what runs while rules change.
type fwTraffic struct {
	stop     chan struct{}
	wg       sync.WaitGroup
	mu       sync.Mutex
	errs     []error
	sessions int // new connections of the peer, each of 20 lines
	lines    int // answered on connections that were open all the time
	probes   int // of the stranger
}

// fwStartTraffic has a peer open connections and use old ones, over TCP and,
// where a row allows it, UDP, and a stranger probe the same ports.
func fwStartTraffic(ctx context.Context, b *fwBed, port uint16, udp bool) *fwTraffic {
	tr := &fwTraffic{stop: make(chan struct{})}
	for _, fam := range firewall.Families {
		at := netip.AddrPortFrom(fwAddr(b.node, fam), port)
		tr.run(&tr.sessions, func() (int, error) { return 1, fwSessionAt(ctx, b, at) })
		tr.stream(ctx, b, "tcp", at)
		if udp {
			tr.stream(ctx, b, "udp", netip.AddrPortFrom(fwAddr(b.node, fam), 9694))
		}
		tr.run(&tr.probes, func() (int, error) {
			var probes []testbed.Probe
			for range 16 {
				probes = append(probes, testbed.TCPProbe(at, testbed.SYN), testbed.TCPProbe(at, testbed.ACK), testbed.UDPProbe(netip.AddrPortFrom(at.Addr(), 9694), []byte("x")))
			}
			out, err := b.stranger.Send(ctx, probes...)
			if err == nil && (out.Answered != 0 || out.Arrived != len(probes)) {
				err = fmt.Errorf("stranger: %s %v", out, out.Answers)
			}
			return out.Sent, err
		})
	}
	return tr
}

// run repeats f until the end or its first error.
func (tr *fwTraffic) run(count *int, f func() (int, error)) {
	tr.wg.Go(func() {
		for {
			select {
			case <-tr.stop:
				return
			default:
			}
			n, err := f()
			tr.mu.Lock()
			*count += n
			if err != nil {
				tr.errs = append(tr.errs, err)
			}
			tr.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
}

// stream has numbered lines echoed on one connection; a line that is lost, late
// or out of order is an error.
func (tr *fwTraffic) stream(ctx context.Context, b *fwBed, network string, at netip.AddrPort) {
	conn, err := b.peer.Dial(ctx, network, at)
	fwMust(b.t, err)
	b.t.Cleanup(func() { conn.Close() })
	buf := make([]byte, 64)
	next := 0
	tr.run(&tr.lines, func() (int, error) {
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return 0, err
		}
		next++
		line := fmt.Sprintf("line %d\n", next)
		if _, err := conn.Write([]byte(line)); err != nil {
			return 0, fmt.Errorf("%s %s, line %d: %w", network, at, next, err)
		}
		n, err := conn.Read(buf)
		if err == nil && string(buf[:n]) != line {
			err = fmt.Errorf("got %q", buf[:n])
		}
		if err == nil && network == "tcp" && next%50 == 0 {
			err = fwNoRetransmissions(conn)
		}
		if err != nil {
			return 0, fmt.Errorf("%s %s, line %d: %w", network, at, next, err)
		}
		return 1, nil
	})
}

func (tr *fwTraffic) end(t *testing.T, rounds int) {
	t.Helper()
	close(tr.stop)
	tr.wg.Wait()
	t.Logf("%d changes of rules, %d new connections, %d lines on old ones, %d probes of the stranger", rounds, tr.sessions, tr.lines, tr.probes)
	if err := errors.Join(tr.errs...); err != nil {
		t.Error(err)
	}
	if tr.sessions < 20 || tr.lines < 100 || tr.probes < 100 {
		t.Error("too little traffic to say anything")
	}
}
