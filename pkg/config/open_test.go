package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// link makes a symlink and returns its path.
func link(t *testing.T, target, path string) string {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// swap replaces path by a new symlink at one moment, as `ln -s … && mv -T` does.
func swap(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Rename(link(t, target, path+".new"), path); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestF19_OwnSymlinksAreFollowed(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/releases/7/peers.yaml", "seven")
	link(t, "releases/7", dir+"/current")
	link(t, "../current/peers.yaml", dir+"/releases/peers.yaml")
	link(t, dir+"/releases", dir+"/absolute")
	link(t, "absolute/", dir+"/slash")
	t.Chdir(dir + "/releases")
	for _, path := range []string{
		dir + "/current/peers.yaml", dir + "/releases/peers.yaml", dir + "//absolute/./peers.yaml", dir + "/slash/peers.yaml",
		dir + "/current/../7/peers.yaml", // .. of where the link leads, not of where it is
		"peers.yaml", "7/peers.yaml", "../current/peers.yaml", "./7/../7/peers.yaml",
	} {
		if got, err := ReadFile(t.Context(), path); string(got) != "seven" {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
}

// A reader sees the whole old file or the whole new one, however it is swapped.
func TestF19_SwapUnderTheReader(t *testing.T) {
	contents := []string{strings.Repeat("a", 100_000), strings.Repeat("b", 100_000)}
	swaps := map[string]struct {
		setUp, swap func(t *testing.T, dir string, i int)
	}{
		"rename": {
			func(t *testing.T, dir string, _ int) { write(t, dir+"/peers.yaml", contents[0]) },
			func(t *testing.T, dir string, i int) {
				write(t, dir+"/peers.yaml.new", contents[i])
				if err := os.Rename(dir+"/peers.yaml.new", dir+"/peers.yaml"); err != nil {
					t.Fatal(err)
				}
			},
		},
		"symlink": {
			func(t *testing.T, dir string, i int) { write(t, fmt.Sprintf("%s/v%d", dir, i), contents[i]) },
			func(t *testing.T, dir string, i int) { swap(t, fmt.Sprintf("v%d", i), dir+"/peers.yaml") },
		},
		"symlink of the directory": { // as Kubernetes does with mounted ConfigMaps
			func(t *testing.T, dir string, i int) {
				write(t, fmt.Sprintf("%s/..%d/peers.yaml", dir, i), contents[i])
			},
			func(t *testing.T, dir string, i int) {
				swap(t, fmt.Sprintf("..%d", i), dir+"/..data")
				if i == 0 {
					swap(t, "..data/peers.yaml", dir+"/peers.yaml")
				}
			},
		},
		"symlink and file by turns": {
			func(t *testing.T, dir string, i int) { write(t, dir+"/v1", contents[1]) },
			func(t *testing.T, dir string, i int) {
				if i == 1 {
					swap(t, "v1", dir+"/peers.yaml")
					return
				}
				write(t, dir+"/peers.yaml.new", contents[0])
				if err := os.Rename(dir+"/peers.yaml.new", dir+"/peers.yaml"); err != nil {
					t.Fatal(err)
				}
			},
		},
	}
	for name, s := range swaps {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for i := range contents {
				s.setUp(t, dir, i)
			}
			s.swap(t, dir, 0)
			ctx, cancel := context.WithCancel(t.Context())
			var readers sync.WaitGroup
			for range 2 {
				readers.Go(func() {
					for ctx.Err() == nil {
						got, err := ReadFile(t.Context(), dir+"/peers.yaml")
						if err != nil || string(got) != contents[0] && string(got) != contents[1] {
							t.Errorf("%d bytes, error %v: want one of the two files", len(got), err)
							return
						}
					}
				})
			}
			for i := range 100 {
				s.swap(t, dir, i%2)
			}
			cancel()
			readers.Wait()
		})
	}
}

func TestF19_DanglingAndLoops(t *testing.T) {
	dir := t.TempDir()
	link(t, "nowhere", dir+"/dangling")
	link(t, "b", dir+"/a")
	link(t, "a", dir+"/b")
	link(t, ".", dir+"/self")
	write(t, dir+"/file", "content")
	_, err := ReadFile(t.Context(), dir+"/dangling")
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v is not fs.ErrNotExist", err)
	}
	checkRefusal(t, err, "cannot read "+dir+"/dangling: no such file or directory (by the symlink \""+dir+"/dangling\" -> \"nowhere\"); create the file or name another one")
	_, err = ReadFile(t.Context(), dir+"/a")
	if !errors.Is(err, syscall.ELOOP) {
		t.Errorf("error %v is not ELOOP", err)
	}
	checkRefusal(t, err, "cannot read "+dir+"/a: too many levels of symbolic links (by the symlink \""+dir+"/b\" -> \"a\"); check the path and the rights of the directories on it")
	// As many links as the kernel follows, and one more.
	for n, ok := range map[int]bool{maxLinks: true, maxLinks + 1: false} {
		path := dir + strings.Repeat("/self", n) + "/file"
		_, kernel := os.ReadFile(path)
		if _, err := ReadFile(t.Context(), path); (err == nil) != ok || (kernel == nil) != ok {
			t.Errorf("%d links: error %v, that of the kernel %v, want success %v", n, err, kernel, ok)
		}
	}
	for _, path := range []string{"", dir + "/file/", dir + "/file/.", dir + "/missing/../file"} {
		if _, err := ReadFile(t.Context(), path); err == nil {
			t.Errorf("%q: the kernel opens no such path", path)
		}
	}
}

// What others can write to, they can put a link into: to a file of root that
// happens to be right, or was right once.
func TestF19_LinkInOthersDirectoryRefused(t *testing.T) {
	const fix = "; put a regular file there, or keep the link in a directory that only root can write to"
	for mode, text := range map[fs.FileMode]string{0o777: "0777", 0o775: "0775", 0o702: "0702", 0o777 | fs.ModeSticky: "1777"} {
		dir := t.TempDir()
		write(t, dir+"/real/peers.yaml", "content")
		write(t, dir+"/shared/regular.yaml", "content")
		link(t, dir+"/real/peers.yaml", dir+"/shared/file")
		link(t, dir+"/real", dir+"/shared/directory")
		link(t, "shared/file", dir+"/indirect")
		if err := os.Chmod(dir+"/shared", mode); err != nil {
			t.Fatal(err)
		}
		for path, culprit := range map[string]string{"/shared/file": "file", "/shared/directory/peers.yaml": "directory", "/indirect": "file"} {
			got, err := ReadFile(t.Context(), dir+path)
			checkRefusal(t, err, fmt.Sprintf("%s%s: the symlink %q is in a directory that its group or everybody can write to (mode %s)%s",
				dir, path, dir+"/shared/"+culprit, text, fix))
			if got != nil {
				t.Errorf("%s: the content was returned", path)
			}
		}
		if _, err := ReadFile(t.Context(), dir+"/shared/regular.yaml"); err != nil {
			t.Errorf("a file is checked itself: %v", err)
		}
		if err := os.Chmod(dir+"/shared", 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadFile(t.Context(), dir+"/shared/file"); err != nil {
			t.Errorf("the same link in a directory of mode 0755: %v", err)
		}
	}
}

func TestF19_OthersLinkRefused(t *testing.T) {
	const fix = "; put a regular file there, or keep the link in a directory that only root can write to"
	dirOf := func(uid uint32, mode uint32) unix.Stat_t { return unix.Stat_t{Uid: uid, Mode: unix.S_IFDIR | mode} }
	for _, tt := range []struct {
		owner, euid int
		dir         unix.Stat_t
		want        string
	}{
		{0, 0, dirOf(0, 0o755), ""},
		{0, 1000, dirOf(0, 0o755), ""},
		{1000, 1000, dirOf(1000, 0o700), ""},
		{1000, 0, dirOf(0, 0o755), `p: the symlink "/d/l" belongs to uid 1000, who could let it lead anywhere` + fix},
		{1001, 1000, dirOf(0, 0o755), `p: the symlink "/d/l" belongs to uid 1001, who could let it lead anywhere` + fix},
		{0, 0, dirOf(1000, 0o755), `p: the symlink "/d/l" is in a directory of uid 1000, who could put another one there` + fix},
		{1000, 1000, dirOf(1001, 0o755), `p: the symlink "/d/l" is in a directory of uid 1001, who could put another one there` + fix},
		{0, 0, dirOf(0, 0o1777), `p: the symlink "/d/l" is in a directory that its group or everybody can write to (mode 1777)` + fix},
	} {
		e := checkLink("/d/l", tt.owner, tt.dir, tt.euid)
		if (e == nil) != (tt.want == "") {
			t.Errorf("link of %d in a directory of %d with mode %o, euid %d: %v", tt.owner, tt.dir.Uid, tt.dir.Mode, tt.euid, e)
		} else if e != nil {
			e.File = "p"
			checkRefusal(t, e, tt.want)
		}
	}
	if os.Geteuid() != 0 {
		return // only root can give a link away; the rule itself is checked above
	}
	dir := t.TempDir()
	write(t, dir+"/peers.yaml", "content")
	path := link(t, dir+"/peers.yaml", dir+"/link")
	if err := os.Lchown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, err := ReadFile(t.Context(), path)
	checkRefusal(t, err, path+": the symlink "+strconv.Quote(path)+" belongs to uid 65534, who could let it lead anywhere"+fix)
	theirs := t.TempDir()
	link(t, dir+"/peers.yaml", theirs+"/link")
	if err := os.Chown(theirs, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, err = ReadFile(t.Context(), theirs+"/link")
	checkRefusal(t, err, theirs+"/link: the symlink "+strconv.Quote(theirs+"/link")+" is in a directory of uid 65534, who could put another one there"+fix)
}

// A file that becomes a symlink after it was looked at is looked at again.
func TestF19_LinkInPlaceOfTheFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/v1", "content")
	link(t, "v1", dir+"/peers.yaml")
	w := &pathWalk{path: dir + "/peers.yaml", euid: os.Geteuid(), dir: -1, rest: []string{"peers.yaml"}}
	defer w.leave()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.dir, w.at = fd, dir
	for range maxLinks - 1 { // step saw a file each time
		if file, err := w.last("peers.yaml"); file != nil || err != nil {
			t.Fatalf("file %v, error %v, want another look", file, err)
		}
	}
	if file, err := w.step(); file != nil || err != nil || w.rest[0] != "v1" {
		t.Fatalf("file %v, error %v, next %q: want the link followed", file, err, w.rest)
	}
	if _, err := w.last("peers.yaml"); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("error %v: want an end of it", err)
	}
	file, err := w.step()
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
}
