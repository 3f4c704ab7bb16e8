package sysctl

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Observed is what the kernel has of the wanted keys.
type Observed struct {
	// Values has each key that is there, patterns expanded. A value that cannot
	// be read is "". nil: nothing could be observed.
	Values map[string]string
}

// Plan is what to set. It is empty when nothing has drifted.
type Plan struct{ Changes []Change }

// Change is one key to set.
type Change struct {
	Key  string `json:"key"`
	Have string `json:"have"` // "": it is not there, empty, or cannot be read
	Want string `json:"want"`
}

// Empty says whether there is nothing to set.
func (p Plan) Empty() bool { return len(p.Changes) == 0 }

// String has one line for each change.
func (p Plan) String() string {
	var b strings.Builder
	for _, c := range p.Changes {
		fmt.Fprintf(&b, "%s\n", c)
	}
	return b.String()
}

func (c Change) String() string {
	if c.Have == "" {
		return fmt.Sprintf("sysctl %s: not there or empty, want %s", c.Key, c.Want)
	}
	return fmt.Sprintf("sysctl %s: is %s, want %s", c.Key, c.Have, c.Want)
}

// Diff compares. A key or pattern that the kernel has nothing for is a change
// unless it is optional. Where nothing could be observed there is no plan.
func Diff(want []Setting, got Observed) Plan {
	if got.Values == nil {
		return Plan{}
	}
	r := resolve(want)
	used := map[string]bool{} // the keys and patterns of want that something is there for
	var p Plan
	for _, key := range slices.Sorted(maps.Keys(got.Values)) {
		used[key] = true
		file := swap(key)
		for _, s := range r.patterns {
			if match(s.file, file) {
				used[s.Key] = true
			}
		}
		if value, ok := r.value(key); ok && got.Values[key] != value {
			p.Changes = append(p.Changes, Change{Key: key, Have: got.Values[key], Want: value})
		}
	}
	for _, s := range want {
		if !s.Leave && !s.Optional && !used[s.Key] {
			used[s.Key] = true
			p.Changes = append(p.Changes, Change{Key: s.Key, Want: s.Value})
		}
	}
	slices.SortStableFunc(p.Changes, func(a, b Change) int { return compareKeys(a.Key, b.Key) })
	return p
}

// resolved is a list of settings with the ones that win.
type resolved struct {
	named    map[string]string
	patterns []pattern // the last one that matches wins
	left     []pattern
}

// pattern is a setting with its key as the name of a file, which is what has to
// be matched for every key of every pass.
type pattern struct {
	Setting
	file string
}

func resolve(want []Setting) resolved {
	r := resolved{named: map[string]string{}}
	for _, s := range want {
		switch {
		case s.Leave:
			r.left = append(r.left, pattern{s, swap(s.Key)})
		case isPattern(s.Key):
			r.patterns = append(r.patterns, pattern{s, swap(s.Key)})
		default:
			r.named[s.Key] = s.Value
		}
	}
	return r
}

// value is what a key should have, false if that is left open.
func (r resolved) value(key string) (string, bool) {
	if v, ok := r.named[key]; ok {
		return v, true
	}
	file := swap(key)
	if slices.ContainsFunc(r.left, func(s pattern) bool { return match(s.file, file) }) {
		return "", false
	}
	for _, s := range slices.Backward(r.patterns) {
		if match(s.file, file) {
			return s.Value, true
		}
	}
	return "", false
}

// compareKeys puts first what the kernel lets act on others: ip_forward resets
// settings of conf, conf.all and conf.default act on interfaces (ip-sysctl.rst).
func compareKeys(a, b string) int {
	rank := func(key string) int {
		switch parts := strings.Split(key, "."); {
		case len(parts) < 4:
			return 0
		case slices.Contains(parts, "all"):
			return 1
		case slices.Contains(parts, "default"):
			return 2
		}
		return 3
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
}
