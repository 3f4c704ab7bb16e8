package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/sysctl"
	"github.com/pghardend/pghardend/policies"
)

// scBed is a node with a network behind it (192.0.2.0/24 on back0), a neighbour
// in its subnet and the control plane behind the router.
type scBed struct {
	t                      *testing.T
	node, sibling, control *testbed.Host
	want                   []sysctl.Setting
}

func scNew(t *testing.T, name string) *scBed {
	t.Helper()
	bed, err := testbed.New(t.Context(), "sysctl-"+name, []testbed.HostSpec{
		{Name: "node", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64"}},
		{Name: "sibling", Addresses: []string{"10.20.1.66/24", "fd00:20:1::66/64"}},
		{Name: "control", Addresses: []string{"10.0.0.5/24", "fd00:10::5/64"}},
	})
	must(t, err)
	t.Cleanup(func() {
		if err := bed.Close(); err != nil {
			t.Errorf("bed not removed: %v", err)
		}
	})
	data, err := fs.ReadFile(policies.FS, "sysctl/network.conf")
	must(t, err)
	want, err := sysctl.Parse("network.conf", data)
	must(t, err)
	b := &scBed{t: t, node: bed.Host("node"), sibling: bed.Host("sibling"), control: bed.Host("control"), want: want}
	run(t, b.node, "ip link add back0 type veth peer name back1 && ip addr add 192.0.2.1/24 dev back0 && ip link set back0 up && ip link set back1 up")
	return b
}

// observe reads the wanted keys on a host.
func scObserve(t *testing.T, h *testbed.Host, want []sysctl.Setting) sysctl.Observed {
	t.Helper()
	var got sysctl.Observed
	must(t, h.Do(func() (err error) {
		got, err = sysctl.Observe(context.WithoutCancel(t.Context()), want)
		return err
	}))
	return got
}

// scReconcile does what the daemon does, checks that nothing is left to do
// (invariant 4) and returns the plan that was carried out.
func scReconcile(t *testing.T, h *testbed.Host, want []sysctl.Setting) sysctl.Plan {
	t.Helper()
	p := sysctl.Diff(want, scObserve(t, h, want))
	if err := h.Do(func() error { return sysctl.Apply(context.WithoutCancel(t.Context()), p) }); err != nil {
		t.Fatalf("%v\nplan:\n%s", err, p)
	}
	if again := sysctl.Diff(want, scObserve(t, h, want)); !again.Empty() {
		t.Fatalf("after applying\n%sthere is still to do:\n%s", p, again)
	}
	return p
}

// scSet writes keys past the package, as somebody else would.
func scSet(t *testing.T, h *testbed.Host, list ...string) {
	t.Helper()
	must(t, h.Do(func() error {
		for _, s := range list {
			key, value, _ := strings.Cut(s, "=")
			file := "/proc/sys/" + strings.NewReplacer(".", "/", "/", ".").Replace(key)
			if err := os.WriteFile(file, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	}))
}

// scEverything is what may show that a key was changed which nobody named.
var scEverything = []sysctl.Setting{
	{Key: "net.ipv4.*", Value: "x"}, {Key: "net.ipv4.conf.*.*", Value: "x"}, {Key: "net.ipv6.conf.*.*", Value: "x"}, {Key: "net.core.*", Value: "x"},
}

// Every key drifts in turn and is restored, and no other key of the node changes.
func TestSysctlDriftIsRestored(t *testing.T) {
	b := scNew(t, "drift")
	outside := scObserve(t, b.control, scEverything)
	if p := scReconcile(t, b.node, b.want); p.Empty() {
		t.Fatal("a host that nobody hardened needs nothing; the test proves nothing")
	}
	right := scObserve(t, b.node, b.want).Values
	everything := scObserve(t, b.node, scEverything).Values
	for _, key := range []string{"net.ipv4.conf.eth0.rp_filter", "net.ipv4.conf.back0.rp_filter", "net.ipv6.conf.eth0.accept_redirects", "net.ipv4.tcp_syncookies"} {
		if _, ok := right[key]; !ok {
			t.Errorf("%s is not among what is kept: %d keys", key, len(right))
		}
	}
	for key, value := range right {
		other := map[string]string{"0": "1", "1": "0", "2": "0", "1024": "80"}[value]
		scSet(t, b.node, key+"="+other)
		p := scReconcile(t, b.node, b.want)
		if !strings.Contains(p.String(), fmt.Sprintf("sysctl %s: is %s, want %s\n", key, other, value)) {
			t.Errorf("%s was made %s, and the plan says\n%s", key, other, p)
		}
	}
	if d := cmp.Diff(everything, scObserve(t, b.node, scEverything).Values, scCounters); d != "" {
		t.Errorf("keys changed for good (-before +after):\n%s", d)
	}
	if d := cmp.Diff(outside.Values, scObserve(t, b.control, scEverything).Values, scCounters); d != "" {
		t.Errorf("keys of another host changed (-before +after):\n%s", d)
	}
}

// scCounters leaves out what the kernel changes by itself.
var scCounters = cmp.FilterPath(func(p cmp.Path) bool {
	return strings.Contains(p.GoString(), "netdev_rss_key")
}, cmp.Ignore())

// An interface that appears is looked at, also one with a dot in its name.
func TestSysctlNewInterface(t *testing.T) {
	b := scNew(t, "interface")
	scReconcile(t, b.node, b.want)
	run(t, b.node, "ip link add eth0.100 type veth peer name eth0.101 && ip link set eth0.100 up")
	if p := scReconcile(t, b.node, b.want); !p.Empty() {
		t.Errorf("the new interface started without the defaults:\n%s", p)
	}
	scSet(t, b.node, "net.ipv4.conf.eth0/100.rp_filter=0")
	want := []sysctl.Change{{Key: "net.ipv4.conf.eth0/100.rp_filter", Have: "0", Want: "1"}}
	if d := cmp.Diff(want, scReconcile(t, b.node, b.want).Changes); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	run(t, b.node, "ip link del eth0.100")
	gone := sysctl.Plan{Changes: want}
	must(t, b.node.Do(func() error { return sysctl.Apply(t.Context(), gone) }))
}

// The kernel copies a default to interfaces without an address whose value
// nobody wrote, nor the default's before them. One that is left alone, or set to something else, keeps its value
// all the same.
func TestSysctlDefaultChangesNoInterface(t *testing.T) {
	b := scNew(t, "default")
	const pair = "ip link add new0 type veth peer name new1; ip link add new2 type veth peer name new3"
	all := []sysctl.Setting{{Key: "net.ipv4.conf.new*.arp_ignore", Value: "0"}}
	key := func(i int) string { return fmt.Sprintf("net.ipv4.conf.new%d.arp_ignore", i) }
	run(t, b.control, pair)
	scSet(t, b.control, "net.ipv4.conf.default.arp_ignore=1")
	if v := scObserve(t, b.control, all).Values; v[key(0)] != "1" {
		t.Fatalf("this kernel does not copy a default; the test proves nothing: %v", v)
	}
	run(t, b.node, pair)
	want := sysctl.Merge(b.want, []sysctl.Setting{{Key: key(1), Value: "0"}}, []string{key(0)})
	p := scReconcile(t, b.node, want)
	if strings.Contains(p.String(), key(0)) || strings.Contains(p.String(), key(1)) {
		t.Errorf("the plan has keys that are left alone or right:\n%s", p)
	}
	if d := cmp.Diff(map[string]string{key(0): "0", key(1): "0", key(2): "1", key(3): "1"}, scObserve(t, b.node, all).Values); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// What the kernel does not take is named, and the rest is set.
func TestSysctlRefusedByKernel(t *testing.T) {
	b := scNew(t, "refused")
	var set []sysctl.Setting
	for _, text := range []string{"net.ipv4.tcp_congestion_control=none-such", "net.ipv4.no_such_key=1", "-net.ipv4.no_such_either=1",
		"net.ipv4.conf.nosuch0.rp_filter=1", "net.ipv4.conf=1"} {
		s, err := sysctl.ParseSetting(text)
		must(t, err)
		set = append(set, s)
	}
	want := sysctl.Merge(b.want, set, nil)
	p := sysctl.Diff(want, scObserve(t, b.node, want))
	err := b.node.Do(func() error { return sysctl.Apply(t.Context(), p) })
	if err == nil {
		t.Fatal("no error")
	}
	for _, words := range []string{"cannot set sysctl net.ipv4.tcp_congestion_control to none-such", "cannot set sysctl net.ipv4.no_such_key to 1",
		"sysctl.leave", "nosuch0", "cannot set sysctl net.ipv4.conf to 1"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("the error does not say %q: %v", words, err)
		}
	}
	if strings.Contains(err.Error(), "no_such_either") {
		t.Errorf("the optional key is in the error: %v", err)
	}
	if left := sysctl.Diff(b.want, scObserve(t, b.node, b.want)); !left.Empty() {
		t.Errorf("not set because of the others:\n%s", left)
	}
}

// scCounter reads one counter of the host's /proc/net/snmp or netstat.
func scCounter(t *testing.T, h *testbed.Host, file, group, name string) int {
	t.Helper()
	var value int
	must(t, h.Do(func() error {
		data, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			return err
		}
		value, err = fwParseCounter(string(data), group, name)
		return err
	}))
	return value
}

// scDelivered sends a datagram to a closed port of the node and says whether its
// UDP code saw it, and whether the reverse path filter dropped it.
func (b *scBed) scDelivered(from string) (delivered, filtered bool) {
	b.t.Helper()
	probe := testbed.UDPProbe(netip.AddrPortFrom(b.node.V4(), 4242), []byte("x"))
	if from != "" {
		probe.From = netip.MustParseAddr(from)
	}
	seen, dropped := scCounter(b.t, b.node, "snmp", "Udp", "NoPorts"), scCounter(b.t, b.node, "netstat", "TcpExt", "IPReversePathFilter")
	if o := send(b.t, b.sibling, probe); o.Arrived != 1 {
		b.t.Fatalf("the probe from %s did not reach the node's interface: %s", from, o)
	}
	delivered = scCounter(b.t, b.node, "snmp", "Udp", "NoPorts") == seen+1
	filtered = scCounter(b.t, b.node, "netstat", "TcpExt", "IPReversePathFilter") == dropped+1
	return delivered, filtered
}

// Sources that cannot be right do not get in. Each does with the sysctl off.
func TestSysctlSpoofedSource(t *testing.T) {
	b := scNew(t, "spoof")
	run(t, b.node, "ip route add unreachable 198.51.100.0/24")
	cases := []struct {
		name, from string
		off        []string
		filtered   bool     // by rp_filter, and not as a martian
		leave      []string // so that the key in question is alone
	}{
		{"the node's own address", b.node.V4().String(), []string{"net.ipv4.conf.eth0.accept_local=1"}, false, nil},
		{"another address of the node", "192.0.2.1", []string{"net.ipv4.conf.eth0.accept_local=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0"}, false, nil},
		{"loopback", "127.0.0.1", []string{"net.ipv4.conf.eth0.route_localnet=1", "net.ipv4.conf.eth0.accept_local=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0"}, false,
			[]string{"net.ipv4.conf.*.accept_local", "net.ipv4.conf.*.rp_filter"}},
		{"the network behind the node", "192.0.2.9", []string{"net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0"}, true, nil},
		{"no way back", "198.51.100.9", []string{"net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0"}, true, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := &scBed{t: t, node: b.node, sibling: b.sibling, control: b.control, want: b.want}
			scSet(t, b.node, c.off...)
			if delivered, _ := b.scDelivered(c.from); !delivered {
				t.Fatalf("with %v it is not delivered; the test proves nothing", c.off)
			}
			scReconcile(t, b.node, sysctl.Merge(b.want, nil, c.leave))
			delivered, filtered := b.scDelivered(c.from)
			if delivered || filtered != c.filtered {
				t.Errorf("from %s: delivered %v, counted by rp_filter %v, want false and %v", c.from, delivered, filtered, c.filtered)
			}
			if ok, _ := b.scDelivered(""); !ok {
				t.Error("an honest packet is not delivered either")
			}
		})
	}
}

// A neighbour who poses as the router changes no route, in IPv4 and in IPv6,
// without any rule; with the sysctl off he does. The same redirects come first to
// the hardened host, so that nothing is cached.
func TestF14_SysctlRedirect(t *testing.T) {
	b := scNew(t, "redirect")
	scReconcile(t, b.node, b.want)
	link, err := b.sibling.LinkLocal()
	must(t, err)
	way := func(i int) netip.Addr {
		gateway, _, err := b.node.Route(families(b.control)[i])
		must(t, err)
		return gateway
	}
	redirect := func(i int) testbed.Outcome {
		via := []netip.Addr{b.sibling.V4(), link}[i]
		return send(t, b.sibling, testbed.RedirectProbe(way(i), families(b.node)[i], families(b.control)[i], via))
	}
	for i, before := range []netip.Addr{way(0), way(1)} {
		if o := redirect(i); o.Arrived != 1 || way(i) != before {
			t.Errorf("%s: the way is now %s, was %s", o, way(i), before)
		}
	}
	scSet(t, b.node, "net.ipv4.conf.eth0.accept_redirects=1", "net.ipv6.conf.eth0.accept_redirects=1")
	for i, via := range []netip.Addr{b.sibling.V4(), link.WithZone("")} {
		if o := redirect(i); way(i) != via {
			t.Errorf("%s: with the sysctl off the way is %s, want %s; the test proves nothing", o, way(i), via)
		}
	}
}

// The checklists' secure_redirects=0 accepts more than 1 does, which is why the
// file has 1.
func TestSysctlSecureRedirects(t *testing.T) {
	b := scNew(t, "secure")
	scReconcile(t, b.node, b.want)
	scSet(t, b.node, "net.ipv4.conf.eth0.accept_redirects=1", "net.ipv4.conf.all.shared_media=0", "net.ipv4.conf.eth0.shared_media=0")
	obeyed := func() bool {
		before, _, err := b.node.Route(b.control.V4())
		must(t, err)
		send(t, b.sibling, testbed.RedirectProbe(before, b.node.V4(), b.control.V4(), b.sibling.V4()))
		after, _, err := b.node.Route(b.control.V4())
		must(t, err)
		return after != before
	}
	if obeyed() {
		t.Error("with 1 a redirect to somebody who is no gateway was obeyed")
	}
	scSet(t, b.node, "net.ipv4.conf.all.secure_redirects=0", "net.ipv4.conf.eth0.secure_redirects=0")
	if !obeyed() {
		t.Error("with 0 it was not obeyed either: the comment in network.conf is wrong")
	}
}

// A neighbour who asks in one network for an address in another learns nothing.
func TestSysctlARPIgnore(t *testing.T) {
	b := scNew(t, "arp")
	other := netip.MustParseAddr("192.0.2.1")
	run(t, b.sibling, "ip route add 192.0.2.1/32 dev eth0")
	scReconcile(t, b.node, b.want)
	if echo, err := b.sibling.Ping(t.Context(), other, 1); err != nil || echo.Replies != 0 {
		t.Errorf("%+v %v", echo, err)
	}
	scSet(t, b.node, "net.ipv4.conf.all.arp_ignore=0", "net.ipv4.conf.eth0.arp_ignore=0")
	run(t, b.sibling, "ip neigh flush dev eth0")
	if echo, err := b.sibling.Ping(t.Context(), other, 1); err != nil || echo.Replies != 1 {
		t.Errorf("with arp_ignore off: %+v %v; the test proves nothing", echo, err)
	}
}

// A virtual IP moves between two hardened pgpool nodes, and a hardened client
// follows its gratuitous ARP. One that drops those does not, which is why
// drop_gratuitous_arp is not set.
func TestSysctlVirtualIPMoves(t *testing.T) {
	bed, err := testbed.New(t.Context(), "sysctl-vip", []testbed.HostSpec{
		{Name: "pool-0", Addresses: []string{"10.20.1.20/24"}}, {Name: "pool-1", Addresses: []string{"10.20.1.21/24"}},
		{Name: "client", Addresses: []string{"10.20.1.30/24"}},
	})
	must(t, err)
	defer bed.Close()
	b := scNew(t, "vip-settings")
	pools, client := []*testbed.Host{bed.Host("pool-0"), bed.Host("pool-1")}, bed.Host("client")
	for _, h := range append(pools, client) {
		scReconcile(t, h, b.want)
	}
	vip := netip.MustParseAddr("10.20.1.100")
	neighbour := func() string { return run(t, client, "ip neigh show "+vip.String()) }
	mac := func(h *testbed.Host) string { return strings.TrimSpace(run(t, h, "cat /sys/class/net/eth0/address")) }
	move := func(from, to *testbed.Host) {
		run(t, from, "ip addr del 10.20.1.100/24 dev eth0")
		run(t, to, "ip addr add 10.20.1.100/24 dev eth0 label eth0:0")
		must(t, to.Do(func() error { return scAnnounce(vip) }))
	}
	run(t, pools[0], "ip addr add 10.20.1.100/24 dev eth0 label eth0:0")
	if echo, err := client.Ping(t.Context(), vip, 1); err != nil || echo.Replies != 1 || !strings.Contains(neighbour(), mac(pools[0])) {
		t.Fatalf("the virtual IP does not answer on pool-0: %+v %v %s", echo, err, neighbour())
	}
	move(pools[0], pools[1])
	must(t, testbed.Await(t.Context(), "the client to follow", func(context.Context) error {
		if now := neighbour(); !strings.Contains(now, mac(pools[1])) {
			return fmt.Errorf("neighbour is %s, want %s", now, mac(pools[1]))
		}
		return nil
	}))
	if echo, err := client.Ping(t.Context(), vip, 1); err != nil || echo.Replies != 1 {
		t.Errorf("the virtual IP does not answer on pool-1: %+v %v", echo, err)
	}
	scSet(t, client, "net.ipv4.conf.all.drop_gratuitous_arp=1")
	move(pools[1], pools[0])
	if echo, err := client.Ping(t.Context(), vip, 1); err != nil || echo.Replies != 0 {
		t.Errorf("a client that drops gratuitous ARP follows all the same: %+v %v; the comment in network.conf is wrong", echo, err)
	}
}

// scAnnounce sends what arping -U sends: a gratuitous ARP request for an address of
// eth0, by broadcast.
func scAnnounce(addr netip.Addr) error {
	nic, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ip := addr.As4()
	packet := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, lengths, request
	packet = append(append(packet, nic.HardwareAddr...), ip[:]...)
	packet = append(append(packet, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), ip[:]...)
	protocol := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ARP >> 8, unix.ETH_P_ARP & 0xff})
	to := &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: nic.Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	return unix.Sendto(fd, packet, 0, to)
}

// An echo request to everybody in the subnet is not answered.
func TestSysctlBroadcastPing(t *testing.T) {
	b := scNew(t, "broadcast")
	replies := func() int {
		before := scCounter(t, b.node, "snmp", "Icmp", "OutEchoReps")
		seen := scCounter(t, b.node, "snmp", "Icmp", "InEchos")
		_, _ = b.sibling.Run(t.Context(), "ping", "-b", "-c", "1", "-W", "1", "10.20.1.255") // its status says whether there was a reply
		if n := scCounter(t, b.node, "snmp", "Icmp", "InEchos"); n != seen+1 {
			t.Fatalf("%d requests arrived; the test proves nothing", n-seen)
		}
		return scCounter(t, b.node, "snmp", "Icmp", "OutEchoReps") - before
	}
	scSet(t, b.node, "net.ipv4.icmp_echo_ignore_broadcasts=0")
	if n := replies(); n != 1 {
		t.Fatalf("with the sysctl off %d replies; the test proves nothing", n)
	}
	scReconcile(t, b.node, b.want)
	if n := replies(); n != 0 {
		t.Errorf("%d replies", n)
	}
}

// What Merge leaves out stays out on a kernel: nothing of it is in the plan.
func TestSysctlLeave(t *testing.T) {
	b := scNew(t, "leave")
	want := sysctl.Merge(b.want, nil, []string{"net.ipv4.tcp_rfc1337", "net.ipv4.conf.*.rp_filter", "net/ipv6/conf/eth0/*"})
	before := scObserve(t, b.node, scEverything).Values
	scReconcile(t, b.node, want)
	after := scObserve(t, b.node, scEverything).Values
	for key := range maps.Keys(before) {
		left := key == "net.ipv4.tcp_rfc1337" || strings.HasSuffix(key, ".rp_filter") || strings.HasPrefix(key, "net.ipv6.conf.eth0.")
		if left && before[key] != after[key] {
			t.Errorf("%s is left alone and became %s, was %s", key, after[key], before[key])
		}
	}
}
