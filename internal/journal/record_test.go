package journal

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCut(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{strings.Repeat("x", 20), strings.Repeat("x", 20)},
		{strings.Repeat("x", 21), strings.Repeat("x", 20) + "…"},
		{strings.Repeat("é", 21), strings.Repeat("é", 10) + "…"},
		{"\x00\x00\x00\x00", "\x00\x00\x00…"}, // each takes six bytes
		{"0123456\nabcdefg\nxyz\n", "0123456\nabcdefg\n… and 1 more lines"},
		{"0123456\nabcdefg\nxyz\n\n1\n2", "0123456\nabcdefg\n… and 4 more lines"},
		{"0123456\nabcdefghijkl", "0123456\n… and 1 more lines"},
	} {
		if got := cut(tt.text, 20); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.want)
		}
	}
}

// What somebody has named cannot make up a record or hide one.
func TestNamesForgeNoLine(t *testing.T) {
	forged := "x\"}\n{\"seq\":1,\"kind\":\"drift\",\"what\":\"forged\"}\n\u2028\r\x1b[2J\x00\xff"
	r := Record{Seq: 5, Kind: "drift", What: forged, Who: &Culprit{Command: forged, Args: forged, Exe: forged, Parent: forged}}
	line, err := encode(bounded(r))
	if err != nil || bytes.Count(line, []byte("\n")) != 1 || bytes.ContainsAny(line, "\x1b\x00\r") {
		t.Errorf("%v: %q", err, line)
	}
	if list := parse(line); len(list) != 1 || list[0].Seq != 5 || list[0].What != strings.ToValidUTF8(forged, "\ufffd") {
		t.Errorf("%+v", list)
	}
}

// However large a record is, its line is one that is read again.
func FuzzRecord(f *testing.F) {
	f.Add("drift", "ipv4 chain PGHARDEND-IN: missing\n", "", "iptables", 1)
	f.Add("conflict", "\x00\n\"\\", "e\u2028", "\xff\xfe<>&", 5000)
	f.Add("", "é", "", "", 0)
	f.Fuzz(func(t *testing.T, kind, what, failure, name string, times int) {
		times = min(max(times, 0), 5000)
		what = strings.Repeat(what, min(times, 1+(1<<16)/(len(what)+1)))
		at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
		r := bounded(Record{
			Seq: maxSeq, At: at, Boot: name, PID: 1 << 22, Kind: "k" + kind, Lost: 1 << 40, ID: 1 << 63, Resource: name, Cause: name, Trigger: name,
			What: what, Since: at, Found: at, Repaired: at, OpenMS: 1e100, Restart: true, Error: strings.Repeat(failure, min(times, 100)),
			Who: &Culprit{PID: 1 << 22, Command: name, UID: 1 << 32, Exe: what, Args: name, Parent: failure},
		})
		line, err := encode(r)
		if err != nil || len(line) > maxLine {
			t.Fatalf("%d bytes, error %v", len(line), err)
		}
		list := parse(line)
		if len(list) != 1 {
			t.Fatalf("%d records of %q", len(list), line)
		}
		again, err := encode(list[0])
		if d := cmp.Diff(list, parse(again)); err != nil || d != "" {
			t.Errorf("error %v (-first +again)\n%s", err, d)
		}
	})
}

func FuzzParse(f *testing.F) {
	const good = `{"seq":7,"at":"2026-01-02T03:04:05Z","pid":1,"kind":"drift","what":"a"}` + "\n"
	for _, seed := range []string{"", good, good + good, good[:40] + "\n" + good, good + good[:40], "\x00\x00\x00", good + strings.Repeat("x", maxLine) + "\n" + good} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, r := range parse(data) {
			if r.Seq == 0 || r.Seq > maxSeq || r.Kind == "" {
				t.Errorf("no record: %+v", r)
			}
		}
		// What is appended after any rubbish is read.
		list := parse(append(append(data, '\n'), good...))
		if len(list) == 0 || list[len(list)-1].Seq != 7 {
			t.Errorf("the last record is missing: %+v", list)
		}
	})
}
