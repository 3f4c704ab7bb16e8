package drill

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/drill/act"
)

// The exit codes of a launch that did not happen, see internal/launch.
const (
	firstLaunchCode = 70
	lastLaunchCode  = 110
)

// actTime bounds one act.
const actTime = time.Minute

// launch prepares a command that becomes argv under some layers.
func (b *box) launch(ctx context.Context, layers []Layer, argv ...string) *exec.Cmd {
	words := b.Stage(forLaunch(layers), argv)
	cmd := exec.CommandContext(ctx, selfPath, words...)
	cmd.Dir, cmd.Env = "/", environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	return cmd
}

// withoutGroup is for what a bound of the drill's group has nothing to do with, and might end.
func withoutGroup(layers []Layer) []Layer {
	return slices.DeleteFunc(slices.Clone(layers), func(l Layer) bool { return l == Cgroup })
}

// act has Act do one thing under some layers.
func (b *box) try(ctx context.Context, layers []Layer, a attempt) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, actTime)
	defer cancel()
	if a.bounded && b.NoGroup != "" {
		return absent("%s", b.NoGroup), nil
	}
	if !a.bounded {
		layers = withoutGroup(layers)
	}
	cmd := b.launch(ctx, layers, append([]string{b.file("pghardend"), act.Command}, a.act(b)...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if a.name == "tiocsti" {
		master, slave, err := openTerminal()
		if err != nil {
			return absent("no terminal can be made: %v", err), nil
		}
		defer master.Close()
		defer slave.Close()
		cmd.Stdin = slave
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return outcome{}, fmt.Errorf("cannot run attempt %s with the layers %s: %w", a.id(), joinLayers(layers), err)
	}
	code := cmd.ProcessState.ExitCode()
	if code >= firstLaunchCode && code <= lastLaunchCode {
		return outcome{}, fmt.Errorf("attempt %s cannot be confined with the layers %s: %s", a.id(), joinLayers(layers), lastLines(errOut.String()))
	}
	o, err := readOutcome(a, out.String(), errOut.String(), cmd.ProcessState)
	if err != nil {
		return outcome{}, fmt.Errorf("with the layers %s: %w", joinLayers(layers), err)
	}
	return o, nil
}

// readOutcome reads what the act printed, or what became of the program that it
// became. An act that says nothing was not tried, and that is an error: it must
// not pass for one that was stopped.
func readOutcome(a attempt, out, errOut string, state *os.ProcessState) (outcome, error) {
	for out != "" {
		line, rest, _ := strings.Cut(out, "\n")
		f := strings.SplitN(line, "\t", 4)
		if len(f) != 4 {
			break
		}
		out = rest
		errno, err := strconv.Atoi(f[2])
		if err != nil {
			break
		}
		switch f[0] {
		case act.Reached:
			return outcome{Reached: true, Note: f[3]}, nil
		case act.Absent:
			return absent("%s", f[3]), nil
		case act.Stopped:
			o := outcome{Step: f[1], Note: f[3]}
			if errno != 0 {
				o.Errno = errnoName(unix.Errno(errno))
			}
			return o, nil
		case act.Becoming:
			if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
				return outcome{Step: "run", Note: "ended by " + unix.SignalName(status.Signal())}, nil
			}
			if rest == "" || a.judge != nil && !strings.HasPrefix(rest, act.Stopped+"\t") {
				return a.judged(outcome{said: rest, exit: state.ExitCode()}), nil
			}
		}
	}
	return outcome{}, fmt.Errorf("attempt %s reports nothing (%s): %s", a.id(), state, lastLines(errOut))
}

func (a attempt) judged(o outcome) outcome {
	if a.judge != nil {
		return a.judge(o)
	}
	return judgeRun(o)
}

// startBystander starts a process of the same user that is none of the service.
func (b *box) startBystander(ctx context.Context) (stop func(), err error) {
	cmd := b.launch(ctx, asUser, b.file("pghardend"), act.Command, "wait")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the bystander: %w", err)
	}
	stop = func() {
		in.Close()
		_ = cmd.Wait() // it has nothing to say
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		stop()
		return nil, fmt.Errorf("the bystander does not start: %q %w: %s", line, errors.Join(err), lastLines(said.String()))
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // until it ends
	b.bystander = itoa(cmd.Process.Pid)
	return stop, nil
}

// openTerminal makes a pseudo terminal, pts(4).
func openTerminal() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}
