package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// The test binary plays every part itself: gate, launch stage, service, postmaster
// and daemon are real processes of it, chosen by the first argument.
func TestMain(m *testing.M) {
	parts := map[string]func([]string) error{
		GateCommand:       Gate,
		"play-launch":     playLaunch,
		"play-service":    playService,
		"play-postmaster": playPostmaster,
		"play-daemon":     playDaemon,
		"play-steps":      playSteps,
	}
	if len(os.Args) > 1 {
		if part, ok := parts[os.Args[1]]; ok {
			if err := part(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(runTests(m))
}

// serviceBinary is a copy of the test binary, so that the service's executable is
// not that of gate and launch stage.
var serviceBinary string

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "supervise")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	serviceBinary = filepath.Join(dir, "service")
	data, err := os.ReadFile(exe)
	if err != nil {
		panic(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(serviceBinary, data, 0o755)); err != nil {
		panic(err)
	}
	return m.Run()
}

// playLaunch [-u UID:GID] [-need FILE] [-await FILE] ARGV… is a launch stage: it refuses while
// FILE is missing, or waits for it, else drops to the user and becomes ARGV.
func playLaunch(args []string) error {
	for len(args) > 1 && args[0][0] == '-' {
		switch args[0] {
		case "-need":
			if _, err := os.Stat(args[1]); err != nil {
				line, _ := json.Marshal(report{Step: "data-dir", Error: "cannot start service t: step data-dir: " + args[1] + " is missing", Code: 77})
				_, _ = unix.Write(reportFD, line)
				os.Exit(77)
			}
		case "-await":
			for _, err := os.Stat(args[1]); err != nil; _, err = os.Stat(args[1]) {
				<-time.After(time.Millisecond)
			}
		case "-u":
			var uid, gid int
			if _, err := fmt.Sscanf(args[1], "%d:%d", &uid, &gid); err != nil {
				return err
			}
			if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
				return err
			}
		}
		args = args[2:]
	}
	unix.CloseOnExec(reportFD)
	return unix.Exec(args[0], args, os.Environ())
}

// playService DIR WORD… is a service whose behaviour the words say.
func playService(args []string) error {
	dir, words := args[0], args[1:]
	has := func(word string) bool {
		for _, w := range words {
			if w == word {
				return true
			}
		}
		return false
	}
	alone, err := unix.Open(filepath.Join(dir, "alone"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if unix.Flock(alone, unix.LOCK_EX|unix.LOCK_NB) != nil { // held until this process ends
		return appendLine(filepath.Join(dir, "doubles"), strconv.Itoa(os.Getpid()))
	}
	if has("describe") {
		describe(filepath.Join(dir, "description"))
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM)
	if err := appendLine(filepath.Join(dir, "starts"), strconv.Itoa(os.Getpid())); err != nil {
		return err
	}
	unix.Close(reportFD)
	if n, _ := strconv.Atoi(strings.TrimPrefix(words[0], "fail=")); countLines(filepath.Join(dir, "starts")) <= n {
		os.Exit(1)
	}
	for sig := range signals {
		_ = appendLine(filepath.Join(dir, "signals"), sig.String())
		switch {
		case sig == unix.SIGTERM:
			os.Exit(0)
		case sig == unix.SIGINT && !has("no-int"), sig == unix.SIGQUIT && !has("no-quit"):
			os.Exit(2)
		}
	}
	return nil
}

// describe writes what a launch stage would find: descriptors, environment, session.
func describe(path string) {
	var b strings.Builder
	fmt.Fprintf(&b, "env %s\n", strings.Join(os.Environ(), " "))
	for fd := range 10 {
		if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil {
			flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if flags&unix.FD_CLOEXEC == 0 {
				fmt.Fprintf(&b, "fd %d %s\n", fd, link)
			}
		}
	}
	sid, _ := unix.Getsid(0)
	cwd, _ := os.Getwd()
	var pdeath int32
	_ = unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&pdeath)), 0, 0, 0)
	fmt.Fprintf(&b, "leader %v\ncwd %s\npdeathsig %d\n", sid == os.Getpid(), cwd, pdeath)
	_ = renameio.WriteFile(path, []byte(b.String()), 0o600, renameio.WithTempDir(filepath.Dir(path)))
}

// playPostmaster DATADIR SOCKETDIR [slow] is a server as far as the outside can tell.
func playPostmaster(args []string) error {
	dataDir, socketDir := args[0], args[1]
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	if err := os.Chdir(dataDir); err != nil {
		return err
	}
	status := "starting"
	if len(args) < 3 {
		status = "ready   "
	}
	file, err := lockDataDir(dataDir)
	if err != nil {
		_ = appendLine(filepath.Join(dataDir, "doubles"), strconv.Itoa(os.Getpid()))
		return err
	}
	socket := filepath.Join(socketDir, ".s.PGSQL.5432")
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go answerSSL(l, 'N')
	write := func(status string) error {
		_, err := file.WriteAt([]byte(pidFileText(os.Getpid(), dataDir, socketDir, "", status)), 0)
		return err
	}
	if err := write(status); err != nil {
		return err
	}
	if err := appendLine(filepath.Join(dataDir, "starts"), strconv.Itoa(os.Getpid())); err != nil {
		return err
	}
	unix.Close(reportFD)
	for sig := range signals {
		switch sig {
		case unix.SIGUSR1: // end of recovery
			_ = write("ready   ")
		case unix.SIGUSR2: // gives up
			_ = os.Remove(filepath.Join(dataDir, pidFileName))
			os.Exit(1)
		default:
			_ = os.Remove(filepath.Join(dataDir, pidFileName))
			os.Exit(0)
		}
	}
	return nil
}

// lockDataDir creates postmaster.pid as postgres does, in place of a dead one's.
func lockDataDir(dataDir string) (*os.File, error) {
	path := filepath.Join(dataDir, pidFileName)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if !errors.Is(err, os.ErrExist) {
			return f, err
		}
		ctx := context.Background()
		pf, err := readPIDFile(ctx, dataDir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if err == nil && isAlive(ctx, pf.pid) {
			return nil, fmt.Errorf("lock file %s already exists", path)
		}
		_ = os.Remove(path)
	}
}

func answerSSL(l net.Listener, answer byte) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			var req [8]byte
			if _, err := io.ReadFull(conn, req[:]); err == nil && string(req[:]) == string(sslRequest) {
				_, _ = conn.Write([]byte{answer})
			}
		}()
	}
}

func pidFileText(pid int, dataDir, socketDir, host, status string) string {
	return fmt.Sprintf("%d\n%s\n1700000000\n5432\n%s\n%s\n   123   456\n%s\n", pid, dataDir, socketDir, host, status)
}

func writePIDFile(dataDir, text string) error {
	return renameio.WriteFile(filepath.Join(dataDir, pidFileName), []byte(text), 0o600, renameio.WithTempDir(dataDir))
}

// plan is a Spec that can be handed to a daemon process.
type plan struct {
	Argv                      []string
	Exe, DataDir, Record, Log string
	Start, Stop               time.Duration
}

func (p plan) spec() Spec {
	log, err := os.OpenFile(p.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		panic(err)
	}
	return Spec{Name: "t", Argv: p.Argv, Exe: p.Exe, DataDir: p.DataDir, RecordFile: p.Record, LogFile: log, StartTimeout: p.Start, StopTimeout: p.Stop}
}

// playDaemon PLAN STATUSFILE [stop] supervises until it is killed.
func playDaemon(args []string) error {
	data, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var p plan
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	s := New(p.spec(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	go func() {
		for range s.Changed() {
			st := s.Status()
			if data, err := json.Marshal(st); err == nil {
				_ = renameio.WriteFile(args[1], data, 0o600, renameio.WithTempDir(filepath.Dir(args[1])))
			}
			if st.State == StateReady && len(args) > 2 {
				go func() { _ = s.Stop(context.Background()) }()
			}
		}
	}()
	return s.Run(context.Background())
}

// playSteps PLAN N makes the first N steps of the start protocol, then dies as
// SIGKILL would have it.
func playSteps(args []string) error {
	data, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var p plan
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	ctx, spec := context.Background(), p.spec()
	c, err := fork(ctx, spec)
	if err != nil {
		return err
	}
	if args[1] >= "2" {
		k := newKeeper(New(spec, nil))
		k.proc, k.exe = c.proc, serviceExe(ctx, spec)
		if err := k.record(ctx, false, ""); err != nil {
			return err
		}
	}
	if args[1] >= "3" {
		if _, err := c.gate.Write([]byte{1}); err != nil {
			return err
		}
	}
	fmt.Println(c.proc.pid)
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(line + "\n")
	return err
}

func countLines(path string) int {
	data, _ := os.ReadFile(path)
	return strings.Count(string(data), "\n")
}
