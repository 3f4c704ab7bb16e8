package testbed

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed booted.sh
var bootedScript string

// bootedTimeout is for all that a script does.
const bootedTimeout = 5 * time.Minute

// Booted boots an overlay of this machine's Debian, with systemd as its first process, in namespaces of its own, runs the script of that name in the
// directory shared, which is /mnt there, and returns what it said. A script that does not end by saying done is an error with all that was said.
func Booted(ctx context.Context, shared, script string) (said string, err error) {
	group := "/sys/fs/cgroup/systemd/pghardend-booted-" + strconv.Itoa(os.Getpid())
	if err := os.Mkdir(group, 0o755); err != nil {
		return "", fmt.Errorf("cannot make a control group for systemd: %w", err)
	}
	defer func() { err = errors.Join(err, removeGroups(group)) }() //nolint:contextcheck // removes even if ctx is done
	ctx, cancel := context.WithTimeout(ctx, bootedTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", `echo $$ >"$1/cgroup.procs"; shift
		exec unshare --kill-child --mount --net --uts --ipc --pid --cgroup --fork bash -c "$@"`, "-", group, bootedScript, "-", shared, script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	console, err := cmd.CombinedOutput()
	out, readErr := os.ReadFile(filepath.Join(shared, "out"))
	if readErr != nil || !strings.Contains(string(out), "\ndone\n") {
		return "", fmt.Errorf("%s did not come to its end: %w\n%s\n%s", script, errors.Join(err, readErr, ctx.Err()), console, out)
	}
	return string(out), nil
}

// removeGroups removes what systemd has made, once its processes have ended.
func removeGroups(group string) error {
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(50 * time.Millisecond) {
		if err = exec.Command("find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").Run(); err == nil { //nolint:noctx // ends in a moment
			return nil
		}
	}
	return fmt.Errorf("cannot remove the control group %s: %w", group, err)
}
