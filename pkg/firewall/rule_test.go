package firewall

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func parse(text string) Rule {
	words, _ := scanWords(text, true)
	return newRule(words...)
}

func TestRuleEqual(t *testing.T) {
	for _, tc := range []struct {
		name, a, b string
		equal      bool
	}{
		{"same", "-p tcp -m tcp --dport 1 -j ACCEPT", "-p tcp -m tcp --dport 1 -j ACCEPT", true},
		{"quotes", `-m comment --comment "pghardend:x" -j DROP`, `-m comment --comment pghardend:x -j DROP`, true},
		{"protocol number", "-p 58 -j DROP", "-p ipv6-icmp -j DROP", true},
		{"protocol alias", "-p icmpv6 -j DROP", "-p ipv6-icmp -j DROP", true},
		{"negated protocol", "! -p 1 -j DROP", "! -p icmp -j DROP", true},
		{"states", "-m conntrack --ctstate ESTABLISHED,RELATED", "-m conntrack --ctstate RELATED,ESTABLISHED", true},
		{"unit", "-m limit --limit 10/second", "-m limit --limit 10/sec", true},
		{"order of head", "-s 10.0.0.1/32 -p tcp", "-p tcp -s 10.0.0.1/32", true},
		{"order in a match", "-m tcp --sport 1 ! --tcp-flags SYN SYN", "-m tcp ! --tcp-flags SYN SYN --sport 1", true},
		{"port", "-m tcp --dport 1", "-m tcp --dport 2", false},
		{"direction", "-m set --match-set x src", "-m set --match-set x dst", false},
		{"target", "-j ACCEPT", "-j DROP", false},
		{"goto", "-j X", "-g X", false},
		{"negation", "! -p tcp", "-p tcp", false},
		{"negation elsewhere", "-p tcp ! -s 10.0.0.1/32", "! -p tcp -s 10.0.0.1/32", false},
		{"order of matches", "-m limit --limit 1/sec -m set --match-set x src", "-m set --match-set x src -m limit --limit 1/sec", false},
		{"option in another match", "-m tcp --dport 1 -m udp", "-m tcp -m udp --dport 1", false},
		{"fewer states", "-m conntrack --ctstate NEW", "-m conntrack --ctstate NEW,RELATED", false},
		{"one word or two", `-m comment --comment "a b"`, "-m comment --comment a b", false},
		{"comment is a switch", `-m comment --comment "-j" -j ACCEPT`, "-j ACCEPT -m comment --comment", false},
		{"empty comment", `-m comment --comment "" -j DROP`, "-m comment --comment -j DROP", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := parse(tc.a), parse(tc.b)
			if a.Equal(b) != tc.equal || b.Equal(a) != tc.equal {
				t.Errorf("%q and %q: equal %v, want %v", a.tokens, b.tokens, a.Equal(b), tc.equal)
			}
		})
	}
}

func TestRuleTarget(t *testing.T) {
	for text, want := range map[string]string{
		"-p tcp -j ACCEPT":                  "ACCEPT",
		"-p tcp":                            "",
		"-g away":                           "away!",
		"-m comment --comment -j -j ACCEPT": "ACCEPT",
		`-m comment --comment "-j DROP" -j ACCEPT`:                          "ACCEPT",
		"-m comment --comment -g -j DROP":                                   "DROP",
		`-m comment --comment "!" -j ACCEPT`:                                "ACCEPT",
		"-m set --match-set #x src -j ACCEPT":                               "ACCEPT",
		`-m set --match-set a"b src -j ACCEPT`:                              "ACCEPT",
		`-m set --match-set "b src -j ACCEPT`:                               "ACCEPT",
		"-m set --match-set -j DROP -j ACCEPT":                              "ACCEPT",
		"-m recent --set --name -j --mask 255.255.255.255 --rsource -j LOG": "LOG",
		"-i -j -j ACCEPT":                                                   "ACCEPT",
		`-j LOG --log-prefix "-j ACCEPT"`:                                   "LOG",
		`-m string --string "-j" -j DROP`:                                   "DROP",
		`-j c"d`:                                                            `c"d`,
		"! -i lo ! -s 10.0.0.1/32 -j REJECT":                                "REJECT",
		"-j":                                                                "",
	} {
		name, isGoto := parse(text).target()
		if isGoto {
			name += "!"
		}
		if name != want {
			t.Errorf("%s: target %q, want %q", text, name, want)
		}
	}
}

// words of which random rules are made: those that matter to the parser.
var ruleWords = []string{
	"-p", "tcp", "6", "58", "-s", "10.0.0.0/8", "!", "-m", "tcp", "--dport", "80", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "NEW",
	"comment", "--comment", "-j", "ACCEPT", "-g", "", "a b", `q"q`, `"`, `\`, "#", "'", "two\nlines", "tab\t", "--match-set", "set", "src",
	"--limit", "10/second", "limit", "-", "--", "$x", "é", "\xff", "--tcp-flags", "SYN", "-i", "lo",
}

func randomRule(r *rand.Rand) []string {
	words := make([]string, r.IntN(12))
	for i := range words {
		words[i] = ruleWords[r.IntN(len(ruleWords))]
	}
	return words
}

func TestRuleProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		words := randomRule(r)
		checkRule(t, newRule(words...), words)
		if t.Failed() {
			return
		}
	}
}

// checkRule: normalising again changes nothing, what String writes reads back
// as the same rule, and no word is lost.
func checkRule(t *testing.T, rule Rule, words []string) {
	t.Helper()
	if again := newRule(rule.tokens...); !again.Equal(rule) {
		t.Errorf("not idempotent: %q: %q, then %q", words, rule.tokens, again.tokens)
	}
	read, n := scanWords(rule.String(), true)
	if d := cmp.Diff(rule.tokens, read); d != "" && len(rule.tokens)+len(read) > 0 || n != len(rule.String()) {
		t.Errorf("%q is written as %s and read back as %q (%d bytes)", rule.tokens, rule, read, n)
	}
	if len(rule.tokens) != len(words) {
		t.Errorf("%q became %q", words, rule.tokens)
	}
}

func TestObservedRuleText(t *testing.T) {
	r := ObservedRule{words: []string{"-m", "comment", "--comment", "two\nlines \x1b[2J \"q\" \\", "-j", "ACCEPT"}}
	if got, want := r.text(), `-m comment --comment "two\nlines \x1b[2J \"q\" \\" -j ACCEPT`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if r.writable() {
		t.Error("a rule with a newline cannot be given to iptables-restore")
	}
}

func TestScanWords(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		escapes    bool
		want       []string
		rest       string
	}{
		{"plain", "a  b c\nnext", true, []string{"a", "b", "c"}, "\nnext"},
		{"empty", "\nnext", true, nil, "\nnext"},
		{"quoted", `--comment "a b" -j X`, true, []string{"--comment", "a b", "-j", "X"}, ""},
		{"escapes", `"a \"b\" \\ \'c\'"`, true, []string{`a "b" \ 'c'`}, ""},
		{"newline in quotes", "\"a\n-A b\nCOMMIT\" c\nd", true, []string{"a\n-A b\nCOMMIT", "c"}, "\nd"},
		{"empty word", `"" x`, true, []string{"", "x"}, ""},
		{"quote inside", `a"b c"d`, true, []string{`a"b`, `c"d`}, ""},
		{"hash", "#x #", true, []string{"#x", "#"}, ""},
		{"never closed", "\"x src\n-A INPUT", true, []string{`"x`, "src"}, "\n-A INPUT"},
		{"not a quote", `"x src --comment "y" z`, true, []string{`"x`, "src", "--comment", "y", "z"}, ""},
		{"no escapes", `comment "a \" x`, false, []string{"comment", `a \`, "x"}, ""},
		{"ends in escape", `"a\`, true, []string{`"a\`}, ""},
		{"too long", `"` + strings.Repeat("x ", maxQuoted) + `"`, true, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			words, n := scanWords(tc.text, tc.escapes)
			if tc.want != nil && !slices.Equal(words, tc.want) || tc.text[n:] != tc.rest {
				t.Errorf("got %q and the rest %q; want %q, %q", words, tc.text[n:], tc.want, tc.rest)
			}
			if tc.name == "too long" && len(words) != maxQuoted+1 {
				t.Errorf("%d words", len(words))
			}
		})
	}
}
