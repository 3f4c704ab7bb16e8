package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/syndtr/gocapability/capability"
	"golang.org/x/sys/unix"
)

// This file is the only user of gocapability, which is no longer maintained. It
// is used for what it does right: names, and capset(2) and the bounding set on
// the calling thread. It is not used for
//   - reading: it reads /proc/self/status, which is the first thread of the
//     process and not the calling one;
//   - ambient capabilities: it throws the kernel's errors away.
//
// It drops nothing from the bounding set, and says nothing, without CAP_SETPCAP;
// and its idea of the last capability is a guess if /proc was not there when the
// program started. Therefore every change is followed by a look at what the
// thread really has.

// capNames has the names by number.
func capNames() []string {
	caps := capability.List()
	names := make([]string, len(caps))
	for _, c := range caps {
		if int(c) < len(names) {
			names[c] = "cap_" + c.String()
		}
	}
	return names
}

// KeepCaps decides whether the calling thread keeps its permitted capabilities
// when it changes from uid 0 to another one; execve clears it. Linux 2.2.18;
// PR_SET_KEEPCAPS(2const).
func KeepCaps(on bool) error {
	var v uintptr
	if on {
		v = 1
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, v, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot set keepcaps: %w", err)
	}
	return nil
}

// DropBounding takes from the bounding set of the calling thread every
// capability the kernel has but keep, for good: no execve can then give it. It
// needs CAP_SETPCAP, unless there is nothing to drop. A capability in keep that
// is not in the set any more cannot come back and is an error. Linux 2.6.25;
// capabilities(7).
func DropBounding(keep CapSet) error {
	if err := dropBounding(keep); err != nil {
		return fmt.Errorf("cannot make %s the capability bounding set: %w", keep, err)
	}
	return nil
}

func dropBounding(keep CapSet) error {
	all, err := kernelCapabilities()
	if err != nil {
		return err
	}
	if err := checkKernelHas(keep, all); err != nil {
		return err
	}
	before, err := ownStatus()
	if err != nil {
		return err
	}
	if lost := keep &^ before.Bnd; lost != 0 {
		return fmt.Errorf("%s is not in the bounding set of this process: allow it in whatever starts it "+
			"(systemd: CapabilityBoundingSet=)", lost)
	}
	if before.Bnd == keep {
		return nil
	}
	if !before.Eff.Has(unix.CAP_SETPCAP) {
		return fmt.Errorf("%w: dropping %s needs CAP_SETPCAP (start as root)", unix.EPERM, before.Bnd&^keep)
	}
	if err := applyCaps(keep, capability.BOUNDS); err != nil {
		return err
	}
	after, err := ownStatus()
	if err != nil {
		return err
	}
	return same("bounding", after.Bnd, keep)
}

// SetCapabilities makes keep the permitted, effective, inheritable and ambient
// capabilities of the calling thread, exactly; a program without file
// capabilities then starts with keep as a user other than root. Capabilities
// that the thread does not have in its permitted set cannot be had. Linux 4.3;
// capabilities(7).
func SetCapabilities(keep CapSet) error {
	if err := setCapabilities(keep); err != nil {
		return fmt.Errorf("cannot make %s the capabilities: %w", keep, err)
	}
	return nil
}

func setCapabilities(keep CapSet) error {
	all, err := kernelCapabilities()
	if err != nil {
		return err
	}
	if err := checkKernelHas(keep, all); err != nil {
		return err
	}
	// First the ambient set: what was inherited goes in any case.
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot clear the ambient set: %w", err)
	}
	if err := applyCaps(keep, capability.CAPS); err != nil {
		return fmt.Errorf("%w: it is not in the permitted set (keepcaps before the change of user, and the bounding set)", err)
	}
	for n := range 64 {
		if !keep.Has(n) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(n), 0, 0); err != nil {
			return fmt.Errorf("cannot raise %s in the ambient set: %w (a securebit may forbid it)", CapSet(1)<<n, err)
		}
	}
	after, err := ownStatus()
	if err != nil {
		return err
	}
	return errors.Join(same("permitted", after.Prm, keep), same("effective", after.Eff, keep),
		same("inheritable", after.Inh, keep), same("ambient", after.Amb, keep))
}

// applyCaps hands one kind of sets to gocapability for the calling thread.
func applyCaps(keep CapSet, kind capability.CapType) error {
	c, err := capability.NewPid2(0)
	if err != nil {
		return err
	}
	for n := range 64 {
		if keep.Has(n) {
			c.Set(kind, capability.Cap(n))
		}
	}
	return c.Apply(kind)
}

// kernelCapabilities has a bit for every capability of the running kernel.
func kernelCapabilities() (CapSet, error) {
	const file = "/proc/sys/kernel/cap_last_cap" // Linux 3.2
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("cannot read the number of capabilities: %w", err)
	}
	last, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || last < 0 || last > 63 {
		return 0, fmt.Errorf("cannot read the number of capabilities: %s has %q", file, text)
	}
	return ^CapSet(0) >> (63 - last), nil
}

// ownStatus reads the status of the calling thread.
func ownStatus() (Status, error) { return ReadStatus(context.Background(), 0) }

func same(name string, got, want CapSet) error {
	if got != want {
		return fmt.Errorf("the %s set is %s after it, want %s", name, got, want)
	}
	return nil
}
