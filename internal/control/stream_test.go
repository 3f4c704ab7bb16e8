package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A key may be added, none renamed: who reads the journal's lines relies on them.
func TestEventJSON(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e := Event{
		Seq: 7, At: at, Boot: "b1", PID: 42, Kind: "drift", Lost: 2,
		Drift: Drift{ID: 9, Resource: "firewall", Cause: "drift", Trigger: "event", What: "x", Since: at, Found: at, Repaired: at, OpenMS: 0.9},
	}
	const want = `{"seq":7,"at":"2026-01-02T03:04:05Z","boot":"b1","pid":42,"kind":"drift","lost":2,` +
		`"id":9,"resource":"firewall","cause":"drift","trigger":"event","what":"x",` +
		`"since":"2026-01-02T03:04:05Z","found":"2026-01-02T03:04:05Z","repaired":"2026-01-02T03:04:05Z","open_ms":0.9}`
	if got, err := json.Marshal(e); err != nil || string(got) != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
}

func TestCulpritString(t *testing.T) {
	for want, c := range map[string]Culprit{
		"iptables -F (pid 123, uid 0, /usr/sbin/xtables-nft-multi, by bash (122))": {PID: 123, Command: "iptables", Exe: "/usr/sbin/xtables-nft-multi", Args: "iptables -F", Parent: "bash (122)"},
		"nft (pid 5)": {PID: 5, Command: "nft", UID: -1},
		"nft":         {Command: "nft", UID: -1},
		"unknown":     {UID: -1},
	} {
		if got := c.String(); got != want {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
	}
}

func numbered(n int) []Event {
	var list []Event
	for i := range n {
		list = append(list, Event{Seq: uint64(i + 1), Kind: "drift", Drift: Drift{What: fmt.Sprint("line ", i+1)}})
	}
	return list
}

func TestEventsAreListed(t *testing.T) {
	var asked string
	want := numbered(3)
	dir, _ := serve(t, &backend{events: func(after uint64, limit int) ([]Event, error) {
		asked = fmt.Sprint(after, " ", limit)
		return want, nil
	}})
	var got []Event
	err := NewClient(dir).Events(t.Context(), EventsRequest{After: 1 << 60, Limit: 20}, func(e Event) error {
		got = append(got, e)
		return nil
	})
	if d := cmp.Diff(want, got); err != nil || d != "" || asked != fmt.Sprint(1<<60, " 20") {
		t.Errorf("asked for %q, error %v (-want +got)\n%s", asked, err, d)
	}
}

func TestEventErrors(t *testing.T) {
	refuse := errors.New("no journal")
	dir, _ := serve(t, &backend{
		events: func(uint64, int) ([]Event, error) { return nil, refuse },
		follow: func(context.Context, uint64, int) (<-chan Event, error) {
			return nil, fmt.Errorf("%w: too many", ErrRefused)
		},
	})
	c := NewClient(dir)
	none := func(Event) error { return errors.New("called") }
	contains(t, c.Events(t.Context(), EventsRequest{}, none), "no journal")
	contains(t, c.Events(t.Context(), EventsRequest{Follow: true}, none), "refused: too many")
	for _, query := range []string{"after=-1", "limit=x", "limit=4294967296", "follow=perhaps", "until=3"} {
		contains(t, c.call(t.Context(), http.MethodGet, "/v1/events?"+query, nil, nil), "refused: "+strings.Split(query, "=")[0]+": ")
	}
	if err := NewClient(t.TempDir()).Events(t.Context(), EventsRequest{}, none); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("error %v", err)
	}
}

// Each event arrives when it happens, not when a buffer is full.
func TestFollowedEventsArriveAtOnce(t *testing.T) {
	ch := make(chan Event)
	var ended context.Context
	dir, stop := serve(t, &backend{follow: func(ctx context.Context, _ uint64, _ int) (<-chan Event, error) {
		ended = ctx
		context.AfterFunc(ctx, func() { close(ch) })
		return ch, nil
	}})
	got := make(chan Event)
	done := make(chan error, 1)
	go func() {
		done <- NewClient(dir).Events(t.Context(), EventsRequest{Follow: true}, func(e Event) error {
			got <- e
			return nil
		})
	}()
	for _, want := range numbered(3) {
		ch <- want
		if e := <-got; e.Seq != want.Seq || e.What != want.What {
			t.Errorf("got %+v, want %+v", e, want)
		}
	}
	stop()
	contains(t, <-done, "has ended the list", endDaemon)
	if ended.Err() == nil {
		t.Error("the subscription goes on")
	}
}

func TestReaderThatFellBehindIsTold(t *testing.T) {
	ch := make(chan Event, 3)
	for _, e := range numbered(3) {
		ch <- e
	}
	close(ch)
	dir, _ := serve(t, &backend{follow: func(context.Context, uint64, int) (<-chan Event, error) { return ch, nil }})
	n := 0
	err := NewClient(dir).Events(t.Context(), EventsRequest{Follow: true}, func(Event) error { n++; return nil })
	contains(t, err, endBehind)
	if n != 3 {
		t.Errorf("%d events before that", n)
	}
}

func TestFollowEndsWithItsReader(t *testing.T) {
	left := make(chan struct{})
	ch := make(chan Event, 1)
	ch <- Event{Seq: 1, Kind: "drift"}
	dir, _ := serve(t, &backend{follow: func(ctx context.Context, _ uint64, _ int) (<-chan Event, error) {
		context.AfterFunc(ctx, func() { close(ch); close(left) })
		return ch, nil
	}})
	enough := errors.New("enough")
	if err := NewClient(dir).Events(t.Context(), EventsRequest{Follow: true}, func(Event) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
	<-left
}

// F25: who asks to follow and reads nothing loses the connection, and neither the
// others nor the daemon's end wait for it.
func TestF25_DeafFollowerHoldsUpNobody(t *testing.T) {
	t.Parallel()
	left := make(chan struct{})
	big := Event{Seq: 1, Kind: "drift", Drift: Drift{What: strings.Repeat("x", 8<<10)}}
	dir, stop := serve(t, &backend{status: Status{Node: "pg-0"}, follow: func(ctx context.Context, _ uint64, _ int) (<-chan Event, error) {
		ch := make(chan Event)
		go func() {
			defer close(left)
			for ctx.Err() == nil {
				select {
				case ch <- big:
				case <-ctx.Done():
				}
			}
		}()
		return ch, nil
	}})
	conn, err := net.Dial("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if s, err := NewClient(dir).Status(t.Context()); err != nil || s.Node != "pg-0" {
		t.Errorf("status %+v, error %v", s, err)
	}
	select {
	case <-left: // after writeTimeout
	case <-time.After(3 * writeTimeout):
		t.Error("it is served still")
	}
	stop()
}

func TestMetricsAreServed(t *testing.T) {
	const text = "pghardend_degraded 0\n"
	dir, _ := serve(t, &backend{metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://pghardend/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := NewClient(dir).http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if got := resp.Status + " " + string(body); err != nil || got != "200 OK "+text {
		t.Errorf("%v %q", err, got)
	}
}
