package firewall

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/shlex"
)

// ObservedRule is a rule as the kernel has it.
type ObservedRule struct {
	Rule
	raw string // the text after "-A CHAIN" as it was printed
}

// ObservedTable is one family's filter table.
type ObservedTable struct {
	Read   bool // false if it could not be read; Diff then leaves the family alone
	Chains map[string][]ObservedRule
}

// ObservedSet is one ipset.
type ObservedSet struct {
	Type    string
	Family  string
	Options []string // create options beyond the usual sizes: timeout, comment …
	Members []string // each with its entry options, sorted
}

// Observed is what the kernel has.
type Observed struct {
	Tables   [2]ObservedTable
	SetsRead bool
	Sets     map[string]ObservedSet
}

// ParseSave reads what iptables-save -t filter prints. Other tables in the
// text are skipped.
func ParseSave(data []byte) (ObservedTable, error) {
	t := ObservedTable{Read: true, Chains: map[string][]ObservedRule{}}
	inFilter := false
	lines, err := logicalLines(string(data))
	if err != nil {
		return ObservedTable{}, fmt.Errorf("cannot read the rules: %w", err)
	}
	for n, line := range lines {
		switch {
		case strings.HasPrefix(line, "#") && strings.Contains(line, "`filter' is incompatible"):
			return ObservedTable{}, fmt.Errorf("cannot read the rules: the filter table holds rules that only nft understands; remove them with `nft -a list table`")
		case line == "" || strings.HasPrefix(line, "#") || line == "COMMIT":
		case strings.HasPrefix(line, "*"):
			inFilter = line == "*filter"
		case !inFilter:
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			t.Chains[name] = slices.Clip(t.Chains[name])
		case strings.HasPrefix(line, "-A "):
			chain, text, _ := strings.Cut(line[len("-A "):], " ")
			rule, err := parseRule(text)
			if err != nil {
				return ObservedTable{}, fmt.Errorf("cannot read the rules: entry %d: %w", n+1, err)
			}
			t.Chains[chain] = append(t.Chains[chain], ObservedRule{Rule: rule, raw: text})
		default:
			return ObservedTable{}, fmt.Errorf("cannot read the rules: entry %d: %.80q is not iptables-save output", n+1, line)
		}
	}
	return t, nil
}

// logicalLines joins lines inside quotes: a foreign comment may hold a newline,
// and its second half must not be taken for a rule.
func logicalLines(text string) ([]string, error) {
	var lines []string
	pending := ""
	for line := range strings.SplitSeq(text, "\n") {
		pending += line
		if !strings.HasPrefix(pending, "-A ") || balanced(pending) {
			lines = append(lines, pending)
			pending = ""
			continue
		}
		pending += "\n"
	}
	if pending != "" {
		return nil, errUnbalanced
	}
	return lines, nil
}

func balanced(line string) bool {
	if !strings.ContainsAny(line, `"'\`) {
		return true
	}
	_, err := shlex.Split(line)
	return err == nil
}

// usualSizes are the create options that differ between kernels or runs and
// change nothing about what a set matches.
var usualSizes = []string{"hashsize", "maxelem", "bucketsize", "initval"}

// ParseSets reads what ipset save prints, and keeps the sets that are ours by name.
func ParseSets(data []byte) (map[string]ObservedSet, error) {
	sets := map[string]ObservedSet{}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) < 3 || (words[0] != "create" && words[0] != "add") {
			return nil, fmt.Errorf("cannot read the sets: line %d: %.80q is not ipset save output", n, line)
		}
		name := words[1]
		if !ownSet(name) {
			continue
		}
		if words[0] == "create" {
			sets[name] = parseCreate(words[2:])
			continue
		}
		set := sets[name]
		set.Members = append(set.Members, memberName(words[2], set.Family)+strings.Join(append([]string{""}, words[3:]...), " "))
		sets[name] = set
	}
	for _, set := range sets {
		slices.Sort(set.Members)
	}
	return sets, nil
}

func parseCreate(words []string) ObservedSet {
	set := ObservedSet{Type: words[0]}
	for i := 1; i < len(words); i++ {
		switch {
		case words[i] == "family" && i+1 < len(words):
			i++
			set.Family = words[i]
		case slices.Contains(usualSizes, words[i]):
			i++
		default:
			set.Options = append(set.Options, words[i])
		}
	}
	return set
}

// memberName gives a single host the prefix length that ipset leaves out.
func memberName(entry, family string) string {
	if strings.Contains(entry, "/") {
		return entry
	}
	if family == "inet6" {
		return entry + "/128"
	}
	return entry + "/32"
}

func ownSet(name string) bool {
	return strings.HasPrefix(name, "pgh4-") || strings.HasPrefix(name, "pgh6-") || isScratch(name)
}

// A scratch set is filled and then swapped with the real one.
func scratchName(set string) string { return strings.Replace(set, "-", ".", 1) }

func isScratch(name string) bool {
	return strings.HasPrefix(name, "pgh4.") || strings.HasPrefix(name, "pgh6.")
}
