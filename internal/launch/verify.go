package launch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/limits"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// ErrVanished is returned for a process that ended before it was read. Of a
// child of a service it means nothing; of its first process, that it is down.
var ErrVanished = errors.New("the process has ended")

// endingGrace is how long a process that cannot be read may take to end. It loses
// its program and its files first, and then the kernel frees its memory.
const endingGrace = 2 * time.Second

// Verify compares the kernel's view of one live process of the service with the
// Spec: uid, gid, groups, the five capability sets, no_new_privs, seccomp,
// limits, mounts, SELinux label and program. Root is needed to see the program of another user.
//
// The program must be spec.Command[0] itself for the process others of the
// service descend from. Children may have executed a helper (the shell of an
// archive_command, say): theirs must be a file of root's that nobody else can
// write to and that is still on disk, which rules out one made from memory.
//
// An error means that nothing can be said of the process; it is ErrVanished if
// it has ended.
func Verify(ctx context.Context, spec Spec, pid int) ([]Finding, error) {
	if fault := specFault(spec); fault != nil {
		return nil, fmt.Errorf("cannot verify process %d of service %s: %w", pid, spec.Service, fault)
	}
	id, err := intendedIdentity(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("cannot verify process %d of service %s: %w", pid, spec.Service, err)
	}
	return verifyAs(ctx, spec, id, pid)
}

// verifyAs is Verify for who has looked up the identity already.
func verifyAs(ctx context.Context, spec Spec, id Identity, pid int) ([]Finding, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		err = ErrVanished
	}
	if err != nil {
		return nil, fmt.Errorf("cannot verify process %d of service %s: %w", pid, spec.Service, err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written

	findings, err := inspect(ctx, spec, id, pid)
	var grace time.Duration
	if err != nil {
		grace = endingGrace
	}
	// Only if it is still there was everything read from one and the same
	// process, and not some of it from a successor with its number.
	if ended(fd, grace) {
		return nil, fmt.Errorf("cannot verify process %d of service %s: %w", pid, spec.Service, ErrVanished)
	}
	if errors.Is(err, errNoProgram) {
		return []Finding{finding(pid, layerDAC, "exe", spec.Command[0], err.Error())}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot verify process %d of service %s: %w", pid, spec.Service, err)
	}
	return findings, nil
}

// intendedIdentity is the identity the Spec asks for. Unlike Check it does not
// mind in what groups the user has come to be since: they are not the process's.
func intendedIdentity(ctx context.Context, spec Spec) (Identity, error) {
	id, err := resolveUser(ctx, spec)
	if err != nil {
		return Identity{}, err
	}
	listed, err := listedGroups(spec)
	if err != nil {
		return Identity{}, err
	}
	id.Groups = supplementary(id, listed)
	return id, nil
}

// ended tells whether the process of a pidfd has ended with all its threads,
// waiting for it if it may take a moment, pidfd_open(2).
func ended(fd int, grace time.Duration) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(grace)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll(poll, int(left.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}

// inspect reads and compares everything. The program comes first: it is the
// first thing an ending process no longer has.
func inspect(ctx context.Context, spec Spec, id Identity, pid int) ([]Finding, error) {
	exe, err := readProgram(pid)
	if err != nil {
		return nil, err
	}
	status, err := sandbox.ReadStatus(ctx, pid)
	if err != nil {
		return nil, err
	}
	others, err := filtersBefore(ctx, spec, status)
	if err != nil {
		return nil, err
	}
	set, err := limits.Read(ctx, pid)
	if err != nil {
		return nil, err
	}
	lastCap, err := lastCapability()
	if err != nil {
		return nil, err
	}
	findings := compareStatus(status, id, spec.Capabilities, lastCap)
	findings = append(findings, seccompFindings(spec, status, others)...)
	gate, err := gateFinding(ctx, spec, status)
	if err != nil {
		return nil, err
	}
	findings = append(findings, gate...)
	findings = append(findings, compareLimits(pid, spec.Limits, set)...)
	mounted, err := ReadMounts(ctx, spec, pid)
	if err != nil {
		return nil, err
	}
	findings = append(findings, mounted.Findings(pid)...)
	child := childOfService(ctx, id, status)
	labels, err := selinuxFindings(ctx, spec, pid, child)
	if err != nil {
		return nil, err
	}
	findings = append(findings, labels...)
	return append(findings, compareProgram(pid, spec.Command[0], exe, child)), nil
}

// compareLimits has one finding for each limit asked for.
func compareLimits(pid int, want, got limits.Set) []Finding {
	var out []Finding
	for _, name := range slices.Sorted(maps.Keys(want)) {
		text := "not there"
		if l, ok := got[name]; ok {
			text = l.String()
		}
		f := finding(pid, LayerLimits, name, want[name].String(), text)
		f.OK = len(limits.Diff(limits.Set{name: want[name]}, got)) == 0
		out = append(out, f)
	}
	return out
}

// lastCapability is the highest capability the running kernel has.
func lastCapability() (int, error) {
	data, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return 0, fmt.Errorf("cannot read the kernel's last capability: %w", err)
	}
	last, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || last < 0 || last > 63 {
		return 0, fmt.Errorf("/proc/sys/kernel/cap_last_cap holds %q, which is not a capability", data)
	}
	return last, nil
}

// errNoProgram: the process is about to end, or its first thread has ended while
// others go on, which hides the program and is no accident.
var errNoProgram = errors.New("no program, its first thread has ended")

// program is what a process executes.
type program struct {
	path string // as the kernel shows it, with " (deleted)" if it is
	stat unix.Stat_t
}

// readProgram reads the program of a process and the file behind it, which may
// no longer be the one at that path.
func readProgram(pid int) (program, error) {
	link := fmt.Sprintf("/proc/%d/exe", pid)
	path, err := os.Readlink(link)
	if errors.Is(err, os.ErrNotExist) {
		return program{}, errNoProgram
	}
	if errors.Is(err, os.ErrPermission) {
		return program{}, fmt.Errorf("cannot read its program: %w: run as root", err)
	}
	if err != nil {
		return program{}, fmt.Errorf("cannot read its program: %w", err)
	}
	p := program{path: path}
	err = unix.Stat(link, &p.stat)
	if errors.Is(err, unix.ENOENT) {
		return program{}, errNoProgram
	}
	if err != nil {
		return program{}, fmt.Errorf("cannot stat its program: %w", err)
	}
	return p, nil
}

// childOfService tells whether the parent is of the service too. A parent that
// has ended leaves its children to init, so they are judged like a first process,
// which is the stricter way.
func childOfService(ctx context.Context, id Identity, s sandbox.Status) bool {
	if s.PPID == 0 {
		return false
	}
	parent, err := sandbox.ReadStatus(ctx, s.PPID)
	return err == nil && parent.UIDs[0] == id.UID
}

// compareProgram judges a program. A program replaced on disk, as an upgrade
// does, is still the one that was checked when it was started.
func compareProgram(pid int, want string, p program, child bool) Finding {
	const deleted = " (deleted)"
	f := finding(pid, layerDAC, "exe", want, shown(p.path))
	f.OK = strings.TrimSuffix(p.path, deleted) == want
	if child && !f.OK {
		f.Want = want + ", or a program only root can write to"
		f.OK = p.stat.Uid == 0 && p.stat.Mode&writableByOthers == 0 && p.stat.Nlink > 0
	}
	return f
}

// shown is a path that may be the service user's choice, for people: escape
// sequences in it must not reach a terminal, nor line breaks pass for our lines.
func shown(path string) string {
	if quoted := strconv.Quote(path); quoted != `"`+path+`"` {
		return quoted
	}
	return path
}
