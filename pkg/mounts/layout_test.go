package mounts

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree makes directories and links (to = from) below a directory without links.
func tree(t *testing.T, dirs []string, links map[string]string) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range links {
		if err := os.Symlink(to, filepath.Join(root, from)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func under(root string, paths ...string) []string {
	var out []string
	for _, p := range paths {
		out = append(out, filepath.Join(root, p))
	}
	return out
}

func TestResolve(t *testing.T) {
	root := tree(t, []string{"usr/lib", "usr/data", "etc", "srv/ts", "run"}, map[string]string{"lib": "usr/lib", "var": "srv"})
	layout, err := Resolve(t.Context(), Spec{
		Exec: under(root, "usr", "lib", "lib32"), ReadOnly: under(root, "etc", "usr/lib", "missing"),
		Write: under(root, "var/ts", "usr/data", "srv/missing"), Hide: under(root, "run", "gone"),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Layout{exec: under(root, "usr"), readOnly: under(root, "etc"), write: under(root, "srv/ts", "usr/data"), hide: under(root, "run")}
	if diff := cmp.Diff(want, layout, cmp.AllowUnexported(Layout{})); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	var got []string
	for _, p := range layout.pieces() {
		got = append(got, strings.TrimPrefix(p.place, root))
	}
	if diff := cmp.Diff([]string{"/etc", "/usr", "/usr/data"}, got); diff != "" {
		t.Errorf("copies, -want +got\n%s", diff)
	}
}

func TestResolveRefuses(t *testing.T) {
	root := tree(t, []string{"usr/share", "data/code", "run/agent"}, map[string]string{"link": "usr/share", "loop": "loop", "top": "/"})
	for name, c := range map[string]struct {
		spec Spec
		want string
	}{
		"code below data":    {Spec{Exec: under(root, "data/code"), Write: under(root, "data")}, "keep the two apart"},
		"code is data":       {Spec{Exec: under(root, "data"), Write: under(root, "data")}, "keep the two apart"},
		"data is hidden":     {Spec{Write: under(root, "run/agent"), Hide: under(root, "run")}, "hidden from the service"},
		"code is hidden":     {Spec{Exec: under(root, "run/agent"), Hide: under(root, "run")}, "hidden from the service"},
		"a link into code":   {Spec{Exec: under(root, "usr"), Write: under(root, "link")}, "symbolic link"},
		"a link that loops":  {Spec{Write: under(root, "loop")}, "cannot learn where"},
		"everything, linked": {Spec{Exec: under(root, "top")}, "other than /"},
	} {
		if _, err := Resolve(t.Context(), c.spec); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// A star stands for what is there.
func TestResolvePatterns(t *testing.T) {
	root := tree(t, []string{"lib/x86_64-linux-gnu", "lib/systemd", "lib/pg/15/lib", "lib/pg/16/bin"}, nil)
	layout, err := Resolve(t.Context(), Spec{Exec: under(root, "lib/*-linux-gnu*", "lib/pg/*/lib", "lib/none*"), ReadOnly: under(root, "lib")})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(under(root, "lib/pg/15/lib", "lib/x86_64-linux-gnu"), layout.Exec()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if diff := cmp.Diff(under(root, "lib"), layout.readOnly); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if _, err := Resolve(t.Context(), Spec{Exec: []string{"/usr/["}}); err == nil {
		t.Error("a broken pattern is accepted")
	}
}

// A mount that should not be executed from is left alone where code is that runs.
func TestCodeOn(t *testing.T) {
	table := Table{
		{ID: 1, Parent: 0, Point: "/", Options: []string{"noexec"}}, {ID: 2, Parent: 1, Point: "/usr", Options: []string{"ro"}},
		{ID: 3, Parent: 1, Point: "/opt"}, {ID: 4, Parent: 2, Point: "/usr/lib/a", Options: []string{"ro"}},
	}
	l := Layout{exec: []string{"/usr/lib/a", "/usr/lib/b"}}
	for i, want := range []string{"", "/usr/lib/b", "", "/usr/lib/a"} {
		if got := l.codeOn(table, table[i]); got != want {
			t.Errorf("%s: %q, want %q", table[i].Point, got, want)
		}
	}
}
