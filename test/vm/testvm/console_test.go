package testvm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConsoleTellsOfADeadMachine(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name, says string
		silent     time.Duration
		want       string // in the error; empty: none
	}{
		{"a boot", "[\x1b[0;32m  OK  \x1b[0m] Reached target basic.target\r\n", time.Second, ""},
		{"a panic", "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n", 0, "Unable to mount root fs"},
		{"an emergency shell", "You are in \x1b[1memergency mode\x1b[0m. After logging in\r\n", 0, "emergency mode"},
		{"a shell in the initial RAM disk", "(initramfs) ", 0, "(initramfs)"},
		{"silence", "Loading\r\n", stall + time.Second, "nothing on its console"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "console")
			if err := os.WriteFile(path, []byte(c.says), 0o600); err != nil {
				t.Fatal(err)
			}
			console := newConsole(path)
			err := console.check(now)
			if err == nil {
				err = console.check(now.Add(c.silent))
			}
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, ErrHung) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("check says %v, want %q", err, c.want)
			}
		})
	}
}

// What an earlier boot said is no sign of this one.
func TestConsoleForgets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	if err := os.WriteFile(path, []byte("Kernel panic - not syncing: old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	console := newConsole(path)
	console.forget()
	if err := console.check(time.Now()); err != nil {
		t.Error(err)
	}
	if text := console.text(); text != "" {
		t.Errorf("it remembers %q", text)
	}
}
