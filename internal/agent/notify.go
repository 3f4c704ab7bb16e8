package agent

import (
	"context"
	"log/slog"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notifier talks to systemd, sd_notify(3), from a goroutine of its own: the
// socket may block, and nothing else may wait for it. Only the newest message
// counts, so one that is not sent yet is replaced.
type notifier struct {
	latest chan string
	log    *slog.Logger
}

func newNotifier(log *slog.Logger) *notifier {
	return &notifier{latest: make(chan string, 1), log: log}
}

// send never blocks. It has one caller at a time.
func (n *notifier) send(state string) {
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
			n.notify(daemon.SdNotifyStopping + "\nSTATUS=stopping; rules and services stay")
			return nil
		case state := <-n.latest:
			n.notify(state)
		}
	}
}

func (n *notifier) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		n.log.Warn("cannot notify systemd", "error", err)
	}
}
