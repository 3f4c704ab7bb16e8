package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxKept        = 256 // records in memory, of which those that are not on disk yet are a part
	maxSubscribers = 32
)

// ErrTooMany means that a subscription was refused.
var ErrTooMany = errors.New("too many follow the events already")

// Journal is the list of records. Make it with Open.
type Journal struct {
	dir  string
	boot string
	log  *slog.Logger
	wake chan struct{} // holds a token while there is something to write

	mu      sync.Mutex
	next    uint64   // Seq of the next record
	written uint64   // Seq of the last record on disk
	kept    []Record // the last ones, on disk or not, oldest first
	failed  error    // why the disk does not take them
	readers map[chan Record]struct{}

	disk disk // Run's alone
}

// Open takes up what an earlier daemon left in dir. It never fails: what cannot
// be read or written does not keep anybody from being protected.
func Open(ctx context.Context, dir string, log *slog.Logger) *Journal {
	j := &Journal{
		dir: dir, boot: bootID(ctx), log: log, next: 1,
		wake:    make(chan struct{}, 1),
		readers: map[chan Record]struct{}{},
		disk:    disk{dir: dir},
	}
	earlier, err := tail(ctx, dir)
	if err != nil {
		log.Warn("earlier events cannot be read", "error", err)
	}
	for _, r := range earlier {
		j.next = max(j.next, r.Seq+1)
	}
	j.written = j.next - 1
	j.kept = last(earlier, maxKept)
	return j
}

func bootID(ctx context.Context) string {
	if ctx.Err() != nil {
		return ""
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// Append adds a record. It never blocks.
func (j *Journal) Append(r Record) {
	r = bounded(r)
	r.Boot, r.PID, r.Lost = j.boot, os.Getpid(), 0
	j.mu.Lock()
	defer j.mu.Unlock()
	r.Seq, r.At = j.next, time.Now().Round(0)
	j.next++
	if j.kept = append(j.kept, r); len(j.kept) > maxKept {
		j.kept = slices.Delete(j.kept, 0, 1)
	}
	for ch := range j.readers {
		select {
		case ch <- r:
		default: // it learns that it has missed something
			delete(j.readers, ch)
			close(ch)
		}
	}
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Err says why records are not on disk; nil if they are.
func (j *Journal) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed == nil {
		return nil
	}
	waiting := len(j.waiting())
	if waiting == 0 {
		return fmt.Errorf("the last events may not outlive a crash: %w", j.failed)
	}
	text := fmt.Sprintf("the last %d events are kept in memory only", waiting)
	if lost := j.next - 1 - j.written - uint64(waiting); lost > 0 {
		text += fmt.Sprintf(", %d before them are lost", lost)
	}
	return fmt.Errorf("%s; is the disk full or read-only? %w", text, j.failed)
}

// waiting are the records that are not on disk and may get there yet.
func (j *Journal) waiting() []Record { return newer(j.kept, j.written) }

// Since lists the last records after a sequence number, oldest first; a limit of
// 0 means all that are still known. What memory does not hold is read from disk.
func (j *Journal) Since(ctx context.Context, after uint64, limit int) []Record {
	j.mu.Lock()
	kept := slices.Clone(j.kept)
	j.mu.Unlock()
	list := newer(kept, after)
	if limit > 0 && len(list) >= limit || len(kept) > 0 && kept[0].Seq <= after+1 {
		return last(list, limit)
	}
	older, err := Read(ctx, j.dir)
	if err != nil {
		j.log.Warn("only the events in memory can be listed", "error", err)
	}
	if len(kept) > 0 {
		older = slices.DeleteFunc(older, func(r Record) bool { return r.Seq >= kept[0].Seq })
	}
	return last(append(newer(older, after), list...), limit)
}

// Subscribe sends what Since lists, and then each new record. The channel is
// closed when ctx is done, or after the last record that a reader which fell
// behind did not miss. ErrTooMany means that there are too many already.
func (j *Journal) Subscribe(ctx context.Context, after uint64, limit int) (<-chan Record, error) {
	fresh := make(chan Record, maxKept)
	j.mu.Lock()
	if len(j.readers) >= maxSubscribers {
		j.mu.Unlock()
		return nil, ErrTooMany
	}
	j.readers[fresh] = struct{}{}
	next := j.next
	j.mu.Unlock()

	known := slices.DeleteFunc(j.Since(ctx, after, limit), func(r Record) bool { return r.Seq >= next })
	out := make(chan Record)
	go func() {
		defer close(out)
		defer j.unsubscribe(fresh)
		for _, r := range known {
			if !send(ctx, out, r) {
				return
			}
		}
		known = nil
		for {
			select {
			case r, ok := <-fresh:
				if !ok || r.Seq > after && !send(ctx, out, r) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func send(ctx context.Context, out chan<- Record, r Record) bool {
	select {
	case out <- r:
		return true
	case <-ctx.Done():
		return false
	}
}

func (j *Journal) unsubscribe(ch chan Record) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.readers, ch)
}

// newer are the records after a sequence number.
func newer(list []Record, after uint64) []Record {
	i := slices.IndexFunc(list, func(r Record) bool { return r.Seq > after })
	if i < 0 {
		return nil
	}
	return list[i:]
}

// last are at most so many at the end; 0 means all.
func last(list []Record, limit int) []Record {
	if limit <= 0 {
		return list
	}
	return list[max(0, len(list)-limit):]
}
