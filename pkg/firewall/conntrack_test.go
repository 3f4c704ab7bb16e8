package firewall

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// dump is what a kernel 6.18 answered, a message a line: with NAT, zones,
// protocols without ports, and a connection taken up in mid-stream.
func dump(t testing.TB) [][]byte {
	t.Helper()
	var messages [][]byte
	for line := range strings.Lines(string(read(t, "testdata/conntrack.txt"))) {
		m, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, m)
	}
	return messages
}

func TestParseConnection(t *testing.T) {
	var got []string
	for _, m := range dump(t) {
		c, err := parseConnection(m)
		if err != nil {
			t.Fatal(err)
		}
		if c.id.tuple == "" || c.id.number == 0 {
			t.Errorf("%s: no way to name it to the kernel: %+v", c, c.id)
		}
		line := c.String()
		for _, note := range []struct {
			is   bool
			text string
		}{
			{c.notes.noEcho, "no echo"}, {c.id.zone != 0, fmt.Sprint("zone ", c.id.zone)},
			{c.seen.IsValid(), "seen at " + c.seen.String()},
		} {
			if note.is {
				line += ", " + note.text
			}
		}
		got = append(got, line)
	}
	slices.Sort(got)
	want := []string{
		"132 127.0.0.1:4000 to 127.0.0.1:5000",
		"47 127.0.0.1 to 127.0.0.1",
		"89 127.0.0.1 to 127.0.0.1",
		"icmp 127.0.0.1 to 127.0.0.1",
		"icmp 127.0.0.1 to 127.0.0.1, no echo",
		"icmp ::1 to ::1",
		"tcp 127.0.0.1:35482 to 127.0.0.1:7000, seen at 127.0.0.1:7001",
		"tcp 127.0.0.1:42274 to 127.0.0.1:7100, zone 7",
		"tcp 127.0.0.1:7200 to 127.0.0.1:51440",
		"tcp [::1]:59840 to [::1]:7300",
		"udp 127.0.0.1:41277 to 127.0.0.1:53",
		"udp [::1]:36290 to [::1]:53",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestParseConnectionRefuses(t *testing.T) {
	good := dump(t)[0]
	for name, m := range map[string][]byte{
		"nothing":           nil,
		"header only":       good[:4],
		"cut in an address": good[:14],
		"cut in the reply":  good[:len(good)/2],
		"size beyond end":   append([]byte{2, 0, 0, 0, 0xff, 0xff, 1, 0x80}, make([]byte, 8)...),
		"size too small":    {2, 0, 0, 0, 3, 0, 1, 0x80},
		"half a size":       {2, 0, 0, 0, 3},
	} {
		if c, err := parseConnection(m); err == nil {
			t.Errorf("%s: read as %s", name, c)
		}
	}
}

// FuzzParseConnection: whatever the kernel sends, no connection without both
// addresses, and none that Cut could not name.
func FuzzParseConnection(f *testing.F) {
	for _, m := range dump(f) {
		f.Add(m)
	}
	s := decideSpec(f, "postgres", ScopeHost)
	f.Fuzz(func(t *testing.T, m []byte) {
		c, err := parseConnection(m)
		if err != nil {
			return
		}
		if !c.Src.Addr().IsValid() || !c.Dst.Addr().IsValid() || c.id.tuple == "" {
			t.Errorf("incomplete: %+v", c)
		}
		cuts := Cuts{Unwanted(s, nil, []Connection{c})}
		if strings.ContainsFunc(strings.ReplaceAll(cuts.String(), "\n", ""), isControl) {
			t.Errorf("%q", cuts)
		}
	})
}

func conn(proto, src, dst string) Connection {
	at := func(text string) netip.AddrPort {
		if a, err := netip.ParseAddr(text); err == nil {
			return netip.AddrPortFrom(a, 0)
		}
		return netip.MustParseAddrPort(text)
	}
	return Connection{Proto: proto, Src: at(src), Dst: at(dst)}
}

func (c Connection) with(change func(*Connection)) Connection {
	change(&c)
	return c
}

func noEcho(c *Connection)  { c.notes.noEcho = true }
func srcHere(c *Connection) { c.notes.srcHere = true }
func dstHere(c *Connection) { c.notes.dstHere = true }
func toAll(c *Connection)   { c.notes.toSubnet = true }
func inZone(c *Connection)  { c.id.zone = 3 }
func seenAt(at string) func(*Connection) {
	return func(c *Connection) { c.seen = netip.MustParseAddrPort(at) }
}

// The node is pg-0, 10.20.1.10; members and openings are decideSpec's.
func TestUnwanted(t *testing.T) {
	const keep, cut = true, false
	for _, c := range []struct {
		name           string
		c              Connection
		host, siblings bool
	}{
		{"a peer's", conn("tcp", "10.20.1.20:40000", "10.20.1.10:5432"), keep, keep},
		{"a peer's, IPv6", conn("tcp", "[fd00:20:1::20]:40000", "[fd00:20:1::10]:5432"), keep, keep},
		{"to a peer", conn("tcp", "10.20.1.10:40000", "10.20.1.11:5432"), keep, keep},
		{"a sibling's", conn("tcp", "10.20.1.66:40000", "10.20.1.10:5432"), cut, cut},
		{"a sibling's, IPv6", conn("tcp", "[fd00:20:1::66]:40000", "[fd00:20:1::10]:5432"), cut, cut},
		{"a sibling's, link-local", conn("tcp", "[fe80::66]:40000", "[fe80::10]:5432").with(dstHere), cut, cut},
		{"to a sibling", conn("udp", "10.20.1.10:40000", "10.20.1.66:53"), cut, cut},
		{"a stranger's", conn("tcp", "203.0.113.5:40000", "10.20.1.10:5432"), cut, keep},
		{"to a stranger", conn("tcp", "10.20.1.10:40000", "203.0.113.5:443"), cut, keep},
		{"a peer's to a port without a row", conn("tcp", "10.20.1.20:40000", "10.20.1.10:7777"), cut, cut},
		{"a peer's row, by udp", conn("udp", "10.20.1.20:40000", "10.20.1.10:5432"), cut, cut},
		{"the control plane's", conn("tcp", "10.0.0.9:40000", "10.20.1.10:22"), keep, keep},

		{"taken up at an answer to a peer", conn("tcp", "10.20.1.10:5432", "10.20.1.20:40000"), keep, keep},
		{"taken up at an answer of a peer", conn("tcp", "10.20.1.11:5432", "10.20.1.10:40000"), keep, keep},
		{"taken up at an answer of a sibling", conn("tcp", "10.20.1.66:5432", "10.20.1.10:40000"), cut, cut},
		{"taken up at an answer, by udp", conn("udp", "10.20.1.11:5432", "10.20.1.10:40000"), cut, cut},
		{"an answer by udp", conn("udp", "10.0.53.5:53", "10.20.1.10:40000"), cut, keep},

		{"an opening's", conn("tcp", "192.0.2.9:40000", "10.20.1.10:8443"), keep, keep},
		{"a sibling's through an opening", conn("tcp", "10.20.1.66:40000", "10.20.1.10:8443"), keep, keep},
		{"an opening's, by another protocol", conn("udp", "10.20.1.66:40000", "10.20.1.10:8443"), cut, cut},

		{"root's or not, to the metadata service", conn("tcp", "10.20.1.10:40000", "169.254.169.254:80"), keep, keep},
		{"another port of the metadata service", conn("tcp", "10.20.1.10:40000", "169.254.169.254:443"), cut, cut},
		{"the metadata service's DNS", conn("udp", "10.20.1.10:40000", "169.254.169.254:53"), keep, keep},
		{"from the metadata service", conn("tcp", "169.254.169.254:80", "10.20.1.10:7777"), cut, keep},

		{"echo of a peer", conn("icmp", "10.20.1.20", "10.20.1.10"), keep, keep},
		{"echo of a sibling", conn("icmp", "fd00:20:1::66", "fd00:20:1::10"), cut, cut},
		{"timestamp of a peer", conn("icmp", "10.20.1.20", "10.20.1.10").with(noEcho), cut, cut},
		{"gre to a peer", conn("47", "10.20.1.10", "10.20.1.20"), cut, cut},
		{"sctp of a sibling", conn("132", "10.20.1.66:5432", "10.20.1.10:5432"), cut, cut},

		{"loopback", conn("tcp", "127.0.0.1:40000", "127.0.0.1:6000"), keep, keep},
		{"loopback, IPv6", conn("udp", "[::1]:40000", "[::1]:6000"), keep, keep},
		{"to itself", conn("tcp", "10.20.1.10:40000", "10.20.1.10:6000"), keep, keep},

		{"multicast to all", conn("udp", "10.20.1.10:5353", "224.0.0.251:5353"), cut, keep},
		{"multicast of a sibling", conn("udp", "10.20.1.66:5353", "224.0.0.251:5353"), cut, cut},
		{"a lease's renewal", conn("udp", "10.20.1.10:68", "10.20.1.1:67"), keep, keep},
		{"a lease's renewal at the metadata service", conn("udp", "10.20.1.10:68", "169.254.169.254:67"), keep, keep},
		{"a lease's beginning", conn("udp", "0.0.0.0:68", "255.255.255.255:67"), keep, keep},
		{"DHCP from another port", conn("udp", "10.20.1.10:40000", "10.20.1.1:67"), cut, cut},
		{"DHCP to another port", conn("udp", "10.20.1.10:68", "10.20.1.1:53"), cut, cut},
		{"DHCP by tcp", conn("tcp", "10.20.1.10:68", "10.20.1.1:67"), cut, cut},
		{"DHCP of a sibling", conn("udp", "10.20.1.66:68", "10.20.1.10:67"), cut, cut},
		{"an IPv6 lease's renewal", conn("udp", "[fe80::10]:546", "[ff02::1:2]:547").with(srcHere), keep, keep},
		{"its answer", conn("udp", "[fe80::1]:547", "[fe80::10]:546").with(dstHere), keep, keep},
		{"an answer from afar", conn("udp", "[2001:db9::1]:547", "[fd00:20:1::10]:546"), cut, keep},
		{"an answer to another port", conn("udp", "[fe80::1]:547", "[fe80::10]:5432").with(dstHere), cut, cut},
		{"DHCPv6 to one address", conn("udp", "[fe80::10]:546", "[fe80::1]:547").with(srcHere), cut, cut},
		{"DHCPv6 from another port", conn("udp", "[fe80::10]:40000", "[ff02::1:2]:547").with(srcHere), cut, keep},
		{"broadcast of a sibling", conn("udp", "10.20.1.66:68", "255.255.255.255:67"), cut, cut},
		{"a row's multicast, of a peer", conn("udp", "10.20.1.20:40000", "224.0.0.251:9700"), keep, keep},
		{"a row's broadcast, of a peer", conn("udp", "10.20.1.20:40000", "255.255.255.255:9700"), keep, keep},
		{"a row's broadcast to the subnet, of a peer", conn("udp", "10.20.1.20:40000", "10.20.1.255:9700").with(toAll), keep, keep},
		{"the subnet's broadcast, of a sibling", conn("udp", "10.20.1.66:138", "10.20.1.255:138").with(toAll), cut, cut},
		{"the subnet's broadcast, of a peer", conn("udp", "10.20.1.20:138", "10.20.1.255:138").with(toAll), cut, cut},

		{"forwarded for a stranger", conn("tcp", "203.0.113.5:40000", "198.51.100.7:80"), cut, keep},
		{"forwarded to a sibling", conn("tcp", "203.0.113.5:40000", "10.20.1.66:80"), cut, cut},
		{"forwarded for a sibling", conn("tcp", "10.20.1.66:40000", "203.0.113.5:80"), cut, cut},
		{"in a zone of a virtual switch", conn("tcp", "203.0.113.5:40000", "198.51.100.7:80").with(inZone), keep, keep},
		{"in a zone, of a sibling to the node", conn("tcp", "10.20.1.66:40000", "10.20.1.10:80").with(inZone), cut, cut},

		{"to a virtual address", conn("tcp", "10.20.1.20:40000", "10.20.1.99:5432").with(dstHere), keep, keep},
		{"redirected to a row's port", conn("tcp", "10.20.1.20:40000", "10.20.1.10:6432").with(seenAt("10.20.1.10:5432")), keep, keep},
		{"redirected from a row's port", conn("tcp", "10.20.1.20:40000", "10.20.1.10:5432").with(seenAt("10.20.1.10:6432")), cut, cut},
	} {
		for scope, want := range map[string]bool{"": c.host, ScopeHost: c.host, ScopeSiblings: c.siblings} {
			s := decideSpec(t, "postgres", scope)
			self := []netip.Addr{netip.MustParseAddr("10.20.1.10"), netip.MustParseAddr("fd00:20:1::10")}
			if kept := len(Unwanted(s, self, []Connection{c.c})) == 0; kept != want {
				t.Errorf("%s (%s), scope %q: kept %t, want %t", c.name, c.c, scope, kept, want)
			}
		}
	}
}

// A member, an opening or a row that goes takes its connections along, and no others.
func TestF12_UnwantedAfterRemoval(t *testing.T) {
	self := []netip.Addr{netip.MustParseAddr("10.20.1.10")}
	removed := []Connection{
		conn("tcp", "10.20.1.20:40000", "10.20.1.10:5432"),
		conn("tcp", "10.20.1.10:5432", "10.20.1.20:40001"),
		conn("icmp", "10.20.1.20", "10.20.1.10"),
	}
	kept := []Connection{conn("tcp", "10.20.1.21:40000", "10.20.1.10:5432"), conn("tcp", "10.20.1.10:40000", "10.20.1.11:5432")}
	all := slices.Concat(removed, kept)
	s := decideSpec(t, "postgres", ScopeHost)
	if got := Unwanted(s, self, all); len(got) != 0 {
		t.Fatalf("before anybody is removed: %v", got)
	}
	s.Members["pgpool"] = prefixes("10.20.1.21/32")
	if got := (Cuts{Unwanted(s, self, all)}).String(); got != (Cuts{removed}).String() {
		t.Errorf("cut:\n%swant:\n%s", got, Cuts{removed})
	}
	hole := []Connection{conn("tcp", "192.0.2.9:40000", "10.20.1.10:8443")}
	if got := Unwanted(s, self, hole); len(got) != 0 {
		t.Errorf("an opening is in force, but %v goes", got)
	}
	s.Openings = nil
	if got := Unwanted(s, self, hole); len(got) != 1 {
		t.Error("the opening has ended, but its connection stays")
	}
	s.Flows = nil
	if got := Unwanted(s, self, all); len(got) != len(all) {
		t.Errorf("without any row %v goes", got)
	}
}

func TestCutsText(t *testing.T) {
	var cuts Cuts
	if !cuts.Empty() || cuts.String() != "" {
		t.Errorf("nothing to cut is %t, %q", cuts.Empty(), cuts)
	}
	for range maxCutLines + 2 {
		cuts.Connections = append(cuts.Connections, conn("tcp", "10.20.1.66:40000", "10.20.1.10:5432"))
	}
	lines := strings.Split(strings.TrimSpace(cuts.String()), "\n")
	first, last := "connection tcp 10.20.1.66:40000 to 10.20.1.10:5432: not allowed any more", "and 2 more connections"
	if cuts.Empty() || len(lines) != maxCutLines+1 || lines[0] != first || lines[maxCutLines] != last {
		t.Errorf("%d lines: %s", len(lines), cuts)
	}
}

// A request to the kernel without addresses would mean all connections: what
// was not read from the kernel is never sent to it.
func TestCutRefusesUnknown(t *testing.T) {
	err := Cut(t.Context(), []Connection{conn("tcp", "10.20.1.66:40000", "10.20.1.10:5432")})
	if err == nil || !strings.Contains(err.Error(), "not read from the kernel") {
		t.Error(err)
	}
}

func TestConnectionsWithoutTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ObserveConnections(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := Cut(ctx, []Connection{{}}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func BenchmarkUnwanted(b *testing.B) {
	s := decideSpec(b, "pgpool", ScopeHost)
	self := []netip.Addr{netip.MustParseAddr("10.20.1.20")}
	var all []Connection
	for i := range 10000 {
		app := fmt.Sprintf("10.60.%d.%d", i/256, i%256)
		s.Members["applications"] = append(s.Members["applications"], netip.MustParsePrefix(app+"/32"))
		all = append(all, conn("tcp", app+":40000", "10.20.1.20:9999"))
	}
	for b.Loop() {
		if n := len(Unwanted(s, self, all)); n != 0 {
			b.Fatal(n)
		}
	}
}
