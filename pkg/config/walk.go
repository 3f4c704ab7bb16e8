package config

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// walker visits a tree of YAML nodes, remembers the lines and collects the
// problems. Its methods report what is wrong and go on; a false result only
// says that there is no value to use.
type walker struct {
	file     string
	lines    lineIndex
	problems []*Error
}

func (w *walker) report(key, problem, fix string) { w.reportAt(w.lines.line(key), key, problem, fix) }

func (w *walker) reportAt(line int, key, problem, fix string) {
	w.problems = append(w.problems, &Error{File: w.file, Line: line, Key: key, Problem: problem, Fix: fix})
}

// field is a known key of a mapping. example is what to write if a required key
// is missing, or if its mapping (for which the first field stands) is none.
type field struct {
	name     string
	required bool
	example  string
	visit    func(key string, n *yaml.Node)
}

// mapping visits a mapping whose keys are known.
func (w *walker) mapping(key string, n *yaml.Node, fields []field) {
	byName := make(map[string]field, len(fields))
	names := make([]string, len(fields))
	for i, f := range fields {
		byName[f.name] = f
		names[i] = f.name
	}
	ok := w.entries(key, n, fields[0].example, func(name, path string, value *yaml.Node) {
		f, known := byName[name]
		if !known {
			w.report(path, "unknown key", didYouMean(name, names, "known keys here"))
			delete(byName, nearest(name, names)) // or a required key would be reported twice
			return
		}
		f.visit(path, value)
	})
	if !ok {
		return
	}
	for _, f := range fields {
		_, present := w.lines[join(key, f.name)]
		if _, open := byName[f.name]; open && !present && f.required {
			w.report(join(key, f.name), "missing", "add `"+f.example+"`")
		}
	}
}

// entries visits a mapping with free keys. The second of two equal keys is
// reported and not visited.
func (w *walker) entries(key string, n *yaml.Node, example string, visit func(name, path string, value *yaml.Node)) bool {
	if !w.isKind(key, n, yaml.MappingNode, "a mapping", example) {
		return false
	}
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, value := n.Content[i], n.Content[i+1]
		if refusedFeature(k) {
			continue
		}
		path := join(key, orElse(k.Value, "?"))
		if k.Kind != yaml.ScalarNode || k.Tag != "!!str" {
			w.reportAt(k.Line, path, "the key is "+kindOf(k)+", not text", "write a name, in quotes if it must look like this")
			continue
		}
		if first, twice := seen[k.Value]; twice {
			w.reportAt(k.Line, path, fmt.Sprintf("the key is here twice, first on line %d", first), "remove one of the two")
			continue
		}
		seen[k.Value] = k.Line
		w.lines[path] = k.Line
		visit(k.Value, path, value)
	}
	return true
}

// items visits the elements of a list and returns how many there are, -1 if it is no list.
func (w *walker) items(key string, n *yaml.Node, example string, visit func(key string, n *yaml.Node)) int {
	if !w.isKind(key, n, yaml.SequenceNode, "a list", "["+example+"]") {
		return -1
	}
	for i, item := range n.Content {
		path := key + "[" + strconv.Itoa(i) + "]"
		w.lines[path] = item.Line
		visit(path, item)
	}
	return len(n.Content)
}

func (w *walker) isKind(key string, n *yaml.Node, kind yaml.Kind, name, example string) bool {
	switch {
	case refusedFeature(n): // reported already
		return false
	case n.Kind == kind:
		return true
	case n.Tag == "!!null":
		w.report(key, "has no value", "write "+name+" such as `"+example+"`")
	default:
		w.report(key, "is "+kindOf(n)+", not "+name, "write "+name+" such as `"+example+"`")
	}
	return false
}

// text returns a string. Control characters would end up in argv, in the
// environment or in a log line.
func (w *walker) text(key string, n *yaml.Node, example string) (string, bool) {
	if !w.isKind(key, n, yaml.ScalarNode, "text", example) {
		return "", false
	}
	switch n.Tag {
	case "!!str":
	case "!!null":
		w.report(key, "has no value", "write text such as `"+example+"`")
		return "", false
	default:
		w.report(key, "is "+kindOf(n)+", not text", "write text such as `"+example+"`, or put it in quotes: "+quote(n.Value))
		return "", false
	}
	for _, r := range n.Value {
		if isControl(r) {
			w.report(key, fmt.Sprintf("%s contains a control character (%U)", quote(n.Value), r),
				"remove it: NUL, newlines and the like are not allowed")
			return "", false
		}
	}
	return n.Value, true
}

// orElse returns other in place of an empty text.
func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// number returns the digits of a decimal whole number. YAML knows more ways to
// write one (0x1F, 0o17, 017, 1_000); they are refused as easy to misread.
func (w *walker) number(key string, n *yaml.Node, fix string) (string, bool) {
	switch {
	case !w.isKind(key, n, yaml.ScalarNode, "a number", "1"):
		return "", false
	case n.Tag == "!!null":
		w.report(key, "has no value", fix)
	case n.Tag == "!!float" && decimal(n.Value): // beyond 64 bits
		return n.Value, true
	case n.Tag == "!!float":
		w.report(key, clip(n.Value)+" is not a whole number", fix)
	case n.Tag != "!!int":
		w.report(key, "is "+kindOf(n)+", not a number", fix)
	case !decimal(n.Value):
		w.report(key, clip(n.Value)+" is not a decimal number", fix)
	default:
		return n.Value, true
	}
	return "", false
}

var plainKey = form{first: letters + digits + "_-", rest: letters + digits + "_-", most: 64}

// join extends a dotted key; a part that would be ambiguous is quoted.
func join(key, name string) string {
	if !plainKey.matches(name) {
		name = quote(name)
	}
	if key == "" {
		return name
	}
	return key + "." + name
}

// matching returns a text of a form.
func (w *walker) matching(key string, n *yaml.Node, f form, what, example string) (string, bool) {
	s, ok := w.text(key, n, example)
	if ok && !f.matches(s) {
		w.report(key, quote(s)+" is not "+what, "write something like "+example)
		return "", false
	}
	return s, ok
}

// oneOf returns a text that is one of the known ones, else nothing.
func (w *walker) oneOf(key string, n *yaml.Node, known []string) string {
	s, ok := w.text(key, n, known[0])
	if !ok || slices.Contains(known, s) {
		return s
	}
	w.report(key, quote(s)+" is unknown", didYouMean(s, known, "known values"))
	return ""
}

// version checks the version of the file's format, the same in both files.
func (w *walker) version(key string, n *yaml.Node) {
	const fix = "write `version: 1`, the only version that this program reads"
	if v, ok := w.number(key, n, fix); ok && v != "1" {
		w.report(key, "version "+clip(v)+" is not supported", fix)
	}
}

// newWalker reads the document in data. The problems it finds are in the walker;
// there is nothing to visit if root is nil.
func newWalker(file string, data []byte) (w *walker, root *yaml.Node) {
	root, problems := document(file, data)
	lines := make(lineIndex, bytes.Count(data, []byte("\n"))) // about as many as there will be
	return &walker{file: file, lines: lines, problems: problems}, root
}
