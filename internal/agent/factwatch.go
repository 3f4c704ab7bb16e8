package agent

import (
	"context"
	"time"

	"github.com/pghardend/pghardend/pkg/config"
)

// How long a pass of the loop, or a command, waits for what services say, which
// mostly takes milliseconds.
const (
	factPatience    = time.Second
	commandPatience = askTimeout + 2*time.Second
)

// A factWatch keeps its caller from waiting for services without end: the disk
// with their files may hang for good, and their users may see to it that each
// answer takes its time. One look is under way at a time, and only the call that
// begins it waits for it. What it finds later counts from a later call on.
type factWatch struct {
	reader   *factReader // the look's alone while one is under way
	patience time.Duration
	look     chan Facts // nil: none is under way
	latest   Facts
}

func (w *factWatch) read(ctx context.Context, cfg config.Config, configFile string) Facts {
	if w.look != nil {
		select {
		case facts := <-w.look:
			w.look, w.latest = nil, facts
		default:
		}
		return w.latest
	}
	if !anyToAsk(cfg) { // no goroutine for each full look
		w.latest = Facts{}
		return w.latest
	}
	look := make(chan Facts, 1)
	w.look = look
	go func() { look <- w.reader.read(ctx, cfg, configFile) }()
	patience := time.NewTimer(w.patience)
	defer patience.Stop()
	select {
	case facts := <-look:
		w.look, w.latest = nil, facts
	case <-patience.C:
	}
	return w.latest
}

// answered says whether a look has ended that read would take the findings of.
func (w *factWatch) answered() bool { return len(w.look) > 0 }
