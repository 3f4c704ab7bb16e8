package config

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"
)

// prefixSet finds overlaps among many prefixes in logarithmic time. Two prefixes
// either nest or are apart, so of those that nest the widest stands for all; what
// is left is in ascending order and apart.
type prefixSet []netip.Prefix

func newPrefixSet(list []netip.Prefix) prefixSet {
	sorted := slices.SortedFunc(slices.Values(list), func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var set prefixSet
	for _, p := range sorted {
		if len(set) == 0 || !set[len(set)-1].Overlaps(p) {
			set = append(set, p)
		}
	}
	return set
}

// overlapping returns a prefix of the set that contains p or is part of it.
func (s prefixSet) overlapping(p netip.Prefix) (netip.Prefix, bool) {
	// Only the last one that begins before p can contain it, and the next one is
	// in p if any is.
	after := sort.Search(len(s), func(i int) bool { return s[i].Addr().Compare(p.Addr()) > 0 })
	for _, candidate := range s[max(0, after-1):min(len(s), after+1)] {
		if candidate.Overlaps(p) {
			return candidate, true
		}
	}
	return netip.Prefix{}, false
}
