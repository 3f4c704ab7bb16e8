package firewall

import (
	"slices"
	"strings"
)

// Rule is one rule of a chain in normal form: the words that follow
// "-A CHAIN" in iptables-save, with what iptables prints in several ways
// brought to one.
type Rule struct {
	tokens []string
}

// newRule builds a rule from words that are already split.
func newRule(words ...string) Rule {
	return Rule{tokens: normalise(words)}
}

// Equal says whether both rules are the same after normalisation.
func (r Rule) Equal(o Rule) bool { return slices.Equal(r.tokens, o.tokens) }

// String is the rule as iptables-restore takes it.
func (r Rule) String() string { return quoteWords(r.tokens) }

// target is the chain or target that the rule ends in, "" for none.
// A goto (-g) does not come back to the rules below it.
func (r Rule) target() (name string, isGoto bool) {
	for _, o := range splitOptions(r.tokens) {
		if key := o.words[0]; (key == "-j" || key == "-g") && len(o.words) > 1 {
			return o.words[1], key == "-g"
		}
	}
	return "", false
}

// leadsToUs says whether the rule is a jump into one of our chains.
func (r Rule) leadsToUs() bool {
	name, _ := r.target()
	return isOurs(name)
}

func (r Rule) matchesSet() bool { return slices.Contains(r.tokens, "--match-set") }

// usesRecent says whether the rule has iptables' match "recent".
func (r Rule) usesRecent() bool {
	return slices.ContainsFunc(splitOptions(r.tokens), func(o option) bool { return slices.Equal(o.words, []string{"-m", "recent"}) })
}

// An option is one switch of a rule with its negation and values.
type option struct {
	words []string
}

func (o option) key() string {
	if o.words[0] == "!" && len(o.words) > 1 {
		return o.words[1]
	}
	return o.words[0]
}

// normalise sorts the options inside the head, each match and the target, and
// maps aliases. The order of matches stays: a limit before a set match counts
// other packets than one behind it.
func normalise(words []string) []string {
	var out []string
	var section []option
	flush := func() {
		slices.SortStableFunc(section, func(a, b option) int {
			return strings.Compare(sortKey(a), sortKey(b))
		})
		for _, o := range section {
			out = append(out, o.words...)
		}
		section = nil
	}
	for _, o := range splitOptions(words) {
		switch o.key() {
		case "-m", "-j", "-g":
			flush()
			out = append(out, o.words...)
		default:
			section = append(section, canonical(o))
		}
	}
	flush()
	return out
}

// sortKey leaves what is not an option where it is: values that belong to no
// switch in front, a switch whose value is missing at the end.
func sortKey(o option) string {
	key := o.key()
	switch {
	case key == "!", o.words[len(o.words)-1] == key && slices.Contains(freeText, key):
		return "\xff"
	case !isSwitch(key):
		return ""
	}
	return key + "\x00" + strings.Join(o.words, "\x00")
}

// freeText are the options whose value may be any text and so may look like a
// switch: --comment -j is legal, and no reason to take "-j" for a jump.
var freeText = []string{
	"--comment", "--log-prefix", "--nflog-prefix", "--string", "--hex-string", "--name", "--hashlimit-name",
	"--helper", "--match-set", "--add-set", "--del-set", "--path", "-i", "-o", "--physdev-in", "--physdev-out",
}

func splitOptions(words []string) []option {
	var opts []option
	for i := 0; i < len(words); {
		key := i
		if words[i] == "!" && i+1 < len(words) {
			key++
		}
		end := key + 1
		if end < len(words) && slices.Contains(freeText, words[key]) {
			end++
		}
		for end < len(words) && words[end] != "!" && !isSwitch(words[end]) {
			end++
		}
		opts = append(opts, option{words: slices.Clone(words[i:end])})
		i = end
	}
	return opts
}

func isSwitch(w string) bool {
	return len(w) > 1 && w[0] == '-' && (w[1] == '-' || (w[1] >= 'A' && w[1] <= 'z'))
}

var protocolNames = map[string]string{
	"1": "icmp", "6": "tcp", "17": "udp", "58": "ipv6-icmp", "icmpv6": "ipv6-icmp",
}

func canonical(o option) option {
	last := len(o.words) - 1
	if last == 0 {
		return o
	}
	switch o.key() {
	case "-p":
		if name, ok := protocolNames[o.words[last]]; ok {
			o.words[last] = name
		}
	case "--ctstate":
		states := strings.Split(o.words[last], ",")
		slices.Sort(states)
		o.words[last] = strings.Join(states, ",")
	case "--limit", "--hashlimit-upto":
		o.words[last] = strings.Replace(o.words[last], "/second", "/sec", 1)
	}
	return o
}
