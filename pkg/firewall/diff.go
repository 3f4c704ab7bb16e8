package firewall

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Change is one difference between desired and observed, in an operator's words.
type Change struct {
	Resource string   `json:"resource"` // chain, jump or set
	Family   string   `json:"family"`
	Name     string   `json:"name"`
	Problem  string   `json:"problem"`
	Lines    []string `json:"lines,omitempty"` // "- " is what the kernel has, "+ " what it will have
}

// Plan is what would make the kernel match a Ruleset.
type Plan struct {
	Changes []Change
	// Foreign lists foreign rules that were above our jump and could accept.
	Foreign []string

	detach   [2]string // closes a family while a set of the wrong type is replaced
	setsText string    // ipset restore input: create, fill, swap
	rules    [2]string // iptables-restore input per family
	dropSets []string  // sets to destroy once no rule names them
}

// Empty says whether there is nothing to do.
func (p Plan) Empty() bool { return len(p.Changes) == 0 }

// String is the plan as a readable diff; "" when it is empty.
func (p Plan) String() string {
	var b strings.Builder
	for _, c := range p.Changes {
		fmt.Fprintf(&b, "%s %s %s: %s\n", c.Family, c.Resource, c.Name, c.Problem)
		for _, l := range c.Lines {
			fmt.Fprintf(&b, "  %s\n", l)
		}
	}
	for _, f := range p.Foreign {
		fmt.Fprintf(&b, "foreign rule above our jump, kept: %s\n", f)
	}
	return b.String()
}

// Diff compares whole normalised rules and whole set contents. A part that
// could not be observed is left out.
func Diff(want Ruleset, got Observed) Plan {
	var p Plan
	var rewrite [2]bool
	if got.SetsRead {
		rewrite = p.diffSets(want, got)
	}
	for _, fam := range Families {
		if got.Tables[fam].Read {
			p.diffTable(fam, want.Tables[fam], got.Tables[fam], rewrite[fam])
		}
	}
	return p
}

// TeardownPlan removes all that is ours and nothing else.
func TeardownPlan(got Observed) Plan {
	return Diff(Ruleset{}, got)
}

func (p *Plan) diffTable(fam Family, want Table, got ObservedTable, rewrite bool) {
	var tx transaction
	for _, c := range want.Chains {
		have, exists := got.Chains[c.Name]
		lines := diffRules(have, c.Rules)
		switch {
		case !exists:
			p.add("chain", fam, c.Name, "missing", lines)
		case len(lines) > 0:
			p.add("chain", fam, c.Name, "differs", lines)
		case !rewrite:
			continue
		}
		tx.chain(c)
	}
	jumpsLeft := p.diffJumps(fam, want.Jumps, got, &tx)
	p.diffStaleChains(fam, want.Chains, got, jumpsLeft, &tx)
	p.rules[fam] = tx.text()
	if rewrite {
		p.detach[fam] = detachText(want)
	}
}

// diffJumps puts each jump on top. It returns the chains of ours that a
// foreign chain still leads to.
func (p *Plan) diffJumps(fam Family, want []Jump, got ObservedTable, tx *transaction) map[string]bool {
	referenced := map[string]bool{}
	for _, base := range slices.Sorted(maps.Keys(got.Chains)) {
		if strings.HasPrefix(base, chainPrefix) {
			continue
		}
		i := slices.IndexFunc(want, func(j Jump) bool { return j.From == base })
		if i < 0 && !isBuiltin(base) {
			for _, r := range got.Chains[base] {
				referenced[r.target()] = true
			}
			continue
		}
		var wanted *Rule
		if i >= 0 {
			wanted = &want[i].Rule
		}
		p.diffJump(fam, base, wanted, got.Chains[base], tx)
	}
	for _, j := range want {
		if _, ok := got.Chains[j.From]; !ok { // nft makes the built-in chains on first use
			p.diffJump(fam, j.From, &j.Rule, nil, tx)
		}
	}
	return referenced
}

func (p *Plan) diffJump(fam Family, base string, want *Rule, have []ObservedRule, tx *transaction) {
	var ours []ObservedRule
	var lines, above []string
	for _, r := range have {
		if strings.HasPrefix(r.target(), chainPrefix) {
			ours = append(ours, r)
			lines = append(lines, "- -A "+base+" "+r.raw)
		} else if len(ours) == 0 && !harmlessAbove(r.Rule) {
			above = append(above, fmt.Sprintf("%s -A %s %s", fam, base, r.raw))
		}
	}
	problem := jumpProblem(want, ours, above)
	if problem == "" {
		return
	}
	for _, r := range ours {
		tx.delete(base, r.raw)
	}
	if want != nil {
		lines = append(lines, "+ -I "+base+" 1 "+want.String())
		tx.insert(base, *want)
	}
	p.add("jump", fam, base, problem, lines)
	if len(ours) > 0 && want != nil {
		p.Foreign = append(p.Foreign, above...)
	}
}

func jumpProblem(want *Rule, ours []ObservedRule, above []string) string {
	switch {
	case want == nil && len(ours) == 0:
		return ""
	case want == nil:
		return "not wanted"
	case len(ours) == 0:
		return "missing"
	case len(ours) > 1:
		return "there more than once"
	case !ours[0].Equal(*want):
		return "differs"
	case len(above) > 0:
		return "not in first place"
	}
	return ""
}

// harmlessAbove says whether a foreign rule may stay above our jump: it can
// only drop or log, so nothing that we drop gets past us through it.
func harmlessAbove(r Rule) bool {
	return slices.Contains([]string{"", "DROP", "REJECT", "LOG", "NFLOG"}, r.target())
}

func isBuiltin(chain string) bool {
	return chain == "INPUT" || chain == "OUTPUT" || chain == "FORWARD"
}

// diffStaleChains removes chains with our prefix that this version does not
// know, an older version's. One that a foreign chain leads to is emptied only.
func (p *Plan) diffStaleChains(fam Family, want []Chain, got ObservedTable, referenced map[string]bool, tx *transaction) {
	var stale []string
	for _, name := range slices.Sorted(maps.Keys(got.Chains)) {
		known := slices.ContainsFunc(want, func(c Chain) bool { return c.Name == name })
		if known || !strings.HasPrefix(name, chainPrefix) {
			continue
		}
		if referenced[name] && len(got.Chains[name]) == 0 {
			continue
		}
		p.add("chain", fam, name, "not wanted", diffRules(got.Chains[name], nil))
		tx.chain(Chain{Name: name})
		if !referenced[name] {
			stale = append(stale, name)
		}
	}
	for _, name := range stale { // emptied first, since they may lead to each other
		tx.removeChain(name)
	}
}

func (p *Plan) add(resource string, fam Family, name, problem string, lines []string) {
	p.Changes = append(p.Changes, Change{
		Resource: resource, Family: fam.String(), Name: name, Problem: problem, Lines: lines,
	})
}

// diffRules lists what goes and what comes, nil if the lists are equal. Rules
// common to head and tail are left out.
func diffRules(have []ObservedRule, want []Rule) []string {
	head := 0
	for head < len(have) && head < len(want) && have[head].Equal(want[head]) {
		head++
	}
	tail := 0
	for tail < len(have)-head && tail < len(want)-head &&
		have[len(have)-1-tail].Equal(want[len(want)-1-tail]) {
		tail++
	}
	var lines []string
	for _, r := range have[head : len(have)-tail] {
		lines = append(lines, "- "+r.raw)
	}
	for _, r := range want[head : len(want)-tail] {
		lines = append(lines, "+ "+r.String())
	}
	return lines
}
