package firewall

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// iptables says nothing of two ways in which a table can be right in every rule
// and decide nothing: it is dormant, or a built-in chain hangs at no hook, or at
// another. The kernel is asked for both.

// rawPriority is NF_IP6_PRI_RAW, -300, as it is in a message.
const rawPriority = 1<<32 - 300

var hookNumbers = map[string]uint32{
	"PREROUTING": unix.NF_INET_PRE_ROUTING, "INPUT": unix.NF_INET_LOCAL_IN,
	"FORWARD": unix.NF_INET_FORWARD, "OUTPUT": unix.NF_INET_LOCAL_OUT,
}

// hook is how iptables hooks a built-in chain. The policy is left to others.
func (id TableID) hook(chain string) nftHook {
	h := nftHook{number: hookNumbers[chain], kind: "filter"}
	if id == RawIPv6 {
		h.priority = rawPriority
	}
	return h
}

// withHooks adds what iptables-save does not say of the table.
func withHooks(id TableID, t ObservedTable) (_ ObservedTable, err error) {
	s, err := openNftSocket()
	if err != nil {
		return ObservedTable{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var found [3]nftTable
	if _, err := s.lookTables(&found); err != nil {
		return ObservedTable{}, err
	}
	t.asleep = found[id].exists && found[id].flags&unix.NFT_TABLE_F_DORMANT != 0
	for _, chain := range id.builtins() {
		if !found[id].exists {
			break // iptables makes it with its chains
		}
		hook, exists, err := s.lookChain(id, chain)
		if err != nil {
			return ObservedTable{}, fmt.Errorf("cannot look at the chain %s: %w", chain, err)
		}
		if exists && !hook.same(id.hook(chain)) {
			t.loose = append(t.loose, chain)
		}
	}
	return t, nil
}

// tableRepair is what iptables-restore cannot write.
type tableRepair struct {
	wake bool     // the table is dormant
	hook []string // built-in chains to be made anew
}

// diffHooks returns what there is to compare after the repair, which leaves out
// jumps of ours.
func (p *Plan) diffHooks(id TableID, want []Jump, got ObservedTable) ObservedTable {
	if len(want) == 0 {
		return got
	}
	if got.asleep {
		p.repairs[id].wake = true
		p.add(resourceTable, id.family(), id.name(), "dormant, so that no rule in it counts", nil)
	}
	got.Chains = maps.Clone(got.Chains)
	for _, j := range want {
		if slices.Contains(got.loose, j.From) {
			p.repairs[id].hook = append(p.repairs[id].hook, j.From)
			p.add(resourceChain, id.family(), id.title(j.From), "not hooked as iptables would, so that packets do not come by", nil)
			got.Chains[j.From] = slices.DeleteFunc(slices.Clone(got.Chains[j.From]), func(r ObservedRule) bool { return r.leadsToUs() })
		}
	}
	return got
}

// repairTables is for before iptables-restore, which refuses to write to a
// built-in chain that is no such.
func (f *Firewall) repairTables(repairs [3]tableRepair) (errs []error) {
	for _, id := range tableIDs {
		// The kernel hooks no chain in the transaction that wakes its table.
		for _, r := range []tableRepair{{wake: repairs[id].wake}, {hook: repairs[id].hook}} {
			if err := f.writeRepair(id, r); err != nil {
				errs = append(errs, fmt.Errorf("cannot put table %s of %s into force; if a rule of another chain leads to %v, or a program owns the table, remove it: %w",
					id.name(), id.family(), repairs[id].hook, err))
			}
		}
	}
	return errs
}

func (f *Firewall) writeRepair(id TableID, r tableRepair) (err error) {
	if !r.wake && len(r.hook) == 0 {
		return nil
	}
	for range reflexTries {
		if err = r.write(id, f.own); !errors.Is(err, errNftAgain) {
			break
		}
	}
	return err
}

// write makes the chains anew with all foreign rules, in one transaction: no hook
// can be changed. Our jumps are the restore's.
func (r tableRepair) write(id TableID, own *ownCommits) (err error) {
	s, err := openNftSocket()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var found [3]nftTable
	generation, err := s.lookTables(&found)
	if err != nil {
		return err
	}
	e := edits{batch: &nftWriter{}}
	t := &imageTable{id: id, flags: found[id].flags &^ unix.NFT_TABLE_F_DORMANT}
	e.start(generation)
	empty := len(e.batch.data)
	if r.wake && found[id].exists {
		e.table(t, &found[id])
	}
	for _, chain := range r.hook {
		hook, exists, err := s.lookChain(id, chain)
		if err != nil {
			return err
		}
		if !exists {
			continue // gone meanwhile: iptables makes it
		}
		if hook.kind == "" {
			hook.policy = nftAcceptCode // it had none
		}
		var rules []imageRule
		err = s.dumpRules(id, chain, generation, func(_ []byte, rule nftRule) {
			if !rule.leadsToUs() {
				rules = append(rules, newImageRule(rule, ""))
			}
		})
		if err != nil {
			return err
		}
		e.rehook(t, chain, hook.policy, rules)
	}
	if len(e.batch.data) == empty {
		return nil // somebody was faster
	}
	e.finish()
	own.portOnce(s.port)
	return s.commit(e.batch.data)
}

// rehook empties a chain, removes it, and makes it again with the same rules.
func (e *edits) rehook(t *imageTable, chain string, policy uint32, rules []imageRule) {
	e.command(t, unix.NFT_MSG_DELRULE, 0)
	e.batch.text(unix.NFTA_RULE_CHAIN, chain)
	e.batch.end(e.last)
	e.command(t, unix.NFT_MSG_DELCHAIN, 0)
	e.batch.text(unix.NFTA_CHAIN_NAME, chain)
	e.batch.end(e.last)
	hook := t.id.hook(chain)
	hook.policy = policy
	e.newChain(t, chain, hook)
	for _, r := range rules {
		e.insert(t, chain, r, 0, unix.NLM_F_APPEND)
	}
}
