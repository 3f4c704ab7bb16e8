package testbed

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// newStore is a store in a directory of the test, without namespaces: no root needed.
func newStore(t *testing.T) store {
	dir := t.TempDir()
	return store{locks: filepath.Join(dir, "locks"), data: filepath.Join(dir, "data"), netns: filepath.Join(dir, "netns")}
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestSweepKeepsTheLivingAndRemovesTheDead(t *testing.T) {
	s := newStore(t)
	if err := s.sweep(context.Background()); err != nil {
		t.Fatalf("sweep where nothing was ever made: %v", err)
	}
	live, err := s.open()
	if err != nil {
		t.Fatal(err)
	}
	dead, err := s.open()
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.lock.Close(); err != nil { // what the kernel does when a process dies
		t.Fatal(err)
	}
	orphan := filepath.Join(s.data, "1-00000000") // data whose lock is gone
	foreign := filepath.Join(s.data, "somebody's")
	for _, dir := range []string{orphan, foreign} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		live.dir(): true, s.lockFile(live.id): true, foreign: true,
		dead.dir(): false, s.lockFile(dead.id): false, orphan: false,
	} {
		if exists(t, path) != want {
			t.Errorf("after the sweep %s exists: %v, want %v", path, !want, want)
		}
	}
	if err := live.close(); err != nil {
		t.Fatal(err)
	}
	if exists(t, live.dir()) || exists(t, s.lockFile(live.id)) {
		t.Error("close left something behind")
	}
	if err := live.register(&Bed{name: "late"}); err == nil {
		t.Error("a bed was registered after the run was closed")
	}
}

func TestRegisterRefusesTheSameName(t *testing.T) {
	r, err := newStore(t).open()
	if err != nil {
		t.Fatal(err)
	}
	a, b := &Bed{name: "x", run: r}, &Bed{name: "x", run: r}
	if err := r.register(a); err != nil {
		t.Fatal(err)
	}
	if err := r.register(b); err == nil {
		t.Error("two beds of one name")
	}
	r.forget(a)
	if err := r.register(b); err != nil {
		t.Errorf("the name is free again, but: %v", err)
	}
}

func TestRunOfNetns(t *testing.T) {
	r := &run{id: "123-0123abcd"}
	if id, ok := runOfNetns(r.netnsName("my-bed", "pg-0")); !ok || id != r.id {
		t.Errorf("own name: %q, %v", id, ok)
	}
	for _, name := range []string{"", "t1", "pgh-", "pgh-x-y", "pgh-1-2-3", "pgh-1-0123abcd", "pgh-1-0123abcd-", "xpgh-1-0123abcd-b-h", "pgh-1-0123ABCD-b"} {
		if id, ok := runOfNetns(name); ok {
			t.Errorf("%q was taken for a namespace of run %s", name, id)
		}
	}
}

func FuzzRunOfNetns(f *testing.F) {
	f.Add("pgh-1-0123abcd-b-h")
	f.Add("pgh---")
	f.Fuzz(func(t *testing.T, name string) {
		id, ok := runOfNetns(name)
		if !ok {
			return
		}
		if !runForm.MatchString(id) || filepath.Base(id) != id {
			t.Errorf("%q gave the run id %q", name, id)
		}
	})
}
