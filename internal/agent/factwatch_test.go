package agent

import (
	"context"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pghardend/pghardend/pkg/config"
)

// A service that does not answer, for as long as its user likes, holds up the
// loop once, and what was known goes on to count.
func TestTheLoopDoesNotWaitForServices(t *testing.T) {
	cfg := config.Config{RuntimeDir: t.TempDir(),
		Services: []config.Service{{Name: "postgres", Profile: "postgres", Command: []string{"/bin/postgres"}}}}
	synctest.Test(t, func(t *testing.T) {
		hangs := make(chan Capacity)
		w := factWatch{reader: newFactReader(slog.New(slog.DiscardHandler)), patience: factPatience}
		w.reader.keep = false
		w.reader.ask = func(context.Context, config.Service, string) (Capacity, error) { return <-hangs, nil }
		check := func(what string, most time.Duration, want Facts) {
			t.Helper()
			began := time.Now()
			if got := w.read(t.Context(), cfg, ""); !got.equal(want) {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
			if took := time.Since(began); took > most {
				t.Errorf("%s: the pass was held up for %v", what, took)
			}
		}
		check("first", factPatience, nil)
		check("next", 0, nil)
		hangs <- Capacity{Clients: 5}
		synctest.Wait()
		first := Facts{"postgres": {Clients: 5}}
		check("answered late", 0, first)

		cfg.Services[0].Command = []string{"/bin/postgres", "-D", "/other"} // a question of its own
		check("asked again", factPatience, first)
		check("next", 0, first)
		hangs <- Capacity{Clients: 6}
		synctest.Wait()
		check("answered again", 0, Facts{"postgres": {Clients: 6}})
		check("nothing to ask", 0, Facts{"postgres": {Clients: 6}})
	})
}

// What a service says may be without end.
func TestAnswersAreBounded(t *testing.T) {
	out, err := answerOf(exec.CommandContext(t.Context(), "/bin/sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' 1; head -c 1000000 /dev/zero >&2"))
	if err != nil || len(out) != maxAnswer {
		t.Errorf("%d bytes of an answer, error %v", len(out), err)
	}
	_, err = answerOf(exec.CommandContext(t.Context(), "/bin/sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' 1 >&2; exit 3"))
	if err == nil || len(err.Error()) > 2*maxAnswer || !strings.Contains(err.Error(), "exit status 3: 111") {
		t.Errorf("error %v", err)
	}
	if out, err := answerOf(exec.CommandContext(t.Context(), "/bin/sh", "-c", "echo 100")); err != nil || out != "100" {
		t.Errorf("%q, error %v", out, err)
	}
}
