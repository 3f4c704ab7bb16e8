package agent

import (
	"runtime"
	"time"
)

// A patient runs one function at a time in a goroutine of its own. Its caller does
// not wait for one that a disk holds up: a system call on a disk that hangs
// cannot be interrupted. The functions may share state without a lock. The zero
// value is ready; it has one caller at a time.
type patient struct {
	work  chan func() // nil: there is no goroutine
	done  chan struct{}
	timer *time.Timer
	late  bool // the caller did not wait for the last one
}

// free says whether nothing runs any more. What was late in finding out something
// has lost it.
func (p *patient) free(wait time.Duration) bool {
	if p.late && p.ended(wait) {
		p.late = false
	}
	return !p.late
}

// do runs f, unless the one before still runs, and says whether it ended in time.
func (p *patient) do(f func(), wait time.Duration) bool {
	if !p.free(0) {
		return false
	}
	if p.work == nil {
		p.start()
	}
	p.work <- f
	p.late = !p.ended(wait)
	return !p.late
}

func (p *patient) start() {
	work, done := make(chan func()), make(chan struct{}, 1)
	p.work, p.done, p.timer, p.late = work, done, time.NewTimer(0), false
	go func() {
		for f := range work {
			f()
			done <- struct{}{}
		}
	}()
}

// yields is how often the caller lets others run before it waits with a timer,
// which would wake the daemon up once more. Mostly the first is enough.
const yields = 10

func (p *patient) ended(wait time.Duration) bool {
	for range yields {
		select {
		case <-p.done:
			return true
		default:
			runtime.Gosched()
		}
	}
	p.timer.Reset(wait)
	defer p.timer.Stop()
	select {
	case <-p.done:
		return true
	case <-p.timer.C:
		select {
		case <-p.done:
			return true
		default:
			return false
		}
	}
}

// close ends the goroutine as soon as it can.
func (p *patient) close() {
	if p.work != nil {
		close(p.work)
		p.work, p.late = nil, false
	}
}
