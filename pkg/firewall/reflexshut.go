package firewall

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// A shutter closes what a foreign commit has opened, before the exact rules are
// written: those hold matches of xtables, and the kernel takes none as long as
// rules that were deleted are not freed, which takes it a grace period of RCU,
// 10 to 20 ms (nft_compat_wait_for_destructors in net/netfilter/nft_compat.c).
//
// Its rules need no such match, and iptables can read each of them: an iptables
// that runs meanwhile must not fail. They let pass what is local and what TCP
// sends on connections that there are, and nothing that opens one.
type shutter struct {
	tables []tableEdits
}

// tableEdits is what compare has found to be written in a table.
type tableEdits struct {
	table *imageTable
	found *nftTable
	shut  []string // chains of ours that lack such rules
	lead  []string // built-in chains that lack a jump
}

// ofXtables says whether a rule has a match or target of xtables.
func (r nftRule) ofXtables() bool {
	for e := (nftExprs{rest: r.exprs}); e.next(); {
		if name := string(e.name); name == "match" || name == "target" {
			return true
		}
	}
	return false
}

func (s *shutter) add(e *edits, t *imageTable, found *nftTable) {
	if len(e.shut)+len(e.lead) > 0 {
		s.tables = append(s.tables, tableEdits{table: t, found: found, shut: e.shut, lead: e.lead})
	}
}

// write makes one transaction of all tables. Nothing is deleted in it, so that it
// makes the next one wait for nothing.
func (s *shutter) write(e *edits, generation uint32) {
	e.start(generation)
	for _, t := range s.tables {
		e.table(t.table, t.found)
		e.chains(t.table, t.found)
		for _, chain := range t.shut {
			rules := shutRules(chain)
			for i := len(rules) - 1; i >= 0; i-- { // each goes on top
				e.insert(t.table, chain, imageRule{attrs: rules[i].attrs()}, 0, 0)
			}
		}
		for _, b := range t.table.bases {
			for _, name := range t.lead {
				if name == b.name {
					e.insert(t.table, name, imageRule{attrs: nativeJump(b.jump.leadsTo()).attrs()}, 0, 0)
				}
			}
		}
	}
	e.finish()
}

// interim is the comment of a shutter's rules, as user data of nft's
// (enum nftnl_udata_rule_types in libnftnl/udata.h): who lists the rules sees it.
const interim = "\x00\x12pghardend:interim\x00"

// stands says whether a rule that the kernel has is this one of a shutter's.
// Anybody can write the comment, so the rest counts as well.
func (r nativeRule) stands(found nftRule) bool {
	if string(found.user) != interim {
		return false
	}
	have, want := nftExprs{rest: found.exprs}, nftExprs{rest: r.expressions()}
	for want.next() {
		if !have.next() || string(have.name) != string(want.name) || !holds(have.data, want.data) {
			return false
		}
	}
	return !have.next()
}

// holds says whether the kernel has each attribute that was written. It may have
// more, and does without flags.
func holds(have, want []byte) bool {
	for a := (nftAttrs{rest: want}); len(a.rest) > 0; {
		nested := len(a.rest) >= unix.SizeofNlAttr && binary.NativeEndian.Uint16(a.rest[2:])&unix.NLA_F_NESTED != 0
		if !a.next() {
			return false
		}
		value := nftAttr(have, a.kind)
		if nested && !holds(value, a.value) || !nested && !bytes.Equal(value, a.value) {
			return false
		}
	}
	return true
}

// shutRules are what stands in for a chain of ours. PGHARDEND-RPF has none: what
// it judges is judged again by the others.
func shutRules(chain string) []nativeRule {
	switch chain {
	case ChainIn:
		return []nativeRule{nativeInterface(unix.NFT_META_IIFNAME), nativeNoSyn(), nativeDrop()}
	case ChainOut:
		return []nativeRule{nativeInterface(unix.NFT_META_OIFNAME), nativeNoSyn(), nativeDrop()}
	case ChainMetadata:
		return []nativeRule{nativeNoSyn(), nativeDrop()}
	case ChainRPF:
		return nil
	}
	return []nativeRule{nativeDrop()}
}

// nativeRule is a rule of nf_tables' own expressions.
type nativeRule struct {
	w     nftWriter
	exprs int // where their list begins
}

func newNativeRule() nativeRule {
	var r nativeRule
	r.exprs = r.w.nested(unix.NFTA_RULE_EXPRESSIONS)
	return r
}

func (r nativeRule) expressions() []byte {
	r.w.endAttr(r.exprs)
	return r.w.data[r.exprs+unix.SizeofNlAttr:]
}

func (r nativeRule) attrs() []byte {
	r.w.endAttr(r.exprs)
	r.w.bytes(unix.NFTA_RULE_USERDATA, []byte(interim))
	return r.w.data
}

func (r *nativeRule) expr(name string, fill func(w *nftWriter)) {
	elem := r.w.nested(unix.NFTA_LIST_ELEM)
	r.w.text(unix.NFTA_EXPR_NAME, name)
	data := r.w.nested(unix.NFTA_EXPR_DATA)
	fill(&r.w)
	r.w.endAttr(data)
	r.w.endAttr(elem)
}

func (r *nativeRule) meta(key uint32) {
	r.expr("meta", func(w *nftWriter) {
		w.number32(unix.NFTA_META_KEY, key)
		w.number32(unix.NFTA_META_DREG, unix.NFT_REG_1)
	})
}

func (r *nativeRule) equals(value []byte) {
	r.expr("cmp", func(w *nftWriter) {
		w.number32(unix.NFTA_CMP_SREG, unix.NFT_REG_1)
		w.number32(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ)
		w.value(unix.NFTA_CMP_DATA, value)
	})
}

// value writes data as a register holds it.
func (w *nftWriter) value(kind uint16, data []byte) {
	start := w.nested(kind)
	w.bytes(unix.NFTA_DATA_VALUE, data)
	w.endAttr(start)
}

func (r *nativeRule) verdict(code uint32, chain []byte) {
	r.expr("immediate", func(w *nftWriter) {
		w.number32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		data := w.nested(unix.NFTA_IMMEDIATE_DATA)
		verdict := w.nested(unix.NFTA_DATA_VERDICT)
		w.number32(unix.NFTA_VERDICT_CODE, code)
		if chain != nil {
			w.text(unix.NFTA_VERDICT_CHAIN, string(chain))
		}
		w.endAttr(verdict)
		w.endAttr(data)
	})
}

func nativeJump(to []byte) nativeRule {
	r := newNativeRule()
	r.verdict(nftJumpCode, to)
	return r
}

func nativeDrop() nativeRule {
	r := newNativeRule()
	r.verdict(nftDropCode, nil)
	return r
}

// nativeInterface is -i lo -j ACCEPT, or -o lo.
func nativeInterface(key uint32) nativeRule {
	r := newNativeRule()
	r.meta(key)
	r.equals([]byte("lo\x00"))
	r.verdict(nftAcceptCode, nil)
	return r
}

// nativeNoSyn is -p tcp --tcp-flags SYN NONE -j ACCEPT.
func nativeNoSyn() nativeRule {
	const flags, syn = 13, 0x02 // RFC 9293, 3.1
	r := newNativeRule()
	r.meta(unix.NFT_META_L4PROTO)
	r.equals([]byte{unix.IPPROTO_TCP})
	r.expr("payload", func(w *nftWriter) {
		w.number32(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1)
		w.number32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_TRANSPORT_HEADER)
		w.number32(unix.NFTA_PAYLOAD_OFFSET, flags)
		w.number32(unix.NFTA_PAYLOAD_LEN, 1)
	})
	r.expr("bitwise", func(w *nftWriter) {
		w.number32(unix.NFTA_BITWISE_SREG, unix.NFT_REG_1)
		w.number32(unix.NFTA_BITWISE_DREG, unix.NFT_REG_1)
		w.number32(unix.NFTA_BITWISE_LEN, 1)
		w.value(unix.NFTA_BITWISE_MASK, []byte{syn})
		w.value(unix.NFTA_BITWISE_XOR, []byte{0})
	})
	r.equals([]byte{0})
	r.verdict(nftAcceptCode, nil)
	return r
}
