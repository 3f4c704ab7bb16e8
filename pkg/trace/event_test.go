package trace

import (
	"bytes"
	"encoding/binary"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
)

// wire is an event as the programs write it.
func wire(kind Kind, path string) []byte {
	b := make([]byte, eventSize)
	for off, n := range map[int]uint32{offKind: uint32(kind), offService: 2, offNumber: 101, offErrno: 1, offPID: 40, offParent: 12, offUID: 26} {
		binary.NativeEndian.PutUint32(b[off:], n)
	}
	binary.NativeEndian.PutUint64(b[offCount:], 7)
	copy(b[offCommand:], "sh\x00rubbish")
	copy(b[offOf:], strings.Repeat("p", maxComm))
	copy(b[offPath:], path)
	return b
}

func TestParseEvent(t *testing.T) {
	want := Event{
		Kind: KindExec, Service: 2, Number: 101, Errno: syscall.EPERM, PID: 40, Parent: 12, UID: 26, Command: "sh",
		Of: strings.Repeat("p", maxComm), Path: "/bin/sh", Count: 7,
	}
	got, err := parseEvent(wire(KindExec, "/bin/sh\x00rubbish"))
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v, -want +got:\n%s", err, d)
	}
	if got, err := parseEvent(wire(KindSyscall, "\x00rubbish")); err != nil || got.Path != "" || got.Kind != KindSyscall {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := parseEvent(wire(KindMove, "\x00rubbish")); err != nil || got.Path != "" || got.Kind != KindMove || got.Number != 101 {
		t.Errorf("%+v, %v", got, err)
	}
	b := wire(KindSyscall, "")
	binary.NativeEndian.PutUint32(b[offNumber:], noNumber)
	if got, err := parseEvent(b); err != nil || got.Number != -1 {
		t.Errorf("%+v, %v", got, err)
	}
	for name, b := range map[string][]byte{"short": b[:eventSize-1], "empty": nil, "kind": wire(4, "")} {
		if e, err := parseEvent(b); err == nil {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add(wire(KindExec, "/bin/sh"))
	f.Add(wire(KindSyscall, ""))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEvent(b)
		if err != nil {
			return
		}
		if len(e.Path) > maxPath || len(e.Command) > maxComm || len(e.Of) > maxComm || e.Number < -1 || strings.ContainsRune(e.Path, 0) {
			t.Errorf("%+v", e)
		}
	})
}

func TestParseCount(t *testing.T) {
	var key [keySize]byte
	var value [valueSize]byte
	for i, n := range []uint32{3, 0, 13, uint32(KindExec)} {
		binary.NativeEndian.PutUint32(key[4*i:], n)
	}
	binary.NativeEndian.PutUint64(value[:], 1<<40)
	if got, want := parseCount(key, value), (Count{Kind: KindExec, Service: 3, Errno: syscall.EACCES, Count: 1 << 40}); got != want {
		t.Errorf("%+v", got)
	}
}

// The programs can be assembled: every label is there, once.
func TestProgramsAssemble(t *testing.T) {
	m, l := maps{3, 4, 5, 6}, layout{compat: 16}
	for _, spec := range []*ebpf.ProgramSpec{exitProgram(m, l), exitProgram(m, layout{compat: -1}), forkProgram(3, 6), moveProgram(m, l), execProgram(3, 7, 6, l)} {
		var out bytes.Buffer
		instructions := append(spec.Instructions[:0:0], spec.Instructions...)
		if err := instructions.Marshal(&out, binary.LittleEndian); err != nil {
			t.Errorf("%s: %v", spec.Name, err)
		}
	}
}
