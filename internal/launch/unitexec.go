package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// unitSteps is the order of a launch without privileges. What steps() does as root is
// looked at here, or was in prepare.
func unitSteps(ctx context.Context, spec Spec, p *prepared) []step {
	record := unitRecord{startRecord: startRecord{Filters: p.filters, Launcher: p.launcher}}
	return []step{
		// Whatever else runs as the service's user must not write the record in its name.
		// execve takes it back.
		{StepUnit, func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }},

		// What a service creates is its own unless it says otherwise.
		{StepUmask, func() error { unix.Umask(0o077); return nil }},

		{StepEnterCgroup, func() (err error) {
			record.Cgroup, err = p.cgroup.checkUnit(ctx)
			return err
		}},
		{StepOOMScore, func() error { return checkUnitScore(ctx, spec.OOMScoreAdj) }},
		{StepCwd, func() error { return enter(spec.DataDir, p.identity) }},

		// Lower than the unit's any process may set them.
		{StepSetLimits, func() error { return setLimits(ctx, spec.Limits) }},

		// Before Landlock, which could keep it from procfs.
		{StepSELinuxLabel, p.selinux.set},

		// Was checked; set once more it costs nothing, and what follows relies on it.
		{StepNoNewPrivs, sandbox.NoNewPrivs},
		{StepReadBack, func() error { return readBack(ctx, p.identity, spec.Capabilities) }},

		// Procfs is out of reach behind Landlock.
		{StepRecord, func() error { return record.identify(ctx, spec) }},
		{StepLandlockLoad, p.landlock.enforce},

		// After the probes that it tells of, and before the service's program could write to it.
		{StepRecord, func() error { return record.leave(p.landlock) }},

		// The rest is that of every launch.
		{StepSignals, resetSignals},
		{StepDescriptors, func() error {
			return errors.Join(checkUnitDescriptors(p.environment.sockets), closeDescriptors(p.environment.sockets))
		}},
		{StepSeccompLoad, func() error { return p.loadFilter(spec.LogDenied) }},
		{StepExec, func() error { return execute(spec, nil, p.environment.vars) }},
	}
}

// unitRecord is all that a launch without privileges leaves, in one file, which only
// standard output leads to. Its directory is that of records of other launches.
type unitRecord struct {
	startRecord
	Landlock *launchRecord  `json:"landlock,omitempty"`
	Profile  *ProfileRecord `json:"profile,omitempty"`
	Cgroup   *cgroupRecord  `json:"cgroup,omitempty"`
}

func unitRecordPath(dir, service string) string { return filepath.Join(dir, service+".json") }

// identify binds all parts to this process.
func (r *unitRecord) identify(ctx context.Context, spec Spec) error {
	id, err := identify(ctx, os.Getpid())
	if err != nil {
		return fmt.Errorf("cannot tell which process this is: %w", err)
	}
	r.processID = id
	profile := spec.Features
	profile.processID, profile.Time, profile.Unit = id, time.Now().UTC().Truncate(time.Second), true
	r.Profile = &profile
	if r.Cgroup != nil {
		r.Cgroup.processID = id
	}
	return nil
}

// leave writes the record and gives the file away: the service's standard output is its
// standard error from here on.
func (r *unitRecord) leave(landlock *landlockStage) error {
	if landlock != nil {
		probed := landlock.launch
		probed.processID = r.processID
		r.Landlock = &probed
	}
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("cannot write the record of the launch: %w", err)
	}
	if _, err := unix.Write(unix.Stdout, append(data, '\n')); err != nil {
		return fmt.Errorf("cannot write the record of the launch: %w", err)
	}
	if err := unix.Dup3(unix.Stderr, unix.Stdout, 0); err != nil {
		return fmt.Errorf("cannot take the record of the launch away from the service: %w", err)
	}
	return nil
}

// readLaunch reads a part of what the launch of one process has left: in a file of its
// own in dir, or in that of its unit, beside dir.
func readLaunch(dir, service string, id processID, part string, into any) bool {
	if data, err := readSmall(recordPath(dir, service, id.PID)); err == nil && isOf(data, id) {
		return json.Unmarshal(data, into) == nil
	}
	data, err := readSmall(unitRecordPath(filepath.Join(filepath.Dir(dir), RecordsDir), service))
	if err != nil || !isOf(data, id) {
		return false
	}
	if part == "" {
		return json.Unmarshal(data, into) == nil
	}
	var parts map[string]json.RawMessage
	if json.Unmarshal(data, &parts) != nil || !isOf(parts[part], id) {
		return false
	}
	return json.Unmarshal(parts[part], into) == nil
}

func isOf(data []byte, id processID) bool {
	var of processID
	return json.Unmarshal(data, &of) == nil && of == id
}
