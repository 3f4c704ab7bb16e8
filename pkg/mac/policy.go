package mac

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Policy is what a kind of service needs on every machine.
type Policy struct {
	rules      []Rule // {data_dir} is not filled in
	neverWrite []string
	signals    bool
	abstract   bool
}

// dataDirMark stands for the service's data directory.
const dataDirMark = "{data_dir}"

// The words of scope.
const (
	scopeSignals  = "signals"
	scopeAbstract = "abstract-sockets"
)

// RuleSet fills in the data directory, whose rules are left out if there is none.
// setting is the key of the configuration that names it.
func (p Policy) RuleSet(dataDir, setting string) RuleSet {
	s := RuleSet{NeverWrite: append([]string{}, p.neverWrite...), Signals: p.signals, Abstract: p.abstract}
	for _, r := range p.rules {
		if r.Path == dataDirMark {
			if dataDir == "" {
				continue
			}
			r.Path, r.Setting = dataDir, setting
		}
		s.Rules = append(s.Rules, r)
	}
	return s
}

// ParsePolicy reads a policy (version 1):
//
//	version: 1
//	paths:
//	  - {path: /usr, allow: [read]}
//	  - {path: "{data_dir}", allow: [read, write, link]}
//	  - {path: /run/postgresql, allow: [write, socket], optional: true}
//	  - {path: /proc, allow: [update], if: oom_score_adj}
//	scope: [signals, abstract-sockets]
//	never_write: [/usr]
//
// Whatever is not known is an error with its line. file is used in messages only.
func ParsePolicy(file string, data []byte) (Policy, error) {
	r := policyReader{file: file}
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); err != nil {
		return Policy{}, fmt.Errorf("cannot read the Landlock policy %s: %w", file, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Policy{}, fmt.Errorf("cannot read the Landlock policy %s: there is more than one document", file)
	}
	version := false
	r.mapping(doc.Content[0], map[string]func(*yaml.Node){
		"version": func(n *yaml.Node) {
			if version = true; n.Kind != yaml.ScalarNode || n.Value != "1" {
				r.report(n, "version: write 1")
			}
		},
		"paths": func(n *yaml.Node) { r.list(n, r.path) },
		"scope": func(n *yaml.Node) { r.list(n, r.scope) },
		"never_write": func(n *yaml.Node) {
			r.list(n, func(n *yaml.Node) { r.p.neverWrite = append(r.p.neverWrite, r.place(n)) })
		},
	})
	if !version {
		r.report(doc.Content[0], "version is missing: write version: 1")
	}
	return r.p, errors.Join(r.errs...)
}

type policyReader struct {
	file string
	p    Policy
	errs []error
}

func (r *policyReader) report(n *yaml.Node, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%s:%d: %w", r.file, n.Line, fmt.Errorf(format, args...)))
}

func (r *policyReader) mapping(n *yaml.Node, known map[string]func(*yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		r.report(n, "write a mapping (key: value)")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		visit, ok := known[key.Value]
		switch {
		case !ok || key.Kind != yaml.ScalarNode:
			r.report(key, "unknown key %q", key.Value)
		case seen[key.Value]:
			r.report(key, "%s is here twice", key.Value)
		default:
			visit(n.Content[i+1])
		}
		seen[key.Value] = true
	}
}

func (r *policyReader) list(n *yaml.Node, visit func(*yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		r.report(n, "write a list [a, b]")
		return
	}
	for _, item := range n.Content {
		visit(item)
	}
}

func (r *policyReader) word(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		r.report(n, "write text")
		return ""
	}
	return n.Value
}

// place is an absolute path.
func (r *policyReader) place(n *yaml.Node) string {
	path := r.word(n)
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || strings.ContainsAny(path, "{}\x00") {
		r.report(n, "%q is not an absolute, clean path other than /, or %s", path, dataDirMark)
	}
	return path
}

func (r *policyReader) path(n *yaml.Node) {
	var rule Rule
	before := len(r.errs)
	r.mapping(n, map[string]func(*yaml.Node){
		"path": func(n *yaml.Node) {
			if rule.Path = n.Value; n.Value != dataDirMark {
				rule.Path = r.place(n)
			}
		},
		"allow": func(n *yaml.Node) { r.list(n, func(n *yaml.Node) { rule.Access |= r.access(n) }) },
		"optional": func(n *yaml.Node) {
			if rule.Optional = n.Value == "true"; n.Tag != "!!bool" {
				r.report(n, "optional: write true or leave it out")
			}
		},
		"if": func(n *yaml.Node) {
			if rule.OOMScore = r.word(n) == "oom_score_adj"; !rule.OOMScore {
				r.report(n, "if: the only condition is oom_score_adj")
			}
		},
	})
	switch {
	case len(r.errs) > before:
	case rule.Path == "" || rule.Access == 0:
		r.report(n, "a path needs path and allow")
	default:
		r.p.rules = append(r.p.rules, rule)
	}
}

func (r *policyReader) access(n *yaml.Node) Access {
	word := r.word(n)
	for _, a := range accessNames {
		if a.name == word {
			return a.access
		}
	}
	r.report(n, "allow: %q is not one of read, update, write, link, socket", word)
	return 0
}

func (r *policyReader) scope(n *yaml.Node) {
	switch word := r.word(n); word {
	case scopeSignals:
		r.p.signals = true
	case scopeAbstract:
		r.p.abstract = true
	default:
		r.report(n, "scope: %q is not one of %s, %s", word, scopeSignals, scopeAbstract)
	}
}
