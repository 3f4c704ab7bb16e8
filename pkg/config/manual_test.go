package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What is decoded strictly is what a file may have: the walk refuses unknown keys,
// and UnmarshalExact whatever the walk knows and these structures do not.
func keysOf(t reflect.Type, prefix string) (keys []string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t.Kind() == reflect.Map && prefix != "":
		prefix += ".NAME"
		if t.Elem().Kind() != reflect.Struct {
			return nil
		}
		return keysOf(t.Elem(), prefix)
	case t.Kind() != reflect.Struct:
		return nil
	}
	for f := range t.Fields() {
		name := f.Tag.Get("mapstructure")
		if name == "" {
			name = strings.ToLower(f.Name)
		}
		key := strings.TrimPrefix(prefix+"."+name, ".")
		keys = append(keys, key)
		keys = append(keys, keysOf(f.Type, key)...)
	}
	return keys
}

var term = regexp.MustCompile(`(?m)^\*\*([a-z][A-Za-z0-9_.\[\]\\]*)\*\*\n:   `)

func termsOf(t *testing.T, page string) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/man/" + page)
	if err != nil {
		t.Fatal(err)
	}
	var terms []string
	for _, m := range term.FindAllStringSubmatch(string(text), -1) {
		terms = append(terms, strings.ReplaceAll(m[1], `\`, ""))
	}
	return terms
}

func TestManualHasEveryKey(t *testing.T) {
	keys := keysOf(reflect.TypeFor[rawConfig](), "")
	terms := termsOf(t, "pghardend.yaml.5.md")
	slices.Sort(keys)
	slices.Sort(terms)
	if diff := cmp.Diff(keys, terms); diff != "" {
		t.Errorf("docs/man/pghardend.yaml.5.md has other keys than the program (-program +page):\n%s", diff)
	}
}

func TestManualHasEveryKeyOfPeers(t *testing.T) {
	_, err := ParsePeers("peers.yaml", []byte("unknown: 1\nnodes: [{unknown: 1}]\n"))
	if err == nil {
		t.Fatal("unknown keys are not refused")
	}
	want := []string{"version", "instance", "nodes", "nodes[].name", "nodes[].role", "nodes[].addresses", "networks"}
	for _, key := range want { // the refusal lists what is known
		name := key[strings.LastIndex(key, ".")+1:]
		if !strings.Contains(err.Error(), name) {
			t.Errorf("the page's key %s is not among those that the program knows: %v", key, err)
		}
	}
	if diff := cmp.Diff(want, termsOf(t, "peers.yaml.5.md")); diff != "" {
		t.Errorf("docs/man/peers.yaml.5.md (-program +page):\n%s", diff)
	}
}
