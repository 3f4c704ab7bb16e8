package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// errUnreadable: iptables prints nothing of a table in which a single rule, or
// base chain, is beyond it.
var errUnreadable = errors.New("the table holds rules that only nft understands")

// unreadable says whether that is why a command failed. Of most such rules
// iptables knows beforehand; at the others, such as "meta skuid 5", it stops.
func unreadable(err error) bool {
	return errors.Is(err, errUnreadable) || err != nil &&
		(strings.Contains(err.Error(), "is incompatible") || strings.Contains(err.Error(), "Parsing nftables rule failed"))
}

// unreadableTries: rules that change while they are being read are read again.
const unreadableTries = 3

// observePartly reads a table that iptables-save refuses to print. Chains that
// hold no such rule are still printed one by one, which is done for ours and the
// built-in ones; of the others' rules, and of those that iptables cannot print,
// the kernel's own form says where they lead. iptables-restore writes to such a
// table as to any other.
func (f *Firewall) observePartly(ctx context.Context, id TableID) (_ ObservedTable, err error) {
	s, err := openNftSocket()
	if err != nil {
		return ObservedTable{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for range unreadableTries {
		var t ObservedTable
		if t, err = f.observeChains(ctx, s, id); !errors.Is(err, errNftAgain) {
			return t, err
		}
	}
	return ObservedTable{}, fmt.Errorf("cannot read the rules chain by chain: %w", err)
}

func (f *Firewall) observeChains(ctx context.Context, s *nftSocket, id TableID) (ObservedTable, error) {
	before, err := s.generation()
	if err != nil {
		return ObservedTable{}, err
	}
	t, err := sketchTable(s, id, before)
	if err != nil {
		return ObservedTable{}, err
	}
	for chain := range t.Chains {
		if !isOurs(chain) && !slices.Contains(id.builtins(), chain) {
			continue
		}
		rules, err := f.listChain(ctx, id, chain)
		if unreadable(err) {
			continue // the sketch stands
		}
		if err != nil {
			return ObservedTable{}, err
		}
		t.Chains[chain] = rules
	}
	after, err := s.generation()
	if err == nil && after != before {
		err = errNftAgain
	}
	if err != nil {
		return ObservedTable{}, err
	}
	return t, nil
}

// listChain prints one chain.
func (f *Firewall) listChain(ctx context.Context, id TableID, chain string) ([]ObservedRule, error) {
	iptables := strings.TrimSuffix(f.tools[id.family()].save, "-save")
	out, err := f.run.run(ctx, "", iptables, "-t", id.name(), "-S", chain)
	if err != nil {
		return nil, err
	}
	// The first line declares the chain in another way than iptables-save's.
	_, rules, _ := bytes.Cut(out, []byte("\n"))
	t, err := ParseSave(id.name(), slices.Concat([]byte("*"+id.name()+"\n"), rules, []byte("COMMIT\n")))
	return t.Chains[chain], err
}

// sketchTable reads what the kernel's own form of the rules says without iptables.
func sketchTable(s *nftSocket, id TableID, generation uint32) (ObservedTable, error) {
	t := ObservedTable{Read: true, Chains: map[string][]ObservedRule{}}
	s.forget()
	s.request(unix.NFT_MSG_GETCHAIN, id.family().nfproto())
	err := s.dump(func(m nftMessage) error {
		if string(nftName(nftAttr(m.body, unix.NFTA_CHAIN_TABLE))) == id.name() {
			t.Chains[string(nftName(nftAttr(m.body, unix.NFTA_CHAIN_NAME)))] = nil
		}
		return nil
	})
	if err != nil {
		return ObservedTable{}, fmt.Errorf("cannot list the chains: %w", err)
	}
	err = s.dumpRules(id, "", generation, func(chain []byte, r nftRule) {
		t.Chains[string(chain)] = append(t.Chains[string(chain)], r.sketch())
	})
	if err != nil {
		return ObservedTable{}, fmt.Errorf("cannot list the rules: %w", err)
	}
	return t, nil
}

// sketch is the rule as far as Diff needs it: ours if it is a jump as we write
// them, and else where it leads and whether it is harmless.
func (r nftRule) sketch() ObservedRule {
	if r.isJump() {
		wanted := jump(string(r.leadsTo()))
		return ObservedRule{Rule: wanted, words: slices.Clone(wanted.tokens), handle: r.handle}
	}
	o := ObservedRule{sketch: fmt.Sprintf("[rule with handle %d, which nft shows]", r.handle)}
	// Diff follows the chain that it leads to; here it counts as empty.
	harmless := func(depth int) bool {
		ok, err := r.harmless(depth, func(string) ([]nftRule, error) { return nil, nil })
		return ok && err == nil
	}
	switch to := string(r.leadsTo()); {
	case to != "" && harmless(0):
		o.tokens = []string{"-j", to}
	case to != "":
		o.tokens = []string{"-g", to}
	case harmless(0):
		o.tokens = []string{"-j", "DROP"}
	case harmless(1):
		o.tokens = []string{"-j", "RETURN"}
	}
	return o
}

// isJump says whether the rule is what iptables makes of jump's: the comment,
// the counter, the verdict.
func (r nftRule) isJump() bool {
	if !r.leadsToUs() {
		return false
	}
	var form []string
	for e := (nftExprs{rest: r.exprs}); e.next(); {
		form = append(form, string(e.name))
		switch code, _, isVerdict := e.verdict(); {
		case string(e.name) == "match":
			comment := cString(nftAttr(e.data, unix.NFTA_MATCH_INFO))
			if string(nftName(nftAttr(e.data, unix.NFTA_MATCH_NAME))) != "comment" || comment != tagPrefix+tagJump {
				return false
			}
		case isVerdict && code != nftJumpCode:
			return false
		}
	}
	return slices.Equal(form, []string{"match", "counter", "immediate"})
}
