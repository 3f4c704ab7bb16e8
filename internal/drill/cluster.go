package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Patience with the scratch server.
const (
	initTime  = 2 * time.Minute
	startTime = time.Minute
	stopTime  = 10 * time.Second
	queryTime = 15 * time.Second
)

// cluster is the scratch PostgreSQL.
type cluster struct {
	uid    int
	bin    string
	inside Inside
	layers []Layer // of the last start

	cmd    *exec.Cmd
	exited chan struct{}
	log    *serverLog
	cancel context.CancelFunc
}

// settings of the scratch server: small, and with nothing that outlives it.
const settings = `
listen_addresses = '*'
port = %d
unix_socket_directories = '%s'
max_connections = 12
shared_buffers = 8MB
max_wal_size = 64MB
fsync = off
autovacuum = off
archive_mode = on
logging_collector = off
log_destination = stderr
huge_pages = off
`

// makeCluster runs initdb as the drill's user. Services that are not PostgreSQL
// have none.
func (b *box) makeCluster(ctx context.Context) error {
	if err := errors.Join(b.listenUnix(ctx), b.listenBus(ctx)); err != nil {
		return err
	}
	if b.Server == "" || !slices.ContainsFunc(chosen(b.Rows), func(a attempt) bool { return a.sql != nil }) {
		return nil
	}
	c := &cluster{uid: b.UID, bin: filepath.Dir(b.Server), inside: b.Inside}
	b.say("making a scratch cluster with %s", filepath.Join(c.bin, "initdb"))
	ctx, cancel := context.WithTimeout(ctx, initTime)
	defer cancel()
	cmd := c.command(ctx, "initdb", "-D", b.data, "-U", "postgres", "-E", "UTF8", "--locale=C", "--auth=trust", "--no-sync")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot make a scratch cluster: %w: %s", err, lastLines(string(out)))
	}
	conf, err := os.OpenFile(filepath.Join(b.data, "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(conf, settings, serverPort, b.Inside.Socket())
	b.cluster = c
	return errors.Join(err, conf.Close())
}

// command is one of PostgreSQL's programs, unconfined, as the drill's user.
func (c *cluster) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, name), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.uid)}, Setsid: true}
	cmd.Dir, cmd.Env, cmd.WaitDelay = "/", environment(), time.Second
	return cmd
}

// start starts the server under some layers, and waits until it is ready.
func (c *cluster) start(ctx context.Context, b *box, layers []Layer) error {
	run, cancel := context.WithCancel(ctx)
	c.layers = layers
	c.cmd, c.cancel, c.exited = b.launch(run, withoutGroup(layers), b.Server, "-D", b.data), cancel, make(chan struct{})
	c.log = &serverLog{}
	c.cmd.Stdout, c.cmd.Stderr = c.log, c.log
	if err := c.cmd.Start(); err != nil {
		cancel()
		return fmt.Errorf("cannot start the scratch server: %w", err)
	}
	go func() {
		_ = c.cmd.Wait() // what it said is in the log
		close(c.exited)
	}()
	deadline := time.After(startTime)
	for !c.ready() {
		select {
		case <-c.exited:
			cancel()
			return fmt.Errorf("the scratch server does not start: %s", lastLines(c.log.String()))
		case <-deadline:
			c.stop()
			return fmt.Errorf("the scratch server is not ready after %s: %s", startTime, lastLines(c.log.String()))
		case <-ctx.Done():
			c.stop()
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// ready reads the status in the eighth line of postmaster.pid, written by the
// server of this start.
func (c *cluster) ready() bool {
	data, err := os.ReadFile(filepath.Join(c.inside.Data(), "postmaster.pid"))
	lines := strings.Split(string(data), "\n")
	return err == nil && len(lines) > 7 && lines[0] == itoa(c.cmd.Process.Pid) && strings.TrimSpace(lines[7]) == "ready"
}

// stop ends the server at once: the data is scratch, and a fast shutdown would wait
// for an archiver that attempts have set going.
func (c *cluster) stop() {
	_ = c.cmd.Process.Signal(unix.SIGQUIT) // it may have ended
	select {
	case <-c.exited:
	case <-time.After(stopTime):
	}
	c.cancel() // kills it; its children follow
	<-c.exited
}

// query runs SQL as the superuser and returns what it says.
func (c *cluster) query(ctx context.Context, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	cmd := c.command(ctx, "psql", "-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-h", c.inside.Socket(), "-p", itoa(serverPort), "-U", "postgres", "-d", "postgres")
	cmd.Stdin = strings.NewReader(sql)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s (%w)", strings.TrimSpace(errOut.String()), err)
	}
	return strings.TrimSpace(out.String()), nil
}

// serverLog is what the server has said since its start. It is written to by the
// goroutine of a command.
type serverLog struct {
	mu   sync.Mutex
	text strings.Builder
}

// mostLog is more than a server says in a drill.
const mostLog = 1 << 20

func (l *serverLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() < mostLog {
		l.text.Write(p)
	}
	return len(p), nil
}

func (l *serverLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
