package e2e

import (
	"testing"
	"time"

	"github.com/pghardend/pghardend/pkg/sysctl"
)

// A cheap look sees on a real kernel what a full one would, in the network
// namespace that it was made in, and nothing else.
func TestSysctlPeek(t *testing.T) {
	b := scNew(t, "peek")
	p := sysctl.NewPeeker(b.want)
	defer p.Close()
	learn := func() {
		t.Helper()
		scKeep(b)
		must(t, b.node.Do(func() error { return p.Learn(t.Context()) }))
		if p.Peek(t.Context()) {
			t.Error("a difference right after Learn")
		}
	}
	learn()
	for _, row := range []struct {
		name, change string
		want         bool
	}{
		{"nothing", "true", false},
		{"an interface's value", "echo 0 > /proc/sys/net/ipv4/conf/back0/rp_filter", true},
		{"one that counts for all", "echo 0 > /proc/sys/net/ipv4/tcp_syncookies", true},
		{"in IPv6", "echo 1 > /proc/sys/net/ipv6/conf/back0/accept_redirects", true},
		{"through all", "echo 1 > /proc/sys/net/ipv4/conf/all/send_redirects", true},
		{"one that nobody wants", "echo 1 > /proc/sys/net/ipv4/conf/back0/proxy_arp", false},
		{"a new interface", "ip link add back2 type veth peer name back4", true},
		{"an interface with another name", "ip link set back2 down; ip link set back2 name back3", true},
		{"an interface gone", "ip link del back3", true},
		{"traffic and addresses", "ip addr add 192.0.2.9/24 dev back0; ping -c 1 -W 1 10.20.1.66", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			run(t, b.node, row.change)
			for range 2 {
				if got := p.Peek(t.Context()); got != row.want {
					t.Errorf("%v, want %v", got, row.want)
				}
			}
		})
		learn()
	}
	run(t, b.sibling, "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; ip link add other0 type veth peer name other1")
	must(t, b.sibling.Do(func() error { // also when asked from there
		if p.Peek(t.Context()) {
			t.Error("another network namespace is looked at")
		}
		return nil
	}))
	const looks = 100
	began := time.Now()
	for range looks {
		p.Peek(t.Context())
	}
	t.Logf("%v for one look", time.Since(began)/looks)
}

// scKeep puts everything as wanted.
func scKeep(b *scBed) {
	b.t.Helper()
	must(b.t, b.node.Do(func() error {
		got, err := sysctl.Observe(b.t.Context(), b.want)
		if err != nil {
			return err
		}
		return sysctl.Apply(b.t.Context(), sysctl.Diff(b.want, got))
	}))
}
