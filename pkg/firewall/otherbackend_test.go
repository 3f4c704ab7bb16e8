package firewall

import (
	"strings"
	"testing"
)

func TestF08_OtherRulesInWords(t *testing.T) {
	for name, tc := range map[string]struct {
		rules   OtherRules
		serious bool
		want    []string // one with "!" must not be there
	}{
		"nothing": {OtherRules{Backend: BackendLegacy}, false, nil},
		"foreign rules": {
			OtherRules{BackendLegacy, [2]OtherFamily{IPv4: {Rules: 3, Tables: []string{"filter", "nat"}}}}, false,
			[]string{"it holds 3 ipv4 rules (filter, nat);", "`iptables-legacy-save`", "!ip6tables", "!teardown", "!-P"},
		},
		"both families": {
			OtherRules{BackendNFT, [2]OtherFamily{{Rules: 3, Tables: []string{"filter"}}, {Rules: 1, Tables: []string{"raw"}}}}, false,
			[]string{"3 ipv4 rules (filter) and 1 ipv6 rules (raw);", "`iptables-nft-save` and `ip6tables-nft-save`"},
		},
		"ours": {
			OtherRules{BackendLegacy, [2]OtherFamily{IPv6: {Rules: 9, Tables: []string{"filter"}, Ours: true}}}, true,
			[]string{"9 ipv6 rules", "`pghardend teardown`", "stop the daemon", "!-P"},
		},
		"an empty chain of ours": {OtherRules{BackendLegacy, [2]OtherFamily{{Ours: true}}}, true, []string{"teardown", "!holds"}},
		"policy alone":           {OtherRules{BackendNFT, [2]OtherFamily{{Drops: true}}}, true, []string{"-P INPUT ACCEPT and -P OUTPUT ACCEPT of `iptables-nft`", "!holds", "!teardown"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := tc.rules.String()
			if tc.rules.Serious() != tc.serious || tc.rules.Empty() != (tc.want == nil) || (text == "") != (tc.want == nil) {
				t.Errorf("serious %v, empty %v, text %q", tc.rules.Serious(), tc.rules.Empty(), text)
			}
			for _, want := range tc.want {
				absent, isAbsent := strings.CutPrefix(want, "!")
				if strings.Contains(text, absent) == isAbsent {
					t.Errorf("%q: want %q", text, want)
				}
			}
		})
	}
}
