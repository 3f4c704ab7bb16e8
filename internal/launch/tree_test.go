package launch

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestParseParent(t *testing.T) {
	for text, want := range map[string]int{
		"12 (cat) S 7 1 1 0":              7,
		"12 (a) S 1 (b) R 7 1":            7, // a name with a state of its own
		"12 (odd\n) S 1) Z 0 0":           0,
		"12 (postgres: writer ) S 99 1 1": 99,
	} {
		if got, err := parseParent(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "12 cat S 7", "12 (cat)", "12 (cat) S", "12 (cat) S x", "12 (cat) S -1"} {
		if got, err := parseParent(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func FuzzParseParent(f *testing.F) {
	f.Add("12 (cat) S 7 1 1 0")
	f.Add("12 (a) S 1 (b) R 7 1")
	f.Fuzz(func(t *testing.T, text string) {
		if parent, err := parseParent(text); err == nil && (parent < 0 || !strings.Contains(text, ")")) {
			t.Errorf("%q: parent %d", text, parent)
		}
	})
}

// A process may call itself anything, but not choose its parent.
func FuzzParseParentName(f *testing.F) {
	f.Add("cat")
	f.Add(") S 1 (")
	f.Fuzz(func(t *testing.T, name string) {
		if got, err := parseParent("12 (" + name + ") S 7 1 1 0"); err != nil || got != 7 {
			t.Errorf("%q: %d, %v", name, got, err)
		}
	})
}

func TestDescendants(t *testing.T) {
	parents := map[int]int{1: 0, 10: 1, 11: 10, 12: 10, 13: 12, 20: 1, 30: 31, 31: 30}
	if got := descendants(parents, 10); !slices.Equal(got, []int{10, 11, 12, 13}) {
		t.Errorf("got %v", got)
	}
	if got := descendants(parents, 30); !slices.Equal(got, []int{30, 31}) {
		t.Errorf("a ring: got %v", got)
	}
}

func TestTree(t *testing.T) {
	ctx := context.Background()
	// A shell with a child of its own, which speaks when it runs.
	child := startReady(t, nil, "sh", "-c", `sh -c "echo ready; cat"; :`)
	got, err := Tree(ctx, child)
	wantNone(t, err)
	if len(got) < 2 || got[0] != child {
		t.Errorf("tree of the shell is %v", got)
	}
	all, err := Tree(ctx, os.Getpid())
	wantNone(t, err)
	for _, pid := range got {
		if !slices.Contains(all, pid) {
			t.Errorf("%d is not among %v", pid, all)
		}
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := Tree(ctx, gone.Process.Pid); !errors.Is(err, ErrVanished) {
		t.Errorf("ended process: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Tree(cancelled, os.Getpid()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
