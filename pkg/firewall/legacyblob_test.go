package firewall

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The recorded tables are struct ipt_getinfo and the entries of x86-64, made by
//
//	iptables-legacy -N PGHARDEND-IN; iptables-legacy -N empty; iptables-legacy -P FORWARD DROP
//	iptables-legacy -A PGHARDEND-IN -p tcp -m tcp --dport 5432 -m comment --comment pghardend:postgres -j ACCEPT
//	iptables-legacy -A INPUT -j PGHARDEND-IN; iptables-legacy -A INPUT -j REJECT
//
// and for IPv6's raw table
//
//	ip6tables-legacy -t raw -N PGHARDEND-RPF; ip6tables-legacy -t raw -P OUTPUT DROP
//	ip6tables-legacy -t raw -A PGHARDEND-RPF -m rpfilter --invert -j DROP
func recordedBlob(t testing.TB, file string, fam Family) legacyBlob {
	t.Helper()
	data := read(t, "testdata/"+file)
	b, size := newLegacyBlob(&legacyLayouts[fam], data)
	b.entries = data[legacyInfoSize:]
	if size != len(b.entries) {
		t.Fatalf("%s: %d bytes of entries, want %d", file, len(b.entries), size)
	}
	return b
}

func TestLegacyContent(t *testing.T) {
	for file, tc := range map[string]struct {
		fam  Family
		want legacyContent
	}{
		"legacy-ipv4.blob": {IPv4, legacyContent{rules: 3, chains: []string{"PGHARDEND-IN", "empty"}, drops: [5]bool{2: true}}},
		"legacy-raw.blob":  {IPv6, legacyContent{rules: 1, chains: []string{"PGHARDEND-RPF"}, drops: [5]bool{3: true}}},
	} {
		got, err := recordedBlob(t, file, tc.fam).content()
		if d := cmp.Diff(tc.want, got, cmp.AllowUnexported(legacyContent{})); d != "" || err != nil {
			t.Errorf("%s: error %v (-want +got):\n%s", file, err, d)
		}
	}
}

// Counters and nothing else are masked.
func TestLegacyCountersAreMasked(t *testing.T) {
	for file, fam := range map[string]Family{"legacy-ipv4.blob": IPv4, "legacy-raw.blob": IPv6} {
		clean := recordedBlob(t, file, fam)
		if err := clean.maskCounters(); err != nil {
			t.Fatal(err)
		}
		var offsets []int // of the counters
		at := 0
		_ = clean.each(func(entry []byte) error {
			for i := clean.counters; i < clean.counters+16; i++ {
				offsets = append(offsets, at+i)
			}
			at += len(entry)
			return nil
		})
		for i := range clean.entries {
			edited := clean
			edited.entries = bytes.Clone(clean.entries)
			edited.entries[i]++
			if edited.maskCounters() != nil {
				continue // no longer a table
			}
			if same := bytes.Equal(edited.entries, clean.entries); same != slices.Contains(offsets, i) {
				t.Errorf("%s: byte %d: hidden %v", file, i, same)
			}
		}
	}
}

func TestLegacyBlobOfAnotherForm(t *testing.T) {
	good := recordedBlob(t, "legacy-ipv4.blob", IPv4)
	for name, edit := range map[string]func(b []byte) []byte{
		"cut short":    func(b []byte) []byte { return b[:len(b)-1] },
		"half an head": func(b []byte) []byte { return b[:50] },
		"no target":    func(b []byte) []byte { b[88] = 0; return b },
		"no progress":  func(b []byte) []byte { binary.NativeEndian.PutUint16(b[90:], 0); return b },
		"empty":        func([]byte) []byte { return nil },
	} {
		b := good
		b.entries = edit(bytes.Clone(good.entries))
		if c, err := b.content(); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func FuzzLegacyBlob(f *testing.F) {
	for file, fam := range map[string]Family{"legacy-ipv4.blob": IPv4, "legacy-raw.blob": IPv6} {
		f.Add(read(f, "testdata/"+file), fam == IPv6)
	}
	f.Fuzz(func(t *testing.T, data []byte, isV6 bool) {
		if len(data) < legacyInfoSize {
			return
		}
		layout := &legacyLayouts[IPv4]
		if isV6 {
			layout = &legacyLayouts[IPv6]
		}
		b, _ := newLegacyBlob(layout, data)
		b.entries = bytes.Clone(data[legacyInfoSize:])
		c, err := b.content()
		if err == nil && b.maskCounters() != nil {
			t.Error("it can be read but not masked")
		}
		if err != nil && c.chains != nil {
			t.Error("an error and chains")
		}
	})
}
