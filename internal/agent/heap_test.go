package agent

import (
	"runtime/debug"
	"testing"
)

// After each pass there is room for repairs, whatever the heap holds and the passes allocate.
func TestHeapLeavesRoomForRepairs(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	h := newHeap()
	var held [][]byte
	for i := range 100 {
		garbage = make([]byte, 1<<20)
		switch {
		case i%10 == 3:
			held = append(held, make([]byte, 1<<20))
		case i == 60:
			held = nil
		}
		h.tidy()
		if left, live := h.left(); left < heapReserve {
			t.Fatalf("pass %d: %d KiB until Go collects, want %d; %d KiB are in use", i, left>>10, heapReserve>>10, live>>10)
		}
	}
	if len(held) == 0 {
		t.Error("nothing was held")
	}
}

var garbage []byte // on the heap
