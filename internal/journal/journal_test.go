package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// run writes until stop, which returns when all is written.
func run(t *testing.T, j *Journal) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = j.Run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	return stop
}

func numbered(i int) Record {
	return Record{Kind: "drift", ID: uint64(i), What: fmt.Sprint("event ", i)}
}

func seqs(list []Record) string {
	var s []uint64
	for _, r := range list {
		s = append(s, r.Seq)
	}
	return fmt.Sprint(s)
}

func onDisk(t *testing.T, dir string) []Record {
	t.Helper()
	list, err := Read(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestRecordsSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	want := Record{
		Kind: "drift", ID: 3, Resource: "firewall", Cause: "drift", Trigger: "event", What: "ipv4 chain \"X\": <missing>\n  - é\n",
		Since: at, Found: at, Repaired: at, OpenMS: 0.9, Restart: true, Error: "e",
		Who: &Culprit{PID: 5, Command: "iptables", UID: -1, Exe: "/x", Args: "iptables -F", Parent: "bash (4)"},
	}
	j := Open(t.Context(), dir, discard())
	stop := run(t, j)
	j.Append(want)
	j.Append(numbered(1))
	stop()
	got := onDisk(t, dir)
	ignored := cmpopts.IgnoreFields(Record{}, "Seq", "At", "Boot", "PID")
	if d := cmp.Diff([]Record{want, numbered(1)}, got, ignored); d != "" {
		t.Fatalf("(-want +got)\n%s", d)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if r := got[0]; err != nil || r.Boot != strings.TrimSpace(string(boot)) || r.PID != os.Getpid() || time.Since(r.At) > time.Minute {
		t.Errorf("written by %q %d at %v, error %v", r.Boot, r.PID, r.At, err)
	}

	j = Open(t.Context(), dir, discard())
	if list := j.Since(t.Context(), 0, 0); seqs(list) != "[1 2]" {
		t.Errorf("the next daemon knows %s", seqs(list))
	}
	stop = run(t, j)
	j.Append(numbered(2))
	stop()
	if s := seqs(onDisk(t, dir)); s != "[1 2 3]" {
		t.Errorf("numbers are %s", s)
	}
	if info, err := os.Stat(filepath.Join(dir, fileName)); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
}

// Who made a record may go on to use what it points to.
func TestRecordIsACopy(t *testing.T) {
	j := Open(t.Context(), t.TempDir(), discard())
	who := &Culprit{PID: 1, Command: "a"}
	j.Append(Record{Kind: "drift", Who: who})
	who.Command = "b"
	if r := j.Since(t.Context(), 0, 0)[0]; r.Who.Command != "a" {
		t.Errorf("%+v", r.Who)
	}
}

// A crash leaves half a line, or a block of zeros: neither takes its neighbour along.
func TestTornLineIsSkippedAndEnded(t *testing.T) {
	const first = `{"seq":7,"at":"2026-01-02T03:04:05Z","pid":1,"kind":"drift","what":"a"}` + "\n"
	for name, tt := range map[string]struct{ torn, want string }{
		"half a record":      {`{"seq":8,"at":"2026-01-02T03:04:05Z","pi`, "[7 8]"},
		"all but the end":    {`{"seq":8,"at":"2026-01-02T03:04:05Z","pid":1,"kind":"drift","what":"b"}`, "[7 8 9]"},
		"zeros":              {strings.Repeat("\x00", 100), "[7 8]"},
		"no records":         {"{}\n[]\nnull\n\n", "[7 8]"},
		"a number too large": {`{"seq":18446744073709551615,"kind":"drift"}` + "\n", "[7 8]"},
		"a line too long":    {`{"seq":9,"kind":"drift","what":"` + strings.Repeat("x", maxLine) + "\"}\n", "[7 8]"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, fileName), []byte(first+tt.torn), 0o600); err != nil {
				t.Fatal(err)
			}
			j := Open(t.Context(), dir, discard())
			stop := run(t, j)
			j.Append(numbered(1))
			stop()
			if list := onDisk(t, dir); seqs(list) != tt.want || list[len(list)-1].What != "event 1" {
				t.Errorf("%s: %+v", seqs(list), list)
			}
		})
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	j := Open(t.Context(), dir, discard())
	stop := run(t, j)
	what := strings.Repeat("x\n", maxWhat)
	var most int64
	for j.next < 1500 { // some 3 MB
		j.Append(Record{Kind: "drift", What: what})
		if j.next%100 == 0 { // else they would not all be written
			stop()
			most = max(most, size(t, filepath.Join(dir, fileName)), size(t, filepath.Join(dir, olderName)))
			j = Open(t.Context(), dir, discard())
			stop = run(t, j)
		}
	}
	stop()
	if most > maxFile || most < maxFile*9/10 {
		t.Errorf("the larger file has %d bytes", most)
	}
	list := onDisk(t, dir)
	for i, r := range list {
		if i > 0 && r.Seq != list[i-1].Seq+1 || r.Lost != 0 {
			t.Fatalf("record %d after %d, %d lost", r.Seq, list[i-1].Seq, r.Lost)
		}
	}
	if last := list[len(list)-1].Seq; last != 1499 || len(list) < maxFile/maxLine {
		t.Errorf("%d records up to %d", len(list), last)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(names) != 2 {
		t.Errorf("files %v, error %v", names, err)
	}
	// What is older than memory reaches comes from both files, without gap or double.
	j = Open(t.Context(), dir, discard())
	if got := j.Since(t.Context(), 0, 0); seqs(got) != seqs(list) {
		t.Errorf("listed %s\nwant %s", seqs(got), seqs(list))
	}
	if got := j.Since(t.Context(), 1490, 3); seqs(got) != "[1497 1498 1499]" {
		t.Errorf("listed %s", seqs(got))
	}
}

// F22: nothing waits for a disk, and memory is bounded. What could not be kept is counted.
func TestF22_WithoutADiskAppendNeitherBlocksNorGrows(t *testing.T) {
	dir := t.TempDir()
	j := Open(t.Context(), dir, discard()) // and nobody writes
	for i := range 1000 {
		j.Append(numbered(i))
	}
	if list := j.Since(t.Context(), 0, 0); len(list) != maxKept || list[0].Seq != 1000-maxKept+1 || cap(j.kept) > 4*maxKept {
		t.Fatalf("%d records from %d, room for %d", len(list), list[0].Seq, cap(j.kept))
	}
	run(t, j)()
	list := onDisk(t, dir)
	if len(list) != maxKept || list[0].Lost != 1000-maxKept || list[1].Lost != 0 || list[maxKept-1].Seq != 1000 {
		t.Errorf("%d records, of which the first says that %d are lost: %+v", len(list), list[0].Lost, list[0])
	}
}

// F22: a directory that cannot be written to (here: it is not there) is named, tried
// again ever less often, and what waited gets to disk when it can.
func TestF22_FailureIsReportedRetriedAndMadeUpFor(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "state")
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		j := Open(t.Context(), dir, slog.New(slog.NewTextHandler(&log, nil)))
		if err := j.Err(); err != nil {
			t.Errorf("nothing to write, and yet %v", err)
		}
		stop := run(t, j)
		for i := range maxKept + 3 {
			j.Append(numbered(i))
		}
		synctest.Wait()
		err := j.Err()
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "256 events are kept in memory only, 3 before them are lost") ||
			!strings.Contains(err.Error(), filepath.Join(dir, fileName)) || !strings.Contains(err.Error(), "is the disk full or read-only?") {
			t.Errorf("error %v", err)
		}
		<-time.After(10 * time.Minute)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		j.Append(numbered(300)) // which is no reason to try at once
		synctest.Wait()
		if j.Err() == nil {
			t.Error("it is tried again with each record")
		}
		<-time.After(2 * maxRetry)
		synctest.Wait()
		if err := j.Err(); err != nil {
			t.Error(err)
		}
		if list := onDisk(t, dir); len(list) != maxKept || list[0].Lost != 4 || list[maxKept-1].ID != 300 {
			t.Errorf("%d records, the first %+v", len(list), list[0])
		}
		stop()
		if bad, good := strings.Count(log.String(), "events are not recorded"), strings.Count(log.String(), "recorded on disk again"); bad != 1 || good != 1 {
			t.Errorf("the log says it %d and %d times:\n%s", bad, good, &log)
		}
	})
}

// Nothing wakes the writer while nothing happens, and little while much does.
func TestSyncIsAtMostOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := Open(t.Context(), t.TempDir(), discard())
		stop := run(t, j)
		j.Append(numbered(1))
		synctest.Wait()
		if !j.disk.dirty {
			t.Error("each record waits for the disk")
		}
		<-time.After(syncDelay / 2)
		j.Append(numbered(2))
		<-time.After(syncDelay / 2)
		synctest.Wait()
		if j.disk.dirty {
			t.Error("the disk was not made to keep it after a second")
		}
		j.Append(numbered(3))
		stop()
		if j.disk.dirty || len(onDisk(t, j.dir)) != 3 {
			t.Error("not all is on disk at the end")
		}
	})
}

func TestHangingDiskDoesNotHoldUpTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		cancel()
		release := make(chan struct{})
		if awaited(ctx, func(context.Context) { <-release }) || time.Since(began) != farewell {
			t.Errorf("after %v", time.Since(began))
		}
		close(release)
	})
}

// Who moves the file (logrotate, say) or removes it does not stop the journal.
func TestMovedFileIsMadeAnew(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	synctest.Test(t, func(t *testing.T) {
		j := Open(t.Context(), dir, discard())
		stop := run(t, j)
		for i, act := range []func() error{
			func() error { return os.Rename(path, path+".moved") },
			func() error { return os.Remove(path) },
		} {
			j.Append(numbered(2 * i))
			synctest.Wait()
			if err := act(); err != nil {
				t.Fatal(err)
			}
			j.Append(numbered(2*i + 1))
			synctest.Wait()
			if list := onDisk(t, dir); len(list) != 1 || list[0].ID != uint64(2*i+1) {
				t.Errorf("on disk: %+v", list)
			}
		}
		stop()
	})
}

// F19: what is not a file of ours is neither followed, nor waited for, nor written to.
func TestF19_OnlyAFileOfOursIsUsed(t *testing.T) {
	for says, put := range map[string]func(path, other string) error{
		"is a symbolic link": func(path, other string) error { return os.Symlink(other, path) },
		"is no regular file": func(path, _ string) error { return unix.Mkfifo(path, 0o600) },
		"writable by":        func(path, _ string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o666)) },
		"is a directory":     func(path, _ string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(says, func(t *testing.T) {
			dir := t.TempDir()
			other := filepath.Join(t.TempDir(), "other")
			if err := errors.Join(os.WriteFile(other, []byte("mine\n"), 0o600), put(filepath.Join(dir, fileName), other)); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				j := Open(t.Context(), dir, discard())
				stop := run(t, j)
				j.Append(numbered(1))
				synctest.Wait()
				if err := j.Err(); err == nil || !strings.Contains(err.Error(), says) {
					t.Errorf("error %v", err)
				}
				if list := j.Since(t.Context(), 0, 0); len(list) != 1 {
					t.Errorf("not in memory either: %+v", list)
				}
				stop()
			})
			if text, err := os.ReadFile(other); err != nil || string(text) != "mine\n" {
				t.Errorf("another file was written to: %q, %v", text, err)
			}
		})
	}
}
