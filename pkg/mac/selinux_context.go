package mac

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Context is an SELinux security context, user:role:type:level. Level is empty
// where the policy has none; it may be a range.
type Context struct{ User, Role, Type, Level string }

// ParseContext reads what the kernel shows, such as system_u:system_r:init_t:s0.
func ParseContext(text string) (Context, error) {
	parts := strings.SplitN(strings.TrimRight(text, "\x00\n"), ":", 4)
	if len(parts) < 3 || slices.Contains(parts, "") || strings.ContainsAny(text, " \t") {
		return Context{}, fmt.Errorf("%q is not an SELinux context (user:role:type:level)", text)
	}
	c := Context{User: parts[0], Role: parts[1], Type: parts[2]}
	if len(parts) == 4 {
		c.Level = parts[3]
	}
	return c, nil
}

func (c Context) String() string {
	text := c.User + ":" + c.Role + ":" + c.Type
	if c.Level != "" {
		text += ":" + c.Level
	}
	return text
}

// With is the context with another type and level. A policy without levels has none
// for it either.
func (c Context) With(typ, level string) Context {
	c.Type = typ
	if c.Level != "" {
		c.Level = level
	}
	return c
}

// maxCategory is the number of categories that policies have, less one.
const maxCategory = 1023

// CanonicalLevel is a level as the kernel shows it: categories in order, three and
// more in a row as c1.c3 (security/selinux/ss/mls.c, mls_sid_to_context). A range
// is refused: a service has one level.
func CanonicalLevel(level string) (string, error) {
	fault := fmt.Errorf("%q is not an SELinux level: write something like s0 or s0:c12,c34 (categories c0 to c%d)", level, maxCategory)
	sensitivity, categories, some := strings.Cut(level, ":")
	if _, ok := numbered(sensitivity, "s", 99); !ok {
		return "", fault
	}
	if !some {
		return sensitivity, nil
	}
	var set []int
	for part := range strings.SplitSeq(categories, ",") {
		first, last, isRange := strings.Cut(part, ".")
		if !isRange {
			last = first
		}
		low, lowOK := numbered(first, "c", maxCategory)
		high, highOK := numbered(last, "c", maxCategory)
		if !lowOK || !highOK || low > high {
			return "", fault
		}
		for c := low; c <= high; c++ {
			set = append(set, c)
		}
	}
	slices.Sort(set)
	return sensitivity + categoriesText(slices.Compact(set)), nil
}

// numbered reads a letter and a number, as c12.
func numbered(text, letter string, most int) (int, bool) {
	digits, ok := strings.CutPrefix(text, letter)
	n, err := strconv.ParseUint(digits, 10, 16)
	return int(n), ok && err == nil && int(n) <= most
}

func categoriesText(set []int) string {
	var parts []string
	for i := 0; i < len(set); {
		last := i
		for last+1 < len(set) && set[last+1] == set[last]+1 {
			last++
		}
		switch {
		case last-i >= 2:
			parts = append(parts, fmt.Sprintf("c%d.c%d", set[i], set[last]))
		case last-i == 1:
			parts = append(parts, fmt.Sprintf("c%d,c%d", set[i], set[last]))
		default:
			parts = append(parts, fmt.Sprintf("c%d", set[i]))
		}
		i = last + 1
	}
	if len(parts) == 0 {
		return ""
	}
	return ":" + strings.Join(parts, ",")
}
