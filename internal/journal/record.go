package journal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Record is something that happened. What is empty for its kind is left out.
type Record struct {
	Seq  uint64    `json:"seq"`            // given by Append, in order
	At   time.Time `json:"at"`             // given by Append
	Boot string    `json:"boot,omitempty"` // given by Append: the kernel's boot id
	PID  int       `json:"pid"`            // given by Append: this process
	Kind string    `json:"kind"`
	Lost int       `json:"lost,omitempty"` // records before this one that did not get to disk

	ID       uint64    `json:"id,omitzero"` // of what it tells of, for as long as the process lives
	Resource string    `json:"resource,omitempty"`
	Cause    string    `json:"cause,omitempty"`
	Trigger  string    `json:"trigger,omitempty"`
	What     string    `json:"what"`
	Since    time.Time `json:"since,omitzero"`
	Found    time.Time `json:"found,omitzero"`
	Repaired time.Time `json:"repaired,omitzero"`
	OpenMS   float64   `json:"open_ms,omitzero"`
	Who      *Culprit  `json:"who,omitempty"`
	Restart  bool      `json:"restart,omitempty"`
	Error    string    `json:"error,omitempty"`
	Asked    string    `json:"asked,omitempty"`
}

// Culprit is who did it.
type Culprit struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	UID     int    `json:"uid"` // -1: unknown
	Exe     string `json:"exe,omitempty"`
	Args    string `json:"args,omitempty"`
	Parent  string `json:"parent,omitempty"`
}

// maxLine bounds a record on disk, in bytes, its line's end included.
const maxLine = 8 << 10

// What the texts may take of a line, as they are written there. The sum leaves
// room for names and numbers.
const (
	maxWhat  = 4 << 10
	maxError = 1 << 10
	maxName  = 128
)

// bounded cuts the record to what fits into a line, and keeps nothing that its
// maker may still change.
func bounded(r Record) Record {
	r.What, r.Error = cut(r.What, maxWhat), cut(r.Error, maxError)
	for _, s := range []*string{&r.Boot, &r.Kind, &r.Resource, &r.Cause, &r.Trigger} {
		*s = cut(*s, maxName)
	}
	if r.Who != nil {
		who := *r.Who
		for _, s := range []*string{&who.Command, &who.Exe, &who.Args, &who.Parent} {
			*s = cut(*s, 2*maxName)
		}
		r.Who = &who
	}
	return r
}

// cut shortens a text to about n bytes of JSON: between two lines if it has
// several, and it says how many are missing.
func cut(s string, n int) string {
	if 6*len(s) <= n { // no byte takes more, most take one
		return s
	}
	size, line := 0, 0 // so far, and where the current line begins
	for i, r := range s {
		if size += jsonSize(r); size <= n {
			if r == '\n' {
				line = i + 1
			}
			continue
		}
		if line == 0 {
			return s[:i] + "…"
		}
		rest := strings.Count(strings.TrimSuffix(s[line:], "\n"), "\n") + 1
		return fmt.Sprintf("%s… and %d more lines", s[:line], rest)
	}
	return s
}

// jsonSize is how many bytes encoding/json makes of a character, or more.
func jsonSize(r rune) int {
	switch {
	case r == '"', r == '\\', r == '\n', r == '\t', r == '\r':
		return 2
	case r < ' ', r == utf8.RuneError, r == '\u2028', r == '\u2029', r == 0x7f:
		return 6
	}
	return utf8.RuneLen(r)
}

// encode is the record's line. Whatever a text holds, it ends no line.
func encode(r Record) ([]byte, error) {
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return nil, err
	}
	return line.Bytes(), nil
}

// maxSeq is far above what any daemon reaches. A line beyond is damaged, and would
// leave no number for the next record.
const maxSeq = 1 << 53

// parse reads lines. What is no record is skipped: half a line is what a crash
// leaves. A last line that lacks nothing but its end counts.
func parse(data []byte) []Record {
	var list []Record
	for line := range bytes.Lines(data) {
		if r, ok := parseLine(line); ok {
			list = append(list, r)
		}
	}
	return list
}

func parseLine(line []byte) (Record, bool) {
	if len(line) > maxLine {
		return Record{}, false
	}
	var r Record
	err := json.Unmarshal(line, &r)
	return r, err == nil && r.Seq > 0 && r.Seq <= maxSeq && r.Kind != ""
}
