package firewall

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What iptables-save shows as if it were another rule, each seen with 1.8.9.
func TestF04_LossyRules(t *testing.T) {
	payload := func(base, at, size uint32) func(w *nftWriter) {
		return func(w *nftWriter) {
			nftExpr(w, "payload", func() {
				w.number32(unix.NFTA_PAYLOAD_DREG, 1)
				w.number32(unix.NFTA_PAYLOAD_BASE, base)
				w.number32(unix.NFTA_PAYLOAD_OFFSET, at)
				w.number32(unix.NFTA_PAYLOAD_LEN, size)
			})
		}
	}
	number := func(w *nftWriter, kind uint16, value uint32) {
		list := w.nested(kind)
		w.number32(unix.NFTA_DATA_VALUE, value)
		w.endAttr(list)
	}
	compare := func(register, op uint32) func(w *nftWriter) {
		return func(w *nftWriter) {
			nftExpr(w, "cmp", func() { w.number32(unix.NFTA_CMP_SREG, register); w.number32(unix.NFTA_CMP_OP, op) })
		}
	}
	mask := func(xor uint32) func(w *nftWriter) {
		return func(w *nftWriter) {
			nftExpr(w, "bitwise", func() { w.number32(unix.NFTA_BITWISE_SREG, 1); number(w, unix.NFTA_BITWISE_XOR, xor) })
		}
	}
	lookup := func(w *nftWriter) { nftExpr(w, "lookup", func() { w.number32(unix.NFTA_LOOKUP_SREG, 1) }) }
	verdictMap := func(w *nftWriter) { nftExpr(w, "lookup", func() { w.number32(unix.NFTA_LOOKUP_DREG, 0) }) }
	drop := func(w *nftWriter) { nftVerdict(w, nftDropCode, "") }
	equal, link := compare(1, unix.NFT_CMP_EQ), uint32(unix.NFT_PAYLOAD_LL_HEADER)
	network, transport := uint32(unix.NFT_PAYLOAD_NETWORK_HEADER), uint32(unix.NFT_PAYLOAD_TRANSPORT_HEADER)
	for name, tc := range map[string]struct {
		exprs []func(w *nftWriter)
		lossy bool
		maps  bool
	}{
		"plain":                 {[]func(*nftWriter){drop}, false, false},
		"address":               {[]func(*nftWriter){payload(network, 12, 4), mask(0), equal, drop}, false, false},
		"port":                  {[]func(*nftWriter){payload(transport, 2, 2), equal, drop}, false, false},
		"both ports":            {[]func(*nftWriter){payload(transport, 0, 4), equal, drop}, false, false},
		"ports from to":         {[]func(*nftWriter){payload(transport, 2, 2), compare(1, unix.NFT_CMP_GTE), compare(1, unix.NFT_CMP_LTE), drop}, false, false},
		"flags":                 {[]func(*nftWriter){payload(transport, 13, 1), mask(0), compare(1, unix.NFT_CMP_NEQ), drop}, false, false},
		"@ll,0,8 5":             {[]func(*nftWriter){payload(link, 0, 1), equal, drop}, true, false},
		"tcp sequence 5":        {[]func(*nftWriter){payload(transport, 4, 4), equal, drop}, true, false},
		"icmp code 5":           {[]func(*nftWriter){payload(transport, 1, 1), equal, drop}, true, false},
		"icmp type > 5":         {[]func(*nftWriter){payload(transport, 0, 1), compare(1, unix.NFT_CMP_GT), drop}, true, false},
		"ip saddr > 10.0.0.1":   {[]func(*nftWriter){payload(network, 12, 4), compare(1, unix.NFT_CMP_GT), drop}, true, false},
		"dport & 0xff00":        {[]func(*nftWriter){payload(transport, 2, 2), mask(0), equal, drop}, true, false},
		"bits turned":           {[]func(*nftWriter){payload(network, 12, 4), mask(1), equal, drop}, true, false},
		"another register":      {[]func(*nftWriter){payload(network, 12, 4), compare(2, unix.NFT_CMP_EQ), drop}, true, false},
		"behind a verdict":      {[]func(*nftWriter){func(w *nftWriter) { nftVerdict(w, 1, "") }, drop}, true, false},
		"ip saddr { … }":        {[]func(*nftWriter){payload(network, 12, 4), lookup, drop}, true, false},
		"dport vmap { … } drop": {[]func(*nftWriter){payload(transport, 2, 2), verdictMap, drop}, true, true},
	} {
		var w nftWriter
		for _, write := range tc.exprs {
			write(&w)
		}
		r := nftRule{exprs: w.data}
		if r.lossy() != tc.lossy || r.usesVerdictMap() != tc.maps {
			t.Errorf("%s: lossy %v, a verdict map %v", name, r.lossy(), r.usesVerdictMap())
		}
		if harmless, _ := r.harmless(0, nil); harmless == tc.maps && name != "behind a verdict" {
			t.Errorf("%s: harmless above our jump: %v", name, harmless)
		}
	}
}

// Rules that iptables wrote are shown as they are.
func TestNotLossyAsIptablesWrites(t *testing.T) {
	n := 0
	for _, rules := range recordedRules(t) {
		for _, r := range rules {
			if n++; r.lossy() != r.usesVerdictMap() { // one is nft's
				t.Errorf("rule with handle %d", r.handle)
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d rules were recorded", n)
	}
}

// Hundreds of rules that lead to hundreds are followed once each.
func TestHarmlessOfWideChains(t *testing.T) {
	const wide = 300
	chains := map[string][]nftRule{}
	got := ObservedTable{Read: true, Chains: map[string][]ObservedRule{}, known: map[chainAt]bool{}}
	for from, rule := range map[string]struct {
		code uint32
		to   string
	}{"a": {nftJumpCode, "b"}, "b": {nftJumpCode, "c"}, "c": {nftDropCode, "DROP"}} {
		for range wide {
			chain := rule.to
			if rule.code == nftDropCode {
				chain = ""
			}
			chains[from] = append(chains[from], verdictRule(rule.code, chain))
			got.Chains[from] = append(got.Chains[from], ObservedRule{Rule: newRule("-j", rule.to)})
		}
	}
	reads := 0
	ok, err := verdictRule(nftJumpCode, "a").harmless(0, func(chain string) ([]nftRule, error) {
		reads++
		return chains[chain], nil
	})
	if !ok || err != nil || reads != len(chains) {
		t.Errorf("harmless %v, error %v, %d chains were read", ok, err, reads)
	}
	if !got.harmless(newRule("-j", "a"), 0) || len(got.known) != len(chains) {
		t.Errorf("%d chains are known", len(got.known))
	}
}
