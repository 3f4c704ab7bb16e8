package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/config"
)

// filesBed is a daemon's files and the data directory of a service that runs.
type filesBed struct {
	t    *testing.T
	dir  string
	cfg  config.Config
	list services
	r    *filesResource
}

func newFilesBed(t *testing.T) *filesBed {
	t.Helper()
	dir := t.TempDir()
	b := &filesBed{t: t, dir: dir, cfg: config.Config{
		File: filepath.Join(dir, "etc", "pghardend.yaml"), PeersFile: filepath.Join(dir, "etc", "peers.yaml"),
		RuntimeDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"),
	}}
	for _, d := range []string{"etc", "run", "state"} {
		b.mkdir(d, 0o755)
	}
	b.write("etc/pghardend.yaml", "a")
	b.write("etc/peers.yaml", "b")
	svc, _ := fakeServiceOf(t, notRoot())
	svc.spec.DataDir = b.data("data", modeData)
	b.list = services{svc}
	b.r = newFilesResource(b.list.running, func() config.Config { return b.cfg })
	t.Cleanup(b.r.close)
	return b
}

func (b *filesBed) path(name string) string { return filepath.Join(b.dir, name) }

func (b *filesBed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *filesBed) mkdir(name string, mode os.FileMode) string {
	b.t.Helper()
	b.must(os.Mkdir(b.path(name), 0o700))
	b.must(os.Chmod(b.path(name), mode))
	return b.path(name)
}

func (b *filesBed) write(name, text string) {
	b.t.Helper()
	b.must(os.WriteFile(b.path(name), []byte(text), 0o644))
	b.must(os.Chmod(b.path(name), 0o644))
}

// data makes a directory of the service's user.
func (b *filesBed) data(name string, mode os.FileMode) string {
	b.t.Helper()
	b.mkdir(name, mode)
	b.must(os.Chown(b.path(name), notRoot(), -1))
	b.must(os.Chmod(b.path(name), mode))
	return b.path(name)
}

func (b *filesBed) plan() filePlan {
	b.t.Helper()
	p, err := b.r.Plan(b.t.Context())
	b.must(err)
	return p.(filePlan)
}

// clean looks for the first time, at what is right.
func (b *filesBed) clean() {
	b.t.Helper()
	if !b.r.Peek(b.t.Context()) {
		b.t.Error("nothing to see before the first look")
	}
	b.wantClean("at first")
}

func (b *filesBed) wantClean(when string) {
	b.t.Helper()
	if p := b.plan(); !p.Empty() {
		b.t.Errorf("%s: want nothing to do, have\n%s", when, p)
	}
	if b.r.Peek(b.t.Context()) {
		b.t.Errorf("%s: a difference right after a look", when)
	}
}

// putBack wants a difference that Peek sees, with these words, and puts it back.
func (b *filesBed) putBack(words ...string) {
	b.t.Helper()
	if !b.r.Peek(b.t.Context()) {
		b.t.Error("not seen by Peek")
	}
	p := b.plan()
	contains(b.t, errors.New(p.String()), words...)
	if len(p.changes) != 1 || len(p.faults) != 0 {
		b.t.Errorf("want one thing to put back, have\n%s", p)
	}
	b.must(b.r.Apply(b.t.Context(), p))
	b.wantClean("after it was put back")
}

// left wants a difference that is reported and not touched.
func (b *filesBed) left(words ...string) {
	b.t.Helper()
	p := b.plan()
	contains(b.t, errors.New(p.Unrepairable()), words...)
	if len(p.changes) != 0 || p.String() != p.Unrepairable() {
		b.t.Errorf("want nothing to put back, have\n%s", p)
	}
}

func (b *filesBed) wantMode(path string, want uint32) {
	b.t.Helper()
	var st unix.Stat_t
	b.must(unix.Stat(path, &st))
	if got := st.Mode & modeBits; got != want {
		b.t.Errorf("%s has mode %04o, want %04o", path, got, want)
	}
}

func TestModesArePutBack(t *testing.T) {
	b := newFilesBed(t)
	b.clean()
	for _, tt := range []struct {
		name       string
		mode, want uint32
		words      string
	}{
		{"data", 0o777, 0o700, "data directory of service db %s: has mode 0777, want 0700\n"},
		{"data", 0o755, 0o700, "has mode 0755, want 0700"},
		{"data", 0o600, 0o700, "has mode 0600, want 0700"},
		{"data", 0o2770, 0o2700, "has mode 2770, want 2700"}, // setgid is handed down and does no harm
		{"etc/pghardend.yaml", 0o666, 0o644, "configuration %s: has mode 0666, want 0644\n"},
		{"etc/pghardend.yaml", 0o620, 0o600, "want 0600"},
		{"etc/peers.yaml", 0o602, 0o600, "peer list %s: has mode 0602, want 0600\n"},
		{"etc", 0o777, 0o755, "directory of the configuration %s: has mode 0777, want 0755\n"},
		{"run", 0o730, 0o710, "runtime_dir %s: has mode 0730, want 0710\n"},
		{"state", 0o702, 0o700, "state_dir %s: has mode 0702, want 0700\n"},
	} {
		t.Run(fmt.Sprintf("%s %o", tt.name, tt.mode), func(t *testing.T) {
			b.t = t
			b.must(unix.Chmod(b.path(tt.name), tt.mode))
			b.putBack(strings.ReplaceAll(tt.words, "%s", b.path(tt.name)))
			b.wantMode(b.path(tt.name), tt.want)
		})
	}
	b.t = t
	for name, mode := range map[string]uint32{"etc/peers.yaml": 0o400, "run": 0o755, "data": 0o700} { // is nobody's business
		b.must(unix.Chmod(b.path(name), mode))
		b.wantClean(fmt.Sprintf("%s with mode %o", name, mode))
	}
}

// PostgreSQL's group may read where initdb let it, and nowhere else.
func TestModeOfDataDirectoryWithGroup(t *testing.T) {
	for _, tt := range []struct {
		name               string
		version            os.FileMode // of PG_VERSION; 0: there is none
		mode               os.FileMode
		want               uint32
		afterEverybodyMode uint32
	}{
		{"group access", 0o640, 0o750, 0o750, 0o750},
		{"group access, not used", 0o640, 0o700, 0o700, 0o750},
		{"no group access", 0o600, 0o750, 0o700, 0o700},
		{"not PostgreSQL", 0, 0o750, 0o750, 0o700},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newFilesBed(t)
			if tt.version != 0 {
				b.write("data/PG_VERSION", "15")
				b.must(os.Chmod(b.path("data/PG_VERSION"), tt.version))
			}
			b.must(os.Chmod(b.path("data"), tt.mode))
			p := b.plan()
			b.must(b.r.Apply(t.Context(), p))
			b.wantMode(b.path("data"), tt.want)
			b.wantClean("then")
			b.must(os.Chmod(b.path("data"), 0o777))
			b.must(b.r.Apply(t.Context(), b.plan()))
			b.wantMode(b.path("data"), tt.afterEverybodyMode)
		})
	}
	b := newFilesBed(t)
	b.must(os.Symlink("/etc/passwd", b.path("data/PG_VERSION"))) // is group readable
	b.must(os.Chmod(b.path("data"), 0o750))
	b.wantClean("with a link for PG_VERSION, which says nothing")
}

// A file that somebody else could write to counts again only with the content
// that it had before.
func TestF18_WrittenConfigurationIsNotTrustedAgain(t *testing.T) {
	b := newFilesBed(t)
	b.clean()
	b.must(os.Chmod(b.path("etc/peers.yaml"), 0o666))
	b.must(os.WriteFile(b.path("etc/peers.yaml"), []byte("evil"), 0))
	b.left("peer list "+b.path("etc/peers.yaml"), "has mode 0666, and its content changed", "check it, then `chown", "&& chmod 0644")
	b.wantMode(b.path("etc/peers.yaml"), 0o666)
	b.must(os.WriteFile(b.path("etc/peers.yaml"), []byte("b"), 0))
	b.putBack("has mode 0666, want 0644")
	b.wantMode(b.path("etc/peers.yaml"), 0o644)

	// An edit in place by whoever may is not suspicious afterwards.
	b.write("etc/peers.yaml", "new")
	if !b.r.Peek(t.Context()) {
		t.Error("an edit is not seen, and so would its content not be known")
	}
	b.wantClean("after an edit")
	b.must(os.Chmod(b.path("etc/peers.yaml"), 0o666))
	b.putBack("has mode 0666, want 0644")
}

// What was never seen right is refused by whoever reads it, and left as it is.
func TestFilesThatWereNeverRightAreLeft(t *testing.T) {
	b := newFilesBed(t)
	b.must(os.Chmod(b.path("etc"), 0o777))
	b.must(os.Chmod(b.path("etc/peers.yaml"), 0o666))
	b.wantClean("wrong from the start")
	b.wantMode(b.path("etc"), 0o777)
	b.must(os.Chmod(b.path("etc/peers.yaml"), 0o644))
	b.wantClean("made right")
	b.must(os.Chmod(b.path("etc/peers.yaml"), 0o666))
	b.putBack("has mode 0666, want 0644")

	// A file in its place is another file.
	b.write("etc/new", "b")
	b.must(os.Chmod(b.path("etc/new"), 0o666))
	b.must(os.Rename(b.path("etc/new"), b.path("etc/peers.yaml")))
	b.wantClean("replaced by one that others can write to")
	b.wantMode(b.path("etc/peers.yaml"), 0o666)
	b.write("etc/new", "c")
	b.must(os.Rename(b.path("etc/new"), b.path("etc/peers.yaml")))
	b.wantClean("replaced by a right one")
	b.must(os.Chmod(b.path("etc/peers.yaml"), 0o646))
	b.putBack("has mode 0646, want 0644")
	b.must(os.Remove(b.path("etc/peers.yaml")))
	b.wantClean("removed")
	b.must(os.Mkdir(b.path("etc/peers.yaml"), 0o777))
	b.wantClean("replaced by a directory")
}

// The service's user may own what the data directory is in, and put anything in
// its place: nothing of that is touched.
func TestDataDirectoryIsNeverFollowed(t *testing.T) {
	for name, replacement := range map[string]func(b *filesBed, victim string) error{
		"link":      func(b *filesBed, victim string) error { return os.Symlink(victim, b.path("data")) },
		"directory": func(b *filesBed, victim string) error { return os.Rename(victim, b.path("data")) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newFilesBed(t)
			b.clean()
			victim := b.mkdir("victim", 0o755)
			b.must(os.Rename(b.path("data"), b.path("aside")))
			b.must(replacement(b, victim))
			if !b.r.Peek(t.Context()) {
				t.Error("not seen by Peek")
			}
			for range 2 {
				b.left("data directory of service db "+b.path("data"), "another directory than the one that the service was seen to run in")
			}
			b.wantMode(b.path("data"), 0o755)
			b.must(os.RemoveAll(b.path("data")))
			b.left("it is gone: put it back")
			b.must(os.Rename(b.path("aside"), b.path("data")))
			b.wantClean("with the right one back")
		})
	}
}

// Between the look and the write the path may lead elsewhere.
func TestModesArePutBackOnTheDescriptor(t *testing.T) {
	b := newFilesBed(t)
	b.clean()
	b.must(os.Chmod(b.path("data"), 0o777))
	p := b.plan()
	victim := b.mkdir("victim", 0o755)
	b.must(os.Rename(b.path("data"), b.path("aside")))
	b.must(os.Symlink(victim, b.path("data")))
	b.must(b.r.Apply(t.Context(), p))
	b.wantMode(victim, 0o755)
	b.wantMode(b.path("aside"), 0o700)
}

// TestF28: an owner that was wrong when the service started is reported, and the
// directory is not given away.
func TestF28_ForeignDataDirectoryIsLeft(t *testing.T) {
	b := newFilesBed(t)
	b.list[0].spec.DataDir = "/usr" // root's, and the service is not root
	b.left("data directory of service db /usr: it belongs to uid 0 and the service runs as uid", "when this daemon first saw it")
	b.list[0].spec.DataDir = b.cfg.File
	b.left("it is not a directory")
	b.list[0].spec.DataDir = b.path("nowhere")
	b.left("it is gone: put it back")
	b.list[0].spec.DataDir = ""
	b.wantClean("without a data directory")
}

// Each start of the service is a new beginning, and after its end nothing is kept.
func TestFilesFollowTheServices(t *testing.T) {
	b := newFilesBed(t)
	b.clean()
	b.must(os.Rename(b.path("data"), b.path("old")))
	b.data("data", modeData)
	b.left("another directory")
	again, _ := fakeServiceOf(t, notRoot())
	again.spec.DataDir = b.path("data")
	b.list[0] = again
	if !b.r.Peek(t.Context()) {
		t.Error("a new start is not seen")
	}
	b.wantClean("started again in another directory")
	open := func() (n int) {
		for _, k := range b.r.kept {
			if k.file != nil {
				n++
			}
		}
		return n
	}
	if n := open(); n != 6 {
		t.Errorf("%d of 6 are kept", n)
	}
	b.list[0].pid = 1 << 30 // has ended
	b.wantClean("of a service that has ended")
	if n := open(); n != 5 {
		t.Errorf("%d of 5 are kept", n)
	}
	b.r.close()
	if n := open(); n != 0 {
		t.Errorf("%d are kept after the end", n)
	}
	contains(t, b.r.Apply(t.Context(), strangePlan{}), "cannot apply a agent.strangePlan to files")
	contains(t, b.r.Apply(t.Context(), filePlan{changes: []fileChange{{kept: &keptPath{what: "state_dir", path: "/x"}}}}),
		"cannot put back state_dir /x: it is gone")
}

// BenchmarkFilesPeek: the files of one service.
func BenchmarkFilesPeek(b *testing.B) {
	svc, _ := fakeService(b)
	list := services{svc}
	list[0].spec.DataDir = b.TempDir()
	r := newFilesResource(list.running, func() config.Config {
		return config.Config{File: "/etc/passwd", PeersFile: "/etc/group", RuntimeDir: "/run", StateDir: "/var/lib"}
	})
	defer r.close()
	if _, err := r.Plan(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if r.Peek(b.Context()) {
			b.Fatal("a difference")
		}
	}
}
