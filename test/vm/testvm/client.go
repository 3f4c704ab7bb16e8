package testvm

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/pghardend/pghardend/test/vm/wire"
)

// Result is what a script did.
type Result struct {
	Exit           int
	Stdout, Stderr string
}

var errHungUp = errors.New("the machine has hung up")

// Client sends scripts to the runner of a machine. The emulator takes one client at a time; others wait.
type Client struct {
	conn net.Conn

	mu      sync.Mutex
	waiting map[string]chan wire.Answer // by the id of the request
	gone    error
	done    chan struct{} // closed when gone is set
}

// Dial connects to the machine of this name, which Boot of this or another process has started.
func Dial(ctx context.Context, name string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socketPath(name))
	if err != nil {
		return nil, fmt.Errorf("cannot reach the machine %s: %w", name, err)
	}
	c := &Client{conn: conn, waiting: map[string]chan wire.Answer{}, done: make(chan struct{})}
	go c.read()
	return c, nil
}

// Close hangs up; scripts go on, and nobody hears of them.
func (c *Client) Close() { c.conn.Close() }

func (c *Client) read() {
	in := bufio.NewReader(c.conn)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			c.gone = fmt.Errorf("%w: %w", errHungUp, err)
			close(c.done)
			return
		}
		var a wire.Answer
		if json.Unmarshal(line, &a) != nil {
			continue // half a line of an earlier boot, or an empty one
		}
		c.mu.Lock()
		if ch := c.waiting[a.ID]; ch != nil {
			ch <- a
			delete(c.waiting, a.ID)
		}
		c.mu.Unlock()
	}
}

// ask sends one request and awaits its answer.
func (c *Client) ask(ctx context.Context, r wire.Request) (wire.Answer, error) {
	r.ID = rand.Text()
	data, err := json.Marshal(r)
	if err != nil {
		return wire.Answer{}, err
	}
	ch := make(chan wire.Answer, 1)
	c.mu.Lock()
	c.waiting[r.ID] = ch
	if err = c.conn.SetWriteDeadline(time.Now().Add(time.Minute)); err == nil {
		// The line break in front ends what an earlier client may have left half-written.
		_, err = c.conn.Write(append(append([]byte{'\n'}, data...), '\n'))
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, r.ID)
		c.mu.Unlock()
	}()
	if err != nil {
		return wire.Answer{}, fmt.Errorf("cannot send to the machine: %w", err)
	}
	select {
	case a := <-ch:
		return a, nil
	case <-c.done:
		return wire.Answer{}, c.gone
	case <-ctx.Done():
		return wire.Answer{}, ctx.Err()
	}
}

// Boot returns the kernel's id of the machine's present boot.
func (c *Client) Boot(ctx context.Context) (string, error) {
	a, err := c.ask(ctx, wire.Request{})
	return a.Boot, err
}

// Run has bash execute a script as root, with stdin as its standard input, and returns what it did, whatever its exit status. The script is killed
// when ctx has ended.
func (c *Client) Run(ctx context.Context, script string, stdin []byte) (Result, error) {
	r := wire.Request{Script: script, Stdin: stdin}
	if deadline, ok := ctx.Deadline(); ok {
		r.Timeout = max(time.Until(deadline), time.Second)
		// The machine tells what the script said until then.
		longer, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.Timeout+15*time.Second)
		defer cancel()
		defer context.AfterFunc(ctx, func() {
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				cancel()
			}
		})()
		ctx = longer
	}
	a, err := c.ask(ctx, r)
	if err != nil {
		return Result{}, fmt.Errorf("cannot run %q: %w", brief(script), err)
	}
	result := Result{Exit: a.Exit, Stdout: string(a.Stdout), Stderr: string(a.Stderr)}
	if a.Error != "" {
		return result, fmt.Errorf("cannot run %q: %s; it said: %s", brief(script), a.Error, said(result))
	}
	return result, nil
}

// runner is a Client or a VM.
type runner interface {
	Run(ctx context.Context, script string, stdin []byte) (Result, error)
}

// Output is Run for scripts that have to succeed, and returns the standard output without white space around it.
func (c *Client) Output(ctx context.Context, script string) (string, error) {
	return output(ctx, c, script)
}

// Write makes a file of root's with a mode, its label as the policy wants it, and its directories.
func (c *Client) Write(ctx context.Context, path string, mode uint32, data []byte) error {
	return write(ctx, c, path, mode, data)
}

func output(ctx context.Context, in runner, script string) (string, error) {
	r, err := in.Run(ctx, script, nil)
	if err != nil {
		return "", err
	}
	if r.Exit != 0 {
		return strings.TrimSpace(r.Stdout), fmt.Errorf("%q failed with %d: %s", brief(script), r.Exit, said(r))
	}
	return strings.TrimSpace(r.Stdout), nil
}

func write(ctx context.Context, in runner, path string, mode uint32, data []byte) error {
	script := fmt.Sprintf(`umask 022; mkdir -p "$(dirname '%[1]s')" && cat >'%[1]s.new' && chmod %[2]o '%[1]s.new' && mv '%[1]s.new' '%[1]s' &&
		{ ! [ -e /sys/fs/selinux/enforce ] || restorecon '%[1]s'; }`, path, mode)
	r, err := in.Run(ctx, script, data)
	if err == nil && r.Exit != 0 {
		err = errors.New(said(r))
	}
	if err != nil {
		return fmt.Errorf("cannot write %s in the machine: %w", path, err)
	}
	return nil
}

func brief(script string) string {
	first, rest, _ := strings.Cut(strings.TrimSpace(script), "\n")
	if rest != "" {
		first += " …"
	}
	return first
}

func said(r Result) string { return strings.TrimSpace(r.Stdout + r.Stderr) }
