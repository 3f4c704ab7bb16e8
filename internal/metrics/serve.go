package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/netutil"
)

// Of the loopback port, which any process of the host may reach.
const (
	maxConnections = 8
	maxHeader      = 8 << 10
	headerTimeout  = 2 * time.Second
	writeTimeout   = 5 * time.Second // beyond what the source may take
)

// Handler serves the page.
func (m *Metrics) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := m.page(r.Context())
		// From here on it is the client's turn; errors mean that it is gone.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		_, _ = w.Write(text)
	})
}

// Serve answers GET /metrics on an address, and nothing else, until ctx is done.
// One more connection than may be waits for another to end.
func (m *Metrics) Serve(ctx context.Context, addr string) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot serve metrics on metrics.listen: %w", err)
	}
	return m.serve(ctx, listener)
}

func (m *Metrics) serve(ctx context.Context, listener net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	server := http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       headerTimeout,
		WriteTimeout:      askTimeout + writeTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(io.Discard, "", 0), // anybody on the host could fill the log
	}
	server.SetKeepAlivesEnabled(false) // nobody keeps one of the few
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err := server.Serve(netutil.LimitListener(listener, maxConnections))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("cannot serve metrics on metrics.listen: %w", err)
}
