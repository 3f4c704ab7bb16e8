package firewall

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// withoutLossy takes back what iptables-save printed of rules that it shows only
// in part. Of nft's sets and of some comparisons it prints nothing: "ip saddr {
// 192.0.2.1, 192.0.2.2 } drop" comes out as "-j DROP", comment and all, which
// could pass for a rule of ours, and so does "@ll,0,8 5 drop". Of foreign rules
// only verdicts matter: "tcp dport vmap { 22 : accept } drop" is shown as a drop.
func withoutLossy(id TableID, t ObservedTable) (_ ObservedTable, err error) {
	s, err := openNftSocket()
	if err != nil {
		return ObservedTable{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	generation, err := s.generation()
	if err != nil {
		return ObservedTable{}, err
	}
	kernel := map[string][]nftRule{}
	err = s.dumpRules(id, "", generation, func(chain []byte, r nftRule) {
		kernel[string(chain)] = append(kernel[string(chain)], r)
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
			if ours && r.lossy() || r.usesVerdictMap() {
				rules[i] = r.sketch()
			}
		}
	}
	return t, nil
}

// usesVerdictMap: the map decides before any verdict that stands behind it.
func (r nftRule) usesVerdictMap() bool {
	for e := (nftExprs{rest: r.exprs}); e.next(); {
		if string(e.name) == "lookup" && nftAttr(e.data, unix.NFTA_LOOKUP_DREG) != nil {
			return true
		}
	}
	return false
}

// lossy says whether iptables 1.8.9 prints the rule as if it were another. What
// iptables itself writes is not: it loads one thing after the other, masks bits of
// addresses and flags alone, and asks whether a value is equal to, or in a range of,
// another. What it cannot print at all is another matter, see observePartly.
func (r nftRule) lossy() bool {
	var loaded nftLoad
	over := false // there was a verdict
	for e := (nftExprs{rest: r.exprs}); e.next(); {
		if over {
			return true
		}
		switch string(e.name) {
		case "lookup":
			return true
		case "meta":
			loaded = nftLoad{register: nftNumber(nftAttr(e.data, unix.NFTA_META_DREG))}
		case "payload":
			if loaded = e.payload(); !loaded.printed {
				return true
			}
		case "bitwise":
			if loaded.port || !loaded.isIn(nftAttr(e.data, unix.NFTA_BITWISE_SREG)) || !isZero(nftAttr(nftAttr(e.data, unix.NFTA_BITWISE_XOR), unix.NFTA_DATA_VALUE)) {
				return true
			}
		case "cmp":
			op := nftNumber(nftAttr(e.data, unix.NFTA_CMP_OP))
			if !loaded.isIn(nftAttr(e.data, unix.NFTA_CMP_SREG)) || !loaded.port && op != unix.NFT_CMP_EQ && op != unix.NFT_CMP_NEQ {
				return true
			}
		case "immediate", "target":
			over = true
		}
	}
	return false
}

// nftLoad is what the last expression has put into a register.
type nftLoad struct {
	register uint32
	port     bool // one port
	printed  bool // iptables has words for it
}

func (l nftLoad) isIn(register []byte) bool { return nftNumber(register) == l.register }

// payload is a load from the packet. Nothing but addresses, ports, TCP's flags
// and ICMP's types occurs in rules of ours.
func (e *nftExprs) payload() nftLoad {
	number := func(kind uint16) uint32 { return nftNumber(nftAttr(e.data, kind)) }
	at, size := number(unix.NFTA_PAYLOAD_OFFSET), number(unix.NFTA_PAYLOAD_LEN)
	l := nftLoad{register: number(unix.NFTA_PAYLOAD_DREG)}
	switch number(unix.NFTA_PAYLOAD_BASE) {
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		l.printed = true // or iptables stops
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		const flags = 13 // where TCP has them
		l.port = size == 2 && (at == 0 || at == 2)
		l.printed = l.port || at == 0 || at == flags
	}
	return l
}

func isZero(data []byte) bool {
	return !slices.ContainsFunc(data, func(b byte) bool { return b != 0 })
}
