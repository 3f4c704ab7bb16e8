package launch

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

func TestF27_Script(t *testing.T) {
	script := filepath.Join(t.TempDir(), "run")
	read := func(text string) (string, bool, error) {
		if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return readInterpreter(candidate{what: "program", path: script})
	}
	if name, is, err := read("#!/bin/sh\n"); err != nil || !is || name != "/bin/sh" {
		t.Errorf("got %q %v %v", name, is, err)
	}
	if name, is, err := readInterpreter(candidate{what: "program", path: realPath(t, "cat")}); err != nil || is {
		t.Errorf("cat: got %q %v %v", name, is, err)
	}
	for _, text := range []string{"", "#"} {
		_, _, err := read(text)
		wantError(t, err, "cannot look into program "+script)
	}
}

// The cases are those of execve(2) and of the kernel's binfmt_script.c.
func TestF27_Interpreter(t *testing.T) {
	long := "#!/" + strings.Repeat("a", 300)
	for name, c := range map[string]struct {
		start, want, word string
		script            bool
	}{
		"shell":              {"#!/bin/sh\nexit 0\n", "/bin/sh", "", true},
		"argument":           {"#!/bin/sh -e\n", "/bin/sh", "", true},
		"blanks":             {"#! \t/bin/sh \n", "/bin/sh", "", true},
		"tab":                {"#!/usr/bin/perl\t-w\n", "/usr/bin/perl", "", true},
		"no end of line":     {"#!/bin/sh", "/bin/sh", "", true},
		"ELF":                {"\x7fELF\x02\x01", "", "", false},
		"a comment":          {"# !/bin/sh\n", "", "", false},
		"not in front":       {" #!/bin/sh\n", "", "", false},
		"nothing":            {"#!\n/bin/sh\n", "", "names no interpreter", true},
		"blanks alone":       {"#!  \t\n", "", "names no interpreter", true},
		"DOS":                {"#!/bin/sh\r\n", "", "carriage returns", true},
		"NUL":                {"#!/bin/sh\x00x\n", "", "NUL", true},
		"too long":           {long[:interpreterLine], "", "more than 256 bytes", true},
		"long, but complete": {long[:interpreterLine-1] + "\n", long[2 : interpreterLine-1], "", true},
		"long arguments":     {("#!/bin/sh " + long)[:interpreterLine], "/bin/sh", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			got, script, err := interpreter([]byte(c.start))
			if script != c.script {
				t.Errorf("script is %v", script)
			}
			if c.word != "" {
				wantError(t, err, c.word)
				return
			}
			wantNone(t, err)
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func FuzzInterpreter(f *testing.F) {
	for _, s := range []string{"#!/bin/sh\n", "#! /usr/bin/env bash -e\n", "\x7fELF", "#!\r\n", "#!a\x00b", "#!" + strings.Repeat("/x", 200)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, start []byte) {
		name, script, err := interpreter(start[:min(len(start), interpreterLine)])
		if script != strings.HasPrefix(string(start), "#!") {
			t.Errorf("script is %v", script)
		}
		if named := name != ""; named != (script && err == nil) {
			t.Errorf("name %q, script %v, error %v", name, script, err)
		}
		if strings.ContainsAny(name, " \t\n\r\x00") || !strings.Contains(string(start), name) {
			t.Errorf("name %q", name)
		}
	})
}

func TestF27_FollowLinks(t *testing.T) {
	for name, want := range map[string]string{"/bin/sh": realPath(t, "sh"), "/usr/bin/../bin/cat": realPath(t, "cat"), "/usr//bin/./cat": realPath(t, "cat"), "/": "/"} {
		got, err := followLinks(name)
		wantNone(t, err)
		if got != want {
			t.Errorf("%s leads to %s, want %s", name, got, want)
		}
	}
	dir := t.TempDir() // below /tmp, where anybody could put another one in its place
	link := filepath.Join(dir, "sh")
	if err := os.Symlink("/bin/sh", link); err != nil {
		t.Fatal(err)
	}
	_, err := followLinks(link)
	wantError(t, err, "could replace the program")
	_, err = followLinks("/usr/bin/no-such-shell")
	wantError(t, err, "cannot look at /usr/bin/no-such-shell", "first line")
}

func TestF27_Helpers(t *testing.T) {
	script, err := filepath.EvalSymlinks("/usr/bin/ldd") // a shell script of the C library
	wantNone(t, err)
	cat := realPath(t, "cat")
	check := func(helpers ...string) error {
		return checkHelpers(context.Background(), Spec{Service: "pool", Helpers: helpers}, postgres)
	}
	wantNone(t, check())
	wantNone(t, check(script, cat))
	wantError(t, check("failover.sh"), `helper "failover.sh"`, "absolute")
	wantError(t, check("/usr/bin/no-such-helper"), "helper /usr/bin/no-such-helper does not exist", "services.pool.helpers")
	err = check(cat, "one", "/usr/bin/no-such-helper")
	wantError(t, err, `"one"`, "no-such-helper")
	if strings.Contains(err.Error(), cat) {
		t.Errorf("a sound helper is complained about: %v", err)
	}
	// The program itself may still not be a script.
	err = checkBinary(context.Background(), Spec{Service: "pool", Command: []string{script}}, postgres)
	wantError(t, err, "is a script", "put its interpreter first")

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := checkHelpers(ctx, Spec{Helpers: []string{cat}}, postgres); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestF27_CheckInterpreter(t *testing.T) {
	c := candidate{what: "helper", path: "/opt/failover.sh"}
	wantNone(t, checkInterpreter(c, "/bin/sh", postgres))
	wantError(t, checkInterpreter(c, "sh", postgres), "no absolute path", "#!/bin/sh")
	wantError(t, checkInterpreter(c, "/usr/bin/env", postgres), "whatever PATH leads to")
	wantError(t, checkInterpreter(c, "/usr/bin", postgres), "not a regular file")
	wantError(t, checkInterpreter(c, "/etc/passwd", postgres), "not executable")
	wantError(t, checkInterpreter(c, path.Join(path.Dir(realPath(t, "ldd")), "ldd"), postgres), "a script itself")
}
