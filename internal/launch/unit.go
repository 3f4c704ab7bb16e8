package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/mounts"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// A launch without privileges is one that a unit has confined already: systemd has
// changed the user, taken the capabilities and made the mounts. It gives nothing away,
// since it has nothing. What needs privileges elsewhere it looks at, and refuses with the
// directive that is missing; Landlock and its own filter it loads itself, which any
// process may under no_new_privs.

// directives are those of a unit that a finding asks for, systemd.exec(5).
var directives = map[string]string{
	"uid":          "User=",
	"gid":          "Group=",
	"groups":       "SupplementaryGroups=",
	"inheritable":  "AmbientCapabilities=",
	"permitted":    "AmbientCapabilities=",
	"effective":    "AmbientCapabilities=",
	"ambient":      "AmbientCapabilities=",
	"bounding":     "CapabilityBoundingSet=",
	"no_new_privs": "NoNewPrivileges=yes",
	"noexec":       "NoExecPaths=",
	"read-only":    "ProtectSystem=strict and ReadOnlyPaths=",
	"hidden":       "InaccessiblePaths=",
	"devices":      "PrivateDevices=yes",
}

// unitFault says what a process that is not root's lacks to be the service as it is.
func unitFault(self sandbox.Status, id Identity, keep sandbox.CapSet) error {
	var lacks []string
	for _, f := range compareStatus(self, id, keep, unix.CAP_LAST_CAP) {
		if !f.OK {
			lacks = append(lacks, fmt.Sprintf("%s (%s is %s, want %s)", directives[f.Check], f.Check, f.Got, f.Want))
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	return fmt.Errorf("running as uid %d, not as root, so what starts this process has to have confined it: "+
		"correct these in the unit, or have it start the launch as root: %s", self.UIDs[1], strings.Join(lacks, "; "))
}

// unitMountsFault compares the mounts that a unit has made with what the service is to
// have. They cannot be changed here any more.
// executed are the program, the helpers and what they need.
func unitMountsFault(l mounts.Layout, t mounts.Table, executed []string, spec Spec) error {
	var errs []error
	for _, r := range l.Check(t) {
		if !r.OK {
			errs = append(errs, fmt.Errorf("%s in the unit: %s has to hold %s, and is %s", directives[r.Check], r.Check, r.Want, r.Got))
		}
	}
	for _, path := range executed {
		if m, ok := t.At(path); !ok || m.Has("noexec") {
			errs = append(errs, fmt.Errorf("ExecPaths=%s and BindReadOnlyPaths=%s in the unit: it cannot be executed", path, path))
		}
	}
	if m, ok := t.At(spec.DataDir); spec.DataDir != "" && (!ok || m.Has("ro")) {
		errs = append(errs, fmt.Errorf("ReadWritePaths= and NoExecPaths= in the unit: %s is read-only", spec.DataDir))
	}
	return errors.Join(errs...)
}

// checkUnitMounts is checkMounts for a launch that cannot make any.
func checkUnitMounts(ctx context.Context, spec Spec, launcher string) error {
	if spec.Mounts.Off() {
		return nil
	}
	layout, err := mountLayout(ctx, spec, mountedFor{unit: launcher})
	if err != nil {
		return err
	}
	table, err := mounts.ReadTable(ctx, 0)
	if err != nil {
		return err
	}
	executed, err := executables(spec)
	if err != nil {
		return err
	}
	for i, path := range executed {
		if executed[i], err = filepath.EvalSymlinks(path); err != nil {
			return fmt.Errorf("cannot learn where %s leads: %w", path, err)
		}
	}
	if err := unitMountsFault(layout, table, executed, spec); err != nil {
		return fmt.Errorf("%w; or set services.%s.mounts.mode to %s to start without this layer", err, spec.Service, MountsOff)
	}
	return checkMountedCode(layout.Exec())
}

// checkUnit finds what a unit has not done. The launch's own program is the one thing
// that is executable beside the service's.
func (p *prepared) checkUnit(ctx context.Context, spec Spec, self sandbox.Status) error {
	if !p.unit {
		return ctx.Err()
	}
	if err := unitFault(self, p.identity, spec.Capabilities); err != nil {
		return err
	}
	var err error
	if p.launcher, err = os.Executable(); err != nil {
		return fmt.Errorf("cannot learn what this program is: %w", err)
	}
	if spec.RecordDir == "" {
		return errors.New("there is no directory for the record of the launch")
	}
	return checkUnitRecord(unitRecordPath(spec.RecordDir, spec.Service))
}

// checkUnitRecord wants standard output to be the file for the record: root's, in a
// directory of root's, opened by systemd before it gave root away. A file that the service
// could have made itself would be worth nothing, and one that it still holds afterwards as well.
func checkUnitRecord(path string) error {
	fix := fmt.Sprintf("in the unit, set StandardOutput=truncate:%s and StandardError=journal, and have %s made before (0700, root)", path, filepath.Dir(path))
	var record unix.Stat_t
	if err := unix.Fstat(unix.Stdout, &record); err != nil {
		return fmt.Errorf("cannot look at standard output, where the record of the launch goes: %w: %s", err, fix)
	}
	at, err := os.Readlink("/proc/self/fd/1")
	if err != nil {
		return fmt.Errorf("cannot look at standard output, where the record of the launch goes: %w", err)
	}
	switch {
	case record.Mode&unix.S_IFMT != unix.S_IFREG || at != path:
		return fmt.Errorf("standard output is %s, and nothing else tells the agent what the launch has probed: %s", at, fix)
	case record.Uid != 0 || record.Mode&0o077 != 0:
		return fmt.Errorf("%s is uid %d's with mode %#o, so the service could write to it: remove it; %s", path, record.Uid, record.Mode&0o777, fix)
	case record.Size != 0:
		return fmt.Errorf("%s has something in it already: %s", path, fix)
	}
	if fd, err := unix.Open("/proc/self/fd/1", unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
		_ = unix.Close(fd) // nothing was written
		return fmt.Errorf("this process can open %s by itself, so its record would prove nothing: %s", path, fix)
	}
	for _, fd := range []int{unix.Stdin, unix.Stderr} {
		var other unix.Stat_t
		if err := unix.Fstat(fd, &other); err != nil {
			return fmt.Errorf("cannot look at descriptor %d: %w: %s", fd, err, fix)
		}
		if other.Dev == record.Dev && other.Ino == record.Ino {
			return fmt.Errorf("descriptor %d is the record of the launch too, and would stay open in the service: %s", fd, fix)
		}
	}
	return nil
}

// checkUnitDescriptors refuses directories: a path leads from them to mounts that are not
// the service's.
func checkUnitDescriptors(sockets int) error {
	for fd := range firstPassed + sockets {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("cannot look at descriptor %d: %w", fd, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return fmt.Errorf("descriptor %d is a directory, from which the service could reach mounts of others: take it out of what starts this process", fd)
		}
	}
	return nil
}

// checkUnitScore compares, since a score can be raised here at most.
func checkUnitScore(ctx context.Context, want *int) error {
	if want == nil {
		return nil
	}
	have, err := readOOMScore(ctx, os.Getpid())
	if err == nil && have != *want {
		err = fmt.Errorf("oom_score_adj is %d, want %d: set OOMScoreAdjust=%d in the unit", have, *want, *want)
	}
	return err
}

// ofUnit leaves out what the server's size would ask for: nobody writes that to the group
// of a unit.
func (c Cgroup) ofUnit() Cgroup {
	if c.DefaultTasks {
		c.Want.TasksMax = 0
	}
	return c
}

// checkUnit compares the unit's group with what is asked for. It is the service
// manager's to write to.
func (s *cgroupStage) checkUnit(ctx context.Context) (*cgroupRecord, error) {
	if s == nil {
		return nil, nil
	}
	plan := s.plan
	plan.Groups = slices.Clone(plan.Groups)
	for i := range plan.Groups {
		if plan.Groups[i].Base != "" {
			return nil, fmt.Errorf("the unit delegates %s, which this process may not write to: take Delegate= out of the unit and use its own MemoryMax=, TasksMax= and the like",
				plan.Groups[i].Base)
		}
	}
	made := plan.Make(ctx)
	return &cgroupRecord{Unit: true, Groups: made.Groups, Missing: made.Missing}, s.refuse(made.Missing)
}

// ungated says of a process that a unit has started that the exec gate is not there, which
// is no fault: it needs a privilege at the launch.
func ungated(spec Spec, pid int) []Finding {
	if spec.Seccomp.ExecBelow() == 0 && !slices.Contains(spec.Seccomp.Features(), featureOpenExec) {
		return nil
	}
	return []Finding{{PID: pid, Layer: layerSeccomp, Check: "exec gate", Want: "none without CAP_SYS_RAWIO at the launch",
		Got: "not enforced: Landlock and mounts without exec stop executions", OK: true}}
}
