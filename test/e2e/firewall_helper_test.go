package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/firewall"
	"github.com/pghardend/pghardend/policies"
)

// fwBed is one node under pkg/firewall alone, without the daemon, with the
// neighbours that matter: a peer (a pgpool), the standby (a postgres), a
// control plane host and a stranger, all in one subnet.
type fwBed struct {
	t                      testing.TB
	bed                    *testbed.Bed
	backend                string
	node                   *testbed.Host
	peer, standby, control *testbed.Host
	stranger               *testbed.Host
	fw                     *firewall.Firewall
	spec                   firewall.Spec
	want                   firewall.Ruleset
}

// fwBackends runs f once for each backend, each time in a fresh bed.
func fwBackends(t *testing.T, f func(t *testing.T, b *fwBed)) {
	for _, backend := range []string{firewall.BackendNFT, firewall.BackendLegacy} {
		t.Run(backend, func(t *testing.T) { f(t, fwNew(t, backend)) })
	}
}

func fwNew(t testing.TB, backend string, more ...testbed.HostSpec) *fwBed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes network namespaces")
	}
	bed, err := testbed.New(t.Context(), bedName("fw"), append([]testbed.HostSpec{
		{Name: "node", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64"}},
		{Name: "peer", Addresses: []string{"10.20.1.20/24", "fd00:20:1::20/64"}},
		{Name: "standby", Addresses: []string{"10.20.1.11/24", "fd00:20:1::11/64"}},
		{Name: "control", Addresses: []string{"10.20.1.30/24", "fd00:20:1::30/64"}},
		{Name: "stranger", Addresses: []string{"10.20.1.66/24", "fd00:20:1::66/64"}},
	}, more...))
	fwMust(t, err)
	t.Cleanup(func() {
		if err := bed.Close(); err != nil {
			t.Errorf("bed not removed: %v", err)
		}
	})
	b := &fwBed{t: t, bed: bed, backend: backend}
	b.node, b.peer, b.standby = bed.Host("node"), bed.Host("peer"), bed.Host("standby")
	b.control, b.stranger = bed.Host("control"), bed.Host("stranger")
	b.spec = firewall.Spec{Role: "postgres", Flows: fwFlows(t), Members: map[string][]netip.Prefix{
		"postgres":      fwPrefixes("10.20.1.11/32", "fd00:20:1::11/128"),
		"pgpool":        fwPrefixes("10.20.1.20/32", "fd00:20:1::20/128"),
		"control_plane": fwPrefixes("10.20.1.30/32", "fd00:20:1::30/128"),
	}}
	b.want = fwRender(t, b.spec)
	b.fw, err = firewall.Open(t.Context(), backend)
	fwMust(t, err)
	return b
}

// fwFlows are the shipped rows that are in force by default.
func fwFlows(t testing.TB) []firewall.Flow {
	t.Helper()
	flows, err := firewall.Customise(fwAllFlows(t), nil)
	fwMust(t, err)
	return flows
}

// fwAllFlows has the opt-in rows as well.
func fwAllFlows(t testing.TB) []firewall.Flow {
	t.Helper()
	data, err := fs.ReadFile(policies.FS, "network/flows.yaml")
	fwMust(t, err)
	flows, err := firewall.ParseFlows("flows.yaml", data)
	fwMust(t, err)
	return flows
}

func fwPrefixes(list ...string) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, p := range list {
		prefixes = append(prefixes, netip.MustParsePrefix(p))
	}
	return prefixes
}

func fwRender(t testing.TB, s firewall.Spec) firewall.Ruleset {
	t.Helper()
	rs, err := firewall.Render(s)
	fwMust(t, err)
	return rs
}

func fwMust(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// observe reads the node's state.
func (b *fwBed) observe() firewall.Observed {
	b.t.Helper()
	var got firewall.Observed
	fwMust(b.t, b.node.Do(func() (err error) {
		got, err = b.fw.Observe(context.WithoutCancel(b.t.Context()))
		return err
	}))
	return got
}

func (b *fwBed) plan() firewall.Plan {
	b.t.Helper()
	return firewall.Diff(b.want, b.observe())
}

// apply carries a plan out inside the node.
func (b *fwBed) apply(p firewall.Plan) error {
	return b.node.Do(func() error { return b.fw.Apply(context.WithoutCancel(b.t.Context()), p) })
}

// reconcile does what the daemon does, checks that nothing is left to do
// (invariant 4) and returns the plan that was carried out.
func (b *fwBed) reconcile() firewall.Plan {
	b.t.Helper()
	p := b.plan()
	if err := b.apply(p); err != nil {
		b.t.Fatalf("%v\nplan:\n%s", err, p)
	}
	if again := b.plan(); !again.Empty() {
		b.t.Fatalf("after applying\n%sthere is still to do:\n%s", p, again)
	}
	return p
}

// sh runs a shell command inside the node. $I4 and $I6 are the backend's
// iptables and ip6tables.
func (b *fwBed) sh(script string) string {
	b.t.Helper()
	cmd := b.node.Command(b.t.Context(), "/bin/sh", "-ec", script)
	cmd.Env = append(cmd.Env, "I4=iptables-"+b.backend, "I6=ip6tables-"+b.backend)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("%s: %v: %s", script, err, stderr.String())
	}
	return string(out)
}

// fwForeign is a host with tenants of its own: docker's and fail2ban's kind of
// rules, an administrator's odd comments, other tables, and sets.
const fwForeign = `
ipset create blocklist hash:ip comment
ipset add blocklist 192.0.2.9 comment "spaces and # marks"
ipset create blocklist6 hash:net family inet6
ipset add blocklist6 2001:db8:bad::/48
for I in $I4 $I6; do
  $I -P FORWARD DROP
  $I -N DOCKER; $I -N DOCKER-USER; $I -A DOCKER-USER -j RETURN
  $I -A FORWARD -j DOCKER-USER
  $I -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
  $I -A FORWARD -o docker0 -j DOCKER
  $I -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
  $I -t nat -N DOCKER; $I -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
  $I -t raw -A PREROUTING -p udp --dport 4343 -j CT --notrack
  $I -t mangle -A OUTPUT -p tcp --dport 4242 -j MARK --set-mark 7
  $I -A INPUT -p tcp --dport 9100 -m comment --comment 'it"s \ a
-A INPUT -j PGHARDEND-IN
COMMIT' -j ACCEPT
  $I -A INPUT -m comment --comment -j -j ACCEPT
  $I -A OUTPUT -m limit --limit 3/hour -j LOG --log-prefix "foreign: "
  $I -N f2b-sshd; $I -A f2b-sshd -m set --match-set blocklist$([ $I = $I4 ] || echo 6) src -j REJECT; $I -A f2b-sshd -j RETURN
  $I -I INPUT -p tcp -m multiport --dports 22 -j f2b-sshd
done
`

var fwCounters = regexp.MustCompile(`\[\d+:\d+\]`)

// foreign is everything of the node that is not ours, as text.
func (b *fwBed) foreign() string {
	b.t.Helper()
	var kept []string
	text := b.sh("$I4-save; $I6-save; ipset save")
	for line := range strings.Lines(fwCounters.ReplaceAllString(text, "")) {
		ours := strings.Contains(line, " pgh4") || strings.Contains(line, " pgh6") || strings.HasPrefix(line, ":PGHARDEND-") ||
			strings.HasPrefix(line, "-A PGHARDEND-") || strings.Contains(line, "-m comment --comment \"pghardend:") ||
			strings.HasSuffix(line, "-j PGHARDEND-FWD\n")
		if !ours && !strings.HasPrefix(line, "#") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// fwSame fails if foreign state has changed.
func fwSame(t testing.TB, before, after string) {
	t.Helper()
	if d := cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")); d != "" {
		t.Errorf("foreign state changed (-before +after):\n%s", d)
	}
}

// fwCounter reads one counter of the node's /proc/net/snmp or snmp6: Icmp or
// Icmp6, then the name.
func (b *fwBed) counter(group, name string) int {
	b.t.Helper()
	var value int
	fwMust(b.t, b.node.Do(func() error {
		file := "/proc/thread-self/net/snmp"
		if group == "Icmp6" {
			file = "/proc/thread-self/net/snmp6"
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		value, err = fwParseCounter(string(data), group, name)
		return err
	}))
	return value
}

func fwParseCounter(text, group, name string) (int, error) {
	var header []string
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 2 && words[0] == group+name:
			return strconv.Atoi(words[1])
		case len(words) == 0 || words[0] != group+":":
		case header == nil:
			header = words
		default:
			if i := slices.Index(header, name); i >= 0 && i < len(words) {
				return strconv.Atoi(words[i])
			}
		}
	}
	return 0, errors.New("no counter " + group + name)
}

// packets is how many packets the rules of a chain have seen whose text has a
// word, such as the tag in their comment.
func (b *fwBed) packets(save, chain, word string) int {
	b.t.Helper()
	n := 0
	for line := range strings.Lines(b.sh(save + " -c")) {
		var packets, bytes int
		if strings.Contains(line, "-A "+chain+" ") && strings.Contains(line, word) {
			if _, err := fmt.Sscanf(line, "[%d:%d]", &packets, &bytes); err != nil {
				b.t.Fatalf("%q: %v", line, err)
			}
			n += packets
		}
	}
	return n
}

// fwIpt is the family's iptables in sh, without or with "-save" behind it.
func fwIpt(fam firewall.Family) string {
	if fam == firewall.IPv6 {
		return "$I6"
	}
	return "$I4"
}

// addr is a host's address of the family.
func fwAddr(h *testbed.Host, fam firewall.Family) netip.Addr {
	if fam == firewall.IPv6 {
		return h.V6()
	}
	return h.V4()
}
