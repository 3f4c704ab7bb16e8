package sysctl

import (
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// line writes a setting the way Parse reads it.
func line(s Setting) string {
	switch {
	case s.Leave:
		return "-" + s.Key
	case s.Optional:
		return "-" + s.Key + " = " + s.Value
	}
	return s.Key + " = " + s.Value
}

// FuzzParse: what is taken names a file below /proc/sys/net and one value, and
// reads back as itself.
func FuzzParse(f *testing.F) {
	f.Add([]byte("# network\nnet.ipv4.conf.*.rp_filter = 1\n-net.ipv6.conf.all.accept_ra=0\n-net.ipv4.conf.lo.rp_filter\n"))
	f.Add([]byte("net/ipv4/conf/eth0.100/rp_filter=2\r\nnet.ipv4.tcp_rmem = 4096\t131072 6291456"))
	f.Add([]byte("net/../../etc/passwd = 1\nnet.ipv4.//.x = 0x1f\nnet.ipv4.tcp_mem = 010 08 -0\n;\n-\n="))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := Parse("f", data)
		if err != nil {
			if list != nil {
				t.Error("settings with an error")
			}
			return
		}
		var text []string
		for _, s := range list {
			if name := "/" + swap(s.Key); path.Clean(name) != name || !strings.HasPrefix(name, "/net/") {
				t.Errorf("%q is no file below net", s.Key)
			}
			if s.Leave != (s.Value == "") || strings.ContainsAny(s.Value, "\n\t\x00") || strings.ContainsAny(s.Key, "\n \x00[?\\") {
				t.Errorf("%+v cannot be right", s)
			}
			text = append(text, line(s))
		}
		again, err := Parse("f", []byte(strings.Join(text, "\n")))
		if err != nil {
			t.Fatalf("%q is not read back: %v", text, err)
		}
		if d := cmp.Diff(list, again); d != "" {
			t.Errorf("read back differently:\n%s", d)
		}
		before, after := resolve(list), resolve(Merge(nil, list, nil))
		for key, want := range before.named {
			left := slices.ContainsFunc(before.left, func(p pattern) bool { return covers(p.Key, key) })
			if got, ok := after.named[key]; !left && (!ok || got != want) {
				t.Errorf("Merge made %s %q, was %q", key, got, want)
			}
		}
	})
}
