package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
)

const (
	fwRoot   = 0
	fwNobody = 65534
)

var (
	fwEverybody  = netip.MustParseAddr("255.255.255.255")
	fwDHCPGroup  = netip.MustParseAddr("ff02::1:2") // all DHCP servers and relays on the link
	fwAllHosts4  = netip.MustParseAddr("224.0.0.1")
	fwAllHosts6  = netip.MustParseAddr("ff02::1")
	fwSubnet4All = netip.MustParseAddr("10.20.1.255")
)

// fwDatagrams is a UDP socket on a host, of a user without capabilities unless
// that is root.
type fwDatagrams struct {
	t     testing.TB
	fd    int
	index uint32 // of the interface that link-local and multicast addresses are on
}

// fwSocket binds a port; it gives the error of bind alone.
func fwSocket(t testing.TB, h *testbed.Host, uid uintptr, fam firewall.Family, port uint16) (*fwDatagrams, error) {
	t.Helper()
	s := &fwDatagrams{t: t, fd: -1}
	var refused error
	fwMust(t, h.Do(func() error {
		nic, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		s.index = uint32(nic.Index)
		if uid != fwRoot { // of this thread alone, which ends with Do
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
				return errno
			}
		}
		af, at := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(port)})
		if fam == firewall.IPv6 {
			af, at = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port)}
		}
		if s.fd, err = unix.Socket(af, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := errors.Join(unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
			unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})); err != nil {
			return err
		}
		if fam == firewall.IPv6 {
			err = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, nic.Index)
		} else {
			err = unix.SetsockoptIPMreqn(s.fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(nic.Index)})
		}
		refused = unix.Bind(s.fd, at)
		return err
	}))
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s, refused
}

func fwBound(t testing.TB, h *testbed.Host, uid uintptr, fam firewall.Family, port uint16) *fwDatagrams {
	t.Helper()
	s, err := fwSocket(t, h, uid, fam, port)
	fwMust(t, err)
	return s
}

func (s *fwDatagrams) joins(group netip.Addr) {
	s.t.Helper()
	fwMust(s.t, unix.SetsockoptIPv6Mreq(s.fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: s.index}))
}

func (s *fwDatagrams) send(to netip.Addr, port uint16) error {
	if to.Is4() {
		return unix.Sendto(s.fd, []byte("x"), 0, &unix.SockaddrInet4{Addr: to.As4(), Port: int(port)})
	}
	return unix.Sendto(s.fd, []byte("x"), 0, &unix.SockaddrInet6{Addr: to.As16(), Port: int(port), ZoneId: s.index})
}

// receive gives the zero AddrPort if nothing comes in time.
func (s *fwDatagrams) receive() netip.AddrPort {
	_, from, err := unix.Recvfrom(s.fd, make([]byte, 16), 0)
	if err != nil {
		return netip.AddrPort{}
	}
	switch sa := from.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// fwScopes gives the bed the rules of each scope in turn. The one sibling is the stranger.
func (b *fwBed) scopes(f func(scope string)) {
	b.t.Helper()
	b.spec.Members[firewall.NetworkSiblings] = fwPrefixes("10.20.1.66/32", "fd00:20:1::66/128")
	for _, scope := range []string{firewall.ScopeHost, firewall.ScopeSiblings} {
		b.spec.Scope = scope
		b.render()
		b.reconcile()
		b.sh("conntrack -F 2>/dev/null") // what was established before says nothing about the rules
		f(scope)
	}
}

// A host keeps its leases, also where the DHCP server is one that no row names: a
// client renews, gets its answer, and its connections are not cut. Nobody can do
// as much from a port that a service may use.
func TestFirewallHostKeepsItsLeases(t *testing.T) {
	fwBackends(t, func(t *testing.T, b *fwBed) {
		server4, server6 := fwBound(t, b.stranger, fwRoot, firewall.IPv4, 67), fwBound(t, b.stranger, fwRoot, firewall.IPv6, 547)
		server6.joins(fwDHCPGroup)
		client4, client6 := fwBound(t, b.node, fwRoot, firewall.IPv4, 68), fwBound(t, b.node, fwRoot, firewall.IPv6, 546)
		service4, service6 := fwBound(t, b.node, fwNobody, firewall.IPv4, 0), fwBound(t, b.node, fwNobody, firewall.IPv6, 0)
		renew := func(state string, c4, c6 *fwDatagrams, at4, at6 uint16) {
			t.Helper()
			for _, l := range []struct {
				client, server *fwDatagrams
				to             netip.Addr
				at, port       uint16
			}{{c4, server4, b.stranger.V4(), at4, 67}, {c6, server6, fwDHCPGroup, at6, 547}} {
				if err := l.client.send(l.to, l.port); err != nil {
					t.Errorf("%s: to %s: %v", state, l.to, err)
					continue
				}
				from := l.server.receive()
				if l.at != 0 && from.Port() != l.at {
					t.Errorf("%s: the server got a packet of %s, want one from port %d", state, from, l.at)
					continue
				}
				fwMust(t, l.server.send(from.Addr(), from.Port()))
				if got := l.client.receive(); got.Port() != l.port || got.Addr().Is6() && !got.Addr().IsLinkLocalUnicast() {
					t.Errorf("%s: the answer of %s did not come: %s", state, l.to, got)
				}
			}
		}
		renew("without rules", client4, client6, 68, 546)
		renew("without rules, a service", service4, service6, 0, 0)
		b.scopes(func(scope string) {
			renew(scope, client4, client6, 68, 546)
			b.leasesAreKept(scope)
			for _, err := range []error{service4.send(b.stranger.V4(), 67), service6.send(fwDHCPGroup, 547)} {
				if !errors.Is(err, unix.EPERM) {
					t.Errorf("%s: a service could ask a DHCP server: %v", scope, err)
				}
			}
			b.answersAtOnePort(scope)
		})
		for fam, port := range map[firewall.Family]uint16{firewall.IPv4: 68, firewall.IPv6: 546} {
			if _, err := fwSocket(t, b.node, fwNobody, fam, port); !errors.Is(err, unix.EACCES) {
				t.Errorf("%s: a service could have port %d: %v", fam, port, err)
			}
		}
		// A client that runs as a user of its own: nobody, were the port allowed to it.
		fwMust(t, errors.Join(unix.Close(client4.fd), unix.Close(client6.fd)))
		b.sh("sysctl -qw net.ipv4.ip_unprivileged_port_start=68")
		client4, client6 = fwBound(t, b.node, fwNobody, firewall.IPv4, 68), fwBound(t, b.node, fwNobody, firewall.IPv6, 546)
		b.scopes(func(scope string) { renew(scope+", a client without root", client4, client6, 68, 546) })
	})
}

// leasesAreKept: the renewals and the IPv6 answer are entries of conntrack's, and
// none is to be cut.
func (b *fwBed) leasesAreKept(scope string) {
	b.t.Helper()
	all, unwanted := b.connections()
	for _, want := range []string{":68 to 10.20.1.66:67", ":546 to [ff02::1:2]:547", ":547 to [fe80::"} {
		ours := func(c firewall.Connection) bool { return strings.Contains(c.String(), want) }
		if !slices.ContainsFunc(all, ours) || slices.ContainsFunc(unwanted, ours) {
			b.t.Errorf("%s: %s: in %v, or to be cut in %v", scope, want, all, unwanted)
		}
	}
}

// answersAtOnePort: of what comes from a DHCPv6 server's port, the client's port
// alone gets any.
func (b *fwBed) answersAtOnePort(scope string) {
	b.t.Helper()
	src, err := b.stranger.LinkLocal()
	fwMust(b.t, err)
	to, err := b.node.LinkLocal()
	fwMust(b.t, err)
	d, err := b.node.Deliveries(func(p testbed.Packet) bool { return p.Proto == testbed.ProtoUDP && p.Src == src.WithZone("") })
	fwMust(b.t, err)
	var probes []testbed.Probe
	for _, ports := range [][2]uint16{{547, 5432}, {547, 53}, {5547, 546}, {547, 546}} {
		p := testbed.UDPProbe(netip.AddrPortFrom(to.WithZone(""), ports[1]), []byte("x"))
		p.From = src.WithZone("")
		p.Payload[0], p.Payload[1] = byte(ports[0]>>8), byte(ports[0])
		probes = append(probes, p)
	}
	_, err = b.stranger.Send(b.t.Context(), probes...)
	fwMust(b.t, err)
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Second)
	defer cancel()
	_, err = d.Await(ctx, 1, func(p testbed.Packet) bool { return p.SrcPort == 547 && p.DstPort == 546 }) // the last of them
	fwMust(b.t, errors.Join(err, d.Close()))
	if got := d.Packets(); len(got) != 1 {
		b.t.Errorf("%s: the node took in %v", scope, got)
	}
}

// Scope siblings: what a service sends to all hosts of the link does not get to
// the siblings on it. Root's own is left to the host's own firewall, and so is a
// service's to others.
func TestFirewallGroupsAreKeptFromSiblings(t *testing.T) {
	const byService, byRoot = 9001, 9002
	groups := []netip.Addr{fwEverybody, fwSubnet4All, fwAllHosts4, fwAllHosts6}
	fwBackends(t, func(t *testing.T, b *fwBed) {
		send := func(state string, uid uintptr, port uint16, want error) {
			t.Helper()
			for _, to := range groups {
				fam := firewall.IPv4
				if to.Is6() {
					fam = firewall.IPv6
				}
				if err := fwBound(t, b.node, uid, fam, 0).send(to, port); !errors.Is(err, want) {
					t.Errorf("%s: uid %d to %s: %v, want %v", state, uid, to, err, want)
				}
			}
		}
		// What arrives is in order, so that root's last packet is behind all of the service's.
		probe := func(state string, want error) (arrived []string) {
			t.Helper()
			capture, err := b.stranger.Capture(func(p testbed.Packet) bool {
				return !p.Out && (p.DstPort == byService || p.DstPort == byRoot)
			})
			fwMust(t, err)
			send(state, fwNobody, byService, want)
			send(state, fwRoot, byRoot, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err = capture.Await(ctx, len(groups), func(p testbed.Packet) bool { return p.DstPort == byRoot })
			fwMust(t, errors.Join(err, capture.Close()))
			for _, p := range capture.Packets() {
				if p.DstPort == byService {
					arrived = append(arrived, fmt.Sprint(p.Dst))
				}
			}
			return arrived
		}
		if got := probe("without rules", nil); len(got) != len(groups) {
			t.Fatalf("without rules the sibling gets %q; the test proves nothing", got)
		}
		b.spec.Scope = firewall.ScopeSiblings
		b.spec.Members[firewall.NetworkSiblings] = fwPrefixes("10.20.1.66/32", "fd00:20:1::66/128")
		b.render()
		b.reconcile()
		if got := probe(b.spec.Scope, unix.EPERM); len(got) != 0 {
			t.Errorf("the sibling got %q", got)
		}
		for _, fam := range firewall.Families {
			if err := fwBound(t, b.node, fwNobody, fam, 0).send(fwAddr(b.control, fam), byService); err != nil {
				t.Errorf("%s: a service to one who is no sibling: %v", fam, err)
			}
		}
		// A packet of root's stays tracked, and is none that is to be cut.
		all, unwanted := b.connections()
		toGroup := func(c firewall.Connection) bool { return slices.Contains(groups, c.Dst.Addr()) }
		if !slices.ContainsFunc(all, toGroup) || slices.ContainsFunc(unwanted, toGroup) {
			t.Errorf("conntrack has %v, of which are to be cut %v", all, unwanted)
		}
	})
}
