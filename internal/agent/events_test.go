package agent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/reconcile"
)

func testEvents(t *testing.T) *Agent {
	t.Helper()
	return &Agent{events: newEvents(t.Context(), filepath.Join(t.TempDir(), "state"), slog.New(slog.DiscardHandler))}
}

// told is what the journal says: kinds, resources and texts.
func told(t *testing.T, a *Agent) string {
	t.Helper()
	list, err := a.Events(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, e := range list {
		text.WriteString(strings.Join([]string{e.Kind, e.Resource, e.What}, "|") + "\n")
	}
	return text.String()
}

func wholeEvent() reconcile.Event {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return reconcile.Event{
		ID: 1, Resource: "firewall", Cause: reconcile.CauseDrift, Trigger: "event", What: "ipv4 chain: missing",
		Since: at, Found: at.Add(1), Repaired: at.Add(2), OpenMS: 0.5, Restart: true, Error: "e",
		Who: &reconcile.Culprit{PID: 1, Command: "c", UID: 2, Exe: "x", Args: "a", Parent: "p"},
	}
}

// Nothing gets lost from the loop to the journal to who asks.
func TestEventIsPassedOnWhole(t *testing.T) {
	a := testEvents(t)
	e := wholeEvent()
	a.events.record(e)
	list, err := a.Events(t.Context(), 0, 0)
	if err != nil || len(list) != 1 || list[0].Kind != control.KindRestart {
		t.Fatalf("%v, error %v", list, err)
	}
	want, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]control.Drift{"status": driftOf(e), "journal": list[0].Drift} {
		got, err := json.Marshal(d)
		if diff := cmp.Diff(string(want), string(got)); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got)\n%s", name, err, diff)
		}
	}
	e.Restart, e.Who = false, nil
	a.events.record(e)
	if list, err = a.Events(t.Context(), 1, 0); err != nil || len(list) != 1 || list[0].Kind != reconcile.CauseDrift || list[0].Who != nil {
		t.Errorf("%+v, error %v", list, err)
	}
}

// A conflict is told of when it begins and when it ends, not with each repair.
func TestConflictIsToldOfTwice(t *testing.T) {
	a := testEvents(t)
	for _, problems := range [][]reconcile.Problem{
		{{What: "config", Text: "bad"}},
		{{What: reconcile.ProblemConflict, Resource: "firewall", Text: "11 times"}, {What: "config", Text: "bad"}},
		{{What: reconcile.ProblemConflict, Resource: "firewall", Text: "12 times"}, {What: reconcile.ProblemConflict, Resource: "sysctl", Text: "x"}},
		{{What: reconcile.ProblemConflict, Resource: "sysctl", Text: "x"}},
		nil, nil,
	} {
		a.events.pass(reconcile.Snapshot{Problems: problems})
	}
	const ended = "nobody changes it again and again any more"
	want := "conflict|firewall|11 times\nconflict|sysctl|x\nconflict|firewall|" + ended + "\nconflict|sysctl|" + ended + "\n"
	if d := cmp.Diff(want, told(t, a)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestOpeningsAreToldOf(t *testing.T) {
	a := testEvents(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	opening := func(id string, by string) control.Opening {
		o := control.Opening{ID: id, From: netip.MustParsePrefix("192.0.2.7/32"), Proto: "tcp", Port: 5432, Until: at, Reason: "restore", By: "uid 0", EndedBy: by}
		if by != "" {
			o.Ended = at
		}
		return o
	}
	for _, list := range [][]control.Opening{
		{opening("old", ""), opening("gone", "x")}, // of an earlier daemon
		{opening("old", ""), opening("a", "")},
		{opening("old", "its time was up"), opening("a", "")},
		{opening("old", "its time was up"), opening("a", "uid 0"), opening("b", "uid 1")},
		{opening("a", "uid 0")},
	} {
		a.events.opened(list)
	}
	const hole = ": 192.0.2.7/32 to tcp port 5432 "
	want := "opening||a" + hole + "opened until 2026-01-02T03:04:05Z by uid 0: restore\n" +
		"opening||old" + hole + "closed: its time was up\n" +
		"opening||a" + hole + "closed: uid 0\n" +
		"opening||b" + hole + "opened until 2026-01-02T03:04:05Z by uid 0: restore\n" +
		"opening||b" + hole + "closed: uid 1\n"
	if d := cmp.Diff(want, told(t, a)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestEventsAreFollowed(t *testing.T) {
	a := testEvents(t)
	ctx, cancel := context.WithCancel(t.Context())
	a.events.note(control.KindDaemon, "started")
	ch, err := a.Follow(ctx, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if e := <-ch; e.Seq != 1 || e.Kind != control.KindDaemon || e.What != "started" {
		t.Errorf("%+v", e)
	}
	a.events.record(wholeEvent())
	if e := <-ch; e.Seq != 2 || e.ID != 1 {
		t.Errorf("%+v", e)
	}
	cancel()
	if e, ok := <-ch; ok {
		t.Errorf("%+v after the end", e)
	}
	for {
		if _, err = a.Follow(t.Context(), 0, 0); err != nil {
			break
		}
	}
	if !errors.Is(err, control.ErrRefused) || !strings.Contains(err.Error(), "end some of them") {
		t.Errorf("error %v", err)
	}
}

// The command finds what a daemon has left, and a state_dir that is not what it
// should be keeps nobody from starting.
func TestEventsOutliveTheDaemon(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pghardend.yaml")
	state := filepath.Join(dir, "state")
	if err := os.WriteFile(file, []byte("version: 1\nnode: pg-0\nstate_dir: "+state+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := Events(t.Context(), file, 0); err != nil || len(list) != 0 {
		t.Errorf("%v, error %v", list, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	e := newEvents(ctx, state, slog.New(slog.DiscardHandler))
	e.note(control.KindDaemon, "started")
	e.record(wholeEvent())
	cancel()
	if err := e.run(ctx); err != nil || e.err() != nil {
		t.Errorf("%v, %v", err, e.err())
	}
	if list, err := Events(t.Context(), file, 1); err != nil || len(list) != 1 || list[0].ID != 1 {
		t.Errorf("%+v, error %v", list, err)
	}
	if err := errors.Join(os.RemoveAll(state), os.WriteFile(state, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	e = newEvents(t.Context(), state, slog.New(slog.DiscardHandler))
	e.note(control.KindDaemon, "started")
	if err := e.run(ctx); err != nil || e.err() == nil || !strings.Contains(e.err().Error(), state) {
		t.Errorf("%v, %v", err, e.err())
	}
	if _, err := Events(t.Context(), file, 1); err == nil || !strings.Contains(err.Error(), "cannot read the events in "+state) {
		t.Errorf("error %v", err)
	}
}
