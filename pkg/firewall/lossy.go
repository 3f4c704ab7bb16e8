package firewall

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// withoutLossy takes back what iptables-save printed of rules that it shows only
// in part. Of nft's sets it prints nothing: "ip saddr { 192.0.2.1, 192.0.2.2 }
// drop" comes out as "-j DROP", comment and all, which could pass for a rule of
// ours. Only our chains and what leads there matter.
func withoutLossy(id TableID, t ObservedTable) (_ ObservedTable, err error) {
	s, err := openNftSocket()
	if err != nil {
		return ObservedTable{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	kernel := map[string][]nftRule{}
	s.request(unix.NFT_MSG_GETRULE, id.family().nft())
	err = s.dump(func(m nftMessage) error {
		if string(nftName(nftAttr(m.body, unix.NFTA_RULE_TABLE))) == id.name() {
			chain, r := parseNftRule(m.body)
			kernel[string(chain)] = append(kernel[string(chain)], r)
		}
		return nil
	})
	if errors.Is(err, errNftAgain) {
		return t, nil // somebody is at it, who will be noticed
	}
	if err != nil {
		return ObservedTable{}, fmt.Errorf("cannot list the rules: %w", err)
	}
	for chain, rules := range t.Chains {
		if len(kernel[chain]) != len(rules) {
			continue // changed since
		}
		for i, r := range kernel[chain] {
			ours := isOurs(chain) || slices.Contains(id.builtins(), chain) && r.leadsToUs()
			if ours && r.usesNftSet() {
				rules[i] = r.sketch()
			}
		}
	}
	return t, nil
}

func (r nftRule) usesNftSet() bool {
	for e := (nftExprs{rest: r.exprs}); e.next(); {
		if string(e.name) == "lookup" {
			return true
		}
	}
	return false
}
