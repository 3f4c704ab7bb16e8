package launch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// Each launch is a start of the whole program, and a regular expression that a package
// compiles when it is initialised costs all of them.
func TestNoRegexpAtTheStart(t *testing.T) {
	var files []string
	for _, pattern := range []string{"../../pkg/*/*.go", "../*/*.go"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(found), err)
		}
		files = append(files, found...)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "../testbed/") {
			continue
		}
		for _, at := range compiledAtTheStart(t, name) {
			t.Errorf("%s: compile it at its first use (sync.OnceValue)", at)
		}
	}
}

// compiledAtTheStart: what is in a function is compiled when that runs.
func compiledAtTheStart(t *testing.T, name string) (at []token.Position) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl, *ast.FuncLit:
			return false
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "regexp" && strings.HasPrefix(n.Sel.Name, "MustCompile") {
				at = append(at, set.Position(n.Pos()))
			}
		}
		return true
	})
	return at
}
