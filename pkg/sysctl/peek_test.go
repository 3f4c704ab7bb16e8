package sysctl

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// watched is a tree that is as wanted and learned.
func watched(t *testing.T, want string, values map[string]string) (*Peeker, tree) {
	t.Helper()
	root := files(t, values)
	p := root.peeker(settings(t, want))
	t.Cleanup(func() { wantNone(t, p.Close()) })
	if !p.Peek(t.Context()) {
		t.Error("nothing to see before the first Learn")
	}
	wantNone(t, p.Learn(t.Context()))
	if p.Peek(t.Context()) {
		t.Fatal("a difference right after Learn")
	}
	return p, root
}

func TestPeek(t *testing.T) {
	const want = `net.ipv4.conf.*.rp_filter = 1
net.ipv4.tcp_rmem = 4096 131072 6291456
-net.ipv6.conf.*.accept_redirects = 0
-net.ipv4.conf.eth1.rp_filter
-net.ipv4.gone = 1
net.ipv4.tcp_syncookies = 1`
	const conf = "net/ipv4/conf/"
	values := map[string]string{
		conf + "all/rp_filter": "1\n", conf + "eth0/rp_filter": "1\n", conf + "eth1/rp_filter": "0\n", conf + "eth0/arp_ignore": "0\n",
		"net/ipv4/tcp_rmem": "4096\t131072\t6291456\n", "net/ipv4/tcp_syncookies": "1\n",
	}
	for _, tt := range []struct {
		name   string
		change func(root string) error
		want   bool
	}{
		{"nothing", func(string) error { return nil }, false},
		{"a value", put(conf+"eth0/rp_filter", "0\n"), true},
		{"a longer value", put(conf+"eth0/rp_filter", "10\n"), true},
		{"no value", put(conf+"eth0/rp_filter", ""), true},
		{"one of three numbers", put("net/ipv4/tcp_rmem", "4096\t131073\t6291456\n"), true},
		{"the same in other words", put("net/ipv4/tcp_rmem", "4096 0x20000 6291456\n"), false},
		{"a key that is not a pattern's", put("net/ipv4/tcp_syncookies", "0\n"), true},
		{"a key that nobody wants", put(conf+"eth0/arp_ignore", "1\n"), false},
		{"a key that is left alone", put(conf+"eth1/rp_filter", "2\n"), false},
		{"a new interface", func(root string) error { return os.Mkdir(filepath.Join(root, conf, "eth2"), 0o755) }, true},
		{"an interface gone", func(root string) error { return os.RemoveAll(filepath.Join(root, conf, "eth1")) }, true},
		{"an interface renamed", func(root string) error {
			return os.Rename(filepath.Join(root, conf, "eth1"), filepath.Join(root, conf, "eth2"))
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, root := watched(t, want, values)
			wantNone(t, tt.change(string(root)))
			for range 2 { // not only once
				if got := p.Peek(t.Context()); got != tt.want {
					t.Errorf("%v, want %v", got, tt.want)
				}
			}
			wantNone(t, p.Close())
			if !p.Peek(t.Context()) {
				t.Error("nothing to see after Close")
			}
		})
	}
}

// A key that comes later is none that is read, until Learn has found it.
func TestPeekerIsStaleAfterANewKey(t *testing.T) {
	p, root := watched(t, "-net.netfilter.nf_conntrack_max = 1\nnet.ipv4.tcp_syncookies = 1", map[string]string{"net/ipv4/tcp_syncookies": "1\n"})
	stale := func() bool {
		got, err := root.observe(t.Context(), p.want)
		wantNone(t, err)
		return p.Stale(t.Context(), got)
	}
	if stale() {
		t.Error("nothing has changed")
	}
	wantNone(t, os.MkdirAll(filepath.Join(string(root), "net/netfilter"), 0o755))
	wantNone(t, put("net/netfilter/nf_conntrack_max", "1\n")(string(root)))
	if p.Peek(t.Context()) || !stale() {
		t.Error("the new key is to be found by who observes, and by nobody else")
	}
}

func put(name, text string) func(string) error {
	return func(root string) error { return os.WriteFile(filepath.Join(root, name), []byte(text), 0o644) }
}

// More keys than descriptors are kept for: each is seen after some looks, and the
// descriptors stay within the bound.
func TestPeekManyInterfaces(t *testing.T) {
	const interfaces = maxOpen + 3*turn
	values := map[string]string{}
	name := func(i int) string { return fmt.Sprintf("net/ipv4/conf/veth%03d/rp_filter", i) }
	for i := range interfaces {
		values[name(i)] = "1\n"
	}
	p, root := watched(t, "net.ipv4.conf.*.rp_filter = 1", values)
	if len(p.open) != maxOpen || len(p.rest) != interfaces-maxOpen {
		t.Errorf("%d open, %d not; want %d and %d", len(p.open), len(p.rest), maxOpen, interfaces-maxOpen)
	}
	for _, i := range []int{0, maxOpen - 1, maxOpen, interfaces - 1} {
		wantNone(t, put(name(i), "0\n")(string(root)))
		seen := false
		for range 3 {
			seen = seen || p.Peek(t.Context())
		}
		if !seen {
			t.Errorf("%s: not seen in three looks", name(i))
		}
		wantNone(t, put(name(i), "1\n")(string(root)))
	}
	for range 6 {
		if p.Peek(t.Context()) {
			t.Error("a difference where there is none")
		}
	}
}

func TestPeekLearnFails(t *testing.T) {
	p, root := watched(t, "net.ipv4.a = 1", map[string]string{"net/ipv4/a": "1\n"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, p.Learn(ctx), "cannot watch sysctls")
	if !p.Peek(t.Context()) || len(p.open) != 0 {
		t.Error("an unlearned Peeker says that all is well")
	}
	wantNone(t, p.Learn(t.Context()))
	if p.Peek(t.Context()) || !p.Peek(ctx) {
		t.Error("not learned again, or silent after the end")
	}
	wantNone(t, os.Remove(root.file("net/ipv4/a")))
}

// What the kernel has is what Learn expects or not: both must be told.
func TestPeekOnThisKernel(t *testing.T) {
	now, err := Observe(t.Context(), settings(t, "net.ipv4.conf.*.rp_filter=1\nnet.ipv4.tcp_rmem=1"))
	wantNone(t, err)
	for _, off := range []string{"", "1"} {
		var want []Setting
		for key, value := range now.Values {
			want = append(want, Setting{Key: key, Value: value + off})
		}
		p := NewPeeker(append(want, Setting{Key: "net.ipv4.conf.*.no_such_key", Value: "1"}))
		wantNone(t, p.Learn(t.Context()))
		if got := p.Peek(t.Context()); got != (off != "") {
			t.Errorf("with %q at the end of each value: %v", off, got)
		}
		wantNone(t, p.Close())
	}
}

// BenchmarkPeek: the built-in list for three interfaces, all as the kernel has it.
func BenchmarkPeek(b *testing.B) {
	list := builtin(b)
	now, err := Observe(b.Context(), list)
	if err != nil {
		b.Fatal(err)
	}
	var want []Setting
	for key, value := range now.Values {
		want = append(want, Setting{Key: key, Value: value})
	}
	p := NewPeeker(append(want, Setting{Key: "net.ipv4.conf.*.no_such_key", Value: "1"}, Setting{Key: "net.ipv6.conf.*.no_such_key", Value: "1"}))
	defer p.Close()
	if err := p.Learn(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if p.Peek(b.Context()) {
			b.Fatal("a difference")
		}
	}
	b.ReportMetric(float64(len(p.open)), "keys")
}

// FuzzCutEntry: whatever is read is taken apart to its end.
func FuzzCutEntry(f *testing.F) {
	f.Add([]byte("12345678abcdefgh\x18\x00\x04eth0\x0012345678abcdefgh\x18\x00\x04lo\x00\x00\x00"))
	f.Add(make([]byte, 24))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for rest := data; len(rest) > 0; {
			before := len(rest)
			var name []byte
			name, rest = cutEntry(rest)
			if len(rest) >= before || len(name)+len(rest) > before {
				t.Fatalf("%d bytes, of which a name of %d and a rest of %d", before, len(name), len(rest))
			}
		}
	})
}
