package sysctl

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// wantError checks that err is there and says each of the words.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error does not say %q: %v", w, err)
		}
	}
}

func wantNone(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
}

func TestParse(t *testing.T) {
	got, err := Parse("x.conf", []byte(`
# a comment = no setting
 ; nor = this
net.ipv4.tcp_syncookies=1
  net/ipv4/tcp_rmem =	4096  131072	6291456
-net.ipv6.conf.*.accept_redirects = 0
net.ipv4.conf.enp3s0/200.rp_filter = 2
net/ipv4/conf/enp3s0.200/arp_ignore = 1
-net.ipv4.conf.veth*.rp_filter
net.ipv4.tcp_fastopen = 0x403`+"\r\n"+`net.ipv4.tcp_congestion_control = bbr
net.core.default_qdisc = a=b
`))
	wantNone(t, err)
	want := []Setting{
		{Key: "net.ipv4.tcp_syncookies", Value: "1"},
		{Key: "net.ipv4.tcp_rmem", Value: "4096 131072 6291456"},
		{Key: "net.ipv6.conf.*.accept_redirects", Value: "0", Optional: true},
		{Key: "net.ipv4.conf.enp3s0/200.rp_filter", Value: "2"},
		{Key: "net.ipv4.conf.enp3s0/200.arp_ignore", Value: "1"},
		{Key: "net.ipv4.conf.veth*.rp_filter", Leave: true},
		{Key: "net.ipv4.tcp_fastopen", Value: "1027"},
		{Key: "net.ipv4.tcp_congestion_control", Value: "bbr"},
		{Key: "net.core.default_qdisc", Value: "a=b"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestParseNamesEachLine(t *testing.T) {
	_, err := Parse("x.conf", []byte("net.ipv4.tcp_syncookies = 1\nkernel.sysrq = 0\n\nnet.ipv4.tcp_rfc1337 =\n"))
	wantError(t, err, `x.conf:2: sysctl "kernel.sysrq": only keys below net`, "x.conf:4: sysctl net.ipv4.tcp_rfc1337: the value is empty")
}

func TestParseSetting(t *testing.T) {
	got, err := ParseSetting(" -net.ipv4.tcp_rfc1337 = 1 ")
	wantNone(t, err)
	if want := (Setting{Key: "net.ipv4.tcp_rfc1337", Value: "1", Optional: true}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for text, words := range map[string][]string{
		"":                          {"without a name", "KEY=VALUE"},
		"=1":                        {"without a name"},
		"net.ipv4.tcp_rfc1337":      {"no value", "net.ipv4.tcp_rfc1337 = VALUE"},
		"-net.ipv4.tcp_rfc1337":     {"no value", "sysctl.leave"},
		"net.ipv4.tcp_rfc1337= ":    {"value is empty", "sysctl.leave"},
		"net.ipv4.tcp_rfc1337=1\n2": nil,
		"net.ipv4.tcp_rfc1337=\x00": {"printable ASCII"},
		"net.ipv4.tcp_rfc1337=é":    {"printable ASCII"},
		"net.ipv4.x=" + strings.Repeat("1 ", 900): {"longer than 1024"},
		"kernel.panic=1":                         {"only keys below net", "sysctl.d(5)"},
		"net=1":                                  {"only keys below net"},
		"*.ipv4.tcp_rfc1337=1":                   {"only keys below net"},
		"net*.ipv4.tcp_rfc1337=1":                {"only keys below net"},
		"/net/ipv4/tcp_rfc1337=1":                {"only keys below net"},
		"/proc/sys/net/ipv4/ip_forward=1":        {"only keys below net"},
		"net/../kernel/panic=1":                  {"no name may be . or .."},
		"net.//.kernel.panic=1":                  {"no name may be . or .."},
		"net/./ipv4/tcp_rfc1337=1":               {"no name may be . or .."},
		"net..ipv4=1":                            {"empty name"},
		"net.ipv4.=1":                            {"empty name"},
		"net.ipv4.conf.eth?.rp_filter=1":         {`'?'`, "letters, digits"},
		"net.ipv4.conf.[ab].rp_filter=1":         {`'['`},
		`net.ipv4.conf.\*.rp_filter=1`:           {`'\\'`},
		"net.ipv4.conf.a b.rp_filter=1":          {`' '`},
		"net.ipv4.conf.a\x00.rp_filter=1":        {`'\x00'`},
		"net.ipv4.conf.é.rp_filter=1":            {"'é'"},
		"net." + strings.Repeat("a", 300) + "=1": {"longer than 256"},
	} {
		t.Run(text[:min(len(text), 40)], func(t *testing.T) {
			_, err := ParseSetting(text)
			if words == nil {
				wantNone(t, err)
				return
			}
			wantError(t, err, words...)
		})
	}
}

func TestMerge(t *testing.T) {
	parse := func(lines ...string) []Setting {
		list, err := Parse("t", []byte(strings.Join(lines, "\n")))
		wantNone(t, err)
		return list
	}
	base := []string{"net.ipv4.conf.*.rp_filter=1", "net.ipv4.conf.all.log_martians=1", "net.ipv4.tcp_rfc1337=1"}
	for name, c := range map[string]struct {
		set, leave []string
		want       []string
	}{
		"nothing":      {nil, nil, base},
		"one replaced": {[]string{"net.ipv4.tcp_rfc1337=0"}, nil, []string{base[0], base[1], "net.ipv4.tcp_rfc1337=0"}},
		"in the other spelling": {[]string{"net/ipv4/tcp_rfc1337=0"}, nil,
			[]string{base[0], base[1], "net.ipv4.tcp_rfc1337=0"}},
		"one added":        {[]string{"net.core.somaxconn=9"}, nil, append(base[:3:3], "net.core.somaxconn=9")},
		"one interface":    {[]string{"net.ipv4.conf.eth1.rp_filter=2"}, nil, append(base[:3:3], "net.ipv4.conf.eth1.rp_filter=2")},
		"pattern over key": {[]string{"net.ipv4.conf.*.log_martians=0"}, nil, []string{base[0], base[2], "net.ipv4.conf.*.log_martians=0"}},
		"pattern over pattern": {[]string{"net.ipv4.conf.*.rp_filter=2"}, nil,
			[]string{base[1], base[2], "net.ipv4.conf.*.rp_filter=2"}},
		"narrower pattern": {[]string{"net.ipv4.conf.veth*.rp_filter=0"}, nil, append(base[:3:3], "net.ipv4.conf.veth*.rp_filter=0")},
		"set twice":        {[]string{"net.core.somaxconn=9", "net.core.somaxconn=10"}, nil, append(base[:3:3], "net.core.somaxconn=10")},
		"left":             {nil, []string{"net.ipv4.tcp_rfc1337"}, base[:2]},
		"left and set":     {[]string{"net.ipv4.tcp_rfc1337=0"}, []string{"net.ipv4.tcp_rfc1337"}, base[:2]},
		"pattern left":     {nil, []string{"net.ipv4.conf.*.rp_filter"}, base[1:]},
		"all of conf left": {nil, []string{"net.ipv4.conf.*.*"}, base[2:]},
		"one of a pattern left": {nil, []string{"net/ipv4/conf/eth0.5/rp_filter", "net/ipv4/conf/eth0.5/rp_filter"},
			append(base[:3:3], "-net.ipv4.conf.eth0/5.rp_filter")},
		"some of a pattern left": {nil, []string{"net.ipv4.conf.veth*.rp_filter"}, append(base[:3:3], "-net.ipv4.conf.veth*.rp_filter")},
		"left, matched by none":  {nil, []string{"net.ipv4.tcp_sack", "kernel.panic", ""}, base},
		"excluded in set":        {[]string{"-net.ipv4.conf.eth0.rp_filter"}, nil, append(base[:3:3], "-net.ipv4.conf.eth0.rp_filter")},
	} {
		t.Run(name, func(t *testing.T) {
			got := Merge(parse(base...), parse(c.set...), c.leave)
			if d := cmp.Diff(parse(c.want...), got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
