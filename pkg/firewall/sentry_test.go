package firewall

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// A tool that commits thousands of times is answered as often as a sentry may,
// and no more; the watcher tells of the others.
func TestSentryAnswersSomeOfMany(t *testing.T) {
	var answers []uint32
	s := &Sentry{own: &ownCommits{}, answer: func(c Commit) { answers = append(answers, c.Generation) }, limit: rate.NewLimiter(sentryRate, sentryBurst)}
	now := time.Now()
	for i := range uint32(1000) {
		s.heard(Commit{Generation: i + 1, Port: 7, At: now})
	}
	if len(answers) != 20 {
		t.Errorf("%d of 1000 commits at once were answered, want the first 20", len(answers))
	}
	for i := range uint32(1000) {
		s.heard(Commit{Generation: i + 1001, Port: 7, At: now.Add(time.Duration(i) * time.Millisecond)})
	}
	if n := len(answers) - 20; n < 9 || n > 10 {
		t.Errorf("%d commits of the next second were answered, want 10", n)
	}
	if s.done.Load() != 2000 {
		t.Errorf("the other CPUs wait for the answer to commit %d", s.done.Load())
	}
}

// Other CPUs go on when the commit was answered, and if nobody answers.
func TestSentryHoldsForAMoment(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	s := &Sentry{own: &ownCommits{}}
	began := time.Now()
	s.hold(Commit{Generation: 1, Port: 7, At: began}, fd)
	if took := time.Since(began); took < 2*time.Millisecond || took > time.Second {
		t.Errorf("held for %v without an answer, want 2 ms", took)
	}
	s.done.Store(2)
	s.hold(Commit{Generation: 2, Port: 7, At: time.Now().Add(time.Hour)}, fd) // returns
}

func TestSentryIsForNft(t *testing.T) {
	f := &Firewall{backend: BackendLegacy, own: &ownCommits{}}
	if s, err := f.OpenSentry(func(Commit) {}, nil); s != nil || err == nil || !strings.Contains(err.Error(), BackendLegacy) {
		t.Errorf("got %v, error %v", s, err)
	}
}
