package e2e

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// What Decide says is what packets experience: in both directions, families and
// scopes, from peers, the control plane and a sibling, on ports with and without
// rows. Behind the rules everything is open, so what is dropped is dropped by them.
func TestDecideMatchesPackets(t *testing.T) {
	for _, scope := range []string{firewall.ScopeHost, firewall.ScopeSiblings} {
		t.Run(scope, func(t *testing.T) {
			fwBackends(t, func(t *testing.T, b *fwBed) {
				b.spec.Scope = scope
				b.spec.Members["siblings"] = fwPrefixes("10.20.1.66/32", "fd00:20:1::66/128")
				b.spec.Openings = []firewall.Opening{{From: fwPrefixes("10.20.1.66/32")[0], Proto: "tcp", Port: 7777, Until: time.Now().Add(time.Minute)}}
				b.render()
				ports := []uint16{22, 5432, 7777}
				for _, fam := range firewall.Families {
					for _, h := range []*testbed.Host{b.node, b.peer, b.standby, b.control, b.stranger} {
						for _, port := range ports {
							_, err := h.ServeTCP(t.Context(), netip.AddrPortFrom(fwAddr(h, fam), port))
							fwMust(t, err)
						}
					}
				}
				b.reconcile()
				decideProbeAll(t, b, ports)
			})
		})
	}
}

func decideProbeAll(t *testing.T, b *fwBed, ports []uint16) {
	t.Helper()
	var wg sync.WaitGroup
	for _, fam := range firewall.Families {
		for _, h := range []*testbed.Host{b.peer, b.standby, b.control, b.stranger} {
			wg.Go(func() { decideEcho(t, b, firewall.In, h, b.node, fam) })
			wg.Go(func() { decideEcho(t, b, firewall.Out, b.node, h, fam) })
			for _, port := range ports {
				wg.Go(func() { decideConnect(t, b, firewall.In, h, b.node, fam, port) })
				wg.Go(func() { decideConnect(t, b, firewall.Out, b.node, h, fam, port) })
			}
		}
	}
	wg.Wait()
}

// decideRemote is the end of a connection that is not the node.
func decideRemote(b *fwBed, from, to *testbed.Host, fam firewall.Family) netip.Addr {
	if from == b.node {
		return fwAddr(to, fam)
	}
	return fwAddr(from, fam)
}

func decideConnect(t *testing.T, b *fwBed, d firewall.Direction, from, to *testbed.Host, fam firewall.Family, port uint16) {
	want := firewall.Decide(b.spec, d, firewall.Query{Remote: decideRemote(b, from, to, fam), Proto: "tcp", Port: port, At: time.Now()})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	v, err := from.Connect(ctx, netip.AddrPortFrom(fwAddr(to, fam), port))
	if err != nil || (v == testbed.Open) != want.Allowed {
		t.Errorf("%s to %s port %d (%s): %s, %v; decided: %+v", from.Name(), to.Name(), port, fam, v, err, want)
	}
}

func decideEcho(t *testing.T, b *fwBed, d firewall.Direction, from, to *testbed.Host, fam firewall.Family) {
	want := firewall.Decide(b.spec, d, firewall.Query{Remote: decideRemote(b, from, to, fam), Proto: "icmp-echo", At: time.Now()})
	got, err := from.Ping(t.Context(), fwAddr(to, fam), 1)
	if (err != nil && !errors.Is(err, os.ErrPermission)) || (got.Replies == 1) != want.Allowed {
		t.Errorf("echo %s to %s (%s): %+v, %v; decided: %+v", from.Name(), to.Name(), fam, got, err, want)
	}
}
