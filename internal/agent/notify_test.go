package agent

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/internal/supervise"
)

// systemd listens like the real one.
func systemd(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

func receive(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestNotifications(t *testing.T) {
	conn := systemd(t)
	log := slog.New(slog.DiscardHandler)
	a := &Agent{notify: newNotifier(log), events: newEvents(t.Context(), t.TempDir(), log), source: &fileSource{openings: &openings{}}, services: map[string]*supervise.Supervisor{
		"postgres": supervise.New(supervise.Spec{Name: "postgres"}, nil),
	}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.notify.run(ctx) }()

	failing := []reconcile.Problem{{What: "firewall", Text: "many\nlines"}}
	for _, tt := range []struct {
		s    reconcile.Snapshot
		want string
	}{
		// Not ready before the rules are in place, however many passes it takes.
		{reconcile.Snapshot{Passes: 1, Problems: failing}, "WATCHDOG=1\nSTATUS=degraded (firewall), see `pghardend status`; postgres waiting"},
		{reconcile.Snapshot{Passes: 2, Problems: failing}, "WATCHDOG=1\nSTATUS=degraded (firewall), see `pghardend status`; postgres waiting"},
		{reconcile.Snapshot{Passes: 1}, "READY=1\nWATCHDOG=1\nSTATUS=rules in place; postgres waiting"},
	} {
		a.afterPass(t.Context(), tt.s)
		if got := receive(t, conn); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	cancel()
	if got := receive(t, conn); !strings.HasPrefix(got, "STOPPING=1\nSTATUS=") {
		t.Errorf("at the end: %q", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// systemd is stopped, or the socket's queue is full.
func TestNotifySocketThatNobodyReadsBlocksNobody(t *testing.T) {
	conn := systemd(t)
	writer, err := net.Dial("unixgram", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	for { // until the queue is full
		if err := writer.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := writer.Write([]byte("x")); err != nil {
			break
		}
	}
	var log bytes.Buffer
	n := newNotifier(slog.New(slog.NewTextHandler(&log, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	began := time.Now()
	for range 1000 {
		n.send("WATCHDOG=1")
	}
	if took := time.Since(began); took > notifyTimeout/2 {
		t.Errorf("1000 messages took %v", took)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 10*notifyTimeout {
		t.Errorf("the end took %v", took)
	}
	if c := strings.Count(log.String(), "cannot notify systemd"); c != 1 {
		t.Errorf("logged %d times:\n%s", c, log.String())
	}
}

func TestOnlyTheNewestMessageIsSent(t *testing.T) {
	conn := systemd(t)
	n := newNotifier(slog.New(slog.DiscardHandler))
	n.send("old")
	n.send("new")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	if got := receive(t, conn); got != "new" {
		t.Errorf("got %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A tick is a sign of life, but none that systemd is woken for each second.
func TestTicksFeedTheWatchdog(t *testing.T) {
	systemd(t)
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", "20000000")
	n := newNotifier(slog.New(slog.DiscardHandler))
	n.beat(time.Now().Add(time.Hour))
	if len(n.latest) != 0 {
		t.Error("a message before the first pass")
	}
	n.send("READY=1\nWATCHDOG=1")
	<-n.latest
	n.beat(n.sent.Add(4 * time.Second))
	if len(n.latest) != 0 {
		t.Error("a message though the last one is new")
	}
	n.beat(n.sent.Add(5 * time.Second))
	if len(n.latest) != 1 || <-n.latest != "READY=1\nWATCHDOG=1" {
		t.Error("no message in time, or another one")
	}
	t.Setenv("WATCHDOG_USEC", "")
	n = newNotifier(slog.New(slog.DiscardHandler))
	n.last = "WATCHDOG=1"
	n.beat(time.Now().Add(time.Hour))
	if len(n.latest) != 0 {
		t.Error("a message though there is no watchdog")
	}
}

func TestWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	var log bytes.Buffer
	n := newNotifier(slog.New(slog.NewTextHandler(&log, nil)))
	n.notify(t.Context(), "READY=1")
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	n = newNotifier(slog.New(slog.NewTextHandler(&log, nil)))
	n.notify(t.Context(), "READY=1")
	n.notify(t.Context(), "READY=1")
	if c := strings.Count(log.String(), "cannot notify systemd"); c != 1 {
		t.Errorf("logged %d times:\n%s", c, log.String())
	}
}

func TestPassesAreAsFrequentAsTheWatchdogAsks(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	for _, tt := range []struct {
		usec       string
		configured time.Duration
		want       time.Duration
	}{
		{"", time.Minute, time.Minute},
		{"30000000", time.Second, time.Second},
		{"30000000", time.Minute, 15 * time.Second},
		{"nonsense", time.Minute, time.Minute},
	} {
		t.Setenv("WATCHDOG_USEC", tt.usec)
		if got := pollInterval(tt.configured, logger); got != tt.want {
			t.Errorf("WATCHDOG_USEC=%s, interval %v: %v, want %v", tt.usec, tt.configured, got, tt.want)
		}
	}
	t.Setenv("WATCHDOG_USEC", "30000000")
	t.Setenv("WATCHDOG_PID", "1")
	if got := pollInterval(time.Minute, logger); got != time.Minute {
		t.Errorf("another process's watchdog: %v", got)
	}
	if !strings.Contains(log.String(), "reconcile.interval is too long") {
		t.Errorf("log: %s", log.String())
	}
}
