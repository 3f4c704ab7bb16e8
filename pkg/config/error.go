package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Error is one problem of a file. Line counts from 1; it is 0 if the file as a
// whole is refused. Key is a dotted path such as nodes[1].addresses[0], empty if
// the text is not YAML at all. Fix says what would be right.
type Error struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Key     string `json:"key,omitempty"`
	Problem string `json:"problem"`
	Fix     string `json:"fix,omitempty"`
}

// Error returns "peers.yaml:7: nodes[1].addresses[0]: problem; fix".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		b.WriteString(":" + strconv.Itoa(e.Line))
	}
	b.WriteString(": ")
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	b.WriteString(e.Problem)
	if e.Fix != "" {
		b.WriteString("; " + e.Fix)
	}
	return b.String()
}

// joined returns the problems in the order of their lines, or nil. What a line
// has to say twice, such as nine aliases, it says once.
func joined(problems []*Error) error {
	slices.SortStableFunc(problems, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	problems = slices.CompactFunc(problems, func(a, b *Error) bool { return *a == *b })
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = p
	}
	return errors.Join(errs...)
}

// lineIndex maps the dotted key of everything in a file to its line.
type lineIndex map[string]int

// line returns the line of key, or of its nearest parent that the file has.
func (l lineIndex) line(key string) int {
	for {
		if n, ok := l[key]; ok {
			return n
		}
		cut := strings.LastIndexAny(key, ".[")
		if cut < 0 {
			return 1
		}
		key = key[:cut]
	}
}

func (l lineIndex) where(file, key string) string {
	return fmt.Sprintf("%s:%d", file, l.line(key))
}

// quote makes s fit for one line of an error, whatever is in it.
func quote(s string) string { return strconv.Quote(clip(s)) }

// clip shortens what would flood an error.
func clip(s string) string {
	const most = 64
	if utf8.RuneCountInString(s) > most {
		s = string([]rune(s)[:most-1]) + "…"
	}
	return s
}

// listNames joins names for an error and leaves out what would flood it.
func listNames(names []string) string {
	const most = 10
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
