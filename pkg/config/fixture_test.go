package config

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// The examples of the packages are the fixtures: they must always be right.
var (
	exampleConfig = filepath.Join("..", "..", "packaging", "examples", "pghardend.yaml")
	examplePeers  = filepath.Join("..", "..", "packaging", "examples", "peers.yaml")
)

func readTestFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mustParsePeers(t testing.TB, text string) Peers {
	t.Helper()
	p, err := ParsePeers("peers.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustParseConfig(t testing.TB, text string) Config {
	t.Helper()
	c, err := ParseConfig("/etc/pghardend/pghardend.yaml", []byte(text), "pg-0")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// problemsOf returns the single problems of an error.
func problemsOf(t testing.TB, err error) []*Error {
	t.Helper()
	all := []error{err}
	var several interface{ Unwrap() []error }
	if errors.As(err, &several) {
		all = several.Unwrap()
	}
	var problems []*Error
	for _, err := range all {
		var e *Error
		if !errors.As(err, &e) {
			t.Fatalf("%v (%T) is not an *Error", err, err)
		}
		problems = append(problems, e)
	}
	return problems
}
