package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// backend is a daemon whose answers a test decides on.
type backend struct {
	status  Status
	apply   func(ctx context.Context, r ApplyRequest) (Status, error)
	confirm func(by string) (Status, error)
	open    func(r OpenRequest) (Opening, error)
	close   func(id, by string) (Opening, error)
	list    []Opening
	service func(ctx context.Context, verb, name string) error
	events  func(after uint64, limit int) ([]Event, error)
	follow  func(ctx context.Context, after uint64, limit int) (<-chan Event, error)
	metrics http.Handler
}

func (b *backend) Status(context.Context) Status { return b.status }

func (b *backend) Apply(ctx context.Context, r ApplyRequest) (Status, error) { return b.apply(ctx, r) }

func (b *backend) Confirm(_ context.Context, by string) (Status, error) { return b.confirm(by) }

func (b *backend) Openings(context.Context) []Opening { return b.list }

func (b *backend) Open(_ context.Context, r OpenRequest) (Opening, error) { return b.open(r) }

func (b *backend) Close(_ context.Context, id, by string) (Opening, error) { return b.close(id, by) }

func (b *backend) StartService(ctx context.Context, name string) error {
	return b.service(ctx, "start", name)
}

func (b *backend) StopService(ctx context.Context, name string) error {
	return b.service(ctx, "stop", name)
}

func (b *backend) Events(_ context.Context, after uint64, limit int) ([]Event, error) {
	return b.events(after, limit)
}

func (b *backend) Follow(ctx context.Context, after uint64, limit int) (<-chan Event, error) {
	return b.follow(ctx, after, limit)
}

func (b *backend) Metrics() http.Handler { return b.metrics }

// serve runs a server and returns its directory and a function that ends it.
func serve(t *testing.T, b Backend) (dir string, stop func()) {
	t.Helper()
	dir = t.TempDir()
	return dir, serveIn(t, dir, b)
}

func serveIn(t *testing.T, dir string, b Backend) (stop func()) {
	t.Helper()
	s, err := Listen(t.Context(), dir, b, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func contains(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q lacks %q", err, p)
		}
	}
}

func TestSocketIsForItsOwnerAlone(t *testing.T) {
	dir, stop := serve(t, &backend{})
	info, err := os.Lstat(filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	stop()
	if _, err := os.Lstat(filepath.Join(dir, SocketName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	dir := t.TempDir()
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, SocketName)})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false) // as after kill -9
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(dir).Status(t.Context()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("a stale socket answers %v", err)
	}
	serveIn(t, dir, &backend{status: Status{Node: "pg-0"}})
	if s, err := NewClient(dir).Status(t.Context()); err != nil || s.Node != "pg-0" {
		t.Errorf("status %+v, error %v", s, err)
	}
}

func TestForeignFileIsKept(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, SocketName)
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Listen(t.Context(), dir, &backend{}, slog.New(slog.DiscardHandler))
	contains(t, err, file, "is no socket")
	if data, err := os.ReadFile(file); err != nil || string(data) != "mine" {
		t.Errorf("the file was touched: %q, %v", data, err)
	}
}

func TestListenErrorsNameTheCause(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("x", maxPath))
	_, err := Listen(t.Context(), long, &backend{}, slog.New(slog.DiscardHandler))
	contains(t, err, long, "choose a shorter runtime_dir")
	_, err = Listen(t.Context(), filepath.Join(t.TempDir(), "missing"), &backend{}, slog.New(slog.DiscardHandler))
	contains(t, err, "cannot open the control socket", "no such file or directory")
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	_, err := NewClient(dir).Status(t.Context())
	if !errors.Is(err, ErrNoDaemon) || err.Error() != "no daemon is running: nobody listens on "+filepath.Join(dir, SocketName) {
		t.Errorf("error: %v", err)
	}
}

func TestRequestsReachTheBackend(t *testing.T) {
	type call struct {
		verb, name string
		force      bool
	}
	var calls []call
	b := &backend{
		apply: func(_ context.Context, r ApplyRequest) (Status, error) {
			calls = append(calls, call{verb: "apply", force: r.Force})
			return Status{Generation: 7}, nil
		},
		service: func(_ context.Context, verb, name string) error {
			calls = append(calls, call{verb: verb, name: name})
			return nil
		},
	}
	dir, stop := serve(t, b)
	c := NewClient(dir)
	s, err := c.Apply(t.Context(), ApplyRequest{Force: true})
	if err != nil || s.Generation != 7 {
		t.Errorf("status %+v, error %v", s, err)
	}
	if _, err := c.Apply(t.Context(), ApplyRequest{}); err != nil {
		t.Error(err)
	}
	if err := c.StartService(t.Context(), "postgres"); err != nil {
		t.Error(err)
	}
	if err := c.StopService(t.Context(), "a/../b c"); err != nil {
		t.Error(err)
	}
	stop()
	if want := fmt.Sprint([]call{{"apply", "", true}, {"apply", "", false}, {"start", "postgres", false}, {"stop", "a/../b c", false}}); fmt.Sprint(calls) != want {
		t.Errorf("calls %v, want %v", calls, want)
	}
}

func TestOpeningsReachTheBackend(t *testing.T) {
	var asked []string
	note := func(format string, args ...any) { asked = append(asked, fmt.Sprintf(format, args...)) }
	uid := fmt.Sprintf("uid %d", os.Getuid())
	who := func(by string) bool { return by == uid || strings.HasPrefix(by, uid+", ") }
	dir, stop := serve(t, &backend{
		apply: func(_ context.Context, r ApplyRequest) (Status, error) {
			note("apply %v %v", r.Force, r.ConfirmWithin)
			return Status{Pending: &Pending{}}, nil
		},
		confirm: func(by string) (Status, error) {
			note("confirm %v", who(by))
			return Status{}, nil
		},
		open: func(r OpenRequest) (Opening, error) {
			note("open %v %v %d %v %q %v", r.From, r.Proto, r.Port, r.For, r.Reason, who(r.By))
			return Opening{ID: "0a1b2c"}, nil
		},
		close: func(id, by string) (Opening, error) {
			note("close %q %v", id, who(by))
			return Opening{ID: id}, nil
		},
		list: []Opening{{ID: "0a1b2c"}},
	})
	c := NewClient(dir)
	if s, err := c.Apply(t.Context(), ApplyRequest{Force: true, ConfirmWithin: 90 * time.Second}); err != nil || s.Pending == nil {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := c.Confirm(t.Context()); err != nil {
		t.Error(err)
	}
	r := OpenRequest{From: netip.MustParsePrefix("2001:db8::/64"), Proto: "udp", Port: 123, For: 30 * time.Minute, Reason: "a\"b", By: "somebody else"}
	if o, err := c.Open(t.Context(), r); err != nil || o.ID != "0a1b2c" {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err := c.Close(t.Context(), "a/../b"); err != nil || o.ID != "a/../b" {
		t.Errorf("%+v, %v", o, err)
	}
	if list, err := c.Openings(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	stop()
	want := []string{"apply true 1m30s", "confirm true", `open 2001:db8::/64 udp 123 30m0s "a\"b" true`, `close "a/../b" true`}
	if d := cmp.Diff(want, asked); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// Who asks for a change that goes back must not get one that stays.
func TestRequestsThatAreNotUnderstoodAreRefused(t *testing.T) {
	dir, _ := serve(t, &backend{}) // any call of a method would panic
	c := NewClient(dir)
	for _, query := range []string{"confirm_within=60", "confirm_within=soon", "confirm=60s", "force=perhaps"} {
		contains(t, c.call(t.Context(), http.MethodPost, "/v1/apply?"+query, nil, nil), "refused: "+strings.Split(query, "=")[0]+": ")
	}
	for body, says := range map[string]string{
		`{"from": "192.0.2.0/24", "for": "30"}`:                               "for: ",
		`{"from": "somewhere", "for": "30m"}`:                                 "cannot be read",
		`{"from": "192.0.2.0/24", "for": "30m", "by": "me"}`:                  "unknown field",
		`{"from": "192.0.2.0/24", "port": 65536, "for": "30m"}`:               "cannot be read",
		`{"from": "192.0.2.0/24", "reason": "` + strings.Repeat("x", maxBody): "too large",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://pghardend/v1/openings", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var f failure
		if err := json.NewDecoder(resp.Body).Decode(&f); err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%.60s: %s, %v", body, resp.Status, err)
		}
		resp.Body.Close()
		contains(t, errors.New(f.Error), "refused: ", says)
	}
}

func TestSudoUser(t *testing.T) {
	for environ, want := range map[string]string{
		"":                                     "",
		"A=1\x00SUDO_USER=ada\x00B=2\x00":      "ada",
		"XSUDO_USER=ada\x00":                   "",
		"SUDO_USER=a\nb\x00":                   "",
		"SUDO_USER=\x1b[2J\x00":                "",
		"SUDO_USER=x\x00PGPASSWORD=secret":     "x",
		"SUDO_USER=ada@EXAMPLE.ORG":            "ada@EXAMPLE.ORG",
		"SUDO_USER=" + strings.Repeat("x", 99): "",
	} {
		if got := sudoUser([]byte(environ)); got != want {
			t.Errorf("%q: %q, want %q", environ, got, want)
		}
	}
}

func TestErrorsReachTheClientVerbatim(t *testing.T) {
	const text = "peers.yaml:7: nodes: the list is empty\npeers.yaml:9: \"x\": unknown key"
	dir, _ := serve(t, &backend{
		apply:   func(context.Context, ApplyRequest) (Status, error) { return Status{}, errors.New(text) },
		service: func(_ context.Context, _, name string) error { return fmt.Errorf("%w %q", ErrNotFound, name) },
	})
	c := NewClient(dir)
	if _, err := c.Apply(t.Context(), ApplyRequest{}); err == nil || err.Error() != text {
		t.Errorf("error %v", err)
	}
	if err := c.StopService(t.Context(), "pgpool"); err == nil || err.Error() != `there is no service "pgpool"` {
		t.Errorf("error %v", err)
	}
}

func TestHTTPStatus(t *testing.T) {
	dir, _ := serve(t, &backend{
		confirm: func(string) (Status, error) { return Status{}, fmt.Errorf("%w: nothing", ErrRefused) },
		close:   func(id, _ string) (Opening, error) { return Opening{}, fmt.Errorf("%w %q", ErrNoSuch, id) },
		apply:   func(context.Context, ApplyRequest) (Status, error) { return Status{}, errors.New("no") },
		service: func(_ context.Context, _, name string) error { return fmt.Errorf("%w %q", ErrNotFound, name) },
	})
	c := NewClient(dir)
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/v1/status", http.StatusOK},
		{http.MethodPost, "/v1/status", http.StatusMethodNotAllowed},
		{http.MethodGet, "/v1/apply", http.StatusMethodNotAllowed}, // nothing changes with a GET
		{http.MethodPost, "/v1/apply", http.StatusInternalServerError},
		{http.MethodPost, "/v1/services/x/stop", http.StatusNotFound},
		{http.MethodGet, "/v1/confirm", http.StatusMethodNotAllowed},
		{http.MethodPost, "/v1/confirm", http.StatusBadRequest},
		{http.MethodDelete, "/v1/openings/x", http.StatusNotFound},
		{http.MethodDelete, "/v1/openings", http.StatusMethodNotAllowed},
		{http.MethodGet, "/v1/openings", http.StatusOK},
		{http.MethodGet, "/v2/status", http.StatusNotFound},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://pghardend"+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("%s %s: %s, want %d", tt.method, tt.path, resp.Status, tt.want)
		}
	}
	err := c.call(t.Context(), http.MethodGet, "/v2/status", nil, nil)
	contains(t, err, "404", "of the same version")
}

// A client that connects and says nothing.
func TestStuckClientHoldsUpNobody(t *testing.T) {
	dir, stop := serve(t, &backend{status: Status{Node: "pg-0"}})
	for range 20 {
		conn, err := net.Dial("unix", filepath.Join(dir, SocketName))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	half, err := net.Dial("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { half.Close() })
	if _, err := half.Write([]byte("GET /v1/status HTTP/1.1\r\nHost: x\r\n")); err != nil { // no end
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), headerTimeout/2)
	defer cancel()
	if s, err := NewClient(dir).Status(ctx); err != nil || s.Node != "pg-0" {
		t.Errorf("status %+v, error %v", s, err)
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took > headerTimeout/2 {
		t.Errorf("the end took %v", took)
	}
}

// A client that asks for much and reads none of it.
func TestDeafClientHoldsUpNobody(t *testing.T) {
	big := make([]string, 1<<10) // a megabyte, more than a socket holds
	for i := range big {
		big[i] = strings.Repeat("x", 1<<10)
	}
	dir, stop := serve(t, &backend{status: Status{Node: "pg-0", Reasons: big}})
	conn, err := net.Dial("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := conn.Write([]byte("GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if s, err := NewClient(dir).Status(t.Context()); err != nil || s.Node != "pg-0" {
		t.Errorf("node %q, error %v", s.Node, err)
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took > writeTimeout/2 {
		t.Errorf("the end took %v", took)
	}
}

// A request in flight when the daemon ends is told so by the backend.
func TestShutdownTellsWhoWaits(t *testing.T) {
	entered := make(chan struct{})
	dir, stop := serve(t, &backend{service: func(ctx context.Context, _, _ string) error {
		close(entered)
		<-ctx.Done()
		return errors.New("the stop goes on")
	}})
	answer := make(chan error, 1)
	go func() { answer <- NewClient(dir).StopService(context.Background(), "postgres") }()
	<-entered
	stop()
	if err := <-answer; err == nil || err.Error() != "the stop goes on" {
		t.Errorf("error: %v", err)
	}
}

// A backend that does not look at its context cannot hold up the end, and its
// client learns what happened.
func TestShutdownLeavesWhoHangs(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	dir, stop := serve(t, &backend{service: func(context.Context, string, string) error {
		close(entered)
		<-release
		return nil
	}})
	defer close(release)
	answer := make(chan error, 1)
	go func() { answer <- NewClient(dir).StopService(context.Background(), "postgres") }()
	<-entered
	stop()
	contains(t, <-answer, "ended before it had answered")
}

func TestGoneClientEndsItsRequest(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	dir, _ := serve(t, &backend{service: func(ctx context.Context, _, _ string) error {
		close(entered)
		<-ctx.Done()
		close(left)
		return ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-entered
		cancel()
	}()
	if err := NewClient(dir).StopService(ctx, "postgres"); !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
	<-left
}

// A daemon that hangs (SIGSTOP, say) still has its socket.
func TestHangingDaemonIsNamed(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := NewClient(dir)
	c.statusPatience = 20 * time.Millisecond
	_, err = c.Status(t.Context())
	if errors.Is(err, ErrNoDaemon) {
		t.Error("a daemon that hangs is taken for none")
	}
	contains(t, err, filepath.Join(dir, SocketName), "does not answer", "systemctl status pghardend")
}

func TestExplain(t *testing.T) {
	c := NewClient("/run/pghardend")
	err := c.explain(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", os.ErrPermission)})
	if errors.Is(err, ErrNoDaemon) {
		t.Error("a daemon that one may not ask is taken for none")
	}
	contains(t, err, "/run/pghardend/control.sock", "run this as root")
	contains(t, c.explain(errors.New("odd")), "cannot ask the daemon", "odd")
}
