package culprit

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// unknown is the UID where it is not known.
const unknown = -1

// Culprit is the process that changed something. What could not be read is
// empty. All text is printable.
type Culprit struct {
	PID     int    `json:"pid"` // 0 if it is not known
	Command string `json:"command"`
	UID     int    `json:"uid"`              // the real one; -1: unknown
	Exe     string `json:"exe,omitempty"`    // as its own mount namespace calls it
	Args    string `json:"args,omitempty"`   // at most 200 bytes
	Parent  string `json:"parent,omitempty"` // "fail2ban-server (812)"
}

// maxText bounds a culprit's own words, in bytes.
const maxText = 200

// clean makes text printable and cuts it.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
	if len(text) <= maxText {
		return text
	}
	const mark = "…"
	cut := maxText - len(mark)
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + mark
}
