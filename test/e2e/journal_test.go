package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/journal"
)

// smallDisk is a file system of its own that is mounted nowhere: its root is
// reached through the descriptor.
func smallDisk(t *testing.T, size string) (dir string, mount int) {
	t.Helper()
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	must(t, err)
	defer unix.Close(fs)
	must(t, unix.FsconfigSetString(fs, "size", size))
	must(t, unix.FsconfigCreate(fs))
	mount, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(mount)) })
	dir = fmt.Sprintf("/proc/self/fd/%d", mount)
	must(t, os.Chmod(dir, 0o700))
	return dir, mount
}

// fill leaves so many bytes free.
func fill(t *testing.T, dir string, free int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "fill"))
	must(t, err)
	defer f.Close()
	block := make([]byte, 4096)
	for {
		if _, err = f.Write(block); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	info, err := f.Stat()
	must(t, err)
	must(t, f.Truncate(info.Size()-free))
}

// startJournal runs one until stop. It lives in a bubble with a clock of its own.
func startJournal(t *testing.T, dir string) (j *journal.Journal, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	j = journal.Open(ctx, dir, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	return j, func() {
		cancel()
		must(t, <-done)
	}
}

// note appends n records of some 200 bytes and waits until the disk has answered.
func note(j *journal.Journal, n int) {
	for range n {
		j.Append(journal.Record{Kind: "drift", What: strings.Repeat("x", 100)})
	}
	synctest.Wait()
}

// kept wants the records 1 to n on disk, each once.
func kept(t *testing.T, dir string, n int) {
	t.Helper()
	list, err := journal.Read(t.Context(), dir)
	must(t, err)
	if len(list) != n {
		t.Fatalf("%d records on disk, want %d", len(list), n)
	}
	for i, r := range list {
		if r.Seq != uint64(i+1) || r.Lost != 0 {
			t.Fatalf("record %d is number %d, %d lost", i+1, r.Seq, r.Lost)
		}
	}
}

func waitsInMemory(t *testing.T, j *journal.Journal, cause error, n int) {
	t.Helper()
	if err := j.Err(); !errors.Is(err, cause) || !strings.Contains(err.Error(), fmt.Sprintf("the last %d events are kept in memory only", n)) {
		t.Errorf("error %v", err)
	}
}

// F22: what the journal has reserved is there when the disk is full.
func TestF22_JournalHasItsSpaceOnAFullDisk(t *testing.T) {
	dir, _ := smallDisk(t, "32m")
	synctest.Test(t, func(t *testing.T) {
		j, stop := startJournal(t, dir)
		note(j, 1)
		fill(t, dir, 0)
		for range 10 {
			note(j, 200)
		}
		must(t, j.Err())
		stop()
		kept(t, dir, 2001)
	})
}

// F22: a full disk takes no record, or a part of one. Each is there once, and in
// order, when there is room.
func TestF22_JournalOnAFullDisk(t *testing.T) {
	for _, free := range []int64{0, 4096, 8192} {
		t.Run(fmt.Sprint(free), func(t *testing.T) {
			dir, _ := smallDisk(t, "256k") // too little to reserve any
			fill(t, dir, free)
			synctest.Test(t, func(t *testing.T) {
				j, stop := startJournal(t, dir)
				note(j, 100) // 20 KB
				if free == 0 {
					waitsInMemory(t, j, unix.ENOSPC, 100)
				}
				if err := j.Err(); !errors.Is(err, unix.ENOSPC) {
					t.Errorf("error %v", err)
				}
				if list := j.Since(t.Context(), 0, 0); len(list) != 100 {
					t.Errorf("%d records can be listed", len(list))
				}
				must(t, os.Remove(filepath.Join(dir, "fill")))
				<-time.After(10 * time.Second)
				synctest.Wait()
				must(t, j.Err())
				kept(t, dir, 100)
				stop()
			})
		})
	}
}

// F22: the journal neither keeps its file system from being made read-only, nor
// does that end it.
func TestF22_JournalOnAReadOnlyDisk(t *testing.T) {
	dir, mount := smallDisk(t, "32m")
	synctest.Test(t, func(t *testing.T) {
		j, stop := startJournal(t, dir)
		note(j, 10)
		must(t, unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
		note(j, 5)
		waitsInMemory(t, j, unix.EROFS, 5)
		must(t, unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}))
		<-time.After(10 * time.Second)
		synctest.Wait()
		must(t, j.Err())
		kept(t, dir, 15)
		stop()
	})
}

// What happened outlives the daemon, however that ends, and can be listed without one.
func TestEventsOutliveTheDaemon(t *testing.T) {
	s, _ := newHold(t, "nft")
	s.startHold()
	drift := func(chain string) {
		t.Helper()
		before := time.Now()
		run(t, s.node, "iptables-nft -F "+chain)
		s.awaitRestored(before, chain)
	}
	// events wants these drifts, in this order, from a list without a gap.
	events := func(chains ...string) {
		t.Helper()
		result := s.want(0, nil, "events", "--json", "--limit", "0")
		var last uint64
		var found []string
		for line := range strings.Lines(result.Stdout) {
			var e control.Event
			must(t, json.Unmarshal([]byte(line), &e))
			if e.Seq != last+1 || e.Lost != 0 {
				t.Errorf("event %d after %d, %d lost", e.Seq, last, e.Lost)
			}
			last = e.Seq
			for _, chain := range []string{"PGHARDEND-IN", "PGHARDEND-OUT"} {
				if e.Kind == "drift" && !e.Repaired.IsZero() && strings.Contains(e.What, chain+":") {
					found = append(found, chain)
				}
			}
		}
		if fmt.Sprint(found) != fmt.Sprint(chains) {
			t.Errorf("drifts of %v, want %v in\n%s", found, chains, result.Stdout)
		}
	}
	drift("PGHARDEND-IN")
	events("PGHARDEND-IN")
	must(t, s.agent.Kill9(s.ctx))
	events("PGHARDEND-IN")
	s.startHold()
	events("PGHARDEND-IN")
	drift("PGHARDEND-OUT")
	_, err := s.agent.Stop(s.ctx)
	must(t, err)
	events("PGHARDEND-IN", "PGHARDEND-OUT")
	s.want(0, []string{"PGHARDEND-OUT", "these events are what the last one has left"}, "events")
}
