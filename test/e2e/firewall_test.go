package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

func TestFirewallApplyOnEmptyNamespace(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		for _, role := range []string{"postgres", "pgpool"} {
			b.spec.Role = role
			b.want = fwRender(t, b.spec)
			if p := b.reconcile(); p.Empty() { // reconcile checks that a second plan is empty
				t.Fatalf("%s: nothing to do in an empty namespace", role)
			}
		}
	})
}

// The longest names, the most ports, rates that are no round numbers, and
// addresses that are printed in more than one way all come back from the kernel
// as they went in.
func TestFirewallExtremesReadBack(t *testing.T) {
	long := strings.Repeat("x", 24)
	var ports []uint16
	for i := range uint16(15) {
		ports = append(ports, 65535-i)
	}
	flows := []firewall.Flow{
		{Name: strings.Repeat("n", 32), Proto: firewall.ProtoTCP, Ports: ports, From: []string{long, "postgres"}, To: []string{"postgres", long}},
		{Name: "udp", Proto: firewall.ProtoUDP, Ports: ports, From: []string{"postgres"}, To: []string{"postgres"}},
	}
	for _, rate := range []int{1, 2, 3, 5, 7, 60, 999, 1000} {
		name := fmt.Sprintf("%s%04d", strings.Repeat("e", 28), rate)
		flows = append(flows, firewall.Flow{Name: name, Proto: firewall.ProtoEcho, Rate: rate, From: []string{long}, To: []string{"postgres"}})
	}
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.want = fwRender(t, firewall.Spec{Role: "postgres", Flows: flows, Members: map[string][]netip.Prefix{
			long:       fwPrefixes("0.0.0.0/1", "10.0.0.0/31", "::a00:1/128", "::a00:0/120", "8000::/1", "64:ff9b::a00:1/128"),
			"postgres": fwPrefixes("255.255.255.255/32", "::1/128", "10.0.0.0/8", "10.1.0.0/16"),
		}})
		b.reconcile()
		b.sh("ipset flush")
		b.reconcile() // the swap, by the longest names there are
	})
}

func TestFirewallKeepsForeignState(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.sh(fwForeign)
		before := b.foreign()
		if !strings.Contains(before, "f2b-sshd") || !strings.Contains(before, "blocklist") {
			t.Fatalf("the foreign state is not there:\n%s", before)
		}
		b.reconcile()
		fwSame(t, before, b.foreign())
		b.sh("for I in $I4 $I6; do $I -F PGHARDEND-IN; $I -D OUTPUT 1; done; ipset flush pgh4-pgpool")
		b.reconcile()
		fwSame(t, before, b.foreign())
	})
}

func TestFirewallTeardown(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.sh(fwForeign)
		before := b.foreign()
		b.reconcile()
		b.sh(`$I4 -N PGHARDEND-OLD; $I4 -A PGHARDEND-OLD -j PGHARDEND-ICMP; ipset create pgh4.pgpool hash:net`)
		var removed []string
		fwMust(t, b.node.Do(func() (err error) {
			removed, err = firewall.Teardown(t.Context())
			return err
		}))
		for _, want := range []string{
			"removed ipv4 jump INPUT (" + b.backend + ")", "removed ipv6 chain PGHARDEND-ICMP (" + b.backend + ")",
			"removed ipv6 jump raw PREROUTING (" + b.backend + ")", "removed ipv6 chain raw PGHARDEND-RPF (" + b.backend + ")", "removed ipv4 set pgh4-open",
			"removed ipv4 chain PGHARDEND-OLD (" + b.backend + ")", "removed ipv4 set pgh4-postgres", "removed ipv4 set pgh4.pgpool",
		} {
			if !strings.Contains(strings.Join(removed, "\n"), want) {
				t.Errorf("not reported: %s\nin:\n%s", want, strings.Join(removed, "\n"))
			}
		}
		left := b.sh("$I4-save; $I6-save; ipset save") // exact: nothing may be left, not even an empty chain
		if strings.Contains(left, "-A INPUT -m comment --comment \"pghardend:jump\"") || strings.Contains(left, ":PGHARDEND") || strings.Contains(left, "pgh4") {
			t.Errorf("left behind:\n%s", left)
		}
		fwSame(t, before, b.foreign())
	})
}

// What the rules do, seen from the neighbours, in both families.
func TestFirewallIsolation(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		ctx := t.Context()
		for _, fam := range firewall.Families {
			for _, port := range []uint16{22, 5432, 8008} {
				_, err := b.node.ServeTCP(ctx, netip.AddrPortFrom(fwAddr(b.node, fam), port))
				fwMust(t, err)
			}
			for _, h := range []*testbed.Host{b.peer, b.stranger} {
				_, err := h.ServeTCP(ctx, netip.AddrPortFrom(fwAddr(h, fam), 5432))
				fwMust(t, err)
			}
		}
		b.reconcile()
		for _, fam := range firewall.Families {
			for _, c := range []struct {
				from, to *testbed.Host
				port     uint16
				open     bool
			}{
				{b.peer, b.node, 5432, true},
				{b.peer, b.node, 22, false},
				{b.peer, b.node, 8008, false},
				{b.control, b.node, 22, true},
				{b.control, b.node, 5432, false},
				{b.stranger, b.node, 22, false},
				{b.stranger, b.node, 5432, false},
				{b.node, b.stranger, 5432, false},
				{b.node, b.peer, 5432, false}, // a pgpool is no postgres
			} {
				if got := fwCanConnect(t, c.from, c.to, fam, c.port); got != c.open {
					t.Errorf("%s: %s to %s port %d: open %v, want %v", fam, c.from.Name(), c.to.Name(), c.port, got, c.open)
				}
			}
			fwStrangerGetsNothing(t, b, fam)
		}
	})
}

// fwCanConnect sends a SYN. It fails unless the outcome is clear: answered by
// SYN|ACK, or dropped by the sender on its way out or by the target on its way in.
func fwCanConnect(t *testing.T, from, to *testbed.Host, fam firewall.Family, port uint16) bool {
	t.Helper()
	out, err := from.Send(t.Context(), testbed.TCPProbe(netip.AddrPortFrom(fwAddr(to, fam), port), testbed.SYN))
	fwMust(t, err)
	switch {
	case out.Denied == 1 && out.Arrived == 0, out.Arrived == 1 && len(out.Answers) == 0:
		return false
	case out.Arrived >= 1 && out.Answered == 1 && out.Answers[0].Flags == testbed.SYN|testbed.ACK:
		return true
	}
	t.Errorf("%s: %s to %s port %d: %s %v", fam, from.Name(), to.Name(), port, out, out.Answers)
	return false
}

// fwStrangerGetsNothing scans the node from the stranger with every kind of
// segment and with other protocols.
func fwStrangerGetsNothing(t *testing.T, b *fwBed, fam firewall.Family) {
	t.Helper()
	to := fwAddr(b.node, fam)
	probes := testbed.SYNScan(to, 1, 1024)
	for _, flags := range []testbed.TCPFlags{testbed.ACK, testbed.FIN, testbed.RST, testbed.XMAS, 0, testbed.SYN | testbed.ACK} {
		for _, port := range []uint16{22, 5432, 8008} {
			probes = append(probes, testbed.TCPProbe(netip.AddrPortFrom(to, port), flags))
		}
	}
	probes = append(probes, testbed.UDPProbe(netip.AddrPortFrom(to, 9694), []byte("x")),
		testbed.ProtoProbe(to, testbed.ProtoGRE), testbed.ProtoProbe(to, testbed.ProtoSCTP))
	probes = append(probes, testbed.EchoProbes(to, 10)...)
	out, err := b.stranger.Send(t.Context(), probes...)
	fwMust(t, err)
	if out.Arrived != len(probes) || len(out.Answers) != 0 {
		t.Errorf("%s: the stranger's probes: %s; want all %d to arrive and none to be answered: %v", fam, out, len(probes), out.Answers)
	}
}

// The 10,000 members of a big network go in, by one command and in a bounded time.
func TestF13_TenThousandMembers(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.reconcile()
		for i := range 5000 {
			b.spec.Members["applications"] = append(b.spec.Members["applications"], fwPrefixes(
				fmt.Sprintf("10.%d.%d.%d/32", 100+i/65536, i/256%256, i%256), fmt.Sprintf("fd00:50::%x/128", i+1))...)
			b.spec.Members["pgpool"] = append(b.spec.Members["pgpool"], fwPrefixes(
				fmt.Sprintf("10.%d.%d.%d/32", 200+i/65536, i/256%256, i%256), fmt.Sprintf("fd00:60::%x/128", i+1))...)
		}
		b.spec.Role = "pgpool"
		b.want = fwRender(t, b.spec)
		start := time.Now()
		b.reconcile()
		took := time.Since(start)
		t.Logf("applied and read back 20,000 members in %v", took)
		if took > 10*time.Second {
			t.Errorf("20,000 members took %v", took)
		}
	})
}
