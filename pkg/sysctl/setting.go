package sysctl

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Setting is one line of sysctl.d(5).
type Setting struct {
	Key      string // net.ipv4.conf.*.rp_filter: dots, and * for any part of a component
	Value    string // as the kernel prints it; "" with Leave
	Optional bool   // a kernel that lacks the key is no problem (the line's leading "-")
	Leave    bool   // no pattern sets the key (a line with a leading "-" and without "=")
}

const (
	maxKey   = 256  // bytes; the longest of the kernel's have about 70
	maxValue = 1024 // bytes; the kernel takes one page at most, proc_sys_call_handler
)

// signs are what may stand in a component besides letters and digits. The kernel
// lets an interface be called nearly anything (dev_valid_name); these are enough
// for what people and programs call them. The dot and * have meanings of their own.
const signs = "_-+@.,%*"

var wholeNumber = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^-?0[xX][0-9a-fA-F]+$|^-?[0-9]+$`) })

// Parse reads text in the form of sysctl.d(5). The error names file and line of
// each problem.
func Parse(file string, data []byte) ([]Setting, error) {
	var list []Setting
	var errs []error
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		s, err := parseLine(line)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %w", file, number, err))
			continue
		}
		list = append(list, s)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return list, nil
}

// ParseSetting reads one key=value. A leading "-" makes the key optional.
func ParseSetting(text string) (Setting, error) {
	s, err := parseLine(strings.TrimSpace(text))
	if err == nil && s.Leave {
		return Setting{}, fmt.Errorf("sysctl %s has no value: write %s=VALUE, or list it in sysctl.leave to keep it as it is", quote(text), s.Key)
	}
	return s, err
}

func parseLine(line string) (Setting, error) {
	var s Setting
	rest, optional := strings.CutPrefix(line, "-")
	key, value, assigned := strings.Cut(rest, "=")
	var err error
	if s.Key, err = ParseKey(key); err != nil {
		return Setting{}, err
	}
	switch {
	case assigned:
		s.Optional = optional
		s.Value, err = parseValue(s.Key, value)
	case optional:
		s.Leave = true
	default:
		err = fmt.Errorf("sysctl %s has no value: write %s = VALUE", s.Key, s.Key)
	}
	if err != nil {
		return Setting{}, err
	}
	return s, nil
}

// ParseKey checks a key or a pattern and returns the spelling that Setting.Key
// and Change.Key have: net/ipv4/conf/eth0.100/rp_filter becomes
// net.ipv4.conf.eth0/100.rp_filter.
func ParseKey(text string) (string, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return "", errors.New("a sysctl without a name: write KEY=VALUE, for example net.ipv4.tcp_syncookies=1")
	}
	if len(text) > maxKey {
		return "", fmt.Errorf("sysctl %s… is longer than %d bytes: correct it", quote(text[:32]), maxKey)
	}
	file := text
	if i := strings.IndexAny(text, "./"); i >= 0 && text[i] == '.' {
		file = swap(text)
	}
	parts := strings.Split(file, "/")
	if parts[0] != "net" || len(parts) < 2 {
		return "", fmt.Errorf("sysctl %s: only keys below net are set here: use sysctl.d(5) for others", quote(text))
	}
	for _, part := range parts {
		if err := componentFault(part); err != nil {
			return "", fmt.Errorf("sysctl %s: %w", quote(text), err)
		}
	}
	return swap(file), nil
}

// componentFault refuses what is no name of a file below /proc/sys.
func componentFault(part string) error {
	switch part {
	case "":
		return errors.New("an empty name between two separators: take one out")
	case ".", "..":
		return errors.New("no name may be . or ..: write the key as sysctl -a shows it")
	}
	for _, r := range part {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && !strings.ContainsRune(signs, r) {
			return fmt.Errorf("the character %q cannot be in a name: use letters, digits, %s, and * for any part of a name", r, strings.Trim(signs, "*."))
		}
	}
	return nil
}

func parseValue(key, text string) (string, error) {
	value := canonical(text)
	if value == "" {
		return "", fmt.Errorf("sysctl %s: the value is empty: write one, or list the key in sysctl.leave to keep it as it is", key)
	}
	if len(value) > maxValue {
		return "", fmt.Errorf("sysctl %s: the value is longer than %d bytes: correct it", key, maxValue)
	}
	for _, r := range value {
		if r < ' ' || r > '~' {
			return "", fmt.Errorf("sysctl %s: the character %q cannot be in a value: use printable ASCII", key, r)
		}
	}
	return value, nil
}

// canonical is a value as the kernel prints it, in one spelling: tabs between
// words become a space, hexadecimal and octal numbers (which it reads, see
// kernel/sysctl.c, proc_get_long) become decimal.
func canonical(text string) string {
	words := strings.Fields(text)
	for i, w := range words {
		if !wholeNumber().MatchString(w) {
			continue
		}
		if n, err := strconv.ParseInt(w, 0, 64); err == nil {
			words[i] = strconv.FormatInt(n, 10)
		}
	}
	return strings.Join(words, " ")
}

// Merge joins the built-in settings with those of the configuration, which win:
// a key or pattern of set replaces everything of base that it covers, also keys
// that base names. What leave covers is dropped; where a pattern goes on to match
// it, a Setting with Leave keeps it out. Entries of leave that ParseKey refuses
// count for nothing.
func Merge(base, set []Setting, leave []string) []Setting {
	var kept []string
	for _, text := range leave {
		if key, err := ParseKey(text); err == nil {
			kept = append(kept, key)
		}
	}
	for _, s := range set {
		if s.Leave {
			kept = append(kept, s.Key)
		}
	}
	var merged []Setting
	add := func(s Setting, hidden func(Setting) bool) {
		covered := slices.ContainsFunc(kept, func(k string) bool { return covers(k, s.Key) })
		if !covered && !hidden(s) {
			merged = append(merged, s)
		}
	}
	for _, s := range base {
		add(s, func(s Setting) bool {
			return slices.ContainsFunc(set, func(o Setting) bool { return covers(o.Key, s.Key) })
		})
	}
	for i, s := range set {
		add(s, func(s Setting) bool {
			return s.Leave || slices.ContainsFunc(set[i+1:], func(o Setting) bool { return o.Key == s.Key })
		})
	}
	return append(merged, exceptions(merged, kept)...)
}

// exceptions are those of keys that a pattern of list may match.
func exceptions(list []Setting, keys []string) []Setting {
	var out []Setting
	for i, key := range keys {
		matched := slices.ContainsFunc(list, func(s Setting) bool {
			return isPattern(s.Key) && !s.Leave && (covers(s.Key, key) || isPattern(key))
		})
		if matched && !slices.Contains(keys[:i], key) {
			out = append(out, Setting{Key: key, Leave: true})
		}
	}
	return out
}

func isPattern(key string) bool { return strings.Contains(key, "*") }

// covers says whether every key that b stands for is one that a stands for. A *
// of b is matched by nothing but a * of a, so the text of b can stand for itself.
func covers(a, b string) bool { return match(swap(a), swap(b)) }

// match compares names of files. A * stands for no slash, and ParseKey lets no
// pattern through that is an error.
func match(pattern, file string) bool {
	ok, err := path.Match(pattern, file)
	return err == nil && ok
}

// swap changes a key into the name of its file below /proc/sys, and back.
func swap(text string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, text)
}

func quote(text string) string { return strconv.Quote(text) }
