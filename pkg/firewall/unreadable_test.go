package firewall

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// nftExpr writes an expression into the list of a rule's.
func nftExpr(w *nftWriter, name string, data func()) {
	item := w.nested(unix.NFTA_LIST_ELEM)
	w.text(unix.NFTA_EXPR_NAME, name)
	list := w.nested(unix.NFTA_EXPR_DATA)
	data()
	w.endAttr(list)
	w.endAttr(item)
}

func nftVerdict(w *nftWriter, code uint32, chain string) {
	nftExpr(w, "immediate", func() {
		w.number32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		data := w.nested(unix.NFTA_IMMEDIATE_DATA)
		verdict := w.nested(unix.NFTA_DATA_VERDICT)
		w.number32(unix.NFTA_VERDICT_CODE, code)
		if chain != "" {
			w.text(unix.NFTA_VERDICT_CHAIN, chain)
		}
		w.endAttr(verdict)
		w.endAttr(data)
	})
}

func nftComment(w *nftWriter, text string) {
	nftExpr(w, "match", func() {
		w.text(unix.NFTA_MATCH_NAME, "comment")
		w.bytes(unix.NFTA_MATCH_INFO, append([]byte(text), make([]byte, 256-len(text))...))
	})
}

func TestSketch(t *testing.T) {
	counter := func(w *nftWriter) {
		nftExpr(w, "counter", func() { w.number64(unix.NFTA_COUNTER_BYTES, 5); w.number64(unix.NFTA_COUNTER_PACKETS, 1) })
	}
	state := func(w *nftWriter) { nftExpr(w, "ct", func() { w.number32(unix.NFTA_CT_DREG, 1) }) }
	accept := uint32(1)
	for name, tc := range map[string]struct {
		rule   func(w *nftWriter)
		target string // what Diff takes it for, "" for what could do anything
		goTo   bool
		ours   bool
	}{
		"our jump":        {func(w *nftWriter) { nftComment(w, "pghardend:jump"); counter(w); nftVerdict(w, nftJumpCode, ChainIn) }, ChainIn, false, true},
		"without counter": {func(w *nftWriter) { nftComment(w, "pghardend:jump"); nftVerdict(w, nftJumpCode, ChainIn) }, ChainIn, true, false},
		"another comment": {func(w *nftWriter) { nftComment(w, "pghardend:jumped"); counter(w); nftVerdict(w, nftJumpCode, ChainIn) }, ChainIn, true, false},
		"conditional jump": {func(w *nftWriter) {
			state(w)
			nftComment(w, "pghardend:jump")
			counter(w)
			nftVerdict(w, nftJumpCode, ChainIn)
		}, ChainIn, true, false},
		"goto":           {func(w *nftWriter) { nftComment(w, "pghardend:jump"); counter(w); nftVerdict(w, nftGotoCode, ChainIn) }, ChainIn, true, false},
		"jump elsewhere": {func(w *nftWriter) { state(w); nftVerdict(w, nftJumpCode, "f2b") }, "f2b", false, false},
		"goto elsewhere": {func(w *nftWriter) { nftVerdict(w, nftGotoCode, "f2b") }, "f2b", true, false},
		"jump by a map":  {func(w *nftWriter) { nftExpr(w, "lookup", func() { w.number32(unix.NFTA_LOOKUP_DREG, 0) }) }, "", false, false},
		"map, then drop": {func(w *nftWriter) {
			nftExpr(w, "lookup", func() { w.number32(unix.NFTA_LOOKUP_DREG, 0) })
			nftVerdict(w, nftDropCode, "")
		}, "", false, false},
		"drop":    {func(w *nftWriter) { state(w); counter(w); nftVerdict(w, nftDropCode, "") }, "DROP", false, false},
		"accept":  {func(w *nftWriter) { state(w); counter(w); nftVerdict(w, accept, "") }, "", false, false},
		"return":  {func(w *nftWriter) { nftVerdict(w, nftReturnCode, "") }, "RETURN", false, false},
		"nothing": {func(*nftWriter) {}, "", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			var w nftWriter
			tc.rule(&w)
			r := nftRule{handle: 7, exprs: w.data}
			got := r.sketch()
			target, isGoto := got.target()
			if target != tc.target || isGoto != tc.goTo {
				t.Errorf("target %q, goto %v", target, isGoto)
			}
			if ours := FilterIPv4.ourJump("INPUT", got); ours != tc.ours || got.Equal(jump(ChainIn)) != tc.ours {
				t.Errorf("ours %v, equal %v", ours, got.Equal(jump(ChainIn)))
			}
			if text := got.text(); text == "" || (text == jump(ChainIn).String()) != tc.ours {
				t.Errorf("text %q", text)
			}
		})
	}
}

// Whatever the bytes are, a rule that is not known in full is not taken for ours
// or for harmless.
func FuzzSketch(f *testing.F) {
	var w nftWriter
	nftComment(&w, "pghardend:jump")
	nftExpr(&w, "counter", func() { w.number64(unix.NFTA_COUNTER_PACKETS, 5) })
	nftVerdict(&w, nftJumpCode, ChainIn)
	f.Add(w.data)
	f.Fuzz(func(t *testing.T, exprs []byte) {
		r := nftRule{exprs: exprs}
		o := r.sketch()
		if o.sketch == "" && (!o.leadsToUs() || binary.NativeEndian.Uint16(exprs) == 0) {
			t.Errorf("taken for ours: %q", o.text())
		}
		if target, isGoto := o.target(); target != "" && !isGoto && o.sketch != "" && len(exprs) == 0 {
			t.Errorf("an empty rule is taken for %q", target)
		}
	})
}
