package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

const year = 365 * 24 * time.Hour

// F21: a clock that jumps, as seen by what is on disk: files from next year and
// from last year count as others do, openings of another year are over, and the
// journal goes on in its order.
func TestF21_ClockUnderTheDaemon(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, stranger := newHold(t, backend)
		s.startHold()
		for i, jump := range []time.Duration{year, -year} {
			member := fmt.Sprintf("10.0.0.%d", 53+i)
			must(t, s.agent.WritePeers(s.withDNS(member+"/32")))
			must(t, os.Chtimes(s.agent.PeersPath, time.Time{}, time.Now().Add(jump)))
			s.awaitMember("pgh4-dns", member)
		}
		before := time.Now()
		s.tool("$I4 -F PGHARDEND-OUT")
		s.awaitRestored(before, "PGHARDEND-OUT")
		for _, tt := range []struct {
			left time.Duration
			want testbed.Verdict
		}{{year, testbed.NoAnswer}, {-year, testbed.NoAnswer}, {30 * time.Second, testbed.Open}} {
			_, err := s.agent.Stop(s.ctx)
			must(t, err)
			s.leaveOpening(stranger.V4(), tt.left)
			s.startHold()
			s.reaches(stranger, false, holdPort, tt.want)
		}

		_, err := s.agent.Stop(s.ctx)
		must(t, err)
		file := filepath.Join(s.agent.Dir, "state", "events.jsonl")
		text, err := os.ReadFile(file)
		must(t, err)
		now := time.Now().Year()
		ahead := regexp.MustCompile(fmt.Sprintf(`"at":"%d`, now)).ReplaceAll(text, fmt.Appendf(nil, `"at":"%d`, now+1))
		if string(ahead) == string(text) {
			t.Fatalf("no times in\n%s", text)
		}
		must(t, os.WriteFile(file, ahead, 0o600))
		s.startHold()
		s.tool("$I6 -F PGHARDEND-OUT")
		s.awaitRestored(before, "ipv6 chain PGHARDEND-OUT")
		var last control.Event
		backwards := false
		for line := range strings.Lines(s.want(0, nil, "events", "--json", "--limit", "0").Stdout) {
			var e control.Event
			must(t, json.Unmarshal([]byte(line), &e))
			if e.Seq != last.Seq+1 {
				t.Errorf("event %d after %d", e.Seq, last.Seq)
			}
			backwards = backwards || e.At.Before(last.At)
			last = e
		}
		if !backwards || !strings.Contains(last.What, "ipv6 chain PGHARDEND-OUT") {
			t.Errorf("the last event is not the last drift, or no time went back: %+v", last)
		}
	})
}

// F24: systemd hears nothing from a daemon whose loop hangs, here since the disk
// with the commands does: not even the start of one returns. (That commands which
// hang do not keep the sign of life back is part of F11.) Its rules stay, and the
// next daemon finds them.
func TestF24_HangsUnderTheDaemon(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, _ := newHold(t, backend)
		conn := s.systemd("WATCHDOG_USEC=4000000") // a message each second
		s.startHold()
		s.standIns()
		run(t, s.node, fmt.Sprintf("mkdir /run/stuck; for I in iptables ip6tables; do ln -sfn /run/stuck/save /usr/sbin/$I-%s-save; done", backend))
		if hearsNothing(t, conn, 3*time.Second) {
			t.Error("no sign of life from a daemon that is well")
		}
		release := hang(t, s.bystander(), "/run/stuck")
		defer release()
		before := time.Now()
		s.tool("$I4 -F PGHARDEND-OUT")
		if !hearsNothing(t, conn, 3*time.Second) {
			t.Error("the loop hangs, and systemd is told that all is well")
		}
		if o := send(t, s.sibling, s.syn()); o.Arrived != 1 || len(o.Answers) != 0 {
			t.Errorf("the sibling's SYN while the loop hangs: %v", o)
		}
		rules := s.rules()
		must(t, s.agent.Kill9(s.ctx)) // what systemd does in the end
		if now := s.rules(); now != rules || now == "" {
			t.Errorf("the rules went with the daemon:\n%s", now)
		}
		release()
		s.real()
		// What it was about to start has its lock until that is over.
		s.awaitKernel(10*time.Second, "the lock is free", "flock -n "+filepath.Join(s.agent.Dir, "run", "lock")+" true")
		s.startHold()
		s.settled("the restart")
		s.isolated("after the restart")
		t.Logf("over after %v", time.Since(before).Round(10*time.Millisecond))
	})
}

// bystander is a process in the node that outlives the daemon.
func (s *slice) bystander() int {
	s.t.Helper()
	cmd := s.node.Command(s.ctx, "sh", "-c", "echo ready; exec sleep 1000 >/dev/null")
	out, err := cmd.StdoutPipe()
	must(s.t, err)
	must(s.t, cmd.Start())
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be gone
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		s.t.Fatalf("%q, %v", line, err)
	}
	return cmd.Process.Pid
}

// systemd is a notify socket for daemons that are started from now on.
func (s *slice) systemd(env ...string) *net.UnixConn {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(s.t, err)
	s.t.Cleanup(func() { must(s.t, conn.Close()) })
	s.agent.Env = append(s.agent.Env, append(env, "NOTIFY_SOCKET="+path)...)
	return conn
}

// hearsNothing says whether there is a time of that length without a message, within
// three of them.
func hearsNothing(t *testing.T, conn *net.UnixConn, length time.Duration) bool {
	t.Helper()
	buf := make([]byte, 4096)
	for end := time.Now().Add(3 * length); time.Now().Before(end); {
		must(t, conn.SetReadDeadline(time.Now().Add(length)))
		if _, err := conn.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			return true
		}
	}
	return false
}

// F25: nobody reads the log, systemd takes no message, the control socket is full
// of connections that say nothing, and then gone. Rules are kept all the same.
func TestF25_NobodyListensToTheDaemon(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		s, _ := newHold(t, backend)
		conn := s.systemd("WATCHDOG_USEC=4000000")
		stuff(t, conn.LocalAddr().String())
		log := s.startWithBlockedLog()
		repaired := func(when string) {
			t.Helper()
			for range 3 {
				s.tool("$I4 -F PGHARDEND-OUT; $I6 -F PGHARDEND-IN")
				took := s.awaitKernel(10*time.Second, "repair while "+when, s.present("iptables", "PGHARDEND-OUT")+" && "+s.present("ip6tables", "PGHARDEND-IN"))
				if took > 5*time.Second {
					t.Errorf("%s: put back only after %v", when, took)
				}
			}
			s.isolated(when)
		}
		repaired("nobody reads the log and systemd's socket is full")
		s.ok("with a log that nobody reads")
		socket := filepath.Join(s.agent.Dir, "run", control.SocketName)
		for i := range 200 {
			c, err := net.Dial("unix", socket)
			must(t, err)
			t.Cleanup(func() { _ = c.Close() })
			if i%2 == 0 { // a follower that reads nothing
				req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, "http://pghardend/v1/events?follow=1", nil)
				must(t, err)
				must(t, req.Write(c))
			}
		}
		repaired("the control socket is full of connections")
		must(t, os.Remove(socket))
		repaired("the control socket is gone")

		code, err := s.agent.Stop(s.ctx)
		must(t, err)
		if code != 0 {
			t.Errorf("exit code %d", code)
		}
		if n := strings.Count(s.want(0, nil, "events", "--json", "--limit", "0").Stdout, `"cause":"drift"`); n < 9 {
			t.Errorf("the journal has %d drifts", n)
		}
		if text := log(); strings.Contains(text, "level") {
			t.Errorf("the log took something, so it was not blocked: %q", text)
		}
	})
}

// startWithBlockedLog starts a daemon whose log is a pipe that is full. log reads
// what is in it.
func (s *slice) startWithBlockedLog() (log func() string) {
	s.t.Helper()
	plain := s.agent.LogPath
	fifo := filepath.Join(s.agent.Dir, "log.pipe")
	must(s.t, unix.Mkfifo(fifo, 0o600))
	fd, err := unix.Open(fifo, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must(s.t, err)
	pipe := os.NewFile(uintptr(fd), fifo)
	s.t.Cleanup(func() { must(s.t, pipe.Close()) })
	size := 0
	for _, block := range []int{4096, 1} {
		for {
			n, err := unix.Write(fd, []byte(strings.Repeat(".", block)))
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			must(s.t, err)
			size += n
		}
	}
	must(s.t, os.WriteFile(plain, nil, 0o600))
	s.agent.LogPath = fifo
	must(s.t, s.agent.Start())
	s.agent.LogPath = plain // for who wants to see its end
	s.ok("with a log that is full")
	return func() string {
		buf := make([]byte, size)
		n, err := unix.Read(fd, buf)
		must(s.t, err)
		return string(buf[:n])
	}
}

// stuff fills the queue of a datagram socket.
func stuff(t *testing.T, path string) {
	t.Helper()
	c, err := net.Dial("unixgram", path)
	must(t, err)
	defer c.Close()
	for range 100_000 {
		must(t, c.SetWriteDeadline(time.Now().Add(20*time.Millisecond)))
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
	}
	t.Fatal("the socket takes everything")
}
