package cli

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/internal/control"
)

func TestMS(t *testing.T) {
	for n, want := range map[float64]string{
		0: "0 ms", 0.04: "0 ms", 0.94: "0.9 ms", 1: "1 ms", 9.96: "10 ms", 12.5: "12 ms", 9999: "9999 ms", 60_400: "1m0s", 3.6e6: "1h0m0s",
	} {
		if got := ms(n); got != want {
			t.Errorf("%v: %q, want %q", n, got, want)
		}
	}
}

func TestGist(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "",
		"one\n":                         "one",
		"one\n  + a\n  - b\n":           "one",
		"one\n  + a\ntwo\n  + b\nthree": "one (and 2 more)",
		strings.Repeat("é", 101):        strings.Repeat("é", 100) + "…",
	} {
		if got := gist(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// The same number of another daemon is another drift.
// In a container each daemon has the same pid and boot.
func TestMergedKeepsDaemonsApart(t *testing.T) {
	drift := func(seq uint64) control.Event {
		return control.Event{Seq: seq, Boot: "a", PID: 1, Kind: "drift", Drift: control.Drift{ID: 1}}
	}
	started := control.Event{Seq: 2, Boot: "a", PID: 1, Kind: control.KindDaemon}
	if got := merged([]control.Event{drift(1), started, drift(3), drift(4)}); len(got) != 3 || got[0].Seq != 1 || got[2].Seq != 4 {
		t.Errorf("got %+v", got)
	}
}

func TestMerged(t *testing.T) {
	event := func(seq uint64, boot string, pid int, id uint64) control.Event {
		return control.Event{Seq: seq, Boot: boot, PID: pid, Lost: 1, Drift: control.Drift{ID: id}}
	}
	got := merged([]control.Event{event(1, "a", 1, 1), event(2, "a", 1, 0), event(3, "b", 1, 1), event(4, "a", 2, 1), event(5, "a", 1, 1), event(6, "a", 1, 0)})
	first := event(5, "a", 1, 1)
	first.Lost = 2
	want := []control.Event{first, event(2, "a", 1, 0), event(3, "b", 1, 1), event(4, "a", 2, 1), event(6, "a", 1, 0)}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// Many changes on purpose do not hide a drift.
func TestDriftEnd(t *testing.T) {
	for _, tt := range []struct {
		drift control.Drift
		want  string
	}{
		{control.Drift{Error: "busy"}, "NOT restored"},
		{control.Drift{Restart: true}, "NOT restored, a restart is needed"},
		{control.Drift{Repaired: time.Now(), OpenMS: 20}, "restored after at most 20 ms"},
		{control.Drift{Repaired: time.Now(), OpenMS: 20, Error: "busy"}, "right again after at most 20 ms, by another hand"},
		{control.Drift{Repaired: time.Now(), OpenMS: 20, Error: "not permitted", Asked: "x.service"}, "right again after at most 20 ms, x.service was asked to"},
	} {
		if got := driftEnd(tt.drift); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.drift, got, tt.want)
		}
	}
}

func TestLastDrifts(t *testing.T) {
	var list []control.Drift
	now := time.Now()
	for _, what := range strings.Fields("d1 d2 c3 o4 c5 c6 c7 c8 c9") {
		d := control.Drift{What: what, Cause: "change", Repaired: now}
		switch what[0] {
		case 'd':
			d.Cause = "drift"
		case 'o':
			d.Repaired = time.Time{} // wrong still
		}
		list = append(list, d)
	}
	for n, want := range map[int]string{1: "o4", 3: "d1 d2 o4", 5: "d1 d2 o4 c8 c9", 20: "d1 d2 c3 o4 c5 c6 c7 c8 c9"} {
		var got []string
		for _, d := range lastDrifts(list, n) {
			got = append(got, d.What)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("the last %d: %s, want %s", n, s, want)
		}
	}
}

// endless is a daemon that goes on after its events.
type endless struct{ canned }

func (e *endless) Follow(ctx context.Context, _ uint64, _ int) (<-chan control.Event, error) {
	ch := make(chan control.Event, len(e.events))
	for _, x := range e.events {
		ch <- x
	}
	context.AfterFunc(ctx, func() { close(ch) })
	return ch, nil
}

// writerFunc is an io.Writer.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Each event is printed as it comes, and Ctrl-C is no error.
func TestFollowEndsWhenInterrupted(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pghardend.yaml")
	if err := os.WriteFile(file, []byte("version: 1\nnode: pg-0\nruntime_dir: "+dir+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	server, err := control.Listen(ctx, dir, &endless{canned{events: []control.Event{{Seq: 7, Kind: "drift"}}}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()

	interrupted, interrupt := context.WithCancel(t.Context())
	var printed string
	o := &options{config: file, json: true, out: writerFunc(func(p []byte) (int, error) {
		printed += string(p)
		interrupt()
		return len(p), nil
	})}
	if err := o.showEvents(interrupted, control.EventsRequest{Follow: true}); err != nil || strings.Count(printed, `"seq":7`) != 1 {
		t.Errorf("error %v, printed %q", err, printed)
	}
	full := errors.New("pipe is closed")
	o.out = writerFunc(func([]byte) (int, error) { return 0, full })
	if err := o.showEvents(t.Context(), control.EventsRequest{Follow: true}); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
