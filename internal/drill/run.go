package drill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what to do.
type Options struct {
	Dir      string    // an existing directory of root's, in which the scratch area is made
	Progress io.Writer // lines for people; nil for none
	// Command is the command line of this program that calls Box in its namespaces,
	// given the scratch area and the user's id.
	Command func(area string, uid int) []string
}

// limitOfTime bounds a drill, whatever hangs.
const limitOfTime = 15 * time.Minute

// The user's ids that drills use: nobody's by any convention, "UIDs and GIDs on
// systemd systems" (systemd.io/UIDS-GIDS). Each drill takes one for itself.
const (
	firstUID = 65520
	lastUID  = 65533
)

// areaPattern is the name of a scratch area.
const areaPattern = "drill-*"

// Run carries a drill out and returns when nothing is left of it. If ctx ends,
// everything is removed all the same.
func Run(ctx context.Context, opt Options) (Report, error) {
	if os.Geteuid() != 0 {
		return Report{}, fmt.Errorf("cannot drill as uid %d: namespaces and other users need root: run it as root", os.Geteuid())
	}
	ctx, cancel := context.WithTimeout(ctx, limitOfTime)
	defer cancel()
	uid, release, err := takeUID(ctx)
	if err != nil {
		return Report{}, err
	}
	defer release()
	if err := sweep(opt.Dir); err != nil {
		return Report{}, err
	}
	area, unlock, err := makeArea(opt.Dir)
	if err != nil {
		return Report{}, err
	}
	report, err := runBox(ctx, opt, area, uid)
	unlock()
	if removeErr := os.RemoveAll(area); removeErr != nil {
		err = errors.Join(err, fmt.Errorf("cannot remove the scratch area: %w: remove %s", removeErr, area))
	}
	return report, err
}

// takeUID reserves a user id for as long as this process lives: the kernel frees
// the abstract socket that stands for it.
func takeUID(ctx context.Context) (uid int, release func(), err error) {
	for uid := firstUID; uid <= lastUID; uid++ {
		l, err := (&net.ListenConfig{}).Listen(ctx, "unix", fmt.Sprintf("@pghardend-drill-%d", uid))
		if err == nil {
			return uid, func() { _ = l.Close() }, nil // nobody connects to it
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return 0, nil, fmt.Errorf("cannot reserve a user id: %w", err)
		}
	}
	return 0, nil, fmt.Errorf("%d drills are running: wait for one of them", lastUID-firstUID+1)
}

// makeArea makes a directory that is locked for as long as this process lives. The
// sweep of another drill may take it in the moment before it is locked.
func makeArea(parent string) (area string, unlock func(), err error) {
	for {
		area, err = os.MkdirTemp(parent, areaPattern) // 0700
		if err != nil {
			return "", nil, fmt.Errorf("cannot make the scratch area: %w: name another directory with --dir", err)
		}
		dir, err := os.Open(area)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		}
		if err != nil {
			return "", nil, errors.Join(fmt.Errorf("cannot lock the scratch area %s: %w", area, err), os.RemoveAll(area))
		}
		if _, err := os.Lstat(area); err == nil {
			return area, func() { dir.Close() }, nil
		}
		dir.Close()
	}
}

// sweep removes what drills left that were killed.
func sweep(parent string) error {
	list, err := filepath.Glob(filepath.Join(parent, areaPattern))
	if err != nil {
		return err
	}
	var errs []error
	for _, area := range list {
		fd, err := unix.Open(area, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // not an area, or just removed
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Uid == 0 && unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			errs = append(errs, os.RemoveAll(area))
		}
		_ = unix.Close(fd) // which unlocks it
	}
	return errors.Join(errs...)
}

// selfPath is this program, even if it was replaced on disk.
const selfPath = "/proc/self/exe"

// runBox starts the other side and reads its report.
func runBox(ctx context.Context, opt Options, area string, uid int) (Report, error) {
	// The other side is killed when the thread that started it ends, prctl(2).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	argv := opt.Command(area, uid)
	cmd := exec.CommandContext(ctx, selfPath, argv...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL,
		Setsid:     true, // Ctrl-C is for this process, which ends the other
	}
	cmd.Dir = "/"
	cmd.Env = environment()
	cmd.WaitDelay = 5 * time.Second
	var out, said bytes.Buffer
	cmd.Stdout = &out
	cmd.Stderr = &said
	if opt.Progress != nil {
		cmd.Stderr = io.MultiWriter(&said, opt.Progress)
	}
	err := cmd.Run()
	if ctx.Err() != nil {
		return Report{}, fmt.Errorf("the drill was ended: %w; everything was removed", context.Cause(ctx))
	}
	if err != nil {
		return Report{}, fmt.Errorf("the drill failed: %w: %s", err, lastLines(said.String()))
	}
	var r Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return Report{}, fmt.Errorf("cannot read the drill's report: %w", err)
	}
	return r, nil
}

// environment is the little that the other side and its children need.
func environment() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C", "HOME=/"}
}

func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

func itoa(n int) string { return strconv.Itoa(n) }
