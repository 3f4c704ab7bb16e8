package agent

import (
	"runtime/debug"
	"runtime/metrics"
)

const (
	// heapReserve is what repairs may allocate before Go starts a garbage collection,
	// two dozen of them. A collection stops all goroutines several times, which on
	// idle CPUs takes a millisecond each, and it is not to happen while rules are open.
	heapReserve = 3 << 20 // bytes
	// heapRoom is how much Go may let the heap grow by. A look allocates more than the
	// difference, so most are followed by tidy's collection.
	heapRoom = heapReserve + 1<<19 // bytes
)

// heap collects garbage between passes, before less than heapReserve is left. The
// zero value does nothing. It is for one goroutine at a time.
type heap struct {
	samples []metrics.Sample
	percent int // of debug.SetGCPercent
}

func newHeap() heap {
	return heap{samples: []metrics.Sample{
		{Name: "/gc/heap/goal:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"},
	}}
}

// left is what can be allocated before Go collects, and live what the last
// collection has left.
func (h *heap) left() (left, live int64) {
	metrics.Read(h.samples)
	of := func(i int) int64 { return int64(h.samples[i].Value.Uint64()) } //nolint:gosec // sizes fit
	return of(0) - of(1), of(2)
}

func (h *heap) tidy() {
	if h.samples == nil {
		return
	}
	if left, _ := h.left(); left >= heapReserve && h.percent != 0 {
		return
	}
	debug.FreeOSMemory() // runtime.GC, and Go would keep as much as it may use
	_, live := h.left()
	percent := max(gcPercent, int(100*heapRoom/max(live, 1))+1)
	if d := percent - h.percent; d > h.percent/10 || d < -h.percent/10 { // to set it stops all goroutines
		h.percent = percent
		debug.SetGCPercent(percent)
	}
}
