package config

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// writeFile makes a file with exactly this mode, whatever the umask is.
func writeFile(t *testing.T, mode fs.FileMode, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "peers.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadFile(t *testing.T) {
	content := strings.Repeat("version: 1\n", 20000) // more than one piece
	for _, mode := range []fs.FileMode{0o400, 0o600, 0o640, 0o644, 0o755} {
		got, err := ReadFile(t.Context(), writeFile(t, mode, content))
		if err != nil || string(got) != content {
			t.Errorf("mode %v: %d bytes, error %v, want %d bytes of the caller's own file", mode, len(got), err, len(content))
		}
	}
	if got, err := ReadFile(t.Context(), writeFile(t, 0o600, "")); err != nil || len(got) != 0 {
		t.Errorf("empty file: %q, %v", got, err)
	}
}

// Whoever made the link: the file it leads to is checked as well.
func TestReadFileChecksWhereSymlinkLeads(t *testing.T) {
	good, bad := writeFile(t, 0o644, "good"), writeFile(t, 0o666, "bad")
	path := link(t, good, filepath.Join(t.TempDir(), "link"))
	if got, err := ReadFile(t.Context(), path); err != nil || string(got) != "good" {
		t.Errorf("link to a good file: %q, %v", got, err)
	}
	swap(t, bad, path)
	_, err := ReadFile(t.Context(), path)
	checkRefusal(t, err, path+": the file is writable by its group or by everybody (mode 0666); check its content, then `chmod go-w "+path+"`")
}

func TestF18_ReadFileRefusesWrongMode(t *testing.T) {
	for mode, text := range map[fs.FileMode]string{0o620: "0620", 0o602: "0602", 0o664: "0664", 0o777: "0777", 0o666: "0666"} {
		path := writeFile(t, mode, "version: 1\n")
		got, err := ReadFile(t.Context(), path)
		checkRefusal(t, err, path+": the file is writable by its group or by everybody (mode "+text+"); check its content, then `chmod go-w "+path+"`")
		if got != nil {
			t.Errorf("mode %s: the content was returned", text)
		}
	}
}

func TestF18_ReadFileRefusesWrongOwner(t *testing.T) {
	path := writeFile(t, 0o644, "version: 1\n")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		owner, euid int
		ok          bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1000, 0, false}, {1000, 1001, false}} {
		if e := checkFile(path, info, tt.owner, tt.euid); (e == nil) != tt.ok {
			t.Errorf("owner %d, euid %d: %v, want accepted %v", tt.owner, tt.euid, e, tt.ok)
		}
	}
	checkRefusal(t, checkFile("/etc/p.yaml", info, 1000, 0),
		"/etc/p.yaml: the file belongs to uid 1000, who could put anything into it; check its content, then `chown root: /etc/p.yaml && chmod go-w /etc/p.yaml`")
	if os.Geteuid() != 0 {
		return // only root can give a file away; the rule itself is checked above
	}
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, err = ReadFile(t.Context(), path)
	checkRefusal(t, err, path+": the file belongs to uid 65534, who could put anything into it; check its content, then `chown root: "+path+" && chmod go-w "+path+"`")
}

func TestReadFileRefusesOtherTypes(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil { // no writer: a plain open would wait for ever
		t.Fatal(err)
	}
	for path, what := range map[string]string{fifo: "a FIFO", dir: "a directory", "/dev/null": "a device"} {
		_, err := ReadFile(t.Context(), path)
		checkRefusal(t, err, path+": not a regular file but "+what+"; put a regular file, or a symlink to one, there")
	}
	for mode, want := range map[fs.FileMode]string{fs.ModeSocket: "a socket", fs.ModeIrregular: "something else"} {
		if got := typeName(mode); got != want {
			t.Errorf("mode %v is %s, want %s", mode, got, want)
		}
	}
}

func TestReadFileRefusesLargeFile(t *testing.T) {
	path := writeFile(t, 0o600, "")
	if err := os.Truncate(path, maxFileSize); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadFile(t.Context(), path); err != nil || len(got) != maxFileSize {
		t.Errorf("8 MiB: %d bytes, error %v", len(got), err)
	}
	if err := os.Truncate(path, maxFileSize+1); err != nil {
		t.Fatal(err)
	}
	_, err := ReadFile(t.Context(), path)
	checkRefusal(t, err, path+": the file is larger than 8 MiB; put the right file there")
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, syscall.EIO }

// A file may grow, or its disk fail, after it was checked.
func TestReadAll(t *testing.T) {
	_, err := readAll(t.Context(), "p", io.MultiReader(bytes.NewReader(make([]byte, maxFileSize)), strings.NewReader("x")))
	checkRefusal(t, err, "p: the file is larger than 8 MiB; put the right file there")
	if _, err := readAll(t.Context(), "p", failing{}); !errors.Is(err, syscall.EIO) {
		t.Errorf("error %v, want EIO", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := readAll(ctx, "p", strings.NewReader("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

func TestReadFileMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "no.yaml")
	_, err := ReadFile(t.Context(), path)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v is not fs.ErrNotExist", err)
	}
	checkRefusal(t, err, "cannot read "+path+": no such file or directory; create the file or name another one")
	below := filepath.Join(writeFile(t, 0o600, ""), "below")
	_, err = ReadFile(t.Context(), below)
	checkRefusal(t, err, "cannot read "+below+": not a directory; check the path and the rights of the directories on it")
}
