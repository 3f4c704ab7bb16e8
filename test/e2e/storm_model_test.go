package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// stormModel is what of others' there must be: each edit that its command called done is done in it as well.
type stormModel struct {
	tables [2]*stormTable // of IPv4 and IPv6
	sets   []*stormSet
	nft    map[string][]string        // chains of the table inet storm
	nftSet map[string]map[string]bool // its sets
}

// stormTable is a family's filter table, without what is ours.
type stormTable struct {
	base, own []*stormChain // the kernel's, and others'
}

type stormChain struct {
	name, policy string
	rules        []*stormRule
}

// stormRule is a rule as iptables-save writes it.
type stormRule struct {
	match, verdict string
	to             *stormChain // instead of a verdict
}

func (r *stormRule) String() string {
	if r.to != nil {
		return r.match + " -j " + r.to.name
	}
	return r.match + " -j " + r.verdict
}

type stormSet struct {
	name, kind string
	v6         int // 0 or 1
	members    map[string]bool
	stolen     bool // it was one of ours, so nobody knows what is in it
}

func newStormModel() *stormModel {
	m := &stormModel{nft: map[string][]string{}, nftSet: map[string]map[string]bool{}}
	for f := range m.tables {
		m.tables[f] = &stormTable{}
		for _, name := range []string{"INPUT", "FORWARD", "OUTPUT"} {
			m.tables[f].base = append(m.tables[f].base, &stormChain{name: name, policy: "ACCEPT"})
		}
	}
	return m
}

func (t *stormTable) chains() []*stormChain { return slices.Concat(t.base, t.own) }

// flush forgets all rules of a table.
func (t *stormTable) flush() {
	for _, c := range t.chains() {
		c.rules = nil
	}
}

// drop forgets a chain.
func (t *stormTable) drop(c *stormChain) {
	t.own = slices.DeleteFunc(t.own, func(o *stormChain) bool { return o == c })
}

// reaches says whether packets may come from one chain to another.
func (c *stormChain) reaches(to *stormChain, depth int) bool {
	return c == to || depth > 0 && slices.ContainsFunc(c.rules, func(r *stormRule) bool { return r.to != nil && r.to.reaches(to, depth-1) })
}

// text is all of the model, line by line.
func (m *stormModel) text() []string {
	var lines []string
	for f, t := range m.tables {
		for _, c := range t.chains() {
			lines = append(lines, fmt.Sprintf("ipv%d :%s %s", 4+2*f, c.name, c.policy))
			for i, r := range c.rules {
				lines = append(lines, fmt.Sprintf("ipv%d -A %s %03d %s", 4+2*f, c.name, i, r))
			}
		}
	}
	for _, s := range m.sets {
		lines = append(lines, "set "+s.name)
		for _, e := range slices.Sorted(maps.Keys(s.members)) {
			lines = append(lines, "add "+s.name+" "+e)
		}
	}
	for name, rules := range m.nft {
		lines = append(lines, "nft chain "+name)
		for i, r := range rules {
			lines = append(lines, fmt.Sprintf("nft %s %03d %s", name, i, r))
		}
	}
	for name, elements := range m.nftSet {
		lines = append(lines, fmt.Sprintf("nft set %s %q", name, slices.Sorted(maps.Keys(elements))))
	}
	slices.Sort(lines)
	return lines
}

// same compares the model with the node.
func (s *storm) same(t *testing.T) {
	t.Helper()
	var got []string
	for f := range s.model.tables {
		got = append(got, stormSaved(run(t, s.node, fmt.Sprintf("%s-%s-save -t filter", stormTool[f], s.backend)), 4+2*f)...)
	}
	got = append(got, s.model.savedSets(run(t, s.node, "ipset save"))...)
	if s.backend == "nft" {
		got = append(got, stormNative(run(t, s.node, "nft list table inet storm"))...)
	}
	slices.Sort(got)
	if d := cmp.Diff(s.model.text(), got); d != "" {
		t.Fatalf("what is others' is not as they left it (-want +got):\n%s", d)
	}
}

// stormSaved are the lines of iptables-save that are not ours, with each chain's rules numbered.
func stormSaved(saved string, family int) (lines []string) {
	number := map[string]int{}
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		words := strings.Fields(line)
		switch {
		case strings.Contains(line, "PGHARDEND-") || strings.Contains(line, "pghardend:"):
		case strings.HasPrefix(line, ":"):
			policy := words[1]
			if policy == "-" {
				policy = ""
			}
			lines = append(lines, fmt.Sprintf("ipv%d %s %s", family, words[0], policy))
		case strings.HasPrefix(line, "-A "):
			_, rest, _ := strings.Cut(line, words[1]+" ")
			lines = append(lines, fmt.Sprintf("ipv%d -A %s %03d %s", family, words[1], number[words[1]], rest))
			number[words[1]]++
		}
	}
	return lines
}

// savedSets are the lines of ipset save that are not of our sets.
func (m *stormModel) savedSets(saved string) (lines []string) {
	for line := range strings.Lines(saved) {
		words := strings.Fields(line)
		if len(words) < 3 || !strings.HasPrefix(words[1], "storm-") {
			continue
		}
		stolen := slices.ContainsFunc(m.sets, func(s *stormSet) bool { return s.stolen && s.name == words[1] })
		switch {
		case words[0] == "create":
			lines = append(lines, "set "+words[1])
		case !stolen:
			lines = append(lines, "add "+words[1]+" "+words[2])
		}
	}
	return lines
}

// stormNative reads a table as nft lists it.
func stormNative(listed string) (lines []string) {
	var kind, name string
	var elements []string
	n := 0
	listed = strings.ReplaceAll(listed, ",\n", ",")
	for line := range strings.Lines(listed) {
		line = strings.TrimSpace(line)
		words := strings.Fields(line)
		switch {
		case len(words) == 3 && words[2] == "{":
			kind, name, elements, n = words[0], words[1], nil, 0
			if kind == "chain" {
				lines = append(lines, "nft chain "+name)
			}
		case strings.HasPrefix(line, "elements = {"):
			inside := strings.Trim(strings.TrimPrefix(line, "elements = "), "{} ")
			for e := range strings.SplitSeq(inside, ",") {
				elements = append(elements, strings.TrimSpace(e))
			}
		case line == "}" && kind == "set":
			slices.Sort(elements)
			lines = append(lines, fmt.Sprintf("nft set %s %q", name, elements))
			kind = ""
		case kind == "chain" && line != "}" && line != "" && words[0] != "type":
			lines = append(lines, fmt.Sprintf("nft %s %03d %s", name, n, line))
			n++
		}
	}
	return lines
}
