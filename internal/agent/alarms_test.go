package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/firewall"
)

func ownName(t *testing.T) string {
	t.Helper()
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return string(name[:len(name)-1])
}

// The loop is told first; who it was is known by the time that it has repaired.
func TestAlarmsNameTheCulprit(t *testing.T) {
	var got reconcile.Alarm
	w := newAlarms(new(firewall.Firewall), func(a reconcile.Alarm) { got = a }, nil, nil, slog.New(slog.DiscardHandler))
	at := time.Now()
	w.raise(t.Context(), at, os.Getpid(), ownName(t), -1)
	who := got.Who()
	if got.Resource != firewallName || got.At != at || who.PID != os.Getpid() || who.UID != os.Getuid() || who.Exe == "" {
		t.Errorf("%+v by %+v", got, who)
	}
	if exe, err := os.Executable(); err != nil || filepath.Base(who.Exe) != filepath.Base(exe) {
		t.Errorf("it is %s, not %s: %v", who.Exe, exe, err)
	}
}

// A culprit that takes too long to look at does not hold up the loop.
func TestAlarmsDoNotWaitForTheCulprit(t *testing.T) {
	var who *reconcile.Culprit
	w := newAlarms(new(firewall.Firewall), nil, nil, nil, slog.New(slog.DiscardHandler))
	w.alarm = func(a reconcile.Alarm) { who = a.Who() } // before anybody has looked
	w.raise(t.Context(), time.Now(), os.Getpid(), "gone\n", 42)
	if who == nil || *who != (reconcile.Culprit{PID: os.Getpid(), Command: "gone?", UID: 42}) {
		t.Errorf("%+v", who)
	}
}

func TestAlarmsAfterAnOverrun(t *testing.T) {
	var got reconcile.Alarm
	lost := 0
	w := newAlarms(new(firewall.Firewall), func(a reconcile.Alarm) { got = a }, nil, func() { lost++ }, slog.New(slog.DiscardHandler))
	w.overrun()
	if got.Resource != firewallName || !got.At.IsZero() || got.Who != nil || lost != 1 {
		t.Errorf("%+v, lost %d times", got, lost)
	}
}

func TestAlarmsOfWhom(t *testing.T) {
	var none *alarms
	if none.source() != polled {
		t.Error(none.source())
	}
	w := newAlarms(new(firewall.Firewall), nil, nil, nil, slog.New(slog.DiscardHandler))
	w.say("audit")
	if w.source() != "audit" {
		t.Error(w.source())
	}
}

// What a sentry has answered makes no second alarm.
func TestAnsweredCommitIsNoAlarm(t *testing.T) {
	w := newAlarms(new(firewall.Firewall), nil, nil, nil, slog.New(slog.DiscardHandler))
	w.last.Store(7)
	if !w.answered(firewall.Commit{Generation: 7}) || w.answered(firewall.Commit{Generation: 8}) {
		t.Error("answered is generation 7 alone")
	}
}
