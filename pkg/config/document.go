package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// document returns the top mapping of the one YAML document in data, or says in
// problems why there is none.
func document(file string, data []byte) (root *yaml.Node, problems []*Error) {
	if p := checkText(file, data); p != nil {
		return nil, []*Error{p}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	if err := decode(decoder, &doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, []*Error{syntaxError(file, data, err)}
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil, []*Error{{File: file, Line: 1, Problem: "the file is empty", Fix: "begin it with `version: 1`"}}
	}
	switch err := decode(decoder, &second); {
	case err == nil:
		return nil, []*Error{{File: file, Line: second.Line, Problem: "a second YAML document begins here",
			Fix: "keep one document in the file and no `---` after its first line"}}
	case !errors.Is(err, io.EOF):
		return nil, []*Error{syntaxError(file, data, err)}
	}
	root = doc.Content[0]
	if root.Kind != yaml.MappingNode && !refusedFeature(root) {
		return nil, []*Error{{File: file, Line: root.Line, Problem: "the file is " + kindOf(root) + ", not a mapping",
			Fix: "begin it with `version: 1`"}}
	}
	return root, refusedFeatures(file, root, nil)
}

// checkText refuses what no editor leaves behind, before the YAML reader sees
// it: that one reports such bytes without a line.
func checkText(file string, data []byte) *Error {
	for at := 0; at < len(data); {
		r, size := utf8.DecodeRune(data[at:])
		problem := ""
		switch {
		case r == utf8.RuneError && size == 1:
			problem = fmt.Sprintf("the byte 0x%02x is not UTF-8 text", data[at])
		case r == '\n' || r == '\r' && bytes.HasPrefix(data[at:], []byte("\r\n")):
		case isControl(r):
			problem = fmt.Sprintf("a control character (%U)", r)
		}
		if problem != "" {
			return &Error{File: file, Line: lineAt(data, at), Problem: problem, Fix: "remove it; the file must be plain UTF-8 text"}
		}
		at += size
	}
	return checkEnd(file, data)
}

// checkEnd refuses a last line that may have been cut short: 10.20.1.1 is a
// valid beginning of 10.20.1.10 and only the line's end tells them apart. A
// closing bracket or quote tells it as well.
func checkEnd(file string, data []byte) *Error {
	trimmed := bytes.TrimRight(data, " \t")
	if len(trimmed) == 0 || bytes.ContainsRune([]byte("\n\r]}\"'"), rune(trimmed[len(trimmed)-1])) {
		return nil
	}
	return &Error{File: file, Line: lineAt(data, len(data)), Problem: "the last line has no end, the file looks half-written",
		Fix: "end it with a newline if it is complete, and replace files by rename"}
}

func lineAt(data []byte, offset int) int { return 1 + bytes.Count(data[:offset], []byte("\n")) }

// isControl tells whether r is a control character other than a tab, or ends a
// line for YAML but not for an editor (U+2028, U+2029).
func isControl(r rune) bool {
	return (r < 0x20 && r != '\t') || (r >= 0x7f && r < 0xa0) || r == 0x2028 || r == 0x2029
}

// decode reads the next document. The YAML reader keeps a few panics for states
// it holds impossible; a peer list comes from elsewhere and must not be able to
// end the daemon should one of them be possible after all.
func decode(d interface{ Decode(any) error }, n *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: the YAML reader failed: %v", r)
		}
	}()
	return d.Decode(n)
}

var (
	yamlLine      = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^line (\d+): `) })
	unknownAnchor = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^unknown anchor '(.*)' referenced$`) })
)

// syntaxError is the one place that looks into the text of the YAML reader's errors.
func syntaxError(file string, data []byte, err error) *Error {
	what, line := splitSyntaxError(err)
	fix := "check indentation, colons, brackets and quotes on this line and the one before"
	if m := unknownAnchor().FindStringSubmatch(what); m != nil {
		line = lineAt(data, max(0, bytes.Index(data, []byte("*"+m[1]))))
		fix = "write the value out, or quote it if the * is part of it"
	} else if n := lineOfSyntaxError(data, what); n > 0 {
		line = n
	}
	return &Error{File: file, Line: line, Problem: "not valid YAML: " + clip(what), Fix: fix}
}

func splitSyntaxError(err error) (what string, line int) {
	what = strings.TrimPrefix(err.Error(), "yaml: ")
	line = 1
	if m := yamlLine().FindStringSubmatch(what); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
		what = what[len(m[0]):]
	}
	return what, line
}

// lineOfSyntaxError returns how many lines of data the reader must see until it
// fails with the given words. Its own line number is that of the enclosing
// mapping or list for half of its errors. 0 means unknown.
func lineOfSyntaxError(data []byte, what string) int {
	const most = 64 << 10 // beyond, reading a dozen prefixes takes too long
	if len(data) > most {
		return 0
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	length := func(n int) (bytes int) {
		for _, l := range lines[:n] {
			bytes += len(l)
		}
		return bytes
	}
	n := sort.Search(len(lines), func(i int) bool {
		var n yaml.Node
		err := decode(yaml.NewDecoder(bytes.NewReader(data[:length(i+1)])), &n)
		if err == nil || errors.Is(err, io.EOF) {
			return false
		}
		got, _ := splitSyntaxError(err)
		return got == what
	})
	if n == len(lines) {
		return 0
	}
	return n + 1
}

// refusedFeature tells whether n is one of the parts of YAML that let a value
// stand somewhere else, repeat without end or change its type.
func refusedFeature(n *yaml.Node) bool {
	return n.Kind == yaml.AliasNode || n.Anchor != "" || n.Tag == "!!merge" || n.Style&yaml.TaggedStyle != 0
}

// refusedFeatures adds a problem for each refused feature. It does not follow aliases.
func refusedFeatures(file string, n *yaml.Node, problems []*Error) []*Error {
	if refusedFeature(n) {
		problems = append(problems, &Error{File: file, Line: n.Line, Problem: "YAML " + featureName(n) + " are not supported here",
			Fix: "write the value out in full"})
	}
	for _, child := range n.Content {
		problems = refusedFeatures(file, child, problems)
	}
	return problems
}

func featureName(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.AliasNode:
		return "aliases (*" + clip(n.Value) + ")"
	case n.Anchor != "":
		return "anchors (&" + clip(n.Anchor) + ")"
	case n.Tag == "!!merge":
		return "merge keys (<<)"
	}
	return "tags (" + quote(n.Tag) + ")"
}

// kindOf names what n is in the words of an operator.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "a boolean (" + n.Value + ")"
	case "!!int", "!!float":
		return "a number (" + clip(n.Value) + ")"
	case "!!timestamp":
		return "a date (" + clip(n.Value) + ")"
	}
	return "text (" + quote(n.Value) + ")"
}
