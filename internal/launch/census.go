package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// look is what one look at a process found, as far as it tells whose it is.
type look struct {
	status  sandbox.Status
	start   uint64 // ticks since boot
	program program
	netns   string // as the link names it
	userns  string
	cgroup  string // all lines
	sockets []uint64
	holds   []string // the data directories that it is in or has a file of open
}

// takeCensus looks at every process but the kernel's own and those that have
// ended. dirs are the data directories to look for.
func takeCensus(ctx context.Context, dirs []string) (map[int]look, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	all := make(map[int]look, len(entries))
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		l, err := lookAt(ctx, pid, dirs)
		if isGone(err) {
			continue
		}
		if errors.Is(err, os.ErrPermission) && isRoot(l) && os.Geteuid() == 0 {
			// Somebody else's root, with capabilities that this one has not: what it
			// runs is not known, and is nothing of a service.
			err = nil
		}
		if err != nil {
			return nil, fmt.Errorf("cannot look at process %d: %w", pid, err)
		}
		all[pid] = l
	}
	return all, nil
}

// kthreadd is the parent of all threads of the kernel, and itself one.
const kthreadd = 2

func lookAt(ctx context.Context, pid int, dirs []string) (look, error) {
	var l look
	var err error
	if l.status, err = sandbox.ReadStatus(ctx, pid); err != nil {
		return l, err
	}
	if pid == kthreadd || l.status.PPID == kthreadd {
		return l, ErrVanished
	}
	stat, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return l, err
	}
	if l.start, err = parseStart(string(stat)); err != nil {
		return l, err
	}
	// Without a program it may still be a process, see errNoProgram.
	if l.program, err = readProgram(pid); err != nil && !errors.Is(err, errNoProgram) {
		return l, err
	}
	if l.netns, err = os.Readlink(procPath(pid, "ns/net")); err != nil {
		return l, err
	}
	if l.userns, err = os.Readlink(procPath(pid, "ns/user")); err != nil {
		return l, err
	}
	cgroup, err := os.ReadFile(procPath(pid, "cgroup"))
	if err != nil {
		return l, err
	}
	l.cgroup = string(cgroup)
	return l, l.readFiles(pid, dirs)
}

// readFiles reads what the process has open. A path is what it is seen as from
// here, a directory also counts if it is the same one by another name.
func (l *look) readFiles(pid int, dirs []string) error {
	cwd, err := os.Readlink(procPath(pid, "cwd"))
	if err != nil {
		return err
	}
	l.hold(cwd, dirs)
	for _, dir := range dirs {
		if sameFile(procPath(pid, "cwd"), dir) {
			l.hold(dir, dirs)
		}
	}
	names, err := readNames(procPath(pid, "fd"))
	if err != nil {
		return err
	}
	for _, name := range names {
		link, err := os.Readlink(procPath(pid, "fd/"+name))
		if err != nil {
			continue // closed meanwhile
		}
		if inode, ok := socketInode(link); ok {
			l.sockets = append(l.sockets, inode)
		} else {
			l.hold(link, dirs)
		}
	}
	return nil
}

func (l *look) hold(path string, dirs []string) {
	for _, dir := range dirs {
		if (path == dir || strings.HasPrefix(path, dir+"/")) && (len(l.holds) == 0 || l.holds[len(l.holds)-1] != dir) {
			l.holds = append(l.holds, dir)
		}
	}
}

// socketInode reads the link of a descriptor: "socket:[INODE]".
func socketInode(link string) (uint64, bool) {
	text, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
	return inode, err == nil
}

// readNames is os.ReadDir without the sorting.
func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	return f.Readdirnames(-1)
}

func sameFile(a, b string) bool {
	var sa, sb unix.Stat_t
	return unix.Stat(a, &sa) == nil && unix.Stat(b, &sb) == nil && sa.Dev == sb.Dev && sa.Ino == sb.Ino
}

func procPath(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// isGone says whether an error is that of a process that has ended.
func isGone(err error) bool {
	return errors.Is(err, ErrVanished) || errors.Is(err, os.ErrProcessDone) || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
