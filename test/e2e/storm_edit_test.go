package e2e

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// stormEdit is one change by others.
type stormEdit struct {
	script string
	opens  [2]bool // it may let the flood of IPv4, IPv6 in
	set    string  // it is a set of ours that it changes, which no commit tells of
	done   func()  // what it does to the model
	slow   bool

	started, ended time.Time
	pid, code      int
	said           string
}

var (
	stormTool   = [2]string{"iptables", "ip6tables"}
	stormTarget = [2]string{"icmp-port-unreachable", "icmp6-port-unreachable"}
	stormEvil   = [2]string{"10.20.1.66", "fd00:20:1::66"} // the sibling
	stormPeer   = [2]string{"10.20.1.20", "fd00:20:1::20"}
)

// stormKinds are makers of edits, with how many of a hundred each makes. nil: nothing to do it with.
var stormKinds = []struct {
	weight int
	make   func(s *storm) *stormEdit
}{
	{17, (*storm).addRule}, {7, (*storm).deleteRule}, {4, (*storm).replaceRule}, {4, (*storm).addChain}, {3, (*storm).deleteChain},
	{2, (*storm).renameChain}, {2, (*storm).flushChain}, {3, (*storm).policy}, {1, (*storm).flushTable},
	{11, (*storm).editSet}, {6, (*storm).editNative},
	{12, (*storm).attackJump}, {12, (*storm).attackChain}, {2, (*storm).attackByNFT}, {2, (*storm).extraChain}, {12, (*storm).attackSet},
}

// next makes a random edit.
func (s *storm) next() *stormEdit {
	for {
		n := s.rand.IntN(100)
		for _, k := range stormKinds {
			if n -= k.weight; n >= 0 {
				continue
			}
			if e := k.make(s); e != nil {
				return e
			}
			break
		}
	}
}

// number is one that nothing else has.
func (s *storm) number() int {
	s.last++
	return s.last
}

func (s *storm) family() int { return s.rand.IntN(2) }

func pick[T any](s *storm, list []T) (one T, ok bool) {
	if len(list) == 0 {
		return one, false
	}
	return list[s.rand.IntN(len(list))], true
}

// address is a foreign one, of a range that is for documentation.
func (s *storm) address(f int) string {
	if f == 1 {
		return fmt.Sprintf("2001:db8::%x", 1+s.rand.IntN(200))
	}
	return fmt.Sprintf("192.0.2.%d", 1+s.rand.IntN(200))
}

// ipt is an edit by iptables or ip6tables; half of those that a restore can make are made by one.
func (s *storm) ipt(f int, lines ...string) *stormEdit {
	if len(lines) == 1 && s.rand.IntN(3) > 0 {
		return &stormEdit{script: fmt.Sprintf("exec %s-%s -w %s", stormTool[f], s.backend, lines[0])}
	}
	return &stormEdit{script: fmt.Sprintf("exec %s-%s-restore -w --noflush <<'E'\n*filter\n%s\nCOMMIT\nE",
		stormTool[f], s.backend, strings.Join(lines, "\n"))}
}

// rule makes a foreign one. wide says that it, or what it leads to, may accept the flood.
func (s *storm) rule(f int) (r *stormRule, wide bool) {
	note := fmt.Sprintf(" -m comment --comment storm-%d", s.number())
	from := "-s " + s.address(f) + [2]string{"/32", "/128"}[f]
	switch s.rand.IntN(10) {
	case 0, 1:
		return &stormRule{match: from + " -p tcp -m tcp --dport 8080" + note, verdict: "ACCEPT"}, false
	case 2:
		return &stormRule{match: from + note, verdict: "DROP"}, false
	case 3:
		return &stormRule{match: from + note, verdict: "REJECT --reject-with " + stormTarget[f]}, false
	case 4:
		return &stormRule{match: from + note, verdict: "LOG --log-prefix storm"}, false
	case 5:
		return &stormRule{match: "-p udp" + note, verdict: "ACCEPT"}, true
	case 6:
		return &stormRule{match: fmt.Sprintf("-p tcp -m tcp --dport %d%s", stormPort, note), verdict: "ACCEPT"}, true
	case 7:
		if set, ok := pick(s, s.sets(f)); ok {
			return &stormRule{match: "-m set --match-set " + set.name + " src" + note, verdict: "DROP"}, false
		}
	default:
		if to, ok := pick(s, s.model.tables[f].own); ok {
			return &stormRule{match: strings.TrimSpace(note), to: to}, true
		}
	}
	return &stormRule{match: from + note, verdict: "RETURN"}, false
}

func (s *storm) addRule() *stormEdit {
	f := s.family()
	t := s.model.tables[f]
	c, _ := pick(s, t.chains())
	if s.rand.IntN(3) == 0 {
		c = t.base[0]
	}
	r, wide := s.rule(f)
	if s.rand.IntN(2) == 0 {
		e := s.ipt(f, "-A "+c.name+" "+r.String())
		e.opens[f] = wide && c != t.base[0] && t.base[0].reaches(c, 8)
		e.done = func() { c.rules = append(c.rules, r) }
		return e
	}
	e := s.ipt(f, "-I "+c.name+" "+r.String())
	e.opens[f] = wide && t.base[0].reaches(c, 8)
	e.done = func() { c.rules = slices.Insert(c.rules, 0, r) }
	return e
}

// filled is a chain with rules of others, and the index of one of them.
func (s *storm) filled(chains []*stormChain) (c *stormChain, i int, ok bool) {
	chains = slices.DeleteFunc(slices.Clone(chains), func(c *stormChain) bool { return len(c.rules) == 0 })
	if c, ok = pick(s, chains); ok {
		i = s.rand.IntN(len(c.rules))
	}
	return c, i, ok
}

func (s *storm) deleteRule() *stormEdit {
	f := s.family()
	c, i, ok := s.filled(s.model.tables[f].chains())
	if !ok {
		return nil
	}
	e := s.ipt(f, "-D "+c.name+" "+c.rules[i].String())
	e.done = func() { c.rules = slices.Delete(c.rules, i, i+1) }
	return e
}

// replaceRule is for chains without a jump of ours, whose rules have known numbers.
func (s *storm) replaceRule() *stormEdit {
	f := s.family()
	t := s.model.tables[f]
	c, i, ok := s.filled(t.own)
	if !ok {
		return nil
	}
	r, wide := s.rule(f)
	e := s.ipt(f, fmt.Sprintf("-R %s %d %s", c.name, i+1, r))
	e.opens[f] = wide && t.base[0].reaches(c, 8)
	e.done = func() { c.rules[i] = r }
	return e
}

func (s *storm) addChain() *stormEdit {
	f := s.family()
	t := s.model.tables[f]
	c := &stormChain{name: fmt.Sprintf("STORM-%d", s.number())}
	e := s.ipt(f, "-N "+c.name)
	e.done = func() { t.own = append(t.own, c) }
	return e
}

// deleteChain fails where the chain is in use.
func (s *storm) deleteChain() *stormEdit {
	f := s.family()
	t := s.model.tables[f]
	c, ok := pick(s, t.own)
	if !ok {
		return nil
	}
	e := s.ipt(f, "-X "+c.name)
	e.done = func() { t.drop(c) }
	return e
}

func (s *storm) renameChain() *stormEdit {
	f := s.family()
	c, ok := pick(s, s.model.tables[f].own)
	if !ok {
		return nil
	}
	name := fmt.Sprintf("STORM-%d", s.number())
	e := &stormEdit{script: fmt.Sprintf("exec %s-%s -w -E %s %s", stormTool[f], s.backend, c.name, name)}
	e.done = func() { c.name = name }
	return e
}

// flushChain takes our jump along if it is a base chain.
func (s *storm) flushChain() *stormEdit {
	f := s.family()
	t := s.model.tables[f]
	c, _ := pick(s, t.chains())
	e := s.ipt(f, "-F "+c.name)
	e.opens[f] = c == t.base[0]
	e.done = func() { c.rules = nil }
	return e
}

// flushTable takes the rules of everybody.
func (s *storm) flushTable() *stormEdit {
	f := s.family()
	e := &stormEdit{script: fmt.Sprintf("exec %s-%s -w -F", stormTool[f], s.backend)}
	if s.backend == "nft" && s.rand.IntN(2) == 0 {
		e.script = "exec nft flush table " + [2]string{"ip", "ip6"}[f] + " filter"
	}
	e.opens[f] = true
	e.done = s.model.tables[f].flush
	return e
}

func (s *storm) policy() *stormEdit {
	f := s.family()
	c, _ := pick(s, s.model.tables[f].base)
	policy := "ACCEPT"
	if s.rand.IntN(4) == 0 {
		policy = "DROP"
	}
	e := &stormEdit{script: fmt.Sprintf("exec %s-%s -w -P %s %s", stormTool[f], s.backend, c.name, policy)}
	e.done = func() { c.policy = policy }
	return e
}

// sets are those of a family that rules may name.
func (s *storm) sets(f int) []*stormSet {
	return slices.DeleteFunc(slices.Clone(s.model.sets), func(x *stormSet) bool { return x.v6 != f || x.stolen })
}

func ipset(format string, args ...any) *stormEdit {
	return &stormEdit{script: "exec ipset " + fmt.Sprintf(format, args...)}
}

// editSet changes a set of others.
func (s *storm) editSet() *stormEdit {
	m, f := s.model, s.family()
	x, ok := pick(s, s.sets(f))
	name := fmt.Sprintf("storm-%d", s.number())
	if !ok || s.rand.IntN(5) == 0 {
		x = &stormSet{name: name, kind: [2]string{"hash:ip", "hash:net"}[s.rand.IntN(2)], v6: f, members: map[string]bool{}}
		e := ipset("create %s %s family %s", name, x.kind, [2]string{"inet", "inet6"}[f])
		e.done = func() { m.sets = append(m.sets, x) }
		return e
	}
	member := s.address(f)
	var e *stormEdit
	switch s.rand.IntN(8) {
	default:
		e = ipset("add %s %s", x.name, member)
		e.done = func() { x.members[member] = true }
	case 4:
		e = ipset("del %s %s", x.name, member)
		e.done = func() { delete(x.members, member) }
	case 5:
		e = ipset("flush %s", x.name)
		e.done = func() { clear(x.members) }
	case 6:
		e = ipset("rename %s %s", x.name, name)
		e.done = func() { x.name = name }
		if other, _ := pick(s, s.sets(f)); other != x && other.kind == x.kind {
			e = ipset("swap %s %s", x.name, other.name)
			e.done = func() { x.members, other.members = other.members, x.members }
		}
	case 7:
		e = ipset("destroy %s", x.name)
		e.done = func() { m.sets = slices.DeleteFunc(m.sets, func(o *stormSet) bool { return o == x }) }
	}
	return e
}

// editNative changes a table of nft's own.
func (s *storm) editNative() *stormEdit {
	if s.backend != "nft" {
		return s.editSet()
	}
	m, n := s.model, s.number()
	chain, set := fmt.Sprintf("c%d", s.rand.IntN(6)), fmt.Sprintf("s%d", s.rand.IntN(4))
	_, there := m.nft[chain]
	_, known := m.nftSet[set]
	var text string
	var done func()
	switch k := s.rand.IntN(8); {
	case !there:
		text, done = "add chain inet storm "+chain, func() { m.nft[chain] = nil }
		if chain == "c0" {
			text += " { type filter hook input priority 10; policy accept; }"
		}
	case k < 4:
		rule := fmt.Sprintf("ip saddr 192.0.2.7 tcp dport 8080 accept comment \"storm-%d\"", n)
		text, done = fmt.Sprintf("add rule inet storm %s %s", chain, rule), func() { m.nft[chain] = append(m.nft[chain], rule) }
	case k == 4:
		text, done = "flush chain inet storm "+chain, func() { m.nft[chain] = nil }
	case k == 5:
		text, done = "delete chain inet storm "+chain, func() { delete(m.nft, chain) }
	case !known:
		text, done = "add set inet storm "+set+" { type ipv4_addr; }", func() { m.nftSet[set] = map[string]bool{} }
	default:
		member := s.address(0)
		text, done = fmt.Sprintf("add element inet storm %s { %s }", set, member), func() { m.nftSet[set][member] = true }
	}
	return &stormEdit{script: "exec nft '" + text + "'", done: done}
}

var stormJumps = [...][2]string{{"INPUT", "PGHARDEND-IN"}, {"OUTPUT", "PGHARDEND-OUT"}, {"FORWARD", "PGHARDEND-FWD"}}

// attackJump removes, moves or narrows our jump, or takes our chain away as well.
func (s *storm) attackJump() *stormEdit {
	f, n := s.family(), min(2, s.rand.IntN(5)/2) // INPUT and OUTPUT are twice as often
	base, ours := stormJumps[n][0], stormJumps[n][1]
	jump := "-m comment --comment pghardend:jump -j " + ours
	remove := "-D " + base + " " + jump
	var e *stormEdit
	switch s.rand.IntN(5) {
	default:
		e = s.ipt(f, remove)
	case 2:
		e = s.ipt(f, remove, "-A "+base+" "+jump)
	case 3:
		e = s.ipt(f, remove, "-I "+base+" -s "+s.address(f)+" "+jump)
	case 4:
		e = s.ipt(f, remove, "-F "+ours, "-X "+ours)
	}
	e.opens[f] = n == 0
	return e
}

// attackChain changes rules in our chains.
func (s *storm) attackChain() *stormEdit {
	f := s.family()
	chain, _ := pick(s, []string{"PGHARDEND-IN", "PGHARDEND-IN", "PGHARDEND-OUT", "PGHARDEND-FWD", "PGHARDEND-ICMP"})
	line := ""
	switch s.rand.IntN(6) {
	case 0, 1:
		line = "-F " + chain
	case 2:
		line = fmt.Sprintf("-D %s %d", chain, 1+s.rand.IntN(8))
	case 3:
		line = fmt.Sprintf("-R %s %d -j ACCEPT", chain, 1+s.rand.IntN(8))
	case 4:
		line = "-I " + chain + " -p udp -j ACCEPT"
	case 5:
		line = "-A " + chain + " -s " + s.address(f) + " -j ACCEPT"
	}
	e := s.ipt(f, line)
	e.opens[f] = chain == "PGHARDEND-IN"
	return e
}

// attackByNFT does so with the other tool.
func (s *storm) attackByNFT() *stormEdit {
	if s.backend != "nft" {
		return s.attackChain()
	}
	f := s.family()
	e := &stormEdit{script: "exec nft " + [2]string{"flush chain", "insert rule"}[s.rand.IntN(2)] + " " + [2]string{"ip", "ip6"}[f] + " filter PGHARDEND-IN"}
	if strings.Contains(e.script, "insert") {
		e.script += " counter accept"
	}
	e.opens[f] = true
	return e
}

// extraChain makes one with a name that is ours.
func (s *storm) extraChain() *stormEdit {
	return s.ipt(s.family(), fmt.Sprintf("-N PGHARDEND-X%d", s.number()))
}

// attackSet changes a set of ours; what would take it away mostly fails, since rules name it.
func (s *storm) attackSet() *stormEdit {
	f := s.family()
	role, _ := pick(s, []string{"pgpool", "pgpool", "control_plane"})
	set := [2]string{"pgh4-", "pgh6-"}[f] + role
	fresh := fmt.Sprintf("storm-%d", s.number())
	var e *stormEdit
	opens := false
	switch s.rand.IntN(8) {
	case 0, 1:
		e, opens = ipset("add %s %s", set, stormEvil[f]), true
	case 2:
		e = ipset("add %s %s nomatch", set, stormPeer[f])
	case 3:
		e = ipset("del %s %s", set, stormPeer[f])
	case 4:
		e = ipset("flush %s", set)
	case 5:
		e = ipset("rename %s %s", set, fresh)
		e.done = func() {
			s.model.sets = append(s.model.sets, &stormSet{name: fresh, v6: f, stolen: true})
		}
	case 6:
		e = ipset("destroy %s", set)
	case 7:
		e, opens = &stormEdit{script: fmt.Sprintf("ipset create evil hash:net family %s; ipset add evil %s; ipset swap evil %s; ipset destroy evil",
			[2]string{"inet", "inet6"}[f], stormEvil[f], set)}, true
	}
	e.set = set
	e.opens[f] = opens
	return e
}
