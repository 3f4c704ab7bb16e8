// Command guest is the runner inside a virtual machine of test/vm: it executes what the host sends to a virtio port and answers.
//
// Several commands may run at once. A line that cannot be read is dropped: the host asks again. The program knows nothing of pghardend and is part of the machine's image.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pghardend/pghardend/test/vm/wire"
)

func main() {
	fmt.Fprintf(os.Stderr, "vm-runner: %v\n", serve(context.Background()))
	os.Exit(1)
}

// serve returns when the port cannot be read any more.
func serve(ctx context.Context) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(wire.Device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	fmt.Println("vm-runner: listening")
	var mu sync.Mutex
	in := bufio.NewReaderSize(f, 1<<16)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) { // the host has hung up, and may come again
			<-time.After(100 * time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		var r wire.Request
		if json.Unmarshal(line, &r) != nil || r.ID == "" {
			continue
		}
		go func() {
			a := run(ctx, r)
			a.Boot = strings.TrimSpace(string(boot))
			data, err := json.Marshal(a)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			// The line break in front ends what a predecessor may have left half-written.
			if _, err := f.Write(append(append([]byte{'\n'}, data...), '\n')); err != nil {
				fmt.Fprintf(os.Stderr, "vm-runner: cannot answer: %v\n", err)
			}
		}()
	}
}

// run executes one script. Its process group is killed at the time-out; what it put in the background with output of its own lives on.
func run(ctx context.Context, r wire.Request) wire.Answer {
	a := wire.Answer{ID: r.ID}
	if r.Script == "" {
		return a
	}
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.Timeout)
		defer cancel()
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "/bin/bash", "-c", r.Script)
	cmd.Dir = "/root"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(r.Stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	a.Stdout, a.Stderr = stdout.Bytes(), stderr.Bytes()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		a.Exit, a.Error = -1, fmt.Sprintf("killed after %s", r.Timeout)
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		a.Exit = exit.ExitCode()
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		a.Exit, a.Error = -1, err.Error()
	}
	return a
}
