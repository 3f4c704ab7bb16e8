package cli

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestLineWriterWritesAllInOrder(t *testing.T) {
	var out bytes.Buffer
	l := newLineWriter(&out)
	var want strings.Builder
	line := make([]byte, 0, 16)
	for i := range logQueue / 2 {
		line = fmt.Appendf(line[:0], "line %d\n", i) // as slog uses its buffer again
		want.Write(line)
		if n, err := l.Write(line); n != len(line) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	l.close(time.Minute)
	if out.String() != want.String() {
		t.Errorf("%d bytes were written, want %d", out.Len(), want.Len())
	}
	if _, err := l.Write([]byte("too late\n")); err != nil { // and no panic
		t.Error(err)
	}
}

// stuck is a log that nobody reads until it is released.
type stuck struct {
	entered sync.Once
	inside  chan struct{}
	release chan struct{}
	buf     bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	s.entered.Do(func() { close(s.inside) })
	<-s.release
	return s.buf.Write(p)
}

func TestStuckLogHoldsUpNobody(t *testing.T) {
	out := &stuck{inside: make(chan struct{}), release: make(chan struct{})}
	l := newLineWriter(out)
	write := func(text string) {
		t.Helper()
		if _, err := l.Write([]byte(text)); err != nil {
			t.Error(err)
		}
	}
	write("first\n")
	<-out.inside
	for range logQueue + 10 { // ten more than there is room for
		write("more\n")
	}
	began := time.Now()
	l.close(10 * time.Millisecond)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the end waits %v for the log", took)
	}
	close(out.release)
	<-l.done
	if text := out.buf.String(); strings.Count(text, "more\n") != logQueue || !strings.Contains(text, "10 log lines were lost") {
		t.Errorf("%d lines, %q …", strings.Count(text, "more\n"), text[:min(200, len(text))])
	}
}
