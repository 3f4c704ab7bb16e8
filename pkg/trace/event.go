package trace

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"
)

// Kind of an Event.
type Kind uint32

// Kinds.
const (
	KindSyscall Kind = 1 // answered with EPERM or ENOSYS
	KindExec    Kind = 2 // could not be executed
	KindMove    Kind = 3 // moved to another control group; no denial
)

// Bursts are how many denials of one kind are reported in a second, at most; all are
// counted. One kind is a service, a call and its errno, and all executions of a
// service that fail alike.
const (
	burstSyscall = 1
	burstExec    = 16
	window       = 1e9 // nanoseconds
)

// maxPath is how much of a path is reported, in bytes, with the end's NUL.
const maxPath = 256

// Event is one denial, or a move. Who is told of is who was denied it, or who moved another.
type Event struct {
	Kind    Kind
	Service uint32        // as Members.Follow was told
	Number  int           // of the call; -1: none that a kernel has, or a 32-bit program's. Of an execution 0; of a move the pid of who was moved
	Errno   syscall.Errno // what the caller got
	PID     int           // of the process, as the first pid namespace counts
	Parent  int
	UID     int    // the real one
	Command string // its name, at most 15 bytes, of any content
	Of      string // the parent's name, likewise
	// Path is what the process had in its memory when the call had failed, so a claim of its own: another
	// thread may have put another there since. Empty if it could not be read; may be relative, or cut at 255
	// bytes. Of any content.
	Path  string
	Count uint64 // of this kind, this one included
}

// Where the fields of an event are in the ring buffer's record, in bytes.
const (
	offKind    = 0
	offService = 4
	offNumber  = 8
	offErrno   = 12
	offPID     = 16
	offParent  = 20
	offUID     = 24
	offCount   = 32
	offCommand = 40
	offOf      = offCommand + maxComm
	offPath    = offOf + maxComm
	eventSize  = offPath + maxPath
)

const maxComm = 16 // TASK_COMM_LEN

// noNumber stands for numbers that are beyond all calls of a kernel: any may be tried.
const (
	maxNumber = 1023
	noNumber  = 0xffffffff
)

// parseEvent reads a record of the ring buffer.
func parseEvent(b []byte) (Event, error) {
	if len(b) < eventSize {
		return Event{}, fmt.Errorf("cannot read an event: it has %d bytes, not %d", len(b), eventSize)
	}
	word := func(off int) uint32 { return binary.NativeEndian.Uint32(b[off:]) }
	text := func(off, size int) string {
		s, _, _ := bytes.Cut(b[off:off+size], []byte{0})
		return string(s)
	}
	e := Event{
		Kind: Kind(word(offKind)), Service: word(offService), Number: number(word(offNumber)), Errno: syscall.Errno(word(offErrno)),
		PID: int(word(offPID)), Parent: int(word(offParent)), UID: int(word(offUID)),
		Count: binary.NativeEndian.Uint64(b[offCount:]), Command: text(offCommand, maxComm), Of: text(offOf, maxComm),
	}
	switch e.Kind {
	case KindExec:
		e.Path = text(offPath, maxPath)
	case KindSyscall, KindMove:
	default:
		return Event{}, fmt.Errorf("cannot read an event of kind %d", e.Kind)
	}
	return e, nil
}

func number(n uint32) int {
	if n == noNumber {
		return -1
	}
	return int(n)
}
