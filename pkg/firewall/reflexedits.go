package firewall

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// edits is the transaction that brings our part of a table back to the image,
// and its description.
type edits struct {
	batch *nftWriter
	chain func(id TableID, chain string, generation uint32) ([]nftRule, error)

	generation uint32
	last       int // where the batch's last message begins
	plan       Plan
	sets       []uint16 // that rules in the batch match
	shut, lead []string // chains whose rules, or jump, the kernel may make wait: see shutter
	interim    []string // chains that a shutter has put rules into
	open       bool     // something differs that no such rule stands in for
	brief      bool     // find shut and lead only: memory that is asked for may have to be collected first
}

// compare writes the batch: the table comes first, then chains, then what leads
// to chains.
func (e *edits) compare(t *imageTable, found *nftTable, generation uint32) error {
	e.start(generation)
	e.table(t, found)
	e.chains(t, found)
	for i, c := range t.chains {
		e.rules(t, c, found.chains[i])
	}
	for i, b := range t.bases {
		if err := e.jump(t, b, found.chains[len(t.chains)+i]); err != nil {
			return err
		}
	}
	e.finish()
	return nil
}

// start begins a transaction that the kernel refuses if the generation is another.
func (e *edits) start(generation uint32) {
	e.generation = generation
	e.batch.reset()
	e.begin(nftBatchBegin)
	e.batch.number32(nftBatchGenID, generation)
	e.batch.end(e.last)
}

func (e *edits) finish() {
	flags := e.batch.data[e.last+6:] // in struct nlmsghdr
	flags[0] |= unix.NLM_F_ACK
	e.begin(nftBatchEnd)
	e.batch.end(e.last)
}

func (e *edits) begin(kind uint16) {
	e.last = e.batch.message(kind, 0, unix.AF_UNSPEC, nftSubsystem)
}

// command begins a message about one of our tables.
func (e *edits) command(t *imageTable, command, flags uint16) {
	e.last = e.batch.command(command, flags, t.id.family().nfproto())
	e.batch.text(unix.NFTA_TABLE_NAME, t.id.name()) // chains and rules name theirs by the same number
}

func (e *edits) table(t *imageTable, found *nftTable) {
	switch {
	case !found.exists:
		e.plan.add(resourceTable, t.id.family(), t.id.name(), "missing", nil)
	case found.flags != t.flags:
		e.plan.add(resourceTable, t.id.family(), t.id.name(), "dormant, so that no rule in it counts", nil)
	default:
		return
	}
	e.open = true
	e.command(t, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	e.batch.number32(unix.NFTA_TABLE_FLAGS, t.flags)
	e.batch.end(e.last)
}

// chains makes those that are not there.
func (e *edits) chains(t *imageTable, found *nftTable) {
	for i, c := range found.chains {
		if !c.absent {
			continue
		}
		var hook nftHook
		if n := i - len(t.chains); n >= 0 {
			hook = t.bases[n].hook
			hook.policy = nftAcceptCode
		}
		e.newChain(t, c.name, hook)
	}
}

// newChain makes a chain; without a kind of hook it is one that rules lead to.
func (e *edits) newChain(t *imageTable, name string, h nftHook) {
	e.command(t, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	e.batch.text(unix.NFTA_CHAIN_NAME, name)
	if h.kind != "" {
		e.hook(h)
	}
	e.batch.end(e.last)
}

func (e *edits) hook(h nftHook) {
	start := e.batch.nested(unix.NFTA_CHAIN_HOOK)
	e.batch.number32(unix.NFTA_HOOK_HOOKNUM, h.number)
	e.batch.number32(unix.NFTA_HOOK_PRIORITY, h.priority)
	e.batch.endAttr(start)
	e.batch.number32(unix.NFTA_CHAIN_POLICY, h.policy)
	e.batch.text(unix.NFTA_CHAIN_TYPE, h.kind)
}

// rules replaces those between the common head and the common tail: the others
// keep what the kernel has counted for them, such as connections.
func (e *edits) rules(t *imageTable, want imageChain, have nftChain) {
	shut, opened := have.name == ChainRPF, false
	if slices.Contains(e.interim, have.name) {
		rules := shutRules(have.name)
		shut = shut || e.isShut(have, rules)
		opened = e.unshut(t, &have, rules)
	}
	head, tail := want.common(have)
	gone, missing := have.rules[head:len(have.rules)-tail], want.rules[head:len(want.rules)-tail]
	if !have.absent && !opened && len(gone) == 0 && len(missing) == 0 {
		return
	}
	e.open = e.open || !shut
	if !shut && slices.ContainsFunc(missing, func(r imageRule) bool { return r.waits }) {
		e.shut = append(e.shut, have.name)
	}
	if e.brief {
		return
	}
	var lines []string
	for _, r := range gone {
		lines = append(lines, "- "+t.describe(r))
		e.remove(t, have.name, r)
	}
	var before uint64
	if tail > 0 {
		before = have.rules[len(have.rules)-tail].handle
	}
	for _, r := range missing {
		lines = append(lines, "+ "+r.text)
		e.insert(t, have.name, r, before, unix.NLM_F_APPEND)
	}
	problem := "differs"
	if have.absent {
		problem = "missing"
	}
	e.plan.add(resourceChain, t.id.family(), t.id.title(have.name), problem, lines)
}

// common is how many rules are the same at the top and at the end.
func (c imageChain) common(have nftChain) (head, tail int) {
	for head < len(have.rules) && head < len(c.rules) && c.rules[head].is(have.rules[head]) {
		head++
	}
	for tail < len(have.rules)-head && tail < len(c.rules)-head &&
		c.rules[len(c.rules)-1-tail].is(have.rules[len(have.rules)-1-tail]) {
		tail++
	}
	return head, tail
}

// isShut says whether a chain begins with a shutter's rules.
func (e *edits) isShut(chain nftChain, shut []nativeRule) bool {
	if !slices.Contains(e.interim, chain.name) || len(chain.rules) < len(shut) {
		return false
	}
	for i, n := range shut {
		if !n.stands(chain.rules[i]) {
			return false
		}
	}
	return true
}

// unshut removes a shutter's rules.
func (e *edits) unshut(t *imageTable, chain *nftChain, shut []nativeRule) (removed bool) {
	var rest []nftRule
	for _, r := range chain.rules {
		if slices.ContainsFunc(shut, func(n nativeRule) bool { return n.stands(r) }) {
			e.remove(t, chain.name, r)
			removed = true
		} else {
			rest = append(rest, r)
		}
	}
	if removed {
		chain.rules = rest
	}
	return removed
}

// describe is a rule that the kernel has where none of that kind should be.
func (t *imageTable) describe(r nftRule) string {
	if text, ours := t.textOf(r); ours {
		return text
	}
	return fmt.Sprintf("a rule that is not ours (handle %d)", r.handle)
}

func (e *edits) remove(t *imageTable, chain string, r nftRule) {
	e.command(t, unix.NFT_MSG_DELRULE, 0)
	e.batch.text(unix.NFTA_RULE_CHAIN, chain)
	e.batch.number64(unix.NFTA_RULE_HANDLE, r.handle)
	e.batch.end(e.last)
}

// insert writes a rule before another, or at the end (NLM_F_APPEND) or top (0)
// of the chain if there is none.
func (e *edits) insert(t *imageTable, chain string, r imageRule, before uint64, place uint16) {
	if before != 0 {
		place = 0
	}
	e.command(t, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|place)
	e.batch.text(unix.NFTA_RULE_CHAIN, chain)
	if before != 0 {
		e.batch.number64(unix.NFTA_RULE_POSITION, before)
	}
	e.batch.data = append(e.batch.data, r.attrs...)
	e.batch.end(e.last)
	e.sets = addNumbers(e.sets, r.sets...)
}

// jump puts a jump in first place if it is not there, or not alone.
func (e *edits) jump(t *imageTable, want imageBase, have nftChain) error {
	if !have.absent && !have.hook.same(want.hook) { // Apply can put that right
		return fmt.Errorf("chain %s of table %s is not hooked as iptables would", want.name, t.id.name())
	}
	var ours []nftRule
	var lines, above []string
	first := len(have.rules)
	for i, r := range have.rules {
		if r.leadsToUs() {
			first = min(first, i)
			ours = append(ours, r)
		}
	}
	if len(ours) > 0 {
		var err error
		if above, err = e.harmful(t, want, have.rules[:first]); err != nil {
			return err
		}
	}
	var problem string
	switch {
	case len(ours) == 0:
		problem = "missing"
	case len(ours) > 1:
		problem = "there more than once"
	case !want.jump.is(ours[0]):
		problem = "differs"
	case len(above) > 0:
		problem = "not in first place"
	default:
		return nil
	}
	interim := nativeJump(want.jump.leadsTo())
	shut := e.isShut(have, []nativeRule{interim})
	e.open = e.open || !shut
	if !shut && want.jump.waits {
		e.lead = append(e.lead, want.name)
	}
	if e.brief {
		return nil
	}
	for _, r := range ours {
		if !slices.Contains(e.interim, want.name) || !interim.stands(r) {
			lines = append(lines, "- -A "+want.name+" "+want.describe(r))
		}
		e.remove(t, want.name, r)
	}
	e.insert(t, want.name, want.jump, 0, 0)
	e.plan.add(resourceJump, t.id.family(), t.id.title(want.name), problem, append(lines, "+ -I "+want.name+" 1 "+want.jump.text))
	e.plan.Foreign = append(e.plan.Foreign, above...)
	return nil
}

// harmful lists the rules that must not stay above our jump.
func (e *edits) harmful(t *imageTable, base imageBase, rules []nftRule) ([]string, error) {
	var list []string
	look := harmlessLook{rules: func(chain string) ([]nftRule, error) { return e.chain(t.id, chain, e.generation) }}
	for _, r := range rules {
		if base.knows(r) {
			continue
		}
		harmless, err := look.harmless(r, 0)
		if err != nil {
			return nil, err
		}
		if !harmless {
			list = append(list, fmt.Sprintf("%s -A %s (rule with handle %d)", t.id, base.name, r.handle))
		}
	}
	return list, nil
}

func (b imageBase) describe(r nftRule) string {
	if b.jump.is(r) {
		return b.jump.text
	}
	return fmt.Sprintf("a rule that is not ours (handle %d)", r.handle)
}
