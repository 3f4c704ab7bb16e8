package firewall

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The kinds of Change.Resource.
const (
	resourceTable = "table"
	resourceChain = "chain"
	resourceJump  = "jump"
	resourceSet   = "set"
)

// Change is one difference between desired and observed, in an operator's words.
type Change struct {
	Resource string   `json:"resource"` // table, chain, jump or set
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

	detach   [3]string       // takes a table's rules off the sets while one of the wrong type is replaced
	sets     []setEdit       // creates, fills and swaps sets
	rules    [3]string       // iptables-restore input per table
	handles  [3][]ruleHandle // per table, what the restore cannot delete
	repairs  [3]tableRepair  // per table, what comes before the restore
	dropSets []string        // sets to destroy once no rule names them
}

// Empty says whether there is nothing to do.
func (p Plan) Empty() bool { return len(p.Changes) == 0 }

// Announced says whether the kernel tells of changes such as those that the plan
// takes back: of rules it may, of sets it never does.
func (p Plan) Announced() bool {
	return slices.ContainsFunc(p.Changes, func(c Change) bool { return c.Resource != resourceSet })
}

// writesRules says whether Apply writes to a table, and not to sets alone.
func (p Plan) writesRules() bool {
	for _, id := range tableIDs {
		if p.detach[id] != "" || p.rules[id] != "" || len(p.handles[id]) > 0 || p.repairs[id].wake || len(p.repairs[id].hook) > 0 {
			return true
		}
	}
	return false
}

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
	for _, id := range tableIDs {
		if got.Tables[id].Read {
			p.diffTable(id, want.Tables[id], got.Tables[id], rewrite[id.family()])
		}
	}
	return p
}

// TeardownPlan removes all that is ours and nothing else.
func TeardownPlan(got Observed) Plan {
	return Diff(Ruleset{}, got)
}

func (p *Plan) diffTable(id TableID, want Table, got ObservedTable, rewrite bool) {
	tx := transaction{table: id}
	got = p.diffHooks(id, want.Jumps, got)
	got.known = map[chainAt]bool{}
	for _, c := range want.Chains {
		have, exists := got.Chains[c.Name]
		lines := diffRules(have, c.Rules)
		switch {
		case !exists:
			p.add(resourceChain, id.family(), id.title(c.Name), "missing", lines)
		case len(lines) > 0:
			p.add(resourceChain, id.family(), id.title(c.Name), "differs", lines)
		case !rewrite:
			continue
		}
		tx.chain(c)
	}
	jumpsLeft := p.diffJumps(want.Jumps, got, &tx)
	p.diffStaleChains(want.Chains, got, jumpsLeft, &tx)
	p.rules[id], p.handles[id] = tx.text(), tx.handles
	if rewrite {
		p.detach[id] = detachText(id, want, got)
	}
}

// diffJumps puts each jump on top. It returns the chains of ours that a
// foreign rule still leads to.
func (p *Plan) diffJumps(want []Jump, got ObservedTable, tx *transaction) map[string]bool {
	referenced := map[string]bool{}
	for _, base := range tx.table.builtins() {
		i := slices.IndexFunc(want, func(j Jump) bool { return j.From == base })
		var wanted *Rule
		if i >= 0 {
			wanted = &want[i].Rule
		}
		p.diffJump(base, wanted, got, tx)
	}
	for name, rules := range got.Chains {
		if isOurs(name) {
			continue
		}
		for _, r := range rules {
			if !tx.table.ourJump(name, r) {
				target, _ := r.target()
				referenced[target] = true
			}
		}
	}
	return referenced
}

// ourJump says whether a rule is ours to move and remove: it leads from a
// built-in chain into one of ours. One that cannot be written down for
// iptables-restore counts as foreign, so that it cannot block every repair.
func (id TableID) ourJump(chain string, r ObservedRule) bool {
	return slices.Contains(id.builtins(), chain) && r.leadsToUs() && r.writable()
}

func (p *Plan) diffJump(base string, want *Rule, got ObservedTable, tx *transaction) {
	id := tx.table
	var ours []ObservedRule
	var lines, above []string
	for _, r := range got.Chains[base] {
		if id.ourJump(base, r) {
			ours = append(ours, r)
			lines = append(lines, "- -A "+base+" "+r.text())
		} else if len(ours) == 0 && !got.harmless(r.Rule, 0) {
			above = append(above, fmt.Sprintf("%s -A %s %s", id, base, r.text()))
		}
	}
	problem := jumpProblem(want, ours, above)
	if problem == "" {
		return
	}
	for _, r := range ours {
		tx.delete(base, r, want != nil)
	}
	if want != nil {
		lines = append(lines, "+ -I "+base+" 1 "+want.String())
		tx.insert(base, *want)
	}
	p.add(resourceJump, id.family(), id.title(base), problem, lines)
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

// harmless says whether a foreign rule may stay above our jump: it can only
// drop or log, so nothing that we drop gets past us through it. A jump to a
// chain of such rules is harmless as well, as is RETURN inside it; that is what
// fail2ban's bans look like, and they count only above ours. In a built-in chain
// RETURN means the policy, and a goto never comes back to our jump.
//
// What has no target need not be a mere counter: iptables-nft prints nothing of a
// verdict map that nft has put there ("tcp dport vmap { 22 : accept }" is shown as
// "-p tcp"). A list of recent sources, which bans need, is iptables' own.
func (t ObservedTable) harmless(r Rule, depth int) bool {
	target, isGoto := r.target()
	rules, isChain := t.Chains[target] // looked up first: nft lets a chain be called LOG
	switch {
	case isChain:
	case target == "":
		return r.usesRecent()
	default:
		return slices.Contains(goOn, target) || (target == "RETURN" && depth > 0)
	}
	if isGoto || depth == maxDepth {
		return false
	}
	at := chainAt{target, depth + 1}
	ok, known := t.known[at]
	if !known {
		ok = !slices.ContainsFunc(rules, func(r ObservedRule) bool { return !t.harmless(r.Rule, depth+1) })
		if t.known != nil {
			t.known[at] = ok
		}
	}
	return ok
}

// goOn are the targets after which a packet is gone or goes on to the next rule;
// the last three are the raw table's.
var goOn = []string{"DROP", "REJECT", "LOG", "NFLOG", "CT", "NOTRACK", "TRACE"}

// maxDepth is how far jumps are followed; every more deeply nested chain counts as harmful.
const maxDepth = 3

// diffStaleChains removes stale chains. One that a foreign rule leads to is
// emptied only.
func (p *Plan) diffStaleChains(want []Chain, got ObservedTable, referenced map[string]bool, tx *transaction) {
	var remove []string
	for _, name := range staleChains(want, got) {
		if referenced[name] && len(got.Chains[name]) == 0 {
			continue
		}
		p.add(resourceChain, tx.table.family(), tx.table.title(name), "not wanted", diffRules(got.Chains[name], nil))
		tx.chain(Chain{Name: name})
		if !referenced[name] {
			remove = append(remove, name)
		}
	}
	for _, name := range remove { // emptied first, since they may lead to each other
		tx.removeChain(name)
	}
}

// staleChains are those with our prefix that this version does not know.
func staleChains(want []Chain, got ObservedTable) []string {
	var stale []string
	for _, name := range slices.Sorted(maps.Keys(got.Chains)) {
		known := slices.ContainsFunc(want, func(c Chain) bool { return c.Name == name })
		if !known && isOurs(name) {
			stale = append(stale, name)
		}
	}
	return stale
}

func (p *Plan) add(resource string, fam Family, name, problem string, lines []string) {
	p.Changes = append(p.Changes, Change{
		Resource: resource, Family: fam.String(), Name: printable(name), Problem: problem, Lines: lines,
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
		lines = append(lines, "- "+r.text())
	}
	for _, r := range want[head : len(want)-tail] {
		lines = append(lines, "+ "+r.String())
	}
	return lines
}
