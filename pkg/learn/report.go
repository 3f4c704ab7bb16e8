package learn

import (
	"bytes"
	"encoding/binary"
)

// Report is what the kernel's side says, see the kinds.
type Report struct {
	kind   uint32
	pid    uint32
	run    uint64
	number uint32
	dirFD  int32
	args   [3]uint64
	data   []byte // not shared
}

// parseReport is false for what is none of ours.
func parseReport(b []byte) (Report, bool) {
	if len(b) < offData {
		return Report{}, false
	}
	e := binary.NativeEndian
	r := Report{
		kind: e.Uint32(b[offKind:]), pid: e.Uint32(b[offPID:]), run: e.Uint64(b[offRun:]),
		number: e.Uint32(b[offNumber:]), dirFD: int32(e.Uint32(b[offDirFD:])), //nolint:gosec // a descriptor, or AT_FDCWD
		args: [3]uint64{e.Uint64(b[offArg0:]), e.Uint64(b[offArg1:]), e.Uint64(b[offArg2:])},
	}
	if r.kind < kindCall || r.kind > kindExit {
		return Report{}, false
	}
	r.data = bytes.Clone(b[offData:])
	return r, true
}

// text is the data up to its NUL.
func (r Report) text() string {
	text, _, _ := bytes.Cut(r.data, []byte{0})
	return string(text)
}
