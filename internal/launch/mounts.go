package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/mounts"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// The modes of mounts.
const (
	MountsOff       = "off"       // the same as ""; the service shares the caller's
	MountsPreferred = "preferred" // without, if the kernel is too old
	MountsRequired  = "required"
)

// Mounts says what a service sees of the file system.
type Mounts struct {
	Mode string
	// Paths lack the program, the helpers, their interpreters and their loaders;
	// they are added to what is executed.
	Paths mounts.Spec
	// Programs are executed from as well by a service that complains: what it
	// would be denied to execute has to work.
	Programs []string
}

// Off says whether the service is to share the caller's mounts.
func (m Mounts) Off() bool { return m.Mode == "" || m.Mode == MountsOff }

// mountStage is what the checks prepared for the step.
type mountStage struct {
	layout  mounts.Layout
	service string
}

// checkMounts finds the places, which changes nothing yet. The stage is nil where the
// service goes without.
func checkMounts(ctx context.Context, spec Spec, self sandbox.Status) (*mountStage, error) {
	switch spec.Mounts.Mode {
	case "", MountsOff:
		return nil, nil
	case MountsPreferred, MountsRequired:
	default:
		return nil, fmt.Errorf("mounts mode %q: use %s, %s or %s", spec.Mounts.Mode, MountsRequired, MountsPreferred, MountsOff)
	}
	err := mounts.Supported()
	if errors.Is(err, mounts.ErrUnsupported) && spec.Mounts.Mode == MountsPreferred {
		return nil, nil
	}
	if err == nil && capability(unix.CAP_SYS_ADMIN)&^self.Eff != 0 {
		err = errors.New("mounts cannot be changed without CAP_SYS_ADMIN: add it to what starts this process (systemd: CapabilityBoundingSet=)")
	}
	if err != nil {
		return nil, fmt.Errorf("%w; or set services.%s.mounts.mode to %s to start without this layer", err, spec.Service, optionalMode(err))
	}
	score, err := oomScore(spec)
	if err != nil {
		return nil, err
	}
	layout, err := mountLayout(ctx, spec, mountedFor{complains: spec.Complain.At(time.Now()), sealProc: score == 0})
	if err != nil {
		return nil, err
	}
	return &mountStage{layout, spec.Service}, checkMountedCode(layout.Exec())
}

// optionalMode is the mode that does without what is missing.
func optionalMode(err error) string {
	if errors.Is(err, mounts.ErrUnsupported) {
		return MountsPreferred
	}
	return MountsOff
}

// checkMountedCode refuses code that anyone but root could have put there. What is
// not there is passed over.
func checkMountedCode(paths []string) error {
	for _, path := range paths {
		place, err := filepath.EvalSymlinks(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot look at %s: %w", path, err)
		}
		for at := place; ; at = filepath.Dir(at) {
			var st unix.Stat_t
			if err := unix.Lstat(at, &st); err != nil {
				return fmt.Errorf("cannot look at %s: %w", at, err)
			}
			if err := ancestorFault(at, st); err != nil {
				return fmt.Errorf("%s is to be executed: %w", path, err)
			}
			if at == "/" {
				break
			}
		}
	}
	return nil
}

// enter changes the calling thread's mounts and asks the kernel what came of it.
func (s *mountStage) enter(ctx context.Context, sockets int) error {
	if s == nil {
		return nil
	}
	var foreign []int
	for fd := range firstPassed + sockets {
		err := mounts.Quiet(fd)
		if errors.Is(err, mounts.ErrForeign) {
			foreign = append(foreign, fd)
		} else if err != nil {
			return err
		}
	}
	const namespace = "/proc/thread-self/ns/mnt"
	before, err := os.Readlink(namespace)
	if err != nil {
		return fmt.Errorf("cannot read the mount namespace: %w", err)
	}
	if err := s.layout.Enter(); err != nil {
		return err
	}
	for _, fd := range foreign {
		if err := mounts.QuietByPath(fd); err != nil {
			return err
		}
	}
	after, err := os.Readlink(namespace)
	if err != nil {
		return fmt.Errorf("cannot read the mount namespace: %w", err)
	}
	if after == before {
		return fmt.Errorf("the mount namespace is %s as before", after)
	}
	return s.readBack(ctx)
}

// readBack compares the calling thread's mounts with what was asked for.
func (s *mountStage) readBack(ctx context.Context) error {
	table, err := mounts.ReadTable(ctx, 0)
	if err != nil {
		return err
	}
	var faults []string
	for _, r := range s.layout.Check(table) {
		if !r.OK {
			faults = append(faults, fmt.Sprintf("%s: %s, not %s", r.Check, r.Got, r.Want))
		}
	}
	if len(faults) > 0 {
		return fmt.Errorf("the mounts are not as they were made: %s: look at who mounts something on this host at the moment, then start the service again",
			strings.Join(faults, "; "))
	}
	return nil
}

// MountState is what the kernel says of the mounts of a live process.
type MountState struct {
	Mode   string
	Own    bool // it has mounts of its own, whatever they are
	layout mounts.Layout
	table  mounts.Table
}

// ReadMounts reads what a process has mounted. The error is ErrVanished if it has ended.
func ReadMounts(ctx context.Context, spec Spec, pid int) (MountState, error) {
	s := MountState{Mode: spec.Mounts.Mode}
	if spec.Mounts.Off() {
		return s, nil
	}
	var err error
	if s.Own, err = mounts.Own(ctx, pid); err == nil && s.Own {
		s.layout, s.table, err = mountsOf(ctx, spec, pid)
	}
	if errors.Is(err, os.ErrNotExist) && !processThere(pid) {
		err = ErrVanished
	}
	return s, err
}

func processThere(pid int) bool {
	return !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// RepairMounts gives the mounts of a live process the flags that they lack.
func RepairMounts(ctx context.Context, spec Spec, pid int) error {
	layout, _, err := mountsOf(ctx, spec, pid)
	if err != nil {
		return err
	}
	return layout.Repair(ctx, pid)
}

// MountsRepairable says whether a finding of the layer is of flags, which can be put
// back while the service runs.
func MountsRepairable(f Finding) bool {
	return f.Layer == LayerMounts && slices.Contains([]string{"noexec", "nosuid", "nodev", "read-only"}, f.Check)
}

// Accepted says whether a process shares the host's mounts and may.
func (s MountState) Accepted() bool { return s.Mode == MountsPreferred && !s.Own }

// Findings are for each process of a service.
func (s MountState) Findings(pid int) []Finding {
	const want = "of its own"
	f := Finding{PID: pid, Layer: LayerMounts, Check: "namespace", Want: want, Got: want, OK: true}
	switch {
	case s.Mode == "" || s.Mode == MountsOff:
		return nil
	case s.Accepted():
		f.Want, f.Got = MountsPreferred, "not enforced: it has the host's mounts"
		return []Finding{f}
	case !s.Own:
		f.Got, f.OK = "the host's", false
		return []Finding{f}
	}
	out := []Finding{f}
	for _, r := range s.layout.Check(s.table) {
		out = append(out, Finding{PID: pid, Layer: LayerMounts, Check: r.Check, Want: r.Want, Got: r.Got, OK: r.OK})
	}
	return out
}
