package journal

import (
	"strings"
	"testing"
)

// What the loop pays for a record, and the start of a daemon for a full journal.
func BenchmarkAppend(b *testing.B) {
	j := Open(b.Context(), b.TempDir(), discard())
	r := Record{Kind: "drift", What: strings.Repeat("ipv4 chain PGHARDEND-IN: missing\n", 10), Who: &Culprit{PID: 1, Command: "iptables"}}
	b.ReportAllocs()
	for b.Loop() {
		j.Append(r)
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	d := disk{dir: dir}
	for i := range 8000 {
		line, err := encode(Record{Seq: uint64(i + 1), Kind: "drift", What: strings.Repeat("x", 150)})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := d.append(line); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if j := Open(b.Context(), dir, discard()); j.next != 8001 {
			b.Fatalf("goes on at %d", j.next)
		}
	}
}
