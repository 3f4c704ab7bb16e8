package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ObservedRule is a rule as the kernel has it.
type ObservedRule struct {
	Rule
	words  []string // what follows "-A CHAIN", in the order it was printed
	sketch string   // of a rule that iptables cannot print: what is known of it, see observePartly
	handle uint64   // of a jump of ours among such rules, else 0
}

// text is the rule for an operator's eyes: it stays on one line whatever a
// foreign comment holds.
func (r ObservedRule) text() string {
	if r.sketch != "" {
		return printable(r.sketch)
	}
	return printable(quoteWords(r.words))
}

// writable says whether iptables-restore can be told of this rule: its input
// has one rule per line, so a comment with a newline cannot be written.
func (r ObservedRule) writable() bool {
	return r.sketch == "" && !slices.ContainsFunc(r.words, func(w string) bool { return strings.ContainsAny(w, "\n\x00") })
}

// ObservedTable is one table as the kernel has it.
type ObservedTable struct {
	Read   bool // false if it could not be read; Diff then leaves the table alone
	Chains map[string][]ObservedRule

	asleep bool             // no rule of it is in force
	loose  []string         // built-in chains that packets do not enter by, or not as iptables has it
	known  map[chainAt]bool // of Diff: chains that are harmless above our jump
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
	Tables   [3]ObservedTable // by TableID
	SetsRead bool
	Sets     map[string]ObservedSet
	At       time.Time // when the sets were read; members of some run out

	// Generation is the number of the nf_tables rules that the tables were read
	// at; 0 with the legacy backend, or if they changed while being read.
	Generation uint32
}

// ParseSave reads one table from what iptables-save prints. Other tables in the
// text are skipped.
func ParseSave(name string, data []byte) (ObservedTable, error) {
	t := ObservedTable{Read: true, Chains: map[string][]ObservedRule{}}
	table := "" // the one whose COMMIT is still to come
	for n, text := 1, string(data); text != ""; n++ {
		line, _, _ := strings.Cut(text, "\n")
		size := len(line)
		switch {
		case strings.HasPrefix(line, "#") && strings.Contains(line, "`"+name+"' is incompatible"):
			return ObservedTable{}, fmt.Errorf("cannot read the rules: %w; find them with `nft -a list table ip %s` (or ip6) and move them to a table of their own", errUnreadable, name)
		case line == "" || strings.HasPrefix(line, "#"):
		case line == "COMMIT":
			table = ""
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"):
			if table == name {
				chain, _, _ := strings.Cut(line[1:], " ")
				t.Chains[chain] = nil // declared once, before any rule
			}
		case strings.HasPrefix(line, "-A "):
			chain, _, _ := strings.Cut(line[len("-A "):], " ")
			start := len("-A ") + len(chain)
			words, used := scanWords(text[start:], true)
			size = start + used
			if table == name {
				t.Chains[chain] = append(t.Chains[chain], ObservedRule{Rule: newRule(words...), words: words})
			}
		default:
			return ObservedTable{}, fmt.Errorf("cannot read the rules: entry %d: %.80q is not iptables-save output", n, line)
		}
		text = strings.TrimPrefix(text[size:], "\n")
	}
	if table != "" {
		return ObservedTable{}, fmt.Errorf("cannot read the rules: the text ends inside table %s; it was cut short", printable(table))
	}
	return t, nil
}

// usualSizes are the create options that differ between kernels or runs and
// change nothing about what a set matches.
var usualSizes = []string{"hashsize", "maxelem", "bucketsize", "initval"}

// ParseSets reads what ipset save prints, and keeps the sets that are ours by name.
func ParseSets(data []byte) (map[string]ObservedSet, error) {
	sets := map[string]ObservedSet{}
	for n, text := 1, string(data); text != ""; n++ {
		words, size := scanWords(text, false)
		line := text[:size]
		text = strings.TrimPrefix(text[size:], "\n")
		if len(words) == 0 {
			continue
		}
		if len(words) < 3 || (words[0] != "create" && words[0] != "add") {
			return nil, fmt.Errorf("cannot read the sets: entry %d: %.80q is not ipset save output", n, line)
		}
		name := words[1]
		set, known := sets[name]
		switch {
		case !ownSet(name):
		case words[0] == "create" && known: // ipset takes names with blanks and prints them as they are
			return nil, fmt.Errorf("cannot read the sets: entry %d: there are two sets %s, so one has a name with a blank; find it with `ipset list -n` and remove it", n, printable(name))
		case words[0] == "create":
			sets[name] = parseCreate(words[2:])
		case !known:
			return nil, fmt.Errorf("cannot read the sets: entry %d: a member of %s comes before the set", n, printable(name))
		default:
			entry := append([]string{memberName(words[2], set.Family)}, words[3:]...)
			set.Members = append(set.Members, printable(strings.Join(entry, " ")))
			sets[name] = set
		}
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

// memberName writes a member as netip does: ipset leaves out the prefix length
// of a single host and ends an address such as ::a00:1 in a dotted quad. What
// follows the address in a set of openings stays: ",tcp:22".
func memberName(entry, family string) string {
	entry, port, hasPort := strings.Cut(entry, ",")
	if hasPort {
		port = "," + port
	}
	if p, err := netip.ParsePrefix(entry); err == nil {
		return p.String() + port
	}
	a, err := netip.ParseAddr(entry)
	if err != nil || a.Zone() != "" || a.Is4() == (family == "inet6") {
		return entry + port // of another kind of set
	}
	return netip.PrefixFrom(a, a.BitLen()).String() + port
}

func ownSet(name string) bool {
	return strings.HasPrefix(name, setPrefix(IPv4)) || strings.HasPrefix(name, setPrefix(IPv6)) || isScratch(name)
}

// printable escapes what could forge lines or control a terminal.
func printable(text string) string {
	if !strings.ContainsFunc(text, isControl) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if isControl(r) {
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func isControl(r rune) bool { return !strconv.IsPrint(r) }
