package agent

import (
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

// After each pass there is room for repairs, however much the passes allocated.
func TestHeapLeavesRoomForRepairs(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	h := newHeap()
	for range 100 {
		garbage = make([]byte, 1<<20)
		h.tidy()
		metrics.Read(h.samples)
		if goal, used := h.samples[0].Value.Uint64(), h.samples[1].Value.Uint64(); goal < used+heapReserve {
			t.Fatalf("%d KiB until Go collects, want %d", (int64(goal)-int64(used))>>10, heapReserve>>10)
		}
	}
}

var garbage []byte // on the heap
