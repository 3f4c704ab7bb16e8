package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/firewall"
)

// nastySets are sets with our names of every kind.
const nastySets = `
create pgh4-net hash:net
create pgh6-net hash:net family inet6
create pgh4-cnt hash:net counters comment skbinfo timeout 500
create pgh4-open hash:net,port timeout 1
create pgh6-open hash:net,port family inet6 timeout 1
create pgh4.left hash:net
create pgh4-ip hash:ip netmask 24
create pgh6-ip hash:ip family inet6
create pgh4-ipport hash:ip,port
create pgh4-ippi hash:ip,port,ip
create pgh4-ippn hash:ip,port,net
create pgh6-ippn hash:ip,port,net family inet6
create pgh4-iface hash:net,iface
create pgh4-bip bitmap:ip range 10.0.0.0/24 timeout 900
create pgh4-bipn bitmap:ip range 10.0.0.0/16 netmask 24
create pgh4-bmac bitmap:ip,mac range 10.0.0.0/24 comment
create pgh4-bport bitmap:port range 1-1000 counters
create pgh4-list list:set size 4 comment
create foreign hash:net
add foreign 10.9.9.9
add pgh4-net 10.0.0.1
add pgh4-net 10.1.0.0/16 nomatch
add pgh4-net 0.0.0.0/1
add pgh6-net fd00::/64
add pgh6-net ::10.0.0.1
add pgh6-net 64:ff9b::a00:1 nomatch
add pgh6-net ::1
add pgh4-cnt 10.0.0.1 packets 5 bytes 700 comment "a b # c" skbmark 0x11/0xff skbprio 1:10 skbqueue 7 timeout 0
add pgh4-cnt 10.0.0.2 timeout 300 nomatch comment "x"
add pgh4-cnt 10.2.0.0/16 timeout 0 skbmark 0x5
add pgh4-open 10.0.0.1,tcp:22 timeout 600
add pgh4-open 10.1.0.0/16,udp:53 timeout 0
add pgh4-open 10.1.0.1,sctp:9 timeout 600 nomatch
add pgh4-open 10.1.0.2,200:0 timeout 600
add pgh6-open fd00::1,tcp:5432 timeout 600
add pgh4-ip 10.0.5.1
add pgh6-ip fd00::1
add pgh4-ipport 10.0.0.1,tcp:80
add pgh4-ipport 10.0.0.1,udplite:80
add pgh4-ippi 10.0.0.1,tcp:80,10.0.0.2
add pgh4-ippn 10.0.0.1,tcp:80,10.0.0.2
add pgh4-ippn 10.0.0.1,tcp:80,10.3.0.0/16 nomatch
add pgh6-ippn fd00::1,tcp:80,fd01::/32
add pgh4-iface 10.0.0.0/24,eth0
add pgh4-iface 10.0.0.1,physdev:eth1
add pgh4-iface 10.0.0.2,eth wildcard
add pgh4-bip 10.0.0.7 timeout 800
add pgh4-bipn 10.0.7.0
add pgh4-bmac 10.0.0.1,02:ab:cd:00:00:01 comment "c d"
add pgh4-bmac 10.0.0.2
add pgh4-bport 80 packets 1 bytes 2
add pgh4-list pgh4-net
add pgh4-list pgh6-net comment "last"
`

// rareSets are of types that not every kernel has.
var rareSets = []string{
	`create pgh4-ipmark hash:ip,mark markmask 0xffff; add pgh4-ipmark 10.0.0.1,0x63`,
	`create pgh4-netnet hash:net,net; add pgh4-netnet 10.0.0.0/24,10.1.0.1`,
	`create pgh4-npn hash:net,port,net; add pgh4-npn 10.0.0.0/24,tcp:5,10.1.0.0/16`,
	`create pgh4-mac hash:mac; add pgh4-mac 02:AB:cd:00:00:01`,
	`create pgh4-ipmac hash:ip,mac; add pgh4-ipmac 10.0.0.1,02:ab:cd:00:00:01`,
}

// What netlink says of sets is what ipset save says, whatever kind they are of.
func TestF15b_SetsByNetlinkAreIpsetsOwn(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.sh("ipset restore <<'END'" + nastySets + "END")
	for _, lines := range rareSets {
		b.sh("ipset " + strings.ReplaceAll(lines, "; ", " && ipset ") + " || true")
	}
	b.sh("for i in $(seq 1 9000); do echo add pgh4-net 172.$((16+i%16)).$((i/250)).$((i%250)); done | ipset -exist restore")
	for range 3 { // a second may pass between the two
		text := b.sh("ipset save")
		got := b.observe().Sets
		want, err := firewall.ParseSets([]byte(text))
		fwMust(t, err)
		if d := cmp.Diff(want, got); d == "" {
			return
		} else if !strings.Contains(d, "timeout") {
			t.Fatalf("-ipset save +netlink:\n%s", d)
		}
	}
	want, err := firewall.ParseSets([]byte(b.sh("ipset save")))
	fwMust(t, err)
	t.Fatalf("-ipset save +netlink:\n%s", cmp.Diff(want, b.observe().Sets))
}

// peekSets is the digest of the node's sets.
func (b *fwBed) peekSets() (d firewall.Digest) {
	b.t.Helper()
	fwMust(b.t, b.node.Do(func() (err error) {
		d, err = b.fw.SetsPeek()
		return err
	}))
	return d
}

// What changes a set of ours changes the digest, and nothing else does.
func TestF15b_SetsPeek(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.reconcile()
	clean := b.peekSets()
	if clean == 0 || b.peekSets() != clean {
		t.Fatalf("digest %d, then %d, of sets that nobody has changed", clean, b.peekSets())
	}
	for _, tc := range []struct {
		name, edit, undo string
		seen             bool
	}{
		{"member added", "ipset add pgh4-pgpool 10.20.1.66", "ipset del pgh4-pgpool 10.20.1.66", true},
		{"member removed", "ipset del pgh6-pgpool fd00:20:1::20", "ipset add pgh6-pgpool fd00:20:1::20", true},
		{"member made an exception", "ipset -exist add pgh4-pgpool 10.20.1.20 nomatch", "ipset -exist add pgh4-pgpool 10.20.1.20", true},
		{"left over", "ipset create pgh4.x hash:net", "ipset destroy pgh4.x", true},
		{"swapped", "ipset create other hash:net; ipset swap other pgh4-pgpool", "ipset swap other pgh4-pgpool; ipset destroy other", true},
		{"one with counters", "ipset create o hash:net counters; ipset add o 10.20.1.20; ipset swap o pgh4-pgpool", "ipset swap o pgh4-pgpool; ipset destroy o", true},
		{"foreign set", "ipset create other hash:net; ipset add other 10.20.1.66", "ipset destroy other", false},
		{"foreign rule names a set", "$I4 -A FORWARD -m set --match-set pgh4-pgpool src -j DROP", "$I4 -D FORWARD -m set --match-set pgh4-pgpool src -j DROP", false},
		{"read", "ipset list; ipset save", "", false},
		{"large foreign set", "(echo create big hash:net; for i in $(seq 1 9000); do echo add big 172.16.$((i/250)).$((i%250)); done) | ipset restore", "", false},
		{"after that", "ipset add pgh4-pgpool 10.20.1.66", "ipset del pgh4-pgpool 10.20.1.66", true},
	} {
		b.sh(tc.edit)
		for range 2 { // with a large set the second way differs
			if d := b.peekSets(); (d != clean) != tc.seen {
				t.Errorf("%s: digest %d, before %d", tc.name, d, clean)
			}
		}
		b.sh(tc.undo)
		if d := b.peekSets(); d != clean {
			t.Errorf("%s undone: digest %d, before %d", tc.name, d, clean)
		}
	}
	b.sh("ipset add pgh4-open 10.20.1.66,tcp:22 timeout 600")
	if d := b.peekSets(); d != 0 {
		t.Errorf("with an opening the digest is %d: its end would look like a change", d)
	}
}

// Small changes of members are made in place: the set stays the one it was.
func TestF15b_MembersInPlace(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.spec.Members["pgpool"] = fwMany(10000)
	b.want = fwRender(t, b.spec)
	b.reconcile()
	same := func() bool { return strings.Contains(b.sh("ipset list -t pgh4-pgpool"), "maxelem 70000") }
	b.sh("ipset save pgh4-pgpool | sed 's/maxelem 65536/maxelem 70000/; s/pgh4-pgpool/marked/' | ipset restore; ipset swap marked pgh4-pgpool; ipset destroy marked")
	b.sh(`ipset -exist add pgh4-pgpool 10.100.0.0 nomatch; ipset del pgh4-pgpool 10.100.0.2; ipset add pgh4-pgpool 10.0.0.0/8
		for i in $(seq 1 60); do ipset add pgh4-pgpool 192.0.2.$i; done`)
	b.reconcile()
	if !same() {
		t.Error("a new set was made for 64 lines of difference")
	}
	b.sh("for i in $(seq 1 65); do ipset add pgh4-pgpool 192.0.2.$i; done")
	b.reconcile()
	if same() {
		t.Error("65 members were changed one by one")
	}
	// A small set: the kernel shares the room of a large one out among parts of it.
	b.sh(`ipset create full hash:net hashsize 64 maxelem 1; ipset add full 192.0.2.1
		ipset swap full pgh4-control_plane; ipset destroy full`)
	b.reconcile()
	if text := b.sh("ipset list -t pgh4-control_plane"); !strings.Contains(text, "maxelem 65536") || !strings.Contains(text, "Number of entries: 1\n") {
		t.Errorf("a set without room for one more was not replaced:\n%s", text)
	}
}

// A refusal says what was refused and why, and the next look repairs.
func TestF15b_RefusalSaysWhy(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.reconcile()
	b.spec.Members["pgpool"] = fwMany(60)
	b.want = fwRender(t, b.spec)
	p := b.plan()
	b.sh("ipset create a hash:net maxelem 20; ipset swap a pgh4-pgpool; ipset create pgh4.pgpool hash:net")
	err := b.apply(p)
	if err == nil || !strings.Contains(err.Error(), "cannot write the set pgh4-pgpool: create pgh4.pgpool: there is a set of that name already") {
		t.Errorf("error %v", err)
	}
	b.reconcile()
}

// F11: netlink does what the command ipset does, so that its absence is no fault.
func TestF11_NoIpsetCommand(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	ctx := context.WithoutCancel(t.Context())
	fwMust(t, b.node.Do(func() error { // the thread gets a view of the file system in which ipset cannot be executed
		path, err := exec.LookPath("ipset")
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("/dev/null", path, "", unix.MS_BIND, "")); err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, path, "list").CombinedOutput(); err == nil {
			return fmt.Errorf("ipset is still there: %s", out)
		}
		fw, err := firewall.Open(ctx, b.backend)
		if err != nil {
			return err
		}
		got, err := fw.Observe(ctx)
		if err != nil {
			return err
		}
		if err := fw.Apply(ctx, firewall.Diff(b.want, got)); err != nil {
			return err
		}
		got, err = fw.Observe(ctx)
		if left := firewall.Diff(b.want, got); !left.Empty() {
			err = errors.Join(err, fmt.Errorf("left to do:\n%s", left))
		}
		return err
	}))
	if members := b.sh("ipset save pgh4-pgpool"); !strings.Contains(members, "add pgh4-pgpool 10.20.1.20\n") {
		t.Errorf("the set is\n%s", members)
	}
}

// The generation is that of the rules which were read, and no other.
func TestFirewallGeneration(t *testing.T) {
	b := fwNew(t, firewall.BackendNFT)
	b.reconcile()
	first := b.observe().Generation
	if first == 0 || b.observe().Generation != first {
		t.Fatalf("generation %d, then another", first)
	}
	b.sh("$I4 -A FORWARD -j DROP")
	if next := b.observe().Generation; next != first+1 {
		t.Errorf("after one commit generation %d is %d", first, next)
	}
}
