package agent

import (
	"bufio"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/pghardend/pghardend/pkg/config"
)

func TestF23_SecondLockNamesTheHolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	first, err := lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = lock(t.Context(), dir)
	if !errors.Is(err, ErrLocked) {
		t.Fatalf("error %v", err)
	}
	contains(t, err, "another pghardend is at work: process "+strconv.Itoa(os.Getpid())+" holds "+filepath.Join(dir, lockName))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestF23_LockEndsWithItsProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	other := exec.Command("/proc/self/exe")
	other.Env = append(os.Environ(), envLock+"="+dir)
	stdin, err := other.StdinPipe() // it lives until we close this
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "locked\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	_, err = lock(t.Context(), dir)
	if !errors.Is(err, ErrLocked) {
		t.Fatalf("error %v", err)
	}
	contains(t, err, "process "+strconv.Itoa(other.Process.Pid))
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait() // it was killed
	held, err := lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	held.Close()
}

// A second daemon ends before it has touched anything.
func TestF23_SecondDaemonChangesNothing(t *testing.T) {
	f := newFiles(t)
	held, err := lock(t.Context(), f.run)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := Run(t.Context(), f.config, "test", nil, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrLocked) {
		t.Errorf("run: %v", err)
	}
	if _, err := Teardown(t.Context(), f.config, true, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrLocked) {
		t.Errorf("teardown: %v", err)
	} else {
		contains(t, err, "stop the daemon first (systemctl stop pghardend)")
	}
	entries, err := os.ReadDir(f.run)
	if err != nil || len(entries) != 1 {
		t.Errorf("runtime_dir holds %v, %v", entries, err)
	}
	if _, err := os.Stat(f.state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state_dir was touched: %v", err)
	}
}

func TestF22_RuntimeDirThatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	inTheWay := filepath.Join(dir, "file")
	if err := os.WriteFile(inTheWay, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := lock(t.Context(), filepath.Join(inTheWay, "run"))
	contains(t, err, "cannot use runtime_dir", inTheWay)

	open := filepath.Join(dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	_, err = lock(t.Context(), open)
	contains(t, err, open+" is writable by its group or by everybody (mode 0777)", "chmod go-w "+open)
}

// A runtime_dir changed in the file must not lead to a second writer beside the
// daemon that has the old one.
func TestLockOfTheFormerRuntimeDirCounts(t *testing.T) {
	f := newFiles(t)
	s := f.restarted(t)
	daemon, err := lockFor(t.Context(), s.current.Config)
	if err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(f.dir, "moved")
	f.write(f.config, replace(t, f.configText(), f.run, moved))
	d, err := Load(t.Context(), f.config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = lockFor(t.Context(), d.Config); !errors.Is(err, ErrLocked) {
		t.Fatalf("error %v", err)
	}
	contains(t, err, "pghardend.yaml:3: runtime_dir was "+f.run+" until now")
	if _, err := Apply(t.Context(), f.config, true); !errors.Is(err, ErrLocked) {
		t.Errorf("apply: %v", err)
	}
	daemon()
	release, err := lockFor(t.Context(), d.Config)
	if err != nil {
		t.Fatal(err)
	}
	release()

	f.remove(f.run) // as after a reboot
	if release, err = lockFor(t.Context(), config.Config{RuntimeDir: moved, StateDir: f.state, File: f.config}); err != nil {
		t.Fatal(err)
	}
	release()
	if _, err := os.Stat(f.run); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the former runtime_dir was made again: %v", err)
	}
}

// A daemon that is started beside a working process must not touch what that one
// keeps in state_dir: here the record of a change that waits for confirmation.
func TestASecondDaemonLeavesStateAlone(t *testing.T) {
	f := newFiles(t)
	held, err := lock(t.Context(), f.run)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	_, in, err := loadInput(t.Context(), f.config)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	rec := pendingRecord{State: pendingWaits, Input: in.hash(), Since: now, Until: now.Add(time.Minute)}
	if err := writePending(t.Context(), f.state, rec); err != nil {
		t.Fatal(err)
	}
	f.write(filepath.Join(f.state, confirmedFile), in.hash())
	before := f.read(filepath.Join(f.state, pendingFile))
	if err := Run(t.Context(), f.config, "test", nil, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrLocked) {
		t.Fatalf("error %v", err)
	}
	if got := f.recorded(); got == "none" || f.read(filepath.Join(f.state, pendingFile)) != before {
		t.Errorf("the record is now: %s", got)
	}
	if _, err := os.Stat(filepath.Join(f.state, confirmedFile)); err != nil {
		t.Errorf("the confirmation is gone: %v", err)
	}
}
