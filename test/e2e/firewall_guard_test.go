package e2e

import (
	"fmt"
	"net/netip"
	"os/user"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// fwEverything is a spec with all that rules can have.
func fwEverything(t *testing.T, role, scope string, members map[string][]netip.Prefix) firewall.Spec {
	t.Helper()
	on, conns, fresh := true, 113, 500
	over := map[string]firewall.FlowOverride{
		"metrics": {Proto: firewall.ProtoTCP, Ports: []uint16{9100, 9101}, From: []string{"control_plane"}, To: []string{"postgres", "pgpool"}, Connections: &conns},
	}
	for _, f := range fwAllFlows(t) {
		o := firewall.FlowOverride{Enabled: &on}
		if f.Proto == firewall.ProtoTCP {
			o.Connections, o.NewPerSecond = &conns, &fresh
		}
		over[f.Name] = o
	}
	flows, err := firewall.Customise(fwAllFlows(t), over)
	fwMust(t, err)
	all := map[string][]netip.Prefix{
		firewall.NetworkSiblings: fwPrefixes("10.20.0.0/16", "fd00:20::/32"),
		firewall.NetworkMetadata: fwPrefixes("169.254.170.2/32"),
	}
	for name, list := range members {
		all[name] = list
	}
	return firewall.Spec{Role: role, Flows: flows, Members: all, Scope: scope, Openings: fwOpenings(10 * time.Minute)}
}

func fwOpenings(left time.Duration) []firewall.Opening {
	var list []firewall.Opening
	for _, from := range []string{"10.20.1.66/32", "192.0.2.0/24", "fd00:20:1::66/128", "2001:db8:1::/64"} {
		for _, proto := range []string{firewall.ProtoTCP, firewall.ProtoUDP} {
			list = append(list, firewall.Opening{From: netip.MustParsePrefix(from), Proto: proto, Port: 22, Until: time.Now().Add(left)})
		}
	}
	return list
}

// Rules with all there is come back from the kernel as they went in, and going
// from any of them to any other leaves nothing behind. reconcile checks that.
func TestFirewallEverythingReadsBack(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.sh(fwForeign)
		before := b.foreign()
		for _, role := range []string{"postgres", "pgpool", "postgres"} {
			for _, scope := range []string{firewall.ScopeHost, firewall.ScopeSiblings} {
				b.want = fwRender(t, fwEverything(t, role, scope, b.spec.Members))
				if p := b.reconcile(); p.Empty() {
					t.Errorf("%s, %s: nothing to do", role, scope)
				}
			}
		}
		fwSame(t, before, b.foreign())
		b.want = fwRender(t, b.spec)
		b.reconcile()
		fwSame(t, before, b.foreign())
	})
}

// The limits' and the flags' extremes.
func TestFirewallLimitsReadBack(t *testing.T) {
	var flows []firewall.Flow
	for i, limit := range [][2]int{{1, 1}, {2, 3}, {32, 7}, {1 << 20, 999}, {110, 1000}, {65535, 0}, {0, 60}} {
		flows = append(flows, firewall.Flow{
			Name: fmt.Sprintf("%s%02d", strings.Repeat("n", 30), i), Proto: firewall.ProtoTCP, Ports: []uint16{uint16(1000 + i)},
			From: []string{"pgpool"}, To: []string{"postgres"}, Connections: limit[0], NewPerSecond: limit[1],
		})
	}
	fwBackends(t, func(t *testing.T, b *fwBed) {
		b.want = fwRender(t, firewall.Spec{Role: "postgres", Flows: flows, Members: b.spec.Members})
		b.reconcile()
	})
}

func fwDriftEverything(t *testing.T, scope string, drifts []fwDrift) {
	t.Helper()
	fwTestDriftOf(t, func(b *fwBed) firewall.Spec { return fwEverything(b.t.(*testing.T), "postgres", scope, b.spec.Members) }, drifts)
}

func TestF04_GuardsEdited(t *testing.T) {
	const again = "$I6 -t raw -I PREROUTING -m comment --comment pghardend:jump -j PGHARDEND-RPF"
	fwDriftEverything(t, firewall.ScopeHost, []fwDrift{
		{"raw jump removed", "$I6 -t raw -D PREROUTING 1", []string{"ipv6 jump raw PREROUTING: missing", "!ipv4", "!chain"}},
		{"raw jump twice", again, []string{"ipv6 jump raw PREROUTING: there more than once"}},
		{"accept above the raw jump", "$I6 -t raw -I PREROUTING -s fd00:20:1::66 -j ACCEPT", []string{"ipv6 jump raw PREROUTING: not in first place", "kept: ipv6 raw -A PREROUTING"}},
		{"no tracking above the raw jump", "$I6 -t raw -I PREROUTING -s fd00:20:1::66 -j CT --notrack", []string{"!ipv"}},
		{"raw chain flushed", "$I6 -t raw -F PGHARDEND-RPF", []string{"ipv6 chain raw PGHARDEND-RPF: differs", "!jump"}},
		{"rpfilter loosened", "$I6 -t raw -R PGHARDEND-RPF 1 -m rpfilter --loose --invert -m comment --comment pghardend:rpfilter -j DROP", []string{"ipv6 chain raw PGHARDEND-RPF: differs", "--loose"}},
		{"raw table flushed", "$I6 -t raw -F; $I6 -t raw -X; $I6 -t raw -A PREROUTING -p udp --dport 4343 -j CT --notrack", []string{"ipv6 chain raw PGHARDEND-RPF: missing", "ipv6 jump raw PREROUTING: missing", "!ipv4"}},
		{"stale raw chain", "$I6 -t raw -N PGHARDEND-OLD; $I6 -t raw -A OUTPUT -m comment --comment pghardend:jump -j PGHARDEND-OLD", []string{"ipv6 chain raw PGHARDEND-OLD: not wanted", "ipv6 jump raw OUTPUT: not wanted"}},
		{"metadata guard removed", "$I4 -D PGHARDEND-OUT -m set --match-set pgh4-metadata dst -m comment --comment pghardend:metadata -j PGHARDEND-META", []string{"ipv4 chain PGHARDEND-OUT: differs", "+ -m set --match-set pgh4-metadata dst", "!ipv6"}},
		{"metadata for anybody", fwEdit("$I6", "PGHARDEND-META", "uid-owner", "s/-m owner --uid-owner 0//"), []string{"ipv6 chain PGHARDEND-META: differs", "--uid-owner 0"}},
		{"metadata for another user", fwEdit("$I4", "PGHARDEND-META", "uid-owner", "s/uid-owner 0/uid-owner 0-65535/"), []string{"ipv4 chain PGHARDEND-META: differs"}},
		{"metadata set", "ipset del pgh4-metadata 169.254.169.254", []string{"ipv4 set pgh4-metadata: members differ\n  + 169.254.169.254/32"}},
		{"flags", "$I4 -D PGHARDEND-IN -p tcp -m tcp --tcp-flags FIN,SYN FIN,SYN -m comment --comment pghardend:tcp-flags -j DROP", []string{"ipv4 chain PGHARDEND-IN: differs", "+ -p tcp -m tcp --tcp-flags FIN,SYN FIN,SYN"}},
		{"rate", fwEdit("$I4", "PGHARDEND-IN", "dport 5432", "s/500\\/sec/900\\/sec/"), []string{"ipv4 chain PGHARDEND-IN: differs", "900/sec"}},
		{"connections", fwEdit("$I6", "PGHARDEND-IN", "dport 5432", "s/upto 113/upto 1130/"), []string{"ipv6 chain PGHARDEND-IN: differs", "upto 1130"}},
		{"connections by network", fwEdit("$I6", "PGHARDEND-IN", "dport 5432", "s/mask 128/mask 64/"), []string{"ipv6 chain PGHARDEND-IN: differs", "mask 64"}},
	})
	fwDriftEverything(t, firewall.ScopeSiblings, []fwDrift{
		{"out of scope", fwEdit("$I4", "PGHARDEND-IN", "pgh4-siblings", "s/! --match-set/--match-set/"), []string{"ipv4 chain PGHARDEND-IN: differs", "+ -m set ! --match-set pgh4-siblings src"}},
		{"forwarding", "$I6 -D PGHARDEND-FWD 1", []string{"ipv6 chain PGHARDEND-FWD: differs"}},
		{"siblings of another type", `for C in IN OUT FWD; do $I6 -F PGHARDEND-$C; done; $I6 -t raw -F PGHARDEND-RPF; ipset destroy pgh6-siblings
			ipset create pgh6-siblings hash:ip family inet6; $I6 -t raw -A PGHARDEND-RPF -m set --match-set pgh6-siblings src -j DROP`,
			[]string{"pgh6-siblings: is a hash:ip of family inet6", "ipv6 chain raw PGHARDEND-RPF: differs"}},
		{"link-local siblings", "ipset del pgh6-siblings fe80::/10", []string{"+ fe80::/10"}},
	})
}

func TestF15b_OpeningsChanged(t *testing.T) {
	const detach = "for I in $I4 $I6; do $I -F PGHARDEND-IN; done; "
	fwDriftEverything(t, firewall.ScopeHost, []fwDrift{
		{"extended", "ipset add -exist pgh4-open 10.20.1.66,tcp:22 timeout 9999", []string{"ipv4 set pgh4-open: members differ", "timeout 99", "!chain", "!ipv6"}},
		{"for ever", "ipset add -exist pgh6-open fd00:20:1::66,tcp:22 timeout 0", []string{"ipv6 set pgh6-open: members differ", "!ipv4"}},
		{"one more", "ipset add pgh4-open 10.20.1.66,tcp:5432 timeout 600", []string{"- 10.20.1.66/32,tcp:5432 timeout"}},
		{"closed", "ipset del pgh4-open 192.0.2.0/24,udp:22", []string{"+ 192.0.2.0/24,udp:22 timeout"}},
		{"flushed", "ipset flush pgh6-open", []string{"ipv6 set pgh6-open: members differ"}},
		{"destroyed", detach + "ipset destroy pgh4-open", []string{"ipv4 set pgh4-open: missing"}},
		{"without times", detach + "ipset destroy pgh4-open; ipset create pgh4-open hash:net,port; ipset add pgh4-open 10.20.1.66,tcp:22", []string{"pgh4-open: lacks options: timeout 1"}},
		{"other times", detach + "ipset destroy pgh6-open; ipset create pgh6-open hash:net,port family inet6 timeout 0", []string{"pgh6-open: has options: timeout 0"}},
		{"another type", detach + "ipset destroy pgh4-open; ipset create pgh4-open hash:net timeout 1", []string{"pgh4-open: is a hash:net of family inet, not hash:net,port inet"}},
		{"left over", "ipset create pgh4.open hash:net,port; ipset add -exist pgh4-open 10.20.1.66,tcp:22 timeout 9999", []string{"set pgh4.open: left over", "timeout 99"}},
		{"rule removed", fwEdit("$I4", "PGHARDEND-IN", "pgh4-open", "s/src,dst/src,src/"), []string{"+ -m set --match-set pgh4-open src,dst"}},
	})
}

// An opening lets in whom it names to the port it names, and closes with nobody
// there to close it.
func TestOpeningClosesByItself(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		for _, fam := range firewall.Families {
			for _, port := range []uint16{22, 8008} {
				_, err := b.node.ServeTCP(t.Context(), netip.AddrPortFrom(fwAddr(b.node, fam), port))
				fwMust(t, err)
			}
		}
		b.reconcile()
		for _, fam := range firewall.Families {
			if fwCanConnect(t, b.stranger, b.node, fam, 22) {
				t.Fatalf("%s: open before there is an opening", fam)
			}
			b.spec.Openings = append(b.spec.Openings, firewall.Opening{
				From: netip.PrefixFrom(fwAddr(b.stranger, fam), fwAddr(b.stranger, fam).BitLen()), Proto: firewall.ProtoTCP, Port: 22, Until: time.Now().Add(4 * time.Second),
			})
		}
		end := time.Now().Add(4 * time.Second)
		b.want = fwRender(t, b.spec)
		if p := b.reconcile().String(); strings.Contains(p, "chain") || !strings.Contains(p, "set pgh4-open") || !strings.Contains(p, "set pgh6-open") {
			t.Errorf("an opening is more than a member of a set:\n%s", p)
		}
		for _, fam := range firewall.Families {
			for _, c := range []struct {
				from *testbed.Host
				port uint16
				open bool
			}{{b.stranger, 22, true}, {b.stranger, 8008, false}, {b.peer, 22, false}} {
				if got := fwCanConnect(t, c.from, b.node, fam, c.port); got != c.open {
					t.Errorf("%s: %s to port %d: open %v", fam, c.from.Name(), c.port, got)
				}
			}
			if time.Now().After(end.Add(-time.Second)) {
				t.Fatal("too slow: the opening may have ended")
			}
		}
		b.awaitNoMembers(end.Add(3 * time.Second))
		for _, fam := range firewall.Families {
			if fwCanConnect(t, b.stranger, b.node, fam, 22) {
				t.Errorf("%s: still open", fam)
			}
		}
		if p := b.plan(); !p.Empty() { // that it ended is no drift
			t.Errorf("left to do:\n%s", p)
		}
	})
}

func (b *fwBed) awaitNoMembers(deadline time.Time) {
	b.t.Helper()
	for {
		got := b.observe()
		left := append(got.Sets["pgh4-open"].Members, got.Sets["pgh6-open"].Members...)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("the kernel still has %q", left)
		}
	}
}

// fwAs opens a TCP connection from the node as an ordinary process of a user.
func fwAs(t *testing.T, b *fwBed, who string, to netip.AddrPort) bool {
	t.Helper()
	script := fmt.Sprintf("exec timeout 2 /bin/bash -c ': > /dev/tcp/%s/%d'", to.Addr(), to.Port())
	u, err := user.Lookup(who)
	if err != nil {
		t.Error(err)
		return false
	}
	return b.node.CommandAs(t.Context(), u, "/bin/sh", "-c", script).Run() == nil
}

// A47: the metadata service hands out the machine's credentials. Service users
// cannot reach it; root can, in both scopes. DNS at its address goes by the rows.
func TestA47_MetadataIsClosedToServiceUsers(t *testing.T) {
	for _, backend := range []string{firewall.BackendNFT, firewall.BackendLegacy} {
		t.Run(backend, func(t *testing.T) {
			b := fwNew(t, backend, testbed.HostSpec{Name: "metadata", Addresses: []string{"169.254.169.254/30", "fd00:ec2::254/64"}})
			service := b.bed.Host("metadata")
			for _, fam := range firewall.Families {
				for _, port := range []uint16{53, 80, 443} {
					_, err := service.ServeTCP(t.Context(), netip.AddrPortFrom(fwAddr(service, fam), port))
					fwMust(t, err)
				}
			}
			reach := func(state string, want map[string]bool) {
				t.Helper()
				var wg sync.WaitGroup
				for _, fam := range firewall.Families {
					for _, who := range []string{"root", "nobody"} {
						for _, port := range []uint16{53, 80, 443} {
							wg.Go(func() {
								key := fmt.Sprintf("%s %d", who, port)
								if got := fwAs(t, b, who, netip.AddrPortFrom(fwAddr(service, fam), port)); got != want[key] {
									t.Errorf("%s, %s: %s: reached %v", state, fam, key, got)
								}
							})
						}
					}
				}
				wg.Wait()
			}
			everybody := map[string]bool{"root 53": true, "root 80": true, "root 443": true, "nobody 53": true, "nobody 80": true, "nobody 443": true}
			reach("without rules", everybody)
			b.reconcile()
			reach("scope host", map[string]bool{"root 80": true})
			b.spec.Members["dns"] = fwPrefixes("169.254.169.254/32", "fd00:ec2::254/128")
			b.want = fwRender(t, b.spec)
			b.reconcile()
			reach("scope host, as resolver", map[string]bool{"root 80": true, "root 53": true, "nobody 53": true})
			b.spec.Scope = firewall.ScopeSiblings
			b.spec.Members[firewall.NetworkSiblings] = fwPrefixes("10.20.1.0/24", "fd00:20:1::/64")
			b.want = fwRender(t, b.spec)
			b.reconcile()
			reach("scope siblings", map[string]bool{"root 80": true, "root 53": true, "nobody 53": true})
			b.sh("for I in $I4 $I6; do $I -F; $I -X; done")
			reach("rules gone", everybody)
			b.reconcile()
			reach("rules back", map[string]bool{"root 80": true, "root 53": true, "nobody 53": true})
		})
	}
}
