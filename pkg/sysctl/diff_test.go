package sysctl

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func settings(t *testing.T, text string) []Setting {
	t.Helper()
	list, err := Parse("t", []byte(text))
	wantNone(t, err)
	return list
}

func TestDiff(t *testing.T) {
	rp := func(name string) string { return "net.ipv4.conf." + name + ".rp_filter" }
	for name, c := range map[string]struct {
		want string
		got  map[string]string
		plan []Change
	}{
		"as wanted": {"net.ipv4.conf.*.rp_filter=1\nnet.ipv4.tcp_syncookies=1",
			map[string]string{rp("all"): "1", rp("eth0"): "1", "net.ipv4.tcp_syncookies": "1"}, nil},
		"drift": {"net.ipv4.conf.*.rp_filter=1\nnet.ipv4.tcp_syncookies=1",
			map[string]string{rp("all"): "1", rp("eth0"): "0", "net.ipv4.tcp_syncookies": "2"},
			[]Change{{"net.ipv4.tcp_syncookies", "2", "1"}, {rp("eth0"), "0", "1"}}},
		"a key before a later pattern": {rp("eth1") + "=2\nnet.ipv4.conf.*.rp_filter=1",
			map[string]string{rp("eth0"): "1", rp("eth1"): "1"}, []Change{{rp("eth1"), "1", "2"}}},
		"the last pattern": {"net.ipv4.conf.*.rp_filter=1\nnet.ipv4.conf.veth*.rp_filter=0",
			map[string]string{rp("eth0"): "0", rp("veth7"): "1"}, []Change{{rp("eth0"), "0", "1"}, {rp("veth7"), "1", "0"}}},
		"left out of a pattern": {"net.ipv4.conf.*.rp_filter=1\n-net.ipv4.conf.veth*.rp_filter",
			map[string]string{rp("eth0"): "0", rp("veth7"): "0"}, []Change{{rp("eth0"), "0", "1"}}},
		"only what is left out": {"net.ipv4.conf.*.rp_filter=1\n-net.ipv4.conf.veth*.rp_filter",
			map[string]string{rp("veth7"): "0"}, nil},
		"missing key":          {rp("eth9") + "=1", map[string]string{}, []Change{{rp("eth9"), "", "1"}}},
		"missing, optional":    {"-" + rp("eth9") + "=1", map[string]string{}, nil},
		"pattern for nothing":  {"net.ipv4.conf.*.rp_filtr=1", map[string]string{}, []Change{{"net.ipv4.conf.*.rp_filtr", "", "1"}}},
		"optional, nothing":    {"-net.ipv6.conf.*.accept_redirects=0", map[string]string{}, nil},
		"cannot be read":       {rp("eth0") + "=1", map[string]string{rp("eth0"): ""}, []Change{{rp("eth0"), "", "1"}}},
		"nothing observed":     {rp("eth9") + "=1", nil, nil},
		"nothing wanted":       {"", map[string]string{rp("eth0"): "0"}, nil},
		"a VLAN":               {"net.ipv4.conf.*.rp_filter=1", map[string]string{rp("eth0/5"): "0"}, []Change{{rp("eth0/5"), "0", "1"}}},
		"several words differ": {"net.ipv4.tcp_rmem=1 2 3", map[string]string{"net.ipv4.tcp_rmem": "1 2 4"}, []Change{{"net.ipv4.tcp_rmem", "1 2 4", "1 2 3"}}},
		"what acts on others first": {"net.ipv4.conf.*.rp_filter=1\nnet.ipv4.ip_forward=1",
			map[string]string{rp("aaa"): "0", rp("default"): "0", rp("all"): "0", "net.ipv4.ip_forward": "0"},
			[]Change{{"net.ipv4.ip_forward", "0", "1"}, {rp("all"), "0", "1"}, {rp("default"), "0", "1"}, {rp("aaa"), "0", "1"}}},
	} {
		t.Run(name, func(t *testing.T) {
			p := Diff(settings(t, c.want), Observed{Values: c.got})
			if d := cmp.Diff(c.plan, p.Changes); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if p.Empty() != (len(c.plan) == 0) {
				t.Errorf("Empty is %v", p.Empty())
			}
		})
	}
}

func TestPlanString(t *testing.T) {
	p := Plan{[]Change{{"net.ipv4.tcp_syncookies", "0", "1"}, {"net.ipv4.conf.eth9.rp_filter", "", "1"}}}
	want := "sysctl net.ipv4.tcp_syncookies: is 0, want 1\nsysctl net.ipv4.conf.eth9.rp_filter: not there or empty, want 1\n"
	if p.String() != want {
		t.Errorf("got %q", p.String())
	}
}
