package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// SocketName is the socket's name inside runtime_dir.
const SocketName = "control.sock"

// requestTimeout bounds one request. Stopping a service may take its whole
// stop time-out twice, so the backend's own limits come first.
const (
	headerTimeout  = 5 * time.Second
	requestTimeout = 10 * time.Minute
)

// Backend answers the requests.
type Backend interface {
	Status(ctx context.Context) Status
	Apply(ctx context.Context, force bool) (Status, error)
	StartService(ctx context.Context, name string) error
	StopService(ctx context.Context, name string) error
}

// ErrNotFound is what a Backend wraps for an unknown service.
var ErrNotFound = errors.New("not found")

// Server serves the API on one socket.
type Server struct {
	listener net.Listener
	http     http.Server
}

// Listen makes the socket in dir, replacing one that a dead daemon left. The
// caller holds the daemon's lock, so no live one can own it.
func Listen(dir string, backend Backend, log *slog.Logger) (*Server, error) {
	path := filepath.Join(dir, SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot replace the old control socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot protect the control socket: %w", err), listener.Close())
	}
	return &Server{
		listener: listener,
		http: http.Server{
			Handler:           http.TimeoutHandler(routes(backend), requestTimeout, `{"error":"timed out"}`),
			ReadHeaderTimeout: headerTimeout,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		},
	}, nil
}

// Serve answers until ctx is done.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.http.Close() })
	defer stop()
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot serve the control socket: %w", err)
	}
	return nil
}

func routes(b Backend) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		answer(w, b.Status(r.Context()), nil)
	})
	mux.HandleFunc("POST /v1/apply", func(w http.ResponseWriter, r *http.Request) {
		status, err := b.Apply(r.Context(), r.URL.Query().Get("force") == "true")
		answer(w, status, err)
	})
	mux.HandleFunc("POST /v1/services/{name}/start", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, b.StartService(r.Context(), r.PathValue("name")))
	})
	mux.HandleFunc("POST /v1/services/{name}/stop", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, b.StopService(r.Context(), r.PathValue("name")))
	})
	return mux
}

type failure struct {
	Error string `json:"error"`
}

func answer(w http.ResponseWriter, body any, err error) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case errors.Is(err, ErrNotFound):
		w.WriteHeader(http.StatusNotFound)
	case err != nil:
		w.WriteHeader(http.StatusInternalServerError)
	}
	if err != nil {
		body = failure{Error: err.Error()}
	}
	_ = json.NewEncoder(w).Encode(body) // the client is gone; nothing to tell it
}
