package testbed

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// recordLimit is how many packets a recorder keeps at most; more count as lost.
const recordLimit = 400_000

// recorder keeps packets that were seen on a host, for those who count and await them.
type recorder struct {
	host *Host
	keep func(Packet) bool
	done chan struct{} // closed when nothing more will come

	mu      sync.Mutex
	packets []Packet
	changed chan struct{} // closed and replaced when packets come
	lost    uint32
	err     error
}

func newRecorder(h *Host, keep func(Packet) bool) *recorder {
	return &recorder{host: h, keep: keep, done: make(chan struct{}), changed: make(chan struct{})}
}

// add keeps the packet if it is wanted, with the first of its bytes.
func (r *recorder) add(p Packet, b []byte) bool {
	if r.keep != nil && !r.keep(p) {
		return false
	}
	p.Head = slices.Clone(b[:min(len(b), headBytes)])
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.packets) >= recordLimit {
		r.lost++
		return false
	}
	r.packets = append(r.packets, p)
	return true
}

// tell wakes those who wait, once for a batch.
func (r *recorder) tell(fresh bool) {
	if !fresh {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *recorder) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
}

// Packets returns what has been recorded so far.
func (r *recorder) Packets() []Packet {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.packets)
}

// from returns the packets after the first n, and a channel that is closed when there are more.
func (r *recorder) from(n int) ([]Packet, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.packets[n:len(r.packets):len(r.packets)], r.changed
}

// Count returns how many recorded packets match.
func (r *recorder) Count(match func(Packet) bool) int {
	n := 0
	for _, p := range r.Packets() {
		if match(p) {
			n++
		}
	}
	return n
}

// Await waits until n packets that match have been recorded since the start and returns the last of them. An error names
// how many there were.
func (r *recorder) Await(ctx context.Context, n int, match func(Packet) bool) (Packet, error) {
	seen, hits := 0, 0
	var last Packet
	for {
		fresh, more := r.from(seen)
		seen += len(fresh)
		for _, p := range fresh {
			if !match(p) {
				continue
			}
			last = p
			if hits++; hits >= n {
				return last, nil
			}
		}
		select {
		case <-more:
		case <-r.done:
			return last, fmt.Errorf("cannot await %d packets on %s: the capture ended after %d", n, r.host.name, hits)
		case <-ctx.Done():
			return last, fmt.Errorf("cannot await %d packets on %s: %w after %d", n, r.host.name, ctx.Err(), hits)
		}
	}
}
