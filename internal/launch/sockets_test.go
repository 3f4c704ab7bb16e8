package launch

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSocketAllowed(t *testing.T) {
	table := socketTable{ephemeral: [2]uint16{32768, 60999}}
	ports := Ports{TCP: []uint16{5432}, UDP: []uint16{9694}}
	for text, c := range map[string]struct {
		proto string
		want  bool
	}{
		"0.0.0.0:5432": {"tcp", true},

		"10.0.0.1:5432":          {"tcp", true},
		"0.0.0.0:5433":           {"tcp", false},
		"[::]:5433":              {"tcp", false},
		"127.0.0.9:5433":         {"tcp", true},
		"[::1]:5433":             {"tcp", true},
		"[::ffff:127.0.0.1]:1":   {"tcp", true},
		"[fe80::1]:5433":         {"tcp", false},
		"0.0.0.0:40000":          {"tcp", false},
		"0.0.0.0:9694":           {"udp", true},
		"[::]:5432":              {"tcp", true},
		"10.0.0.1:53":            {"udp", false},
		"10.0.0.1:40000":         {"udp", true}, // a client's
		"[::ffff:10.0.0.1]:9694": {"udp", true},
	} {
		at := netip.MustParseAddrPort(text)
		l := listener{proto: c.proto, at: netip.AddrPortFrom(at.Addr().Unmap(), at.Port())}
		if got := table.allowed(l, ports); got != c.want {
			t.Errorf("%s: %v", l, got)
		}
	}
	if table.allowed(listener{proto: "unix", name: "@x"}, ports) {
		t.Error("an abstract name is let in")
	}
}

func TestParseUnix(t *testing.T) {
	for line, want := range map[string]listener{
		"ffff8880: 00000002 00000000 00010000 0001 01 4711 @a b\x1b":   {proto: "unix", name: "@a b\x1b", inode: 4711},
		"ffff8880: 00000002 00000000 00010000 0001 01 4712 /run/x":     {inode: 4712},
		"0000000000000000: 00000003 00000000 00000000 0001 03 4713":    {inode: 4713},
		"ffff8880: 00000003 00000000 00000000 0001 03 4714 @connected": {inode: 4714},
		"Num       RefCount Protocol Flags    Type St Inode Path":      {},
		"the rest of a name with a line break":                         {},
		"":                                                             {},
		"ffff8880: 00000002 00000000 0001000z 0001 01 4711 @a":         {},
	} {
		got, ok := parseUnix(line)
		if got != want || ok != (want.inode != 0) {
			t.Errorf("%q: %+v %v", line, got, ok)
		}
	}
}

func FuzzParseUnix(f *testing.F) {
	if data, err := os.ReadFile("/proc/net/unix"); err == nil {
		f.Add(string(data[:min(len(data), 400)]))
	}
	f.Add("ffff8880: 00000002 00000000 00010000 0001 01 4711 @a b")
	f.Fuzz(func(t *testing.T, line string) {
		if l, ok := parseUnix(line); !ok && l != (listener{}) || l.proto != "" && l.name[0] != '@' {
			t.Fatalf("%+v", l)
		}
	})
}

// Sockets of this process are found in the lists, and told from one another.
func TestReadSockets(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	wantNone(t, err)
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	wantNone(t, err)
	defer udp.Close()
	abstract, err := net.Listen("unix", "@pghardend-test")
	wantNone(t, err)
	defer abstract.Close()
	table, err := readSockets(context.Background(), os.Getpid())
	wantNone(t, err)
	var l look
	wantNone(t, l.readFiles(os.Getpid(), nil))
	f, listens := checkListening(os.Getpid(), l, table, Ports{}, false)
	want := []string{"tcp " + tcp.Addr().String(), "udp " + udp.LocalAddr().String(), "unix @pghardend-test"}
	if d := cmp.Diff(want, listens); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if f.OK || f.Got != "no flow lets in: unix @pghardend-test" {
		t.Errorf("got %+v", f)
	}
	for _, inode := range l.sockets {
		if kind := oddSocket(os.Getpid(), inode, socketTable{}); kind != "" {
			t.Errorf("an ordinary socket is taken for one of %s", kind)
		}
	}
}
