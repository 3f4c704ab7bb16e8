package testbed

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	awaitDefault  = 15 * time.Second
	awaitInterval = 10 * time.Millisecond
	awaitLongest  = 100 * time.Millisecond
)

// Await calls check until it returns nil, and in between waits as long as check took, but 10 to 100 ms, so that who waits
// leaves CPUs to those who are awaited. It gives up when ctx is done, after 15 s if ctx has no deadline, and then says
// what it waited for and what check said last.
func Await(ctx context.Context, what string, check func(context.Context) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, awaitDefault)
		defer cancel()
	}
	start := time.Now()
	last := errors.New("it was never looked at")
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("cannot await %s: %w after %s; last: %w", what, err, time.Since(start).Round(time.Millisecond), last)
		}
		began := time.Now()
		err := check(ctx)
		if err == nil {
			return nil
		}
		// A check that was cut off by the deadline knows less than the one before it.
		if ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
			last = err
		}
		select {
		case <-ctx.Done():
		case <-time.After(min(max(time.Since(began), awaitInterval), awaitLongest)):
		}
	}
}
