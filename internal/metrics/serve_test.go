package metrics

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	m := New("1", "nft", &fakeSource{})
	go func() { ended <- m.serve(ctx, listener) }()
	tests := []struct {
		method, path string
		code         int
	}{
		{http.MethodGet, "/metrics", http.StatusOK},
		{http.MethodHead, "/metrics", http.StatusOK},
		{http.MethodPost, "/metrics", http.StatusMethodNotAllowed},
		{http.MethodGet, "/", http.StatusNotFound},
		{http.MethodGet, "/v1/status", http.StatusNotFound},
		{http.MethodPost, "/v1/apply", http.StatusNotFound},
	}
	for _, tt := range tests {
		req, err := http.NewRequestWithContext(ctx, tt.method, "http://"+listener.Addr().String()+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tt.code || !resp.Close {
			t.Errorf("%s %s: %d, kept open %t, %v", tt.method, tt.path, resp.StatusCode, !resp.Close, err)
		}
		if found := strings.Contains(string(text), "pghardend_build_info"); found != (tt.method == http.MethodGet && tt.code == http.StatusOK) {
			t.Errorf("%s %s: %q", tt.method, tt.path, text)
		}
	}
	if err := m.Serve(ctx, listener.Addr().String()); err == nil || !strings.Contains(err.Error(), "metrics.listen") {
		t.Errorf("a port that is in use: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("at the end: %v", err)
	}
}

// pipeListener accepts in-memory connections, on which time is the test's.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	close(l.done)
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// dial is refused by nobody, but may have to wait to be accepted.
func (l *pipeListener) dial() net.Conn {
	client, server := net.Pipe()
	go func() {
		select {
		case l.conns <- server:
		case <-l.done:
		}
	}()
	return client
}

// F25: clients that say nothing, and those that do not read, are dropped, so that
// they can take all connections for a moment only; counting does not notice.
func TestF25_HangingScrapersAreDropped(t *testing.T) {
	tests := []struct {
		name    string
		say     string
		dropped time.Duration
	}{
		{"says nothing", "", headerTimeout},
		{"stops in mid-header", "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ", headerTimeout},
		{"does not read", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", writeTimeout},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				listener := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
				m := New("1", "nft", &fakeSource{})
				ended := make(chan error, 1)
				go func() { ended <- m.serve(ctx, listener) }()
				for range maxConnections {
					conn := listener.dial()
					defer conn.Close()
					if _, err := io.WriteString(conn, tt.say); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				began := time.Now()
				m.Drift("firewall", "drift")
				if !time.Now().Equal(began) {
					t.Error("counting waits for a scraper")
				}
				conn := listener.dial()
				defer conn.Close()
				if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(resp.Body)
				if err != nil || !strings.Contains(string(text), `{resource="firewall",cause="drift"} 1`) {
					t.Errorf("%v:\n%s", err, text)
				}
				if waited := time.Since(began); waited == 0 || waited > tt.dropped {
					t.Errorf("the one after them had to wait %s, want more than 0 and at most %s", waited, tt.dropped)
				}
				resp.Body.Close()
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
