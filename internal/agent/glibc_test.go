package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/pghardend/pghardend/pkg/config"
)

// What a program was linked with decides, not what the machine has. A program that needs little of glibc looks the same
// as one that was built long ago.
func TestLinkage(t *testing.T) {
	dir := t.TempDir()
	compile := func(name, text string, flags ...string) string {
		path := filepath.Join(dir, name)
		source := path + ".c"
		if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("gcc", append([]string{"-shared", "-fPIC", "-o", path, source}, flags...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return path
	}
	old := compile("postgres", "#include <unistd.h>\nint f(void) { return write(1, \"\", 1); }\n", "-Wl,-rpath,$ORIGIN/../lib")
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]linkage{
		old: {oldGlibc: true, origin: true},
		compile("new", "#include <sys/stat.h>\nint f(void) { struct stat s; return stat(\"/\", &s); }\n"): {},
		script:                        {},
		filepath.Join(dir, "missing"): {},
	} {
		if got := readLinkage(t.Context(), path); got != want {
			t.Errorf("%s: %v, want %v", filepath.Base(path), got, want)
		}
	}
	svc := config.Service{Name: "postgres", Profile: config.RolePostgres, Command: []string{old}}
	chosen, _ := chooseFeatures(config.Config{}, svc, readServerFacts(t.Context(), svc))
	if got := names(chosen); !slices.Contains(got, featureOldGlibc) || !slices.Contains(got, featureOrigin) {
		t.Errorf("chosen: %v", got)
	}
}

func TestGlibcBefore(t *testing.T) {
	for name, want := range map[string]bool{"2.2.5": true, "2.32": true, "2.33": false, "2.34": false, "3.0": false, "PRIVATE": false, "ABI_DT_RELR": false, "": false} {
		if got := glibcBefore(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}
