package agent

import (
	"context"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notifyTimeout is how long systemd may take to make room for one message.
const notifyTimeout = time.Second

// notifier talks to systemd, sd_notify(3), from a goroutine of its own: the
// socket may block, and nothing else may wait for it. Only the newest message
// counts, so one that is not sent yet is replaced.
type notifier struct {
	socket  string // empty: nobody wants to know
	latest  chan string
	log     *slog.Logger
	failing bool

	// Of who sends.
	watchdog time.Duration // within this time a message is due; 0: none is
	last     string
	sent     time.Time
}

func newNotifier(log *slog.Logger) *notifier {
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		watchdog = 0 // pollInterval says so
	}
	return &notifier{socket: os.Getenv("NOTIFY_SOCKET"), latest: make(chan string, 1), log: log, watchdog: watchdog}
}

// beat repeats the last message when a quarter of the watchdog's time is over: that the
// loop is alive is no news, and each message wakes systemd.
func (n *notifier) beat(now time.Time) {
	if n.watchdog > 0 && n.last != "" && now.Sub(n.sent) >= n.watchdog/4 {
		n.send(n.last)
	}
}

// send never blocks. It has one caller at a time.
func (n *notifier) send(state string) {
	n.last, n.sent = state, time.Now()
	select {
	case <-n.latest:
	default:
	}
	n.latest <- state
}

func (n *notifier) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			n.notify(context.WithoutCancel(ctx), daemon.SdNotifyStopping+"\nSTATUS=stopping; rules and services stay")
			return nil
		case state := <-n.latest:
			n.notify(ctx, state)
		}
	}
}

// notify says once that messages do not arrive.
func (n *notifier) notify(ctx context.Context, state string) {
	err := n.write(ctx, state)
	if err != nil && !n.failing {
		n.log.Warn("cannot notify systemd", "socket", n.socket, "error", err)
	}
	n.failing = err != nil
}

func (n *notifier) write(ctx context.Context, state string) error {
	if n.socket == "" {
		return nil
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixgram", n.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(notifyTimeout)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	return err
}

// pollInterval keeps the ticks, which are the proof of life, frequent enough
// for systemd's watchdog, sd_watchdog_enabled(3).
func pollInterval(configured time.Duration, log *slog.Logger) time.Duration {
	watchdog, err := daemon.SdWatchdogEnabled(false)
	switch {
	case err != nil:
		log.Warn("cannot use systemd's watchdog", "error", err)
	case watchdog > 0 && watchdog/2 < configured:
		log.Warn("reconcile.interval is too long for the unit's WatchdogSec", "configured", configured, "used", watchdog/2)
		return watchdog / 2
	}
	return configured
}
