package firewall

import (
	"errors"
	"slices"
	"strings"

	"github.com/google/shlex"
)

// Rule is one rule of a chain in normal form: the tokens that follow
// "-A CHAIN" in iptables-save, with what iptables prints in several ways
// brought to one.
type Rule struct {
	tokens []string
}

var errUnbalanced = errors.New("unbalanced quotes")

// newRule builds a rule from words that are already split.
func newRule(words ...string) Rule {
	return Rule{tokens: normalise(words)}
}

// parseRule splits and normalises the part of a save line after "-A CHAIN".
func parseRule(text string) (Rule, error) {
	words, err := shlex.Split(text)
	if err != nil {
		return Rule{}, errUnbalanced
	}
	return newRule(words...), nil
}

// Equal says whether both rules are the same after normalisation.
func (r Rule) Equal(o Rule) bool { return slices.Equal(r.tokens, o.tokens) }

// String is the rule as iptables-restore takes it.
func (r Rule) String() string {
	quoted := make([]string, len(r.tokens))
	for i, t := range r.tokens {
		quoted[i] = quote(t)
	}
	return strings.Join(quoted, " ")
}

// target is the chain or target that the rule ends in, "" for none.
func (r Rule) target() string {
	for i, t := range r.tokens {
		if (t == "-j" || t == "-g") && i+1 < len(r.tokens) {
			return r.tokens[i+1]
		}
	}
	return ""
}

func (r Rule) matchesSet() bool { return slices.Contains(r.tokens, "--match-set") }

func quote(word string) string {
	if word != "" && !strings.ContainsFunc(word, needsQuote) {
		return word
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(word) + `"`
}

func needsQuote(r rune) bool {
	return r <= ' ' || strings.ContainsRune(`"'\#$&();<>|*?[]{}~`+"`", r)
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

func sortKey(o option) string { return o.key() + "\x00" + strings.Join(o.words, "\x00") }

func splitOptions(words []string) []option {
	var opts []option
	for i := 0; i < len(words); {
		j := i + 1
		if words[i] == "!" && j < len(words) {
			j++
		}
		for j < len(words) && words[j] != "!" && !isSwitch(words[j]) {
			j++
		}
		opts = append(opts, option{words: slices.Clone(words[i:j])})
		i = j
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
