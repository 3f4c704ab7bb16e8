package config

import "strings"

// The characters that names are made of.
const (
	digits  = "0123456789"
	lower   = "abcdefghijklmnopqrstuvwxyz"
	letters = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// A form is what names of one kind look like. A regular expression would say the same, and cost
// some 50 µs each to compile, most of what a launch spends on the configuration.
type form struct {
	first string // a name begins with one of these
	rest  string // and goes on with these
	last  string // and ends in one of these; "" for one of rest
	most  int    // characters
}

func (f form) matches(s string) bool {
	if s == "" || len(s) > f.most || strings.IndexByte(f.first, s[0]) < 0 {
		return false
	}
	if strings.Trim(s[1:], f.rest) != "" { // it trims until a character of another kind
		return false
	}
	return f.last == "" || strings.IndexByte(f.last, s[len(s)-1]) >= 0
}

// decimal says whether s is a whole number as people write it: no sign but a minus, no leading zero.
func decimal(s string) bool {
	figures := strings.TrimPrefix(s, "-")
	return s == "0" || figures != "" && figures[0] != '0' && strings.Trim(figures, digits) == ""
}
