package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
)

// ErrNoDaemon means that nobody listens on the control socket.
var ErrNoDaemon = errors.New("no daemon is running")

// Client talks to the daemon of one runtime_dir.
type Client struct {
	http http.Client
}

// NewClient makes a client; it connects with each request.
func NewClient(dir string) *Client {
	path := filepath.Join(dir, SocketName)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status asks for the daemon's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodGet, "/v1/status", &s)
	return s, err
}

// Apply asks for one pass. force accepts a suspicious input.
func (c *Client) Apply(ctx context.Context, force bool) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodPost, "/v1/apply?force="+strconv.FormatBool(force), &s)
	return s, err
}

// StartService starts a stopped service.
func (c *Client) StartService(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/v1/services/"+url.PathEscape(name)+"/start", nil)
}

// StopService stops a service and waits for its end.
func (c *Client) StopService(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "/v1/services/"+url.PathEscape(name)+"/stop", nil)
}

func (c *Client) call(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://pghardend"+path, nil)
	if err != nil {
		return fmt.Errorf("cannot ask the daemon: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			return fmt.Errorf("%w: %w", ErrNoDaemon, dial)
		}
		return fmt.Errorf("cannot ask the daemon: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		var f failure
		if err := json.NewDecoder(resp.Body).Decode(&f); err != nil || f.Error == "" {
			return fmt.Errorf("the daemon answers %s", resp.Status)
		}
		return errors.New(f.Error)
	}
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("cannot read the daemon's answer: %w", err)
	}
	return nil
}
