package agent

import (
	"runtime"

	"runtime/debug"
	"runtime/metrics"
)

const (
	// heapReserve is what repairs may allocate before Go starts a garbage collection,
	// some twenty of them. A collection stops all goroutines several times, which on
	// idle CPUs takes a millisecond each, and it is not to happen while rules are open.
	heapReserve = 5 << 19 // bytes
	// ballastSize makes gcPercent leave so much room, and some more, to a heap of 2 MiB.
	ballastSize = 5 << 20 // bytes
)

// heap collects garbage between passes, before less than heapReserve is left. The
// zero value does nothing.
type heap struct {
	ballast []byte // never touched, so that it takes addresses only
	samples []metrics.Sample
	began   bool
}

// newHeap is to be called early: memory that was in use before would be cleared,
// and thereby touched.
func newHeap() heap {
	return heap{
		ballast: make([]byte, ballastSize),
		samples: []metrics.Sample{{Name: "/gc/heap/goal:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}},
	}
}

// tidy is for one goroutine at a time.
func (h *heap) tidy() {
	if h.ballast == nil {
		return
	}
	if !h.began { // what the start took is not needed any more
		h.began = true
		debug.FreeOSMemory()
	}
	metrics.Read(h.samples)
	if goal, used := h.samples[0].Value.Uint64(), h.samples[1].Value.Uint64(); goal < used+heapReserve {
		runtime.GC()
	}
	runtime.KeepAlive(h.ballast)
}
