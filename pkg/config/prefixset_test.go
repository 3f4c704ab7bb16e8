package config

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// The set must agree with asking each prefix.
func TestPrefixSet(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	prefix := func() netip.Prefix {
		bits := 20 + random.IntN(13)
		if random.IntN(2) == 0 {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(random.IntN(16)), byte(random.IntN(256))}), bits).Masked()
		}
		a := netip.MustParseAddr("fd00::").As16()
		binary.BigEndian.PutUint16(a[14:], uint16(random.IntN(1<<12)))
		return netip.PrefixFrom(netip.AddrFrom16(a), 96+bits).Masked()
	}
	found := 0
	for range 300 {
		var list []netip.Prefix
		for range random.IntN(20) {
			list = append(list, prefix())
		}
		set := newPrefixSet(list)
		for range 50 {
			p, want := prefix(), false
			for _, q := range list {
				want = want || q.Overlaps(p)
			}
			got, ok := set.overlapping(p)
			if ok != want || ok && !got.Overlaps(p) {
				t.Fatalf("%v in %v: %v (%v), want %v", p, list, got, ok, want)
			}
			if ok {
				found++
			}
		}
	}
	t.Logf("%d of 15000 overlap", found)
}
