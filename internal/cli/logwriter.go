package cli

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// lineWriter lets the daemon log without ever waiting for who reads the log: a
// journald that hangs or has died must not hold up the loop. Each Write is one
// line. Lines that find the queue full are lost, which the log says later.
type lineWriter struct {
	lines chan []byte
	lost  atomic.Int64
	quit  chan struct{}
	done  chan struct{}
}

const logQueue = 1024 // lines

func newLineWriter(w io.Writer) *lineWriter {
	l := &lineWriter{lines: make(chan []byte, logQueue), quit: make(chan struct{}), done: make(chan struct{})}
	go l.run(w)
	return l
}

// Write never blocks and never fails.
func (l *lineWriter) Write(p []byte) (int, error) {
	select {
	case l.lines <- append([]byte(nil), p...): // the caller uses p again
	default:
		l.lost.Add(1)
	}
	return len(p), nil
}

// close waits until all is written, but no longer than patience.
func (l *lineWriter) close(patience time.Duration) {
	close(l.quit)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-timer.C:
	}
}

func (l *lineWriter) run(w io.Writer) {
	defer close(l.done)
	for {
		select {
		case line := <-l.lines:
			l.write(w, line)
		case <-l.quit:
			for {
				select {
				case line := <-l.lines:
					l.write(w, line)
				default:
					return
				}
			}
		}
	}
}

func (l *lineWriter) write(w io.Writer, line []byte) {
	if n := l.lost.Swap(0); n > 0 {
		fmt.Fprintf(w, "{\"level\":\"WARN\",\"msg\":\"%d log lines were lost because the log was not read\"}\n", n)
	}
	_, _ = w.Write(line) // there is nowhere left to complain
}
