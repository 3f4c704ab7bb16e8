package firewall

import (
	"fmt"
	"slices"
	"strings"
)

// A transaction collects the lines of one iptables-restore --noflush input,
// which the kernel commits as a whole or not at all.
type transaction struct {
	table   TableID
	declare strings.Builder // ":CHAIN": with --noflush it makes or empties that chain only
	body    strings.Builder
	handles []ruleHandle // deleted by other means than the text
}

func (t *transaction) chain(c Chain) {
	fmt.Fprintf(&t.declare, ":%s - [0:0]\n", c.Name)
	for _, r := range c.Rules {
		fmt.Fprintf(&t.body, "-A %s %s\n", c.Name, r)
	}
}

// delete takes a rule away; replaced says whether another takes its place.
func (t *transaction) delete(chain string, r ObservedRule, replaced bool) {
	if r.handle != 0 {
		t.handles = append(t.handles, ruleHandle{chain: chain, handle: r.handle, first: !replaced})
		return
	}
	fmt.Fprintf(&t.body, "-D %s %s\n", chain, quoteWords(r.words))
}

func (t *transaction) insert(chain string, r Rule) {
	fmt.Fprintf(&t.body, "-I %s 1 %s\n", chain, r)
}

func (t *transaction) removeChain(name string) { fmt.Fprintf(&t.body, "-X %s\n", name) }

func (t *transaction) text() string {
	if t.declare.Len() == 0 && t.body.Len() == 0 {
		return ""
	}
	return "*" + t.table.name() + "\n" + t.declare.String() + t.body.String() + "COMMIT\n"
}

// withoutSets leaves out the rules of ours that name one of the sets: who is in a
// set of somebody else's must not be let in.
func withoutSets(text string, sets []string) string {
	if len(sets) == 0 {
		return text
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		names := func(set string) bool { return strings.Contains(line, " --match-set "+set+" ") }
		if !strings.HasPrefix(line, "-A ") || !slices.ContainsFunc(sets, names) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// detachText writes our chains without the rules that name a set: nothing new
// is let in, established connections go on. Chains of an older version, which
// may name the set as well, are emptied.
func detachText(id TableID, want Table, got ObservedTable) string {
	tx := transaction{table: id}
	for _, c := range want.Chains {
		closed := Chain{Name: c.Name}
		for _, r := range c.Rules {
			if !r.matchesSet() {
				closed.Rules = append(closed.Rules, r)
			}
		}
		tx.chain(closed)
	}
	for _, name := range staleChains(want.Chains, got) {
		tx.chain(Chain{Name: name})
	}
	return tx.text()
}
