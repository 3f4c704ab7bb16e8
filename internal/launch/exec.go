package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// Exec becomes spec.Command: same process id, no privilege but those of the
// Spec. It returns only if that failed, always with an *Error, after writing it
// to report (if not nil). The process is then in no defined state; the caller
// must exit with Error.Code. The context is looked at between the steps.
func Exec(ctx context.Context, spec Spec, report *os.File) error {
	return execWithout(ctx, spec, nil, report)
}

// execWithout is Exec without some of the steps.
func execWithout(ctx context.Context, spec Spec, skip map[Step]bool, report *os.File) error {
	// A collection would want memory and helper threads, which the limits of the
	// service may no longer allow, and the runtime dies if it does not get them.
	debug.SetGCPercent(-1)
	if report != nil {
		// Its end must be the end of this program, even where LISTEN_FDS would
		// have it passed on.
		unix.CloseOnExec(int(report.Fd()))
	}
	failed := make(chan *Error)
	go func() {
		// From here on this thread is unlike all others, and what is left of it
		// after a failure must not do anything any more: not even its end is
		// sure to be allowed by the filter. So it is neither unlocked nor left.
		runtime.LockOSThread()
		failed <- become(ctx, spec, skip)
		select {}
	}()
	failure := <-failed
	tell(report, failure)
	return failure
}

// become does the work of Exec.
func become(ctx context.Context, spec Spec, skip map[Step]bool) *Error {
	p, failure := prepare(ctx, spec)
	if failure != nil {
		return failure
	}
	p.complaining(spec, time.Now())
	if !p.unit {
		p.landlock.openRecord(ctx)
		recordStart(ctx, spec, p.filters)
	}
	order := steps(ctx, spec, p)
	if p.unit {
		order = unitSteps(ctx, spec, p)
	}
	for _, s := range order {
		if skip[s.name] {
			continue
		}
		err := ctx.Err()
		if err == nil {
			err = s.do()
		}
		if err != nil {
			return &Error{Service: spec.Service, Step: s.name, Err: err}
		}
	}
	return &Error{Service: spec.Service, Step: StepExec, Err: errors.New("execve returned without an error")}
}

type step struct {
	name Step
	do   func() error
}

// steps is the order of everything that changes the process. Each step says why
// it is where it is; one without a reason could stand anywhere.
func steps(ctx context.Context, spec Spec, p *prepared) []step {
	id, keep := p.identity, spec.Capabilities
	return []step{
		// What a service creates is its own unless it says otherwise.
		{StepUmask, func() error { unix.Umask(0o077); return nil }},

		// While still root, who alone may move processes, and before the service has
		// any memory or children, which stay with the group that they began in. Before the mounts,
		// which hide the notes about groups.
		{StepEnterCgroup, func() error { return p.cgroup.enter(ctx) }},

		// Lowering the score needs CAP_SYS_RESOURCE. Before the mounts, in which procfs
		// may be read-only.
		{StepOOMScore, func() error { return setOOMScore(spec.OOMScoreAdj) }},

		// While still root, who alone may mount. Before the working directory is entered,
		// which would be one of the host's mounts otherwise.
		{StepMountsEnter, func() error { return p.mounts.enter(ctx, p.environment.sockets) }},

		// While still root, who can enter any directory; the caller's directory
		// could lie below one the service may not see, or keep a mount busy.
		{StepCwd, func() error { return enter(spec.DataDir, id) }},

		// While still root, with CAP_SYS_RAWIO.
		{StepExecGate, func() error { return p.gate.mapPage() }},

		// Before the uid changes, so that the number of processes is counted
		// against the service's user from its first one.
		{StepSetLimits, func() error { return setLimits(ctx, spec.Limits) }},

		// Needs CAP_SETPCAP, which goes with the uid.
		{StepBoundingSet, func() error { return sandbox.DropBounding(keep) }},

		// Groups before uid: without CAP_SETGID they could not be changed.
		{StepIdentity, func() error { return setIdentity(id, keep) }},

		// After the uid, which clears what keepcaps does not hold and always
		// clears the effective and the ambient set.
		{StepCapabilitySets, func() error { return sandbox.SetCapabilities(keep) }},

		// Before no_new_privs and Landlock, which could keep it from procfs. It counts at
		// execve, where the policy has to allow the change of domain under no_new_privs.
		{StepSELinuxLabel, p.selinux.set},

		// Without it the kernel takes a filter from root only, and root is gone.
		{StepNoNewPrivs, sandbox.NoNewPrivs},

		// Last moment at which reading procfs is sure to be allowed, first at
		// which there is nothing left to lose.
		{StepReadBack, func() error { return errors.Join(readBack(ctx, id, keep), p.gate.prove()) }},

		// After no_new_privs, without which the kernel takes no rules, and as the
		// service's user, whom the probes must be allowed by everything else.
		{StepLandlockLoad, p.landlock.enforce},

		// Late: a pending signal may end this process as soon as it is let in.
		{StepSignals, resetSignals},

		// After the last file was opened.
		{StepDescriptors, func() error { return closeDescriptors(p.environment.sockets) }},

		// Last: from here on every call must be one the service may make too.
		{StepSeccompLoad, func() error { return p.loadFilter(spec.LogDenied) }},

		{StepExec, func() error { return execute(spec, p.gate, p.environment.vars) }},
	}
}

// setIdentity takes over uid, gid and groups, on this thread only and therefore
// with the plain system calls: functions of the syscall package would change all
// threads. The others end with execve and are better off as root until then. They
// would count as processes of the service's user, so that one near its limit
// would be refused, and the runtime, which dies if it cannot make a thread, could
// die before it has said why.
func setIdentity(id Identity, keep sandbox.CapSet) error {
	if keep != 0 {
		// The permitted set would be cleared with the last uid 0. execve
		// switches this off again.
		if err := sandbox.KeepCaps(true); err != nil {
			return err
		}
	}
	var groups unsafe.Pointer
	if len(id.Groups) > 0 {
		groups = unsafe.Pointer(&id.Groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(id.Groups)), uintptr(groups), 0); errno != 0 {
		return fmt.Errorf("cannot set the groups to %v: %w", id.Groups, errno)
	}
	gid, uid := uintptr(id.GID), uintptr(id.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("cannot set the gid to %d: %w", gid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("cannot set the uid to %d: %w", uid, errno)
	}
	return nil
}

// readBack asks the kernel whether this thread is what it should be.
func readBack(ctx context.Context, id Identity, keep sandbox.CapSet) error {
	status, err := sandbox.ReadStatus(ctx, 0)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range compareStatus(status, id, keep, unix.CAP_LAST_CAP) {
		if !f.OK {
			errs = append(errs, fmt.Errorf("%s is %s after it was set to %s", f.Check, f.Got, f.Want))
		}
	}
	return errors.Join(errs...)
}

// execute is execve(2). syscall.Exec is used since it waits for threads that
// are just being made, which the kernel would otherwise trip over.
func execute(spec Spec, gate *execGate, env []string) error {
	var err error
	if gate != nil && gate.open {
		err = gate.execute(spec, env)
	} else {
		err = syscall.Exec(spec.Command[0], spec.Command, env)
	}
	return fmt.Errorf("cannot execute %s: %w%s", spec.Command[0], err, execHint(err, spec.User))
}

// execHint is what an operator needs to know beyond execve's error.
func execHint(err error, user string) string {
	switch {
	case errors.Is(err, unix.EAGAIN):
		// PF_NPROC_EXCEEDED: set by setresuid, looked at by execve.
		return fmt.Sprintf(": user %s has more processes than limits.nproc allows: raise nproc, or end those processes (ps -u %s)",
			user, user)
	case errors.Is(err, unix.EACCES):
		return fmt.Sprintf(": user %s may not execute it: look at its mode, the directories above it (x) and the mount option noexec", user)
	case errors.Is(err, unix.ENOENT):
		return ": the program is there, so its ELF interpreter is missing: install the libraries of its architecture"
	case errors.Is(err, unix.ENOEXEC):
		return ": not a program for this architecture"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS):
		return ": the seccomp profile must allow execve, it is loaded before the program is"
	case errors.Is(err, unix.E2BIG):
		return ": arguments and environment are too large for limits.stack"
	case errors.Is(err, unix.ENOMEM):
		return ": limits.as or limits.data is too small for the program"
	}
	return ""
}
