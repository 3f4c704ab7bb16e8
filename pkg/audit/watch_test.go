package audit

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
)

// The socket filter lets the two types in and nothing else.
func TestRecordFilter(t *testing.T) {
	raw, err := recordFilter()
	if err != nil {
		t.Fatal(err)
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("not all of the filter can be read back")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	for typ := range uint16(3000) {
		msg := make([]byte, 64)
		binary.NativeEndian.PutUint32(msg, 64)
		binary.NativeEndian.PutUint16(msg[4:], typ)
		n, err := vm.Run(msg)
		if err != nil {
			t.Fatal(err)
		}
		if want := typ == TypeNetfilter || typ == TypeSeccomp || typ == TypeAVC; (n > 0) != want {
			t.Errorf("type %d: %d bytes pass", typ, n)
		}
	}
}
