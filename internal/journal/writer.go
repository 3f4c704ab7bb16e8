package journal

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	syncDelay  = time.Second // from a write to its fdatasync(2)
	firstRetry = 500 * time.Millisecond
	maxRetry   = 5 * time.Second
	farewell   = time.Second // for the last records, when the daemon ends
	maxBatch   = 64 << 10    // bytes of one write(2), so that its buffer stays small
)

// Run writes what is appended until ctx is done, and then what is left.
func (j *Journal) Run(ctx context.Context) error {
	if !awaited(ctx, j.write) {
		j.log.Warn("the last events are not on disk: it does not answer")
	}
	return nil
}

// awaited runs write, but does not wait for it much longer than ctx lasts: a
// write to a disk that hangs cannot be interrupted.
func awaited(ctx context.Context, write func(context.Context)) (ended bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		write(ctx)
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
	}
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

func (j *Journal) write(ctx context.Context) {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = firstRetry, maxRetry
	var again, due <-chan time.Time // no timer where there is nothing to do
	for {
		wake := j.wake
		if again != nil {
			wake = nil
		}
		var err error
		select {
		case <-ctx.Done():
			j.report(errors.Join(j.flush(), j.disk.sync()))
			return
		case <-wake:
			err = j.flush()
		case <-again:
			err = errors.Join(j.flush(), j.disk.sync()) // either may have been what failed
		case <-due:
			if due = nil; again != nil {
				continue
			}
			err = j.disk.sync()
		}
		again = nil
		if err != nil {
			again = time.After(retry.NextBackOff())
		} else {
			retry.Reset()
		}
		j.report(err)
		if j.disk.dirty && due == nil {
			due = time.After(syncDelay)
		}
	}
}

// flush writes what waits.
func (j *Journal) flush() error {
	for {
		list := j.batch()
		if len(list) == 0 {
			return nil
		}
		var lines bytes.Buffer
		var ends []int // of the lines
		for _, r := range list {
			line, err := encode(r)
			if err != nil {
				j.log.Error("an event cannot be recorded", "what", r.What, "error", err)
			}
			if len(ends) > 0 && lines.Len()+len(line) > maxBatch {
				break
			}
			lines.Write(line)
			ends = append(ends, lines.Len())
		}
		n, err := j.disk.append(lines.Bytes())
		whole, _ := slices.BinarySearch(ends, n+1)
		j.mu.Lock()
		if whole > 0 {
			j.written = list[whole-1].Seq
		}
		j.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// batch are the records that wait. The first says how many before it are lost.
func (j *Journal) batch() []Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	list := slices.Clone(j.waiting())
	if len(list) > 0 {
		list[0].Lost = int(list[0].Seq - j.written - 1)
	}
	return list
}

// report keeps err for Err, and says in the log what changed.
func (j *Journal) report(err error) {
	j.mu.Lock()
	was := j.failed
	j.failed = err
	j.mu.Unlock()
	switch {
	case err != nil && was == nil:
		j.log.Error("events are not recorded on disk", "error", err)
	case err == nil && was != nil:
		j.log.Info("events are recorded on disk again")
	}
}
