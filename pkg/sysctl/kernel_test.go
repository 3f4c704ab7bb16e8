package sysctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/policies"
)

// files makes a tree with the given values. What the kernel does to them is
// tested on the kernel, in test/e2e.
func files(t *testing.T, values map[string]string) tree {
	t.Helper()
	root := t.TempDir()
	for name, value := range values {
		file := filepath.Join(root, name)
		wantNone(t, os.MkdirAll(filepath.Dir(file), 0o755))
		wantNone(t, os.WriteFile(file, []byte(value), 0o644))
	}
	return tree(root)
}

func TestObserveExpandsPatterns(t *testing.T) {
	root := files(t, map[string]string{
		"net/ipv4/conf/all/rp_filter": "0\n", "net/ipv4/conf/eth0.5/rp_filter": "1\n", "net/ipv4/conf/lo/arp_ignore": "0\n",
		"net/ipv4/tcp_rmem": "4096\t131072\t6291456\n", "net/ipv4/tcp_empty": "\n", "net/ipv4/ip_forward": "0\n",
	})
	got, err := root.observe(t.Context(), settings(t, `net.ipv4.conf.*.rp_filter=1
net.ipv4.tcp_rmem=1 2 3
net.ipv4.tcp_empty=1
net.ipv4.missing=1
net.ipv4.*.nothing.here=1
net.ipv4.con*=1
-net.ipv4.ip_forward`))
	wantNone(t, err)
	want := map[string]string{
		"net.ipv4.conf.all.rp_filter": "0", "net.ipv4.conf.eth0/5.rp_filter": "1",
		"net.ipv4.tcp_rmem": "4096 131072 6291456", "net.ipv4.tcp_empty": "",
	}
	if d := cmp.Diff(want, got.Values); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestApplyGoesOnAfterAFailure(t *testing.T) {
	root := files(t, map[string]string{"net/ipv4/a": "0\n", "net/ipv4/b": "0\n"})
	err := root.apply(t.Context(), Plan{[]Change{
		{"net.ipv4.a", "0", "1"}, {"net.ipv4.gone", "", "1"}, {"net.ipv4.*.none", "", "1"}, {"net.ipv4.b", "0", "2 3"},
	}})
	wantError(t, err, "cannot set sysctl net.ipv4.gone to 1", "no such key", "list net.ipv4.gone in sysctl.leave", "net.ipv4.*.none")
	got, err := root.observe(t.Context(), settings(t, "net.ipv4.*=1"))
	wantNone(t, err)
	if d := cmp.Diff(map[string]string{"net.ipv4.a": "1", "net.ipv4.b": "2 3"}, got.Values); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A key that goes with its interface between Observe and Apply is no failure, and
// nothing is created in its place.
func TestApplyInterfaceGone(t *testing.T) {
	root := files(t, map[string]string{"net/ipv4/conf/all/rp_filter": "0\n"})
	wantNone(t, root.apply(t.Context(), Plan{[]Change{{"net.ipv4.conf.veth7.rp_filter", "0", "1"}}}))
	if _, err := os.Stat(filepath.Join(string(root), "net/ipv4/conf/veth7")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was created: %v", err)
	}
}

// The kernel lets an interface be called * or the like; it is no pattern then.
func TestApplyInterfaceNamedLikeAPattern(t *testing.T) {
	root := files(t, map[string]string{"net/ipv4/conf/*/rp_filter": "0\n", "net/ipv4/conf/e*1/rp_filter": "0\n", "net/ipv4/conf/eth1/rp_filter": "0\n"})
	want := settings(t, "net.ipv4.conf.*.rp_filter=1")
	got, err := root.observe(t.Context(), want)
	wantNone(t, err)
	wantNone(t, root.apply(t.Context(), Diff(want, got)))
	got, err = root.observe(t.Context(), want)
	wantNone(t, err)
	if p := Diff(want, got); !p.Empty() || len(got.Values) != 3 {
		t.Errorf("not set, of %d:\n%s", len(got.Values), p)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	root := files(t, map[string]string{"net/ipv4/a": "0\n"})
	if _, err := root.observe(ctx, settings(t, "net.ipv4.a=1")); !errors.Is(err, context.Canceled) {
		t.Errorf("observe: %v", err)
	}
	if err := root.apply(ctx, Plan{[]Change{{"net.ipv4.a", "0", "1"}}}); !errors.Is(err, context.Canceled) {
		t.Errorf("apply: %v", err)
	}
	if v, err := root.read("net/ipv4/a"); v != "0" {
		t.Errorf("it was set all the same: %q %v", v, err)
	}
}

func TestHint(t *testing.T) {
	for err, word := range map[error]string{
		syscall.ENOENT: "sysctl.leave", syscall.EINVAL: "sysctl.set", syscall.ERANGE: "sysctl.set",
		syscall.EROFS: "sysctl.manage: false", syscall.EACCES: "as root", syscall.EPERM: "as root",
	} {
		if h := hint(fmt.Errorf("x: %w", err), "net.a"); !strings.Contains(h, word) {
			t.Errorf("%v: %q does not say %q", err, h, word)
		}
	}
	if h := hint(syscall.EIO, "net.a"); h != "" {
		t.Errorf("EIO: %q", h)
	}
}

// builtin are the settings that ship with the program.
func builtin(t testing.TB) []Setting {
	t.Helper()
	data, err := fs.ReadFile(policies.FS, "sysctl/network.conf")
	if err != nil {
		t.Fatal(err)
	}
	list, err := Parse("network.conf", data)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Reading needs no root, and on this kernel every built-in key is there.
func TestBuiltinOnThisKernel(t *testing.T) {
	list := builtin(t)
	got, err := Observe(t.Context(), list)
	wantNone(t, err)
	for _, c := range Diff(list, got).Changes {
		if c.Have == "" {
			t.Errorf("not on this kernel: %s", c)
		}
	}
	data, err := os.ReadFile("/proc/sys/net/ipv4/conf/lo/rp_filter")
	wantNone(t, err)
	if v := got.Values["net.ipv4.conf.lo.rp_filter"]; v != strings.TrimSpace(string(data)) {
		t.Errorf("read %q, the kernel has %q", v, data)
	}
}

// What the built-in settings must say. Whoever changes one of them changes this
// on purpose.
func TestBuiltin(t *testing.T) {
	list := Merge(builtin(t), nil, nil)
	r := resolve(list)
	for key, want := range map[string]string{
		"net.ipv4.conf.all.rp_filter": "1", "net.ipv4.conf.default.rp_filter": "1", "net.ipv4.conf.eth0/5.rp_filter": "1",
		"net.ipv4.conf.all.accept_local": "0", "net.ipv4.conf.eth0.accept_local": "0",
		"net.ipv4.conf.all.route_localnet": "0", "net.ipv4.conf.eth0.route_localnet": "0",
		"net.ipv4.conf.all.accept_redirects": "0", "net.ipv4.conf.default.accept_redirects": "0", "net.ipv4.conf.eth0.accept_redirects": "0",
		"net.ipv4.conf.all.secure_redirects": "1",
		"net.ipv4.conf.all.send_redirects":   "0", "net.ipv4.conf.eth0.send_redirects": "0",
		"net.ipv4.conf.all.accept_source_route": "0", "net.ipv4.conf.eth0.accept_source_route": "0",
		"net.ipv6.conf.all.accept_source_route": "0", "net.ipv6.conf.eth0.accept_source_route": "0",
		"net.ipv6.conf.all.accept_redirects": "0", "net.ipv6.conf.default.accept_redirects": "0", "net.ipv6.conf.eth0.accept_redirects": "0",
		"net.ipv4.conf.all.log_martians": "1",
		"net.ipv4.conf.eth0.arp_ignore":  "1", "net.ipv4.conf.eth0.arp_announce": "2",
		"net.ipv4.tcp_syncookies": "1", "net.ipv4.icmp_echo_ignore_broadcasts": "1",
		"net.ipv4.icmp_ignore_bogus_error_responses": "1", "net.ipv4.tcp_rfc1337": "1",
	} {
		if v, ok := r.value(key); !ok || v != want {
			t.Errorf("%s: got %q, want %q", key, v, want)
		}
	}
	for _, key := range []string{
		"net.ipv4.ip_forward", "net.ipv4.conf.eth0.forwarding", "net.ipv6.conf.eth0.accept_ra", "net.ipv6.conf.eth0.forwarding",
		"net.ipv4.conf.eth0.drop_gratuitous_arp", "net.ipv4.conf.eth0.arp_accept",
	} {
		if v, ok := r.value(key); ok {
			t.Errorf("%s is set to %s; the file says that it is not here on purpose", key, v)
		}
	}
}

func BenchmarkPass(b *testing.B) {
	list := builtin(b)
	for b.Loop() {
		got, err := Observe(b.Context(), list)
		if err != nil {
			b.Fatal(err)
		}
		_ = Diff(list, got)
	}
}
