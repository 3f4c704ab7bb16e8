package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/limits"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// prepared is what the checks found and the steps need.
type prepared struct {
	identity    Identity
	filter      *sandbox.Filter
	gate        *execGate // nil for none
	environment environment
	landlock    *landlockStage
	mounts      *mountStage
	cgroup      *cgroupStage
	selinux     *selinuxStage
	complain    bool // neither filter nor Landlock
	filters     int  // that are loaded already
	unit        bool // not root's, a unit has confined it
	launcher    string
}

// Check finds every reason to refuse a launch that can be known before it, and
// changes nothing. An error is an *Error. It looks at the calling process too
// (privileges, hard limits, ambient capabilities), so it is for those who will
// launch: exec, and the daemon before it.
func Check(ctx context.Context, spec Spec) (Identity, error) {
	p, failure := prepare(ctx, spec)
	if failure != nil {
		return Identity{}, failure
	}
	p.landlock.close()
	return p.identity, nil
}

// prepare runs the checks.
func prepare(ctx context.Context, spec Spec) (*prepared, *Error) {
	p := &prepared{}
	var self sandbox.Status
	compiled := compileAside(spec.Seccomp)
	checks := []step{
		{StepSpec, func() error { return specFault(spec) }},
		{StepPrivilege, func() (err error) {
			if self, err = sandbox.ReadStatus(ctx, 0); err != nil {
				return err
			}
			p.filters, p.unit = self.Filters, self.UIDs[1] != 0
			if p.unit {
				return nil
			}
			return privilegeFault(self, spec.PrivilegeHint)
		}},
		{StepUser, func() (err error) {
			p.identity, err = resolveUser(ctx, spec)
			return err
		}},
		{StepGroups, func() (err error) {
			p.identity.Groups, err = resolveGroups(ctx, spec, p.identity)
			return err
		}},
		{StepUnit, func() error { return p.checkUnit(ctx, spec, self) }},
		{StepBinary, func() error { return checkBinary(ctx, spec, p.identity) }},
		{StepBinary, func() error { return checkHelpers(ctx, spec, p.identity) }},
		{StepDataDir, func() error { return checkDataDir(ctx, spec.DataDir, p.identity) }},
		{StepLimits, func() error { return checkLimits(ctx, spec.Limits) }},
		{StepCapabilities, func() error { return capabilityFault(self, spec.Capabilities) }},
		{StepEnvironment, func() (err error) {
			if p.environment, err = buildEnvironment(os.Environ(), os.Getpid(), p.identity, spec.variables()); err != nil {
				return err
			}
			score, err := oomScore(spec)
			p.environment = p.environment.withoutIdleOOM(score)
			return err
		}},
		{StepSELinux, func() (err error) {
			p.selinux, err = checkSELinux(ctx, spec)
			return err
		}},
		{StepMounts, func() (err error) {
			if p.unit {
				return checkUnitMounts(ctx, spec, p.launcher)
			}
			p.mounts, err = checkMounts(ctx, spec, self)
			return err
		}},
		{StepCgroup, func() (err error) {
			if p.unit {
				spec.Cgroup = spec.Cgroup.ofUnit()
			}
			p.cgroup, err = checkCgroup(ctx, spec)
			return err
		}},
		// Late: the compiler has had the time of the checks above.
		{StepSeccomp, func() (err error) {
			if err = seccompFault(probeSeccomp()); err != nil {
				return err
			}
			if p.filter, err = compiled(); err == nil {
				p.gate, err = checkGate(ctx, spec, self, spec.Complain.At(time.Now()))
			}
			return err
		}},
		// The last one: it holds descriptors.
		{StepLandlock, func() (err error) {
			p.landlock, err = checkLandlock(ctx, spec)
			return err
		}},
	}
	for _, c := range checks {
		err := ctx.Err()
		if err == nil {
			err = c.do()
		}
		if err != nil {
			return nil, &Error{Service: spec.Service, Step: c.name, Err: err}
		}
	}
	return p, nil
}

// compileAside compiles on another CPU, if there is one, which takes as long as all checks. The result
// waits for it.
func compileAside(p sandbox.Profile) func() (*sandbox.Filter, error) {
	type result struct {
		filter *sandbox.Filter
		err    error
	}
	done := make(chan result, 1)
	go func() {
		f, err := sandbox.Compile(p)
		done <- result{f, err}
	}()
	return func() (*sandbox.Filter, error) {
		r := <-done
		return r.filter, r.err
	}
}

// capability is the bit of CAP_* in a CapSet.
func capability(number int) sandbox.CapSet { return sandbox.CapSet(1) << number }

// privilegeFault says what the caller lacks to give privileges away. The hint is what
// else to do about it, if there is something.
func privilegeFault(self sandbox.Status, hint string) error {
	needed := capability(unix.CAP_SETUID) | capability(unix.CAP_SETGID) | capability(unix.CAP_SETPCAP)
	if missing := needed &^ self.Eff; missing != 0 {
		if hint == "" {
			hint = "add it to what starts this process (systemd: CapabilityBoundingSet=)"
		}
		return fmt.Errorf("running as root without %s: %s", missing, hint)
	}
	return nil
}

// capabilityFault compares the capabilities asked for with those of the caller.
func capabilityFault(self sandbox.Status, want sandbox.CapSet) error {
	if missing := want &^ self.Prm; missing != 0 {
		return fmt.Errorf("%s cannot be given to the service, since the caller does not have it: "+
			"take it out of capabilities, or add it to what starts this process (systemd: CapabilityBoundingSet=)", missing)
	}
	if stray := self.Amb &^ want; stray != 0 {
		return fmt.Errorf("the caller passes on the ambient capabilities %s, which the service does not ask for: "+
			"take them out of what starts this process (systemd: AmbientCapabilities=), or list them in capabilities", stray)
	}
	return nil
}

func checkLimits(ctx context.Context, want limits.Set) error {
	current, err := limits.Read(ctx, os.Getpid())
	if err != nil {
		return err
	}
	return want.Check(current)
}

// probeSeccomp asks for a filter at the address 0. A kernel that can filter gets
// as far as reading it and fails with EFAULT; nothing changes, seccomp(2).
func probeSeccomp() error {
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, 0)
	if errno == 0 {
		return nil
	}
	return errno
}

// seccompFault reads the answer of probeSeccomp.
func seccompFault(probe error) error {
	if errors.Is(probe, unix.EFAULT) {
		return nil
	}
	if probe == nil {
		probe = errors.New("it took a filter from address 0")
	}
	return fmt.Errorf("the kernel does not support seccomp filters: %w: "+
		"use a kernel with CONFIG_SECCOMP_FILTER (Linux 5.11 or newer), or lift the container's filter on seccomp(2)", probe)
}
