package firewall

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// nftRule is a rule as the kernel has it. Its bytes hold until the message's
// memory is used again.
type nftRule struct {
	handle uint64
	exprs  []byte // NFTA_RULE_EXPRESSIONS
	user   []byte // NFTA_RULE_USERDATA
}

// imageRule is a rule of an image: a copy with its counters at 0. The counters
// are all that may differ between two rules that treat packets alike. What else
// varies while a rule works, such as what is left of a limit, the kernel does not
// send: it sends zeros for what is behind a match's usersize
// (nft_extension_dump_info), and that of limit, hashlimit and connlimit is there.
type imageRule struct {
	nftRule
	text     string   // as iptables has it
	counters []int    // where in exprs their values are, in order, of 8 bytes each
	attrs    []byte   // the rule as it is written, without table, chain and position
	sets     []uint16 // the numbers of ipsets that it matches
	waits    bool     // the kernel may make wait who writes it: see shutter
}

func newImageRule(r nftRule, text string) imageRule {
	im := imageRule{nftRule: nftRule{exprs: slices.Clone(r.exprs), user: slices.Clone(r.user)}, text: text}
	im.counters = takeCounters(im.exprs)
	im.attrs = im.encode()
	im.sets = im.setIndexes()
	im.waits = im.ofXtables()
	return im
}

// is says whether the rule is this one.
func (im imageRule) is(r nftRule) bool {
	if len(r.exprs) != len(im.exprs) || !bytes.Equal(r.user, im.user) {
		return false
	}
	at := 0
	for _, counter := range im.counters {
		if !bytes.Equal(r.exprs[at:counter], im.exprs[at:counter]) {
			return false
		}
		at = counter + counterSize
	}
	return bytes.Equal(r.exprs[at:], im.exprs[at:])
}

// encode writes the attributes that make the rule.
func (im imageRule) encode() []byte {
	var w nftWriter
	w.bytes(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, im.exprs)
	if len(im.user) > 0 {
		w.bytes(unix.NFTA_RULE_USERDATA, im.user)
	}
	if proto, not := im.protocol(); proto != 0 {
		flags := uint32(0)
		if not {
			flags = unix.NFT_RULE_COMPAT_F_INV
		}
		start := w.nested(unix.NFTA_RULE_COMPAT)
		w.number32(unix.NFTA_RULE_COMPAT_PROTO, uint32(proto))
		w.number32(unix.NFTA_RULE_COMPAT_FLAGS, flags)
		w.endAttr(start)
	}
	return w.data
}

// parseNftRule reads the body of a rule's message, and what chain it is in.
func parseNftRule(body []byte) (chain []byte, r nftRule) {
	for a := (nftAttrs{rest: body}); a.next(); {
		switch a.kind {
		case unix.NFTA_RULE_CHAIN:
			chain = nftName(a.value)
		case unix.NFTA_RULE_HANDLE:
			if len(a.value) == 8 {
				r.handle = binary.BigEndian.Uint64(a.value)
			}
		case unix.NFTA_RULE_EXPRESSIONS:
			r.exprs = a.value
		case unix.NFTA_RULE_USERDATA:
			r.user = a.value
		}
	}
	return chain, r
}

const counterSize = 8

// takeCounters sets the numbers of packets and bytes that a rule has seen to 0
// and returns where they are.
func takeCounters(exprs []byte) (offsets []int) {
	marked := slices.Clone(exprs)
	fillCounters(exprs, 0)
	fillCounters(marked, 0xff)
	for i := 0; i+counterSize <= len(exprs); i++ {
		if exprs[i] != marked[i] {
			offsets = append(offsets, i)
			i += counterSize - 1
		}
	}
	return offsets
}

func fillCounters(exprs []byte, with byte) {
	for e := (nftExprs{rest: exprs}); e.next(); {
		if string(e.name) != "counter" {
			continue
		}
		for a := (nftAttrs{rest: e.data}); a.next(); {
			if (a.kind == unix.NFTA_COUNTER_BYTES || a.kind == unix.NFTA_COUNTER_PACKETS) && len(a.value) == counterSize {
				for i := range a.value {
					a.value[i] = with
				}
			}
		}
	}
}

// nftExprs walks over the expressions of a rule.
type nftExprs struct {
	rest       []byte
	name, data []byte
}

func (e *nftExprs) next() bool {
	list := nftAttrs{rest: e.rest}
	if !list.next() {
		return false
	}
	e.rest = list.rest
	e.name, e.data = nil, nil
	for a := (nftAttrs{rest: list.value}); a.next(); {
		switch a.kind {
		case unix.NFTA_EXPR_NAME:
			e.name = nftName(a.value)
		case unix.NFTA_EXPR_DATA:
			e.data = a.value
		}
	}
	return true
}

// verdict is what an immediate expression decides.
func (e *nftExprs) verdict() (code uint32, chain []byte, ok bool) {
	if string(e.name) != "immediate" {
		return 0, nil, false
	}
	v := nftAttr(nftAttr(e.data, unix.NFTA_IMMEDIATE_DATA), unix.NFTA_DATA_VERDICT)
	value := nftAttr(v, unix.NFTA_VERDICT_CODE)
	if len(value) != 4 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint32(value), nftName(nftAttr(v, unix.NFTA_VERDICT_CHAIN)), true
}

// leadsTo is the chain that the rule jumps or goes to, nil for none.
func (r nftRule) leadsTo() []byte {
	for e := (nftExprs{rest: r.exprs}); e.next(); {
		if code, chain, ok := e.verdict(); ok && (code == nftJumpCode || code == nftGotoCode) {
			return chain
		}
	}
	return nil
}

func (r nftRule) leadsToUs() bool { return isOurs(string(r.leadsTo())) }

// nftOnlyLook are expressions that decide nothing and write nothing but
// registers, if their first attribute is there: of meta, payload and ct that is
// the register they load.
var nftOnlyLook = []string{"match", "meta", "payload", "ct", "cmp", "bitwise", "range", "counter", "limit"}

// harmless says whether a foreign rule may stay above our jump; the rules are
// those of (ObservedTable).harmless. What is not surely harmless is not: a jump
// that is moved without need does no harm. rules reads a chain.
//
// Each expression has to be harmless by itself, so what stands behind a verdict
// does not matter.
func (r nftRule) harmless(depth int, rules func(chain string) ([]nftRule, error)) (bool, error) {
	look := harmlessLook{rules: rules}
	return look.harmless(r, depth)
}

// harmlessLook reads each chain once for each depth: hundreds of rules may lead
// to it, and to them again.
type harmlessLook struct {
	rules func(chain string) ([]nftRule, error) // reads a chain
	known map[chainAt]bool
}

type chainAt struct {
	chain string
	depth int
}

func (l *harmlessLook) harmless(r nftRule, depth int) (bool, error) {
	verdict := false
	for e := (nftExprs{rest: r.exprs}); e.next(); {
		name := string(e.name)
		switch {
		case name == "immediate":
			code, chain, ok := e.verdict()
			switch {
			case ok && code == nftDropCode, ok && code == nftReturnCode && depth > 0:
			case ok && code == nftJumpCode && depth < maxDepth && !isOurs(string(chain)):
				if ok, err := l.chain(chainAt{string(chain), depth + 1}); !ok || err != nil {
					return false, err
				}
			default:
				return false, nil
			}
			verdict = true
		case name == "target":
			if !slices.Contains(goOn, string(nftName(nftAttr(e.data, unix.NFTA_TARGET_NAME)))) {
				return false, nil
			}
			verdict = true
		case name == "reject", name == "log":
			verdict = true
		case name == "lookup" && nftAttr(e.data, unix.NFTA_LOOKUP_DREG) == nil: // in a set, which decides nothing
		case !slices.Contains(nftOnlyLook, name) || nftAttr(e.data, 1) == nil:
			return false, nil
		}
	}
	return verdict, nil
}

func (l *harmlessLook) chain(at chainAt) (bool, error) {
	if ok, known := l.known[at]; known {
		return ok, nil
	}
	list, err := l.rules(at.chain)
	if err != nil {
		return false, err
	}
	all := true
	for _, r := range list {
		if all, err = l.harmless(r, at.depth); !all || err != nil {
			break
		}
	}
	if l.known == nil {
		l.known = map[chainAt]bool{}
	}
	l.known[at] = all
	return all, err
}

// protocol is the protocol that the rule is for, as xt matches ask for it:
// some, such as icmp, take no rule that is not for theirs. iptables writes it
// first, as a comparison of meta l4proto.
func (r nftRule) protocol() (proto uint8, not bool) {
	loaded := false
	for e := (nftExprs{rest: r.exprs}); e.next(); {
		switch string(e.name) {
		case "meta":
			loaded = nftNumber(nftAttr(e.data, unix.NFTA_META_KEY)) == unix.NFT_META_L4PROTO
		case "cmp":
			value := nftAttr(nftAttr(e.data, unix.NFTA_CMP_DATA), unix.NFTA_DATA_VALUE)
			if loaded && len(value) == 1 {
				return value[0], nftNumber(nftAttr(e.data, unix.NFTA_CMP_OP)) == unix.NFT_CMP_NEQ
			}
			loaded = false
		default:
			loaded = false
		}
	}
	return 0, false
}

// setIndexes are the ipsets that the rule matches, each once. The kernel keeps them
// by number: struct xt_set_info in linux/netfilter/xt_set.h.
func (r nftRule) setIndexes() (list []uint16) {
	for e := (nftExprs{rest: r.exprs}); e.next(); {
		if string(e.name) != "match" || string(nftName(nftAttr(e.data, unix.NFTA_MATCH_NAME))) != "set" {
			continue
		}
		if info := nftAttr(e.data, unix.NFTA_MATCH_INFO); len(info) >= 2 {
			list = addNumbers(list, binary.NativeEndian.Uint16(info))
		}
	}
	return list
}
