package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// SocketName is the socket's name inside runtime_dir.
const SocketName = "control.sock"

// A request may take as long as its client waits for it, but a client that does
// not talk, or does not listen, is dropped.
const (
	headerTimeout = 5 * time.Second
	writeTimeout  = 5 * time.Second
	farewell      = 500 * time.Millisecond // to tell clients that the daemon ends
)

// maxPath is what a socket's address holds, unix(7), without its final NUL.
const maxPath = 107

// Backend answers the requests. Its methods end early when ctx is done: when the
// client has gone or the daemon is about to. by says for people who asks.
type Backend interface {
	Status(ctx context.Context) Status
	Apply(ctx context.Context, r ApplyRequest) (Status, error)
	Confirm(ctx context.Context, by string) (Status, error)
	Openings(ctx context.Context) []Opening // those that ended too, oldest first
	Open(ctx context.Context, r OpenRequest) (Opening, error)
	Close(ctx context.Context, id, by string) (Opening, error)
	StartService(ctx context.Context, name string) error
	StopService(ctx context.Context, name string) error
	// Events are the last of those after a sequence number, oldest first; a limit of
	// 0 means all that are still known.
	Events(ctx context.Context, after uint64, limit int) ([]Event, error)
	// Follow sends the same and all that come. The channel is closed when ctx is
	// done, or when its reader has fallen behind.
	Follow(ctx context.Context, after uint64, limit int) (<-chan Event, error)
	Metrics() http.Handler // waits for no client without end
}

// Errors that a Backend wraps.
var (
	ErrNotFound = errors.New("there is no service") // an unknown service
	ErrNoSuch   = errors.New("there is no opening") // an unknown opening
	ErrRefused  = errors.New("refused")             // asked for what may not be
)

// Server serves the API on one socket.
type Server struct {
	listener net.Listener
	http     http.Server
}

// Listen makes the socket in dir, replacing one that a dead daemon left. The
// caller holds the daemon's lock, so no live one can own it, and has a umask
// that lets nobody else connect before the mode is set.
func Listen(ctx context.Context, dir string, backend Backend, log *slog.Logger) (*Server, error) {
	path := filepath.Join(dir, SocketName)
	if len(path) > maxPath {
		return nil, fmt.Errorf("cannot open the control socket: its path %s is longer than %d bytes; choose a shorter runtime_dir", path, maxPath)
	}
	if err := removeOld(ctx, path); err != nil {
		return nil, fmt.Errorf("cannot replace the old control socket: %w", err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot protect the control socket: %w", err), listener.Close())
	}
	return &Server{
		listener: listener,
		http: http.Server{
			Handler:           routes(backend),
			ReadHeaderTimeout: headerTimeout,
			ConnContext:       withPeer,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		},
	}, nil
}

func removeOld(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is no socket; remove it, or choose a runtime_dir that is pghardend's alone", path)
	}
	return os.Remove(path)
}

// Serve answers until ctx is done and for a moment more, in which those who
// wait are told. It removes the socket.
func (s *Server) Serve(ctx context.Context) error {
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(told)
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
		defer cancel()
		if s.http.Shutdown(bounded) != nil {
			_ = s.http.Close()
		}
	})
	err := s.http.Serve(s.listener)
	if !stop() {
		<-told
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot serve the control socket: %w", err)
	}
	return nil
}

type failure struct {
	Error string `json:"error"`
}

func answer(w http.ResponseWriter, body any, err error) {
	code := http.StatusOK
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrNoSuch):
		code = http.StatusNotFound
	case errors.Is(err, ErrRefused):
		code = http.StatusBadRequest
	case err != nil:
		code = http.StatusInternalServerError
	}
	if err != nil {
		body = failure{Error: err.Error()}
	}
	text, err := json.Marshal(body)
	if err != nil {
		code, text = http.StatusInternalServerError, []byte(`{"error":"cannot encode the answer"}`)
	}
	// Errors from here on mean that the client is gone.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(text)
}
