package reach

import (
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/testbed"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct{ name, text, wrong string }{
		{"good", "a b tcp/22 icmp # why\nb a none\n", ""},
		{"all", "a b all\nb a all\n", ""},
		{"pair missing", "a b all\n", "b → a is missing"},
		{"twice", "a b all\na b none\n", "twice"},
		{"itself", "a a all\n", "itself"},
		{"short", "a b\n", "line 1"},
		{"unknown probe", "a b tcp/1\nb a none\n", "no probe"},
		{"no number", "a b tcp/x\nb a none\n", "line 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(tc.text))
			if (err == nil) != (tc.wrong == "") || err != nil && !strings.Contains(err.Error(), tc.wrong) {
				t.Errorf("error %v, want %q", err, tc.wrong)
			}
		})
	}
}

func TestCompare(t *testing.T) {
	m, err := Parse([]byte("a b tcp/22\nb a none\n"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[Cell]Outcome{}
	for _, c := range m.Cells() {
		if m.Allowed(c) {
			got[c] = Through
		} else {
			got[c] = Blocked
		}
	}
	if wrong := m.Compare(got); len(wrong) > 0 || len(got) != 2*len(Probes)*2 {
		t.Fatalf("%d cells, wrong: %q", len(got), wrong)
	}
	got[Cell{Pair{"a", "b"}, Probe{TCP, 22}, false}] = OneWay
	got[Cell{Pair{"a", "b"}, Probe{TCP, 22}, true}] = Blocked
	got[Cell{Pair{"b", "a"}, Probe{TCP, 22}, true}] = OneWay
	got[Cell{Pair{"b", "a"}, Probe{UDP, 53}, false}] = Through
	delete(got, Cell{Pair{"b", "a"}, Probe{ICMP, 0}, false})
	want := []string{
		"a → b tcp/22 v4: gets in without an answer and must get through", "a → b tcp/22 v6: is blocked and must get through",
		"b → a tcp/22 v6: gets in without an answer and must not", "b → a udp/53 v4: gets through and must not", "b → a icmp v4: not measured",
	}
	if wrong := m.Compare(got); strings.Join(wrong, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(wrong, "\n"), strings.Join(want, "\n"))
	}
}

func TestOutcome(t *testing.T) {
	for _, tc := range []struct {
		proto string
		fate  testbed.Fate
		want  Outcome
	}{
		{TCP, testbed.Fate{Denied: true}, Blocked},
		{TCP, testbed.Fate{Arrived: true}, Blocked},
		{TCP, testbed.Fate{Arrived: true, Answer: &testbed.Packet{}, Returned: true}, Blocked}, // somebody else rejected it
		{TCP, testbed.Fate{Arrived: true, Delivered: true}, OneWay},
		{TCP, testbed.Fate{Arrived: true, Delivered: true, Answer: &testbed.Packet{}}, OneWay},
		{TCP, testbed.Fate{Arrived: true, Delivered: true, Answer: &testbed.Packet{}, Returned: true}, Through},
		{ICMP, testbed.Fate{Arrived: true, Delivered: true}, OneWay},
		{UDP, testbed.Fate{Arrived: true, Delivered: true}, Through},
	} {
		if got := outcome(Probe{Proto: tc.proto}, tc.fate); got != tc.want {
			t.Errorf("%s, %s: %s, want %s", tc.proto, tc.fate, got, tc.want)
		}
	}
}

func TestDisagree(t *testing.T) {
	open, shut, half, foreign := Cell{Pair{"a", "b"}, Probe{TCP, 22}, false}, Cell{Pair{"a", "b"}, Probe{TCP, 5432}, false},
		Cell{Pair{"b", "a"}, Probe{ICMP, 0}, true}, Cell{Pair{"b", "a"}, Probe{UDP, 53}, true}
	got := map[Cell]Outcome{open: Through, shut: Blocked, half: OneWay, foreign: Through}
	if wrong := Disagree(got, map[Cell]Answer{open: {"a", true, 0}, shut: {"a", false, 4}}); len(wrong) > 0 {
		t.Errorf("wrong: %q", wrong)
	}
	for _, tc := range []struct {
		cell   Cell
		answer Answer
	}{{open, Answer{"a", false, 4}}, {open, Answer{"a", true, 4}}, {shut, Answer{"a", true, 0}}, {shut, Answer{"a", false, 0}},
		{half, Answer{"b", true, 0}}, {half, Answer{"b", false, 4}}} {
		if wrong := Disagree(got, map[Cell]Answer{tc.cell: tc.answer}); len(wrong) != 1 {
			t.Errorf("%s answered %+v: %q", tc.cell, tc.answer, wrong)
		}
	}
}
