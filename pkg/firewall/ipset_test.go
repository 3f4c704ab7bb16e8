package firewall

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// recordedDumps are the payloads of the kernel's answers, each after its length
// in four bytes; ipset-dump.save is what ipset save printed of the same sets.
func recordedDumps(t testing.TB) (payloads [][]byte) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "ipset-dump.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 {
		n := binary.BigEndian.Uint32(data)
		payloads = append(payloads, data[4:4+n])
		data = data[4+n:]
	}
	return payloads
}

func TestDecodeSets(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "ipset-dump.save"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := ParseSets(text)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]ObservedSet{}
	var d *setDecoder
	for _, payload := range recordedDumps(t) {
		var top ipsetAttrs
		if err := top.read(payload); err != nil {
			t.Fatal(err)
		}
		if top[nl.IPSET_ATTR_TYPENAME] != nil {
			d = &setDecoder{}
		}
		if err := d.message(payload); err != nil {
			t.Fatal(err)
		}
		got[top.name(nl.IPSET_ATTR_SETNAME)] = d.set()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-ipset save +netlink:\n%s", diff)
	}
	if len(got) < 15 {
		t.Errorf("only %d sets were recorded", len(got))
	}
}

// FuzzDecodeSet: whatever the bytes, no member holds a control character, and
// what can be written can be read.
func FuzzDecodeSet(f *testing.F) {
	for _, payload := range recordedDumps(f) {
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		var d setDecoder
		if err := d.message(payload); err != nil && !errors.Is(err, errIpsetMessage) {
			t.Errorf("error %v", err)
		}
		_ = d.message(payload) // a second message, without its header perhaps
		set := d.set()
		for _, m := range set.Members {
			if strings.ContainsFunc(m, isControl) {
				t.Errorf("member %q", m)
			}
		}
		var p setPeek
		_ = p.set(payload)
		_ = p.name(payload)
	})
}

// FuzzIpsetStatus: an answer may be cut short anywhere.
func FuzzIpsetStatus(f *testing.F) {
	f.Add(ipsetRefusal(int32(ipsetErrHashFull), 7))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		if err := ipsetStatus(msg); err != nil && err.Error() == "" {
			t.Error("an error without a text")
		}
	})
}

// ipsetRefusal is the kernel's answer to a message of entries, with the number of
// the one that it did not like.
func ipsetRefusal(errno int32, line uint32) []byte {
	var m ipsetMessage
	m.begin(nl.IPSET_CMD_ADD, 0, 3, 6)
	m.text(nl.IPSET_ATTR_SETNAME, "pgh4-x")
	m.uint32(nl.IPSET_ATTR_LINENO, line)
	msg := binary.NativeEndian.AppendUint32(make([]byte, unix.NLMSG_HDRLEN), uint32(-errno))
	return append(msg, m.end()...)
}

func TestIpsetStatus(t *testing.T) {
	for _, tc := range []struct {
		msg  []byte
		want string
		is   error
	}{
		{ipsetRefusal(0, 0), "", nil},
		{ipsetRefusal(int32(ipsetErrHashFull), 2), "add pgh4-x 10.0.0.2/32: the set is full; it was made for fewer than 65536 members", nil},
		{ipsetRefusal(nl.IPSET_ERR_TYPE_MISMATCH, 0), "add pgh4-x: the two sets are of different types; somebody has replaced one", nil},
		{ipsetRefusal(int32(unix.ENOENT), 9), "add pgh4-x: there is no such set; somebody has removed or renamed it", unix.ENOENT},
		{ipsetRefusal(int32(unix.EPERM), 0), "add pgh4-x: operation not permitted", unix.EPERM},
		{ipsetRefusal(5000, 0), "add pgh4-x: the kernel's ipset says error 5000; compare with ip_set.h", nil},
		{ipsetRefusal(0, 0)[:10], "add pgh4-x: the kernel's answer is malformed", errIpsetMessage},
	} {
		op := setOp{verb: verbAdd, set: "pgh4-x", members: []setMember{ipsetEntry("10.0.0.1/32"), ipsetEntry("10.0.0.2/32")}}
		err := ipsetStatus(tc.msg)
		text := ""
		if err != nil {
			text = op.title(err) + ": " + err.Error()
		}
		if text != tc.want || (tc.is != nil && !errors.Is(err, tc.is)) {
			t.Errorf("error %q, want %q", text, tc.want)
		}
	}
}

func ipsetEntry(prefix string) setMember { return setMember{from: netip.MustParsePrefix(prefix)} }

// An entry as it is sent is an entry as it is dumped.
func TestIpsetMemberReadBack(t *testing.T) {
	for _, text := range []string{"10.0.0.1/32", "10.0.0.0/8", "::1/128", "fd00::/64", "10.0.0.1/32,tcp:22 timeout 600", "fd00::/64,udp:65535 timeout 86400", "10.0.0.1/32,udp:53"} {
		like := Set{Timed: strings.Contains(text, ",")}
		if strings.Contains(text, "::") {
			like.Family = IPv6
		}
		m, ok := parseMember(text, like)
		if !ok || m.String() != text {
			t.Errorf("%q is read as %q, %v", text, m, ok)
		}
		var msg ipsetMessage
		msg.member(m, 1)
		d := setDecoder{dims: []string{"net", "port"}[:1+strings.Count(text, ",")]}
		if err := d.attrs.read(msg.b[unix.NLA_HDRLEN:]); err != nil {
			t.Fatal(err)
		}
		if d.entry(); string(d.text) != text {
			t.Errorf("%q comes back as %q", text, d.text)
		}
	}
}

func TestParseMemberRefuses(t *testing.T) {
	v4, timed := Set{}, Set{Timed: true}
	for _, tc := range []struct {
		text string
		like Set
		ok   bool
	}{
		{"10.0.0.1/32 nomatch", v4, true}, // the same entry as without
		{"10.0.0.1/32,tcp:22 timeout 0", timed, true},
		{"10.0.0.1/32,tcp:22 timeout 5 nomatch", timed, true},
		{"10.0.0.1/32,sctp:22 timeout 5", timed, false},
		{"10.0.0.1/32,icmp:8/0 timeout 5", timed, false},
		{"10.0.0.1/32,tcp:65536 timeout 5", timed, false},
		{"10.0.0.1/32", timed, false},
		{"10.0.0.1/32,tcp:22", v4, false},
		{"10.0.0.1/32 packets 1 bytes 2", v4, false},
		{"10.0.0.1/24", v4, false},
		{"10.0.0.1", v4, false},
		{"fd00::1/128", v4, false},
		{"", v4, false},
	} {
		if m, ok := parseMember(tc.text, tc.like); ok != tc.ok {
			t.Errorf("%q is read as %q, %v", tc.text, m, ok)
		}
	}
}

// Many entries are split into messages that the kernel takes.
func TestIpsetBatchFits(t *testing.T) {
	var m ipsetMessage
	m.member(setMember{from: netip.MustParsePrefix("fd00::/64"), proto: ProtoTCP, port: 1, seconds: 1}, 1)
	if size := ipsetBatch + len(m.b); size > 0xffff || size+2*ipsetHeaders > ipsetReceive {
		t.Errorf("a message of %d bytes does not fit into an attribute, or not into an answer", size)
	}
}

// Sets are had by netlink, else by the command, else not at all for both reasons.
func TestEitherSets(t *testing.T) {
	k := newFakeKernel()
	gone := commandSets{missing: errors.New("ipset is not installed")}
	if s, err := (eitherSets{fakeSets{k}, gone}).open(t.Context()); err != nil || s != (fakeSets{k}) {
		t.Errorf("%v, %v", s, err)
	}
	if s, err := (eitherSets{noSetAccess{}, fakeSets{k}}).open(t.Context()); err != nil || s != (fakeSets{k}) {
		t.Errorf("%v, %v", s, err)
	}
	if _, err := (eitherSets{noSetAccess{}, gone}).open(t.Context()); err == nil || err.Error() != "no netlink; ipset is not installed" {
		t.Errorf("error %v", err)
	}
}

// Without netlink the command gets the same operations as text.
func TestCommandSets(t *testing.T) {
	run := newScripts(t, map[string]string{"ipset": ""})
	script := "#!/bin/sh\nd=$(dirname $0)\necho \"$@\" >> $d/log; case $1 in restore) cat >> $d/log;; save) echo 'create pgh4-x hash:net family inet'; echo 'add pgh4-x 10.0.0.1';; esac\n"
	path := filepath.Join(run.dir, "ipset")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := commandSets{run: run, path: path}.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	sets, err := s.list(t.Context())
	if err != nil || !slices.Equal(sets["pgh4-x"].Members, []string{"10.0.0.1/32"}) {
		t.Errorf("%v, %v", sets, err)
	}
	set := Set{Name: "pgh4-x", Members: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")}}
	for _, ops := range [][]setOp{set.replace("pgh4.x", noon), {{verb: verbDestroy, set: "pgh4-odd name"}}} {
		if err := s.edit(t.Context(), ops); err != nil {
			t.Fatal(err)
		}
	}
	log, _ := os.ReadFile(filepath.Join(run.dir, "log"))
	want := "save\nrestore\ncreate pgh4.x hash:net family inet hashsize 64 maxelem 65536\nadd pgh4.x 10.0.0.2/32\n" +
		"swap pgh4.x pgh4-x\ndestroy pgh4.x\ndestroy pgh4-odd name\n"
	if string(log) != want {
		t.Errorf("got\n%s\nwant\n%s", log, want)
	}
}
