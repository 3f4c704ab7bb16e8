package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// An image is what our part of the nf_tables rules looks like when it is right,
// as the kernel's own bytes.
type image struct {
	want       [3]Table       // what it is the image of
	tables     [3]*imageTable // by TableID; nil: nothing of ours, or not read
	generation uint32
	asleep     bool              // a table was dormant
	sets       map[uint16]string // names of the ipsets that our rules match, by the kernel's numbers
}

// isOf says whether the image, if there is one, is of these very rules.
func (im *image) isOf(want Ruleset) bool {
	if im == nil {
		return false
	}
	for _, id := range tableIDs {
		a, b := im.want[id], want.Tables[id]
		sameChain := func(x, y Chain) bool { return x.Name == y.Name && slices.EqualFunc(x.Rules, y.Rules, Rule.Equal) }
		sameJump := func(x, y Jump) bool { return x.From == y.From && x.Rule.Equal(y.Rule) }
		if !slices.EqualFunc(a.Chains, b.Chains, sameChain) || !slices.EqualFunc(a.Jumps, b.Jumps, sameJump) {
			return false
		}
	}
	return true
}

type imageTable struct {
	id     TableID
	flags  uint32       // never dormant: nothing of ours would be in force
	chains []imageChain // ours
	bases  []imageBase
	apart  bool // the table is full of foreign rules: read its chains one by one
}

type imageChain struct {
	name  string
	rules []imageRule
}

// imageBase is a built-in chain with a jump of ours.
type imageBase struct {
	name  string
	hook  nftHook
	jump  imageRule
	known []imageRule // foreign rules above the jump that Diff has found harmless
}

// nftHook is how a built-in chain is hooked into the kernel. The policy is
// not ours; a chain that is gone is made again to let pass, as iptables' own do.
type nftHook struct {
	number, priority uint32
	kind             string
	policy           uint32
}

// same leaves the policy aside.
func (h nftHook) same(o nftHook) bool {
	h.policy, o.policy = 0, 0
	return h == o
}

// nftChain is a chain as the kernel has it.
type nftChain struct {
	name   string
	rules  []nftRule
	absent bool
	hook   nftHook // of one of ours only asked for if there are no rules
}

// nftTable is what a look has found of one table. Chains without rules may be
// missing from the kernel.
type nftTable struct {
	flags   uint32
	exists  bool
	chains  []nftChain // those that the look was for
	foreign int        // rules of other chains
}

func (t *nftTable) chain(name []byte) *nftChain {
	for i := range t.chains {
		if t.chains[i].name == string(name) {
			return &t.chains[i]
		}
	}
	return nil
}

// watch prepares the table for a look at the named chains. Memory is used again.
func (t *nftTable) watch(names int, name func(i int) string) {
	t.foreign = 0
	if len(t.chains) != names {
		t.chains = make([]nftChain, names)
	}
	for i := range t.chains {
		t.chains[i] = nftChain{name: name(i), rules: t.chains[i].rules[:0]}
	}
}

// manyForeign is how many foreign rules of a table are read along with ours. A
// rule costs about a microsecond, a look at a chain by itself about ten.
const manyForeign = 100

// lookTables asks for the generation of the rules and what tables there are.
func (s *nftSocket) lookTables(found *[3]nftTable) (generation uint32, err error) {
	s.out.reset()
	s.out.end(s.out.command(unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC))
	for _, id := range tableIDs {
		found[id].exists, found[id].flags = false, 0
		start := s.out.command(unix.NFT_MSG_GETTABLE, 0, id.family().nfproto())
		s.out.text(unix.NFTA_TABLE_NAME, id.name())
		s.out.end(start)
	}
	err = s.ask(func(m nftMessage) (err error) {
		switch m.kind {
		case nftSubsystem<<8 | unix.NFT_MSG_NEWGEN:
			generation, err = generationOf(m)
		case nftSubsystem<<8 | unix.NFT_MSG_NEWTABLE:
			for _, id := range tableIDs {
				if m.family == id.family().nfproto() && string(nftName(nftAttr(m.body, unix.NFTA_TABLE_NAME))) == id.name() {
					found[id].exists = true
					found[id].flags = nftNumber(nftAttr(m.body, unix.NFTA_TABLE_FLAGS))
				}
			}
		}
		return err
	})
	if err == nil && generation == 0 {
		err = errors.New("the kernel does not say what generation the rules are of")
	}
	return generation, err
}

func nftNumber(value []byte) uint32 {
	if len(value) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(value)
}

// lookRules reads the rules of a table's chains that are to be watched. It
// fails with errNftAgain if they are not all of one generation.
func (s *nftSocket) lookRules(id TableID, generation uint32, apart bool, t *nftTable) error {
	if !apart {
		return s.dumpRules(id, "", generation, func(chain []byte, r nftRule) {
			if c := t.chain(chain); c != nil {
				c.rules = append(c.rules, r)
			} else {
				t.foreign++
			}
		})
	}
	for i := range t.chains {
		c := &t.chains[i]
		if err := s.dumpRules(id, c.name, generation, func(_ []byte, r nftRule) { c.rules = append(c.rules, r) }); err != nil {
			return err
		}
	}
	return nil
}

// dumpRules reads the rules of one chain, or of the whole table if chain is "".
func (s *nftSocket) dumpRules(id TableID, chain string, generation uint32, each func(chain []byte, r nftRule)) error {
	s.out.reset()
	start := s.out.command(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, id.family().nfproto())
	s.out.text(unix.NFTA_RULE_TABLE, id.name())
	if chain != "" {
		s.out.text(unix.NFTA_RULE_CHAIN, chain)
	}
	s.out.end(start)
	return s.dump(func(m nftMessage) error {
		if m.kind != nftSubsystem<<8|unix.NFT_MSG_NEWRULE {
			return nil
		}
		if m.resource != uint16(generation) {
			return errNftAgain
		}
		each(parseNftRule(m.body))
		return nil
	})
}

// lookChain asks for one chain. False: it is not there.
func (s *nftSocket) lookChain(id TableID, chain string) (hook nftHook, exists bool, err error) {
	s.out.reset()
	start := s.out.command(unix.NFT_MSG_GETCHAIN, 0, id.family().nfproto())
	s.out.text(unix.NFTA_CHAIN_TABLE, id.name())
	s.out.text(unix.NFTA_CHAIN_NAME, chain)
	s.out.end(start)
	err = s.ask(func(m nftMessage) error {
		if m.kind == nftSubsystem<<8|unix.NFT_MSG_NEWCHAIN {
			hook, exists = parseNftHook(m.body), true
		}
		return nil
	})
	return hook, exists, err
}

func parseNftHook(body []byte) nftHook {
	hook := nftAttr(body, unix.NFTA_CHAIN_HOOK)
	if hook == nil {
		return nftHook{}
	}
	return nftHook{
		number:   nftNumber(nftAttr(hook, unix.NFTA_HOOK_HOOKNUM)),
		priority: nftNumber(nftAttr(hook, unix.NFTA_HOOK_PRIORITY)),
		kind:     string(nftName(nftAttr(body, unix.NFTA_CHAIN_TYPE))),
		policy:   nftNumber(nftAttr(body, unix.NFTA_CHAIN_POLICY)),
	}
}

// takeImage reads what our part of the rules looks like. want is what it is
// known to be; it names the chains and gives the rules their texts.
func (s *nftSocket) takeImage(want Ruleset, got Observed) (*image, error) {
	defer s.forget()
	var found [3]nftTable
	generation, err := s.lookTables(&found)
	if err != nil {
		return nil, err
	}
	if generation != got.Generation {
		return nil, errNftAgain
	}
	im := &image{want: want.Tables, generation: generation}
	for _, id := range tableIDs {
		if len(want.Tables[id].Chains) == 0 || !got.Tables[id].Read {
			continue
		}
		t := &found[id]
		chains, jumps := want.Tables[id].Chains, want.Tables[id].Jumps
		t.watch(len(chains)+len(jumps), func(i int) string {
			if i < len(chains) {
				return chains[i].Name
			}
			return jumps[i-len(chains)].From
		})
		if err := s.lookRules(id, generation, false, t); err != nil {
			return nil, err
		}
		if im.tables[id], err = s.imageOf(id, want.Tables[id], t); err != nil {
			return nil, fmt.Errorf("%s: %w", id, err)
		}
		im.asleep = im.asleep || t.flags&unix.NFT_TABLE_F_DORMANT != 0
	}
	// No message tells the generation that an answer about a chain is of.
	if now, err := s.generation(); err != nil || now != generation {
		return nil, errors.Join(err, errNftAgain)
	}
	im.sets, err = s.lookSets(im.setIndexes())
	return im, err
}

func (s *nftSocket) imageOf(id TableID, want Table, found *nftTable) (*imageTable, error) {
	if !found.exists {
		return nil, errors.New("the table is not there")
	}
	t := &imageTable{id: id, flags: found.flags &^ unix.NFT_TABLE_F_DORMANT, apart: found.foreign > manyForeign}
	for i, c := range want.Chains {
		rules := found.chains[i].rules
		if len(rules) != len(c.Rules) {
			return nil, fmt.Errorf("chain %s has %d rules, not %d", c.Name, len(rules), len(c.Rules))
		}
		ours := imageChain{name: c.Name}
		for n, r := range rules {
			ours.rules = append(ours.rules, newImageRule(r, c.Rules[n].String()))
		}
		t.chains = append(t.chains, ours)
	}
	for i, j := range want.Jumps {
		base, err := imageOfBase(j, found.chains[len(want.Chains)+i].rules)
		if err != nil {
			return nil, err
		}
		var exists bool
		if base.hook, exists, err = s.lookChain(id, j.From); err != nil || !exists || !base.hook.same(id.hook(j.From)) {
			return nil, errors.Join(err, fmt.Errorf("chain %s is not hooked as iptables would", j.From))
		}
		t.bases = append(t.bases, base)
	}
	return t, nil
}

func imageOfBase(j Jump, rules []nftRule) (imageBase, error) {
	target, _ := j.Rule.target()
	at := slices.IndexFunc(rules, func(r nftRule) bool { return string(r.leadsTo()) == target })
	if at < 0 {
		return imageBase{}, fmt.Errorf("chain %s has no jump to %s", j.From, target)
	}
	base := imageBase{name: j.From, jump: newImageRule(rules[at], j.Rule.String())}
	for _, r := range rules[:at] {
		base.known = append(base.known, newImageRule(r, ""))
	}
	return base, nil
}

// knows says whether the rule was above our jump when the image was taken. A
// rule that leads elsewhere is not known, since where it leads may have changed.
func (b imageBase) knows(r nftRule) bool {
	return r.leadsTo() == nil && slices.ContainsFunc(b.known, func(known imageRule) bool { return known.is(r) })
}

// textOf is what a rule of ours is called that stands in the wrong place.
func (t *imageTable) textOf(r nftRule) (string, bool) {
	for _, c := range t.chains {
		for _, ours := range c.rules {
			if ours.is(r) {
				return ours.text, true
			}
		}
	}
	return "", false
}

// setIndexes are the numbers of all ipsets that our rules match.
func (im *image) setIndexes() []uint16 {
	var list []uint16
	for _, t := range im.tables {
		if t == nil {
			continue
		}
		for _, c := range t.chains {
			for _, r := range c.rules {
				list = addNumbers(list, r.sets...)
			}
		}
	}
	return list
}

// addNumbers adds numbers to a list in which each is once.
func addNumbers(list []uint16, numbers ...uint16) []uint16 {
	for _, n := range numbers {
		if !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return list
}
