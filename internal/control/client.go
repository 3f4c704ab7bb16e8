package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// ErrNoDaemon means that nobody listens on the control socket.
var ErrNoDaemon = errors.New("no daemon is running")

// How long a daemon may take, which at its own limits takes less. Starting and
// stopping a service takes as long as that service does.
const (
	statusPatience = 15 * time.Second
	applyPatience  = 5 * time.Minute
)

// Client talks to the daemon of one runtime_dir.
type Client struct {
	path           string
	http           http.Client
	statusPatience time.Duration
}

// NewClient makes a client; it connects with each request.
func NewClient(dir string) *Client {
	path := filepath.Join(dir, SocketName)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{
		path:           path,
		http:           http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}},
		statusPatience: statusPatience,
	}
}

// Status asks for the daemon's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, c.statusPatience)
	defer cancel()
	var s Status
	err := c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// Apply asks for a pass.
func (c *Client) Apply(ctx context.Context, r ApplyRequest) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, applyPatience)
	defer cancel()
	query := url.Values{"force": {strconv.FormatBool(r.Force)}}
	if r.ConfirmWithin != 0 {
		query.Set("confirm_within", r.ConfirmWithin.String())
	}
	var s Status
	err := c.call(ctx, http.MethodPost, "/v1/apply?"+query.Encode(), nil, &s)
	return s, err
}

// Confirm keeps a change that would go back.
func (c *Client) Confirm(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, applyPatience)
	defer cancel()
	var s Status
	err := c.call(ctx, http.MethodPost, "/v1/confirm", nil, &s)
	return s, err
}

// Openings lists the openings, those that ended too.
func (c *Client) Openings(ctx context.Context) ([]Opening, error) {
	ctx, cancel := context.WithTimeout(ctx, c.statusPatience)
	defer cancel()
	var list []Opening
	err := c.call(ctx, http.MethodGet, "/v1/openings", nil, &list)
	return list, err
}

// Open makes an opening and waits until it is in the kernel.
func (c *Client) Open(ctx context.Context, r OpenRequest) (Opening, error) {
	ctx, cancel := context.WithTimeout(ctx, applyPatience)
	defer cancel()
	body := openBody{From: r.From, Proto: r.Proto, Port: r.Port, For: r.For.String(), Reason: r.Reason}
	var o Opening
	err := c.call(ctx, http.MethodPost, "/v1/openings", body, &o)
	return o, err
}

// Close ends an opening and waits until it is gone from the kernel.
func (c *Client) Close(ctx context.Context, id string) (Opening, error) {
	ctx, cancel := context.WithTimeout(ctx, applyPatience)
	defer cancel()
	var o Opening
	err := c.call(ctx, http.MethodDelete, "/v1/openings/"+url.PathEscape(id), nil, &o)
	return o, err
}

// StartService starts a stopped service and waits until it is ready.
func (c *Client) StartService(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/v1/services/"+url.PathEscape(name)+"/start", nil, nil)
}

// StopService stops a service and waits for its end.
func (c *Client) StopService(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/v1/services/"+url.PathEscape(name)+"/stop", nil, nil)
}

func (c *Client) call(ctx context.Context, method, path string, body, into any) error {
	answer, err := c.ask(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer answer.Close()
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(answer).Decode(into); err != nil {
		return c.unreadable(err)
	}
	return nil
}

// ask sends a request and returns the answer to it, which is no error.
func (c *Client) ask(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	var text io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("cannot ask the daemon: %w", err)
		}
		text = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://pghardend"+path, text)
	if err != nil {
		return nil, fmt.Errorf("cannot ask the daemon: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode < http.StatusBadRequest {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var f failure
	if err := json.NewDecoder(resp.Body).Decode(&f); err != nil || f.Error == "" {
		return nil, fmt.Errorf("the daemon on %s answers %s; is it of the same version as this command?", c.path, resp.Status)
	}
	return nil, errors.New(f.Error)
}

func (c *Client) unreadable(err error) error {
	return c.explain(fmt.Errorf("its answer cannot be read: %w", err))
}

// explain says what a failed exchange means for who asked.
func (c *Client) explain(err error) error {
	var wrapped *url.Error // names a URL that means nothing to anybody
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody listens on %s", ErrNoDaemon, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("cannot reach the daemon on %s: permission denied; run this as root", c.path)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the daemon on %s does not answer: it is stopped or hangs; look at `systemctl status pghardend` and its log, then restart it (services go on)", c.path)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("the daemon on %s ended before it had answered; see `pghardend status`", c.path)
	}
	return fmt.Errorf("cannot ask the daemon on %s: %w", c.path, err)
}
